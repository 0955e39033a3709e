"""Pictures in zip archives: read where they lie, whatever the archive is like, and refused in one line."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
from tinyformats import png

from pitune.errors import PituneError
from pitune.tasks import zips
from pitune.tasks.pictures import Picture
from pitune.tasks.zips import PictureZip

NAME = "a b/ü.png"


def packed(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED, before: bytes = b"") -> Path:
    with path.open("w+b") as stream:
        stream.write(before)
        with zipfile.ZipFile(stream, "a") as archive:
            archive.writestr("first.txt", "first")
            archive.writestr(zipfile.ZipInfo(NAME), content, method)
    return path


def picture(path: Path) -> Picture:
    with PictureZip(path, "index: line 1") as archive:
        return archive.picture(NAME, "index: line 1")


def refusal(path: Path) -> str:
    with pytest.raises(PituneError) as error:
        picture(path)
    assert "\n" not in str(error.value) and str(error.value).startswith("index: line 1: ")
    return str(error.value)


@pytest.mark.parametrize("before", [b"", b"something else is in front of the archive"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_picture_is_read_where_it_lies(tmp_path: Path, method: int, before: bytes) -> None:
    content = png(7) + b"\0" * 1000  # worth deflating
    found = picture(packed(tmp_path / "a.zip", content, method, before))
    assert found.read() == content and (found.inflated is None) == (method == zipfile.ZIP_STORED)
    assert found.place == f"{tmp_path / 'a.zip'}: member {NAME}"
    assert found.pixels().getpixel((0, 0)) == (7, 0, 0)


def test_the_field_of_the_header_is_not_that_of_the_directory(tmp_path: Path) -> None:
    """Zip tools write another extra field in front of a member than in the directory."""
    info = zipfile.ZipInfo(NAME)
    info.extra = struct.pack("<HHBI", 0x5455, 5, 1, 0)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, png(3))
        info.extra = b""
    assert picture(tmp_path / "a.zip").read() == png(3)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    assert "is neither stored nor deflated; pack it anew" in refusal(packed(tmp_path / "a.zip", png(1), method))


def test_what_is_empty_large_encrypted_or_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is empty" in refusal(packed(tmp_path / "a.zip", b""))
    path = packed(tmp_path / "a.zip", png(1))
    whole = path.read_bytes()
    monkeypatch.setattr(zips, "LARGEST", 10)
    assert "says that it has 0 MiB; no picture is that large" in refusal(path)
    monkeypatch.undo()
    directory = whole.index(b"PK\1\2", whole.index(b"PK\1\2") + 1)
    path.write_bytes(whole[: directory + 8] + b"\1" + whole[directory + 9 :])
    assert "cannot be read (" in refusal(path)  # encrypted
    start = picture(packed(tmp_path / "b.zip", png(1))).start
    path.write_bytes(whole[: start + 9] + bytes([whole[start + 9] ^ 255]) + whole[start + 10 :])
    assert "cannot be read (" in refusal(path)  # a byte is another one
    path.write_bytes(whole[:-30])
    assert "cannot be read as a zip archive (File is not a zip file)" in refusal(path)


def test_what_changes_later_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", png(1))
    found = picture(path)
    whole = path.read_bytes()
    assert found.size is not None
    path.write_bytes(whole[: found.start] + b"\xff" * found.size + whole[found.start + found.size :])
    with pytest.raises(PituneError, match="the picture cannot be read"):
        found.read()
    packed(path, png(2))
    with pytest.raises(PituneError, match="is not the picture that it was"):
        found.read()
