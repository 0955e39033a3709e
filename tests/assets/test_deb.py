"""Debian packages: made by hand and read as they are, and brought by apt from lists of this test's own."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from handmade import ar, deb, link, refusal, sha, tarred

from pitune.assets import archives, fetch

FILES = {"./usr/share/toy/a.txt": b"found", "./usr/share/toy/d/b.txt": b"b"}
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not on this machine")


def plain_tar(*others: tarfile.TarInfo) -> bytes:
    return gzip.decompress(tarred(FILES, *others))


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


# --- the format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("data.tar", plain_tar()),
        ("data.tar.gz", tarred(FILES)),
        ("data.tar.xz/", lzma.compress(plain_tar())),
        ("data.tar.lzma", lzma.compress(plain_tar(), lzma.FORMAT_ALONE)),
        ("data.tar.bz2", bz2.compress(plain_tar())),
        ("data.tar.zst", zstd(plain_tar())),
    ],
    ids=["tar", "gz", "xz", "lzma", "bz2", "zst"],  # the bytes would be names, and those of a gz tell the time
)
def test_a_local_package_however_it_is_compressed(tmp_path: Path, cache: Path, name: str, data: bytes) -> None:
    (tmp_path / "toy.deb").write_bytes(deb(data, name))
    assert fetch(f"{tmp_path}/toy.deb#usr/share/toy/a.txt").path.read_bytes() == b"found"
    folder = fetch(f"{tmp_path}/toy.deb#.").path
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.txt")} == {n[2:] for n in FILES}
    assert "inside toy.deb; there are usr/share/toy/a.txt" in refusal(f"{tmp_path}/toy.deb#usr/share/toy/a.text")
    (tmp_path / "toy.deb").write_bytes(deb(data, name)[:-60])
    assert "toy.deb is a damaged archive" in refusal(f"{tmp_path}/toy.deb#usr/share/toy/a.txt")


def test_links_stay_inside_the_package(tmp_path: Path, cache: Path) -> None:
    links = [
        link("./usr/share/toy/near", "d/b.txt"),
        link("./usr/share/toy/far", "/usr/share/toy/near"),
        link("./usr/share/toy/hard", "./usr/share/toy/a.txt", tarfile.LNKTYPE),
        link("./usr/share/toy/up", "../../../../../../usr/share/toy/a.txt"),
        link("./usr/share/toy/passwd", "/etc/passwd"),
        link("./usr/share/toy/out", "../../../../../../../etc/passwd"),
        link("./usr/share/toy/folder", "d"),
        link("./usr/share/toy/round", "round"),
    ]
    (tmp_path / "toy.deb").write_bytes(deb(tarred(FILES, *links)))
    folder = fetch(f"{tmp_path}/toy.deb#usr/share/toy").path
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "a.txt": b"found", "d/b.txt": b"b", "near": b"b", "far": b"b", "hard": b"found", "up": b"found"
    }  # fmt: skip
    assert not any(p.is_symlink() for p in folder.rglob("*"))
    assert "no 'usr/share/toy/passwd' inside toy.deb" in refusal(f"{tmp_path}/toy.deb#usr/share/toy/passwd")


@pytest.mark.parametrize(
    "member", [link("../../evil.txt", "a"), link("/evil.txt", "a"), link("./fifo", "", tarfile.FIFOTYPE)]
)
def test_what_escapes_or_is_no_file_is_refused(tmp_path: Path, cache: Path, member: tarfile.TarInfo) -> None:
    (tmp_path / "toy.deb").write_bytes(deb(tarred(FILES, member)))
    assert "refused" in refusal(f"{tmp_path}/toy.deb#usr/share/toy/a.txt")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (ar({"debian-binary": b"2.0\n"}), "it has no data.tar"),
        (ar({"data.tar.lz": b"LZIP"}), "its data.tar.lz is compressed in a way that is not known"),
        (ar({"data.tar.zst": b"no such thing"}), "its data.tar.zst"),
        (ar({"data.tar.gz": b"no such thing"}), "its data.tar.gz"),
        (ar({"data.tar": b"no such thing"}), "damaged"),
        (ar({"control.tar": b"1" * 100})[:120], "it ends too early"),
        (b"!<arch>\n" + b"x" * 80, "it has no data.tar"),
    ],
)
def test_a_damaged_package_is_one_line(tmp_path: Path, cache: Path, data: bytes, text: str) -> None:
    (tmp_path / "toy.deb").write_bytes(data)
    found = refusal(f"{tmp_path}/toy.deb#usr")
    assert "toy.deb is a damaged archive" in found and text in found


@pytest.mark.parametrize("pack", [zstd, lzma.compress])
def test_an_archive_bomb_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, pack: Any) -> None:
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    monkeypatch.setattr(archives, "MOST_GROWTH", 0)
    (tmp_path / "bomb.deb").write_bytes(deb(pack(bytes(3 << 20)), f"data.tar.{'zst' if pack is zstd else 'xz'}"))
    assert "refused, bomb.deb unpacks to more than 1 MiB" in refusal(f"{tmp_path}/bomb.deb#zeros")
    assert not list((cache / "work").iterdir())


# --- an apt that says what it is told ------------------------------------------------------------------------------


@pytest.fixture
def apt(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the one package that an ``apt-get`` and ``apt-cache`` of ours know; they note what was asked."""
    folder = tmp_path / "apt"
    folder.mkdir()
    (folder / "toy_1%3a1.0_all.deb").write_bytes(deb(tarred(FILES)))
    (folder / "says").write_text(f"'http://mirror/toy.deb' toy_1%3a1.0_all.deb 1 SHA256:{sha(deb(tarred(FILES)))}\n")
    script = f'#!/bin/sh\nhere="{folder}"\necho "$@" >> "$here/asked"\n' + (
        'case "$*" in\n'
        '  *--print-uris*toy*) cat "$here/says" ;;\n'
        '  *download*toy*) cp "$here"/*.deb . ;;\n'
        "  *indextargets*) echo lists ;;\n"
        '  *madison*toy*) echo "  toy | 1:1.0 | http://mirror Packages" ;;\n'
        '  *) echo "E: no such thing" >&2; exit 100 ;;\n'
        "esac\n"
    )
    for name in ("apt-get", "apt-cache"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_the_second_fetch_needs_no_apt(apt: Path) -> None:
    first = fetch("deb:toy#usr/share/toy/a.txt")
    assert first.path.read_bytes() == b"found"
    asked = (apt / "asked").read_text()
    assert asked.splitlines() == ["--print-uris download toy", "--quiet download toy"]
    assert fetch("deb:toy#usr/share/toy/a.txt") == first
    assert fetch("deb:toy#usr/share/toy/d/b.txt").path.read_bytes() == b"b"
    assert (apt / "asked").read_text() == asked
    assert fetch("deb:toy==1:1.0#usr/share/toy/a.txt").sha256 == first.sha256
    assert (apt / "asked").read_text().endswith("--quiet download toy=1:1.0\n")


def test_spoilt_content_is_found_out_and_made_anew(apt: Path, cache: Path) -> None:
    path = fetch("deb:toy#usr/share/toy/a.txt").path
    for file in [path, *cache.rglob("toy_*.deb")]:
        file.write_bytes(b"spoilt")
    assert fetch("deb:toy#usr/share/toy/a.txt").path.read_bytes() == b"found"
    assert (apt / "asked").read_text().count("--quiet download toy") == 2


def test_a_wrong_checksum_keeps_nothing(apt: Path, cache: Path) -> None:
    (apt / "toy_1%3a1.0_all.deb").write_bytes(deb(tarred({"./evil": b""})))
    text = refusal("deb:toy#usr/share/toy/a.txt")
    assert "toy_1%3a1.0_all.deb has the sha256" in text and "it was not kept" in text
    assert not (cache / "content").exists() and not list((cache / "work").iterdir())


def test_what_apt_does_not_have(apt: Path) -> None:
    assert "no package absent in apt's lists" in refusal("deb:absent")
    (apt / "says").write_text("")
    assert "no version 2.0 of toy; there are 1:1.0" in refusal("deb:toy==2.0")
    assert "apt failed (it gave no file with a sha256)" in refusal("deb:toy")
    for wrong in ("deb:Toy", "deb:-o", "deb:toy==", "deb:toy==-1", "deb:toy=1", "deb:a/b"):
        assert "is not of the form deb:NAME or deb:NAME==VERSION" in refusal(wrong)
    (apt / "says").write_text(f"'http://mirror/toy.deb' toy_2.0_all.deb 1 SHA256:{'0' * 64}\n")
    assert "download of toy_2.0_all.deb failed" in refusal("deb:toy")


def test_without_apt(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get is not on this machine" in refusal("deb:toy")


# --- the real apt --------------------------------------------------------------------------------------------------


@pytest.fixture
def lists(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is a source of packages, and an apt that knows no other."""
    (tmp_path / "source").mkdir()
    for folder in ("etc/apt", "lists/partial", "cache/archives/partial"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    (tmp_path / "root" / "status").touch()
    (tmp_path / "root" / "sources.list").write_text(f"deb [trusted=yes] copy:{tmp_path}/source ./\n")
    (tmp_path / "root" / "apt.conf").write_text(
        f'Dir "{tmp_path}/root";\nDir::State "{tmp_path}/root";\nDir::State::status "{tmp_path}/root/status";\n'
        f'Dir::Cache "{tmp_path}/root/cache";\nDir::Etc::sourcelist "{tmp_path}/root/sources.list";\n'
        'APT::Architecture "amd64";\nAPT::Architectures "amd64";\nAPT::Sandbox::User "root";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "root" / "apt.conf"))
    return tmp_path / "source"


@needs_apt
def test_the_real_apt(lists: Path) -> None:
    data = deb(tarred(FILES))
    (lists / "toy_1.0_all.deb").write_bytes(data)
    (lists / "Packages").write_text(
        "Package: toy\nVersion: 1.0\nArchitecture: all\nMaintainer: me\nDescription: toy\n"
        f"Filename: ./toy_1.0_all.deb\nSize: {len(data)}\nSHA256: {sha(data)}\n"
    )
    assert "apt has no lists of packages here; run `apt-get update` first" in refusal("deb:toy")
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)
    assert fetch("deb:toy#usr/share/toy/a.txt").path.read_bytes() == b"found"
    assert "no version 2.0 of toy; there are 1.0" in refusal("deb:toy==2.0")
    assert "no package absent in apt's lists" in refusal("deb:absent")
    (lists / "toy_1.0_all.deb").write_bytes(deb(tarred({"./evil": b""})))
    assert "download of toy_1.0_all.deb failed" in refusal("deb:toy==1.0#evil")
