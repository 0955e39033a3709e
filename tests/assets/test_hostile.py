"""Archives made to harm, and archives damaged at random: what is in them, or one line."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import deb, tarred, zipped

from pitune.assets import archives, fetch
from pitune.errors import PituneError
from pitune.tasks.readers import Columns, read_rows
from pitune.tasks.zips import PictureZip

LOOK = Columns("cls", "txt", "png")


def header(kind: bytes, size: int, content: bytes = b"") -> bytes:
    """A tar with one header of this type that says so many bytes, and fewer behind it."""
    info = tarfile.TarInfo("a.json")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + content.ljust(512, b"\0") + bytes(1024)


def with_holes(size: int) -> bytes:
    """A tar with a sparse file of 512 bytes that says it has ``size``."""
    made = bytearray(header(tarfile.GNUTYPE_SPARSE, 512, b"{}"))
    for place, number in ((386, 0), (398, 512), (483, size)):
        made[place : place + 12] = tarfile.itn(number, 12, tarfile.GNU_FORMAT)
    made[148:156] = b"        "
    made[148:155] = b"%06o\0" % sum(made[:512])
    return bytes(made)


def with_facts(**facts: str) -> bytes:
    """A tar with a file of which a list of further facts says something else than its own header."""
    info = tarfile.TarInfo("a.json")
    info.pax_headers = {name.replace("_", "."): value for name, value in facts.items()}
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


TARS = {
    "a file of 4 EiB": header(tarfile.REGTYPE, 2**62),
    "a name of 4 EiB": header(tarfile.GNUTYPE_LONGNAME, 2**62),
    "a link's name of 2 GiB": header(tarfile.GNUTYPE_LONGLINK, 2**31),
    "facts of 4 EiB": header(tarfile.XHDTYPE, 2**62),
    "facts about all of 2 GiB": header(tarfile.XGLTYPE, 2**31),
    "a negative size": header(tarfile.REGTYPE, -1024),
    "a negative size, told again": with_facts(size="-1024"),
    "holes": with_holes(2**40),
    "holes, told by facts": with_facts(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize=str(2**40)),
}


@pytest.mark.parametrize("what", TARS)
def test_a_tar_made_to_harm_is_one_line(what: str, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(TARS[what])
    for read in (lambda: fetch(f"{file}#a.json"), lambda: read_rows(file, "train", Columns("cls", "txt"))):
        with pytest.raises(PituneError) as caught:
            read()
        assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_package_whose_tar_is_made_to_harm_is_one_line(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.deb").write_bytes(deb(gzip.compress(TARS["facts of 4 EiB"])))
    with pytest.raises(PituneError, match=r"a\.deb is a damaged archive"):
        fetch(f"{tmp_path}/a.deb#a.json")


def test_a_compressed_shard_that_fills_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    monkeypatch.setattr(archives, "MOST_GROWTH", 0)
    (tmp_path / "a.tar").write_bytes(tarred({"0.txt": bytes(1 << 19), "0.cls": bytes(1 << 19), "0.png": b"x"}))
    with pytest.raises(PituneError, match="refused, it unpacks to more than 1 MiB"):
        read_rows(tmp_path / "a.tar", "train", Columns("cls", "txt"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "[]", "1" * 5_000, '{"__row__": []}'])
def test_a_sample_of_odd_json_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tarred({"0.json": text.encode()}))
    with pytest.raises(PituneError) as caught:
        read_rows(tmp_path / "a.tar", "train", Columns("cls", "txt"))
    assert "\n" not in str(caught.value)


def damaged(content: bytes, seed: int) -> bytes:
    """Cut an archive off, or change some bits, or put a part of it elsewhere."""
    dice = random.Random(seed)
    made = bytearray(content)
    way = dice.randrange(3)
    if way == 0:
        return bytes(made[: dice.randrange(len(made))])
    if way == 1:
        for _ in range(dice.randint(1, 8)):
            made[dice.randrange(len(made))] ^= 1 << dice.randrange(8)
    else:
        start, place = dice.randrange(len(made)), dice.randrange(len(made))
        part = made[start : start + dice.randint(1, 64)]
        made[place : place + len(part)] = part
    return bytes(made)


def plain(members: dict[str, bytes]) -> bytes:
    return gzip.decompress(tarred(members))


MEMBERS = {f"{n}/{n}.{end}": body for n in range(3) for end, body in (("txt", b"text"), ("cls", b"1"), ("png", b"png"))}
ARCHIVES = {
    "zip": zipped(MEMBERS),
    "tar": plain(MEMBERS | {"long" * 60 + ".txt": b"long"}),
    "tar.gz": tarred(MEMBERS),
    "deb": deb(tarred(MEMBERS)),
}


def outside(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts)


@pytest.mark.parametrize("form", ARCHIVES)
def test_archives_damaged_at_random(form: str, tmp_path: Path, cache: Path) -> None:
    refused = 0
    for seed in range(60):
        file = tmp_path / f"a{seed}.{form}"
        file.write_bytes(damaged(ARCHIVES[form], seed))
        ways = [lambda file=file: fetch(f"{file}#.")]
        if form == "tar":
            ways.append(lambda file=file: read_rows(file, "train", LOOK))
        if form == "zip":
            ways.append(lambda file=file: pictures(file))
        for way in ways:
            try:
                way()
            except PituneError as error:
                refused += 1
                assert "\n" not in str(error)
        assert list(outside(tmp_path)) == [file]
        file.unlink()
    assert refused


def pictures(file: Path) -> None:
    with PictureZip(file, "here") as archive:
        for name in MEMBERS:
            archive.picture(name, "here").read_whole()


def test_the_archives_are_whole_before(tmp_path: Path, cache: Path) -> None:
    for form, content in ARCHIVES.items():
        (tmp_path / f"a.{form}").write_bytes(content)
        found = fetch(f"{tmp_path}/a.{form}#.").path
        assert (found / "1/1.txt").read_bytes() == b"text"
    with tarfile.open(fileobj=io.BytesIO(ARCHIVES["tar"])) as tar:
        assert json.dumps(tar.getnames()).count("long") == 60
