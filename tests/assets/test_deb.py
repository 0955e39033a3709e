"""Debian packages: made by hand, read as they are."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from handmade import ar, deb, link, refusal, tarred

from pitune.assets import archives, fetch

FILES = {"./usr/share/toy/a.txt": b"found", "./usr/share/toy/d/b.txt": b"b"}


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
