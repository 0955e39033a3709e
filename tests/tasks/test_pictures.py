"""Pictures: every way that pixels may be written comes out as the same RGB, and every fault is one line."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pitune.assets.hub import PICTURE_ENDINGS
from pitune.errors import PituneError
from pitune.tasks.pictures import FORMATS, MOST_PIXELS, Picture
from pitune.tasks.task import Example

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}}
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def picture(folder: Path, content: bytes) -> Picture:
    path = folder / "picture"
    path.write_bytes(content)
    return Picture(str(path), hashlib.sha256(content).hexdigest())


def row(*values: Any, mode: str = "L") -> Image.Image:
    """An image of one row; 16-bit where the mode is I;16."""
    return Image.fromarray(np.array([values], dtype=np.uint16 if mode == "I;16" else np.uint8))


def png(bits: int, colour: int, line: bytes, clear: bytes = b"", width: int = 2, height: int = 1) -> bytes:
    """A PNG written out by hand, of kinds that Pillow reads but does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    transparent = chunk(b"tRNS", clear) if clear else b""
    body = chunk(b"IDAT", zlib.compress(b"\0" + line))
    return b"\x89PNG\r\n\x1a\n" + head + transparent + body + chunk(b"IEND", b"")


def seen(folder: Path, content: bytes) -> list[Any]:
    """The pixels of a picture's first row."""
    image = picture(folder, content).pixels()
    assert image.mode == "RGB"
    return [image.getpixel((x, 0)) for x in range(image.width)]


def refusal(one: Picture) -> str:
    with pytest.raises(PituneError) as error:
        one.pixels()
    assert "\n" not in str(error.value) and str(error.value).startswith(one.file)
    return str(error.value)


# --- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_give_the_pixels_that_were_written(tmp_path: Path, form: str) -> None:
    pixels = picture(tmp_path, encoded(NOISE, form, **LOSSLESS[form])).pixels()
    assert type(pixels) is Image.Image and pixels.mode == "RGB"
    assert np.array_equal(np.asarray(pixels), np.asarray(NOISE))


@pytest.mark.parametrize(("form", "far"), [("JPEG", 12), ("GIF", 40)])
def test_other_formats_give_about_those(tmp_path: Path, form: str, far: int) -> None:
    smooth = NOISE.resize((4, 3)).resize((32, 24), Image.Resampling.BICUBIC)
    pixels = picture(tmp_path, encoded(smooth, form)).pixels()
    assert np.abs(np.asarray(pixels, dtype=int) - np.asarray(smooth, dtype=int)).mean() < far


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_stand_upright(tmp_path: Path, form: str, orientation: int) -> None:
    """By the EXIF standard's words: where the first row and the first column of the file belong."""
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:16, :24] = 255  # only the upper left is white
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }.get(orientation, upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = picture(tmp_path, encoded(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif)).pixels()
    assert found.size == (48, 32) and not found.getexif()
    assert np.abs(np.asarray(found, dtype=int) - upright).mean() < 5


def test_what_is_transparent_is_on_white(tmp_path: Path) -> None:
    grey = row(0, 100, 255)
    half = grey.convert("LA")
    half.putalpha(row(0, 128, 255))
    blended = [WHITE, (177, 177, 177), WHITE]  # 100 * 128/255 + 255 * 127/255
    assert seen(tmp_path, encoded(half, "PNG")) == blended
    assert seen(tmp_path, encoded(half, "TIFF")) == blended
    for form in ("PNG", "WEBP", "TIFF"):
        assert seen(tmp_path, encoded(half.convert("RGBA"), form, **LOSSLESS[form])) == blended
    palette = Image.new("P", (3, 1))
    palette.putpalette([0, 0, 0, 100, 100, 100, 255, 0, 0])
    palette.putdata([0, 1, 2])
    assert seen(tmp_path, encoded(palette, "PNG", transparency=bytes([0, 128, 255]))) == [*blended[:2], (255, 0, 0)]
    for form in ("PNG", "GIF"):
        assert seen(tmp_path, encoded(palette, form, transparency=0)) == [WHITE, (100, 100, 100), (255, 0, 0)]


def test_one_transparent_colour_is_on_white_at_every_depth(tmp_path: Path) -> None:
    assert seen(tmp_path, encoded(row(0, 100, 255), "PNG", transparency=100)) == [BLACK, WHITE, WHITE]
    colours = encoded(row(0, 100, 255).convert("RGB"), "PNG", transparency=(100, 100, 100))
    assert seen(tmp_path, colours) == [BLACK, WHITE, WHITE]
    deep = encoded(row(0, 25600, 25601, mode="I;16"), "PNG", transparency=25600)
    assert seen(tmp_path, deep) == [BLACK, WHITE, (100, 100, 100)]
    two = struct.pack(">H", 2)
    assert seen(tmp_path, png(1, 0, b"\x40", struct.pack(">H", 0))) == [WHITE, WHITE]
    assert seen(tmp_path, png(2, 0, b"\x60")) == [(85, 85, 85), (170, 170, 170)]
    assert seen(tmp_path, png(2, 0, b"\x60", two)) == [(85, 85, 85), WHITE]
    assert seen(tmp_path, png(4, 0, b"\x12", two)) == [(17, 17, 17), WHITE]
    line = struct.pack(">6H", 0xFF00, 0x1234, 0, 0x8000, 0x8000, 0x8000)
    assert seen(tmp_path, png(16, 2, line)) == [(255, 18, 0), (128, 128, 128)]
    assert seen(tmp_path, png(16, 2, line, struct.pack(">3H", 0xFF00, 0x1234, 0))) == [WHITE, (128, 128, 128)]


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    for form in ("PNG", "BMP", "TIFF", "GIF"):
        assert seen(tmp_path, encoded(bits, form)) == [BLACK, WHITE]
    for form in ("PNG", "TIFF"):  # 16 bits: the high byte, where Pillow's own conversion may cut off at 255
        assert seen(tmp_path, encoded(row(255, 25700, 65535, mode="I;16"), form)) == [BLACK, (100,) * 3, WHITE]
    assert seen(tmp_path, encoded(row(0, 100, 255), "PNG")) == [BLACK, (100,) * 3, WHITE]
    for form in ("JPEG", "TIFF"):
        assert seen(tmp_path, encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form)) == [(255, 0, 0)] * 8
    colours = row(0, 100, 255).convert("RGB").quantize(3)
    assert seen(tmp_path, encoded(colours, "BMP")) == [BLACK, (100,) * 3, WHITE]
    assert seen(tmp_path, png(16, 4, struct.pack(">4H", 0x8000, 0, 0x8000, 0xFFFF))) == [WHITE, (128,) * 3]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_shown(tmp_path: Path, form: str) -> None:
    red, blue = Image.new("RGB", (32, 24), "red"), Image.new("RGB", (32, 24), "blue")
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(red, form, save_all=True, append_images=[blue, NOISE], **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    assert seen(tmp_path, content) == [(255, 0, 0)] * 32


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_cut_off_is_refused(tmp_path: Path, form: str) -> None:
    content = encoded(NOISE, form)
    for size in (0, 1, 20, len(content) // 2, len(content) * 9 // 10):
        assert "the picture cannot be decoded (" in refusal(picture(tmp_path, content[:size]))


def test_what_is_no_picture_of_these_formats_is_refused(tmp_path: Path) -> None:
    kinds = ("PPM", "TGA", "ICO", "JPEG2000", "DDS", "SGI", "PCX")
    others = [encoded(NOISE, kind) for kind in kinds] + [b"<svg/>", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0", b"GIF89a"]
    for content in (*others, b"no picture"):
        said = refusal(picture(tmp_path, content))
        assert "is none of png, jpeg, webp, gif, bmp, tiff, or damaged" in said and "0x" not in said
    assert "(has no bytes)" in refusal(picture(tmp_path, b""))


def test_what_has_no_pixels_or_too_many_is_refused(tmp_path: Path) -> None:
    for width, height in ((0, 1), (1, 0)):
        assert "cannot be decoded" in refusal(picture(tmp_path, png(8, 0, b"", width=width, height=height)))
    assert "cannot be decoded" in refusal(picture(tmp_path, b"GIF89a" + bytes(7) + b";"))
    side = int(MOST_PIXELS**0.5) + 1
    with pytest.warns(Image.DecompressionBombWarning):
        said = refusal(picture(tmp_path, png(8, 0, b"", width=side, height=side)))
    assert f"(has {side} x {side} pixels, more than {MOST_PIXELS})" in said
    said = refusal(picture(tmp_path, png(8, 0, b"", width=2 * side, height=2 * side)))
    assert "cannot be decoded" in said and "pixels" in said


def test_pillows_limit_holds_where_someone_has_lifted_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Image.MAX_IMAGE_PIXELS == MOST_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "more than" in refusal(picture(tmp_path, png(8, 0, b"", width=50_000, height=50_000)))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(tmp_path: Path, mode: str) -> None:
    assert "have 32 bits, with no agreed black and white" in refusal(
        picture(tmp_path, encoded(Image.new(mode, (3, 3)), "TIFF"))
    )


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Cut, flip, overwrite, take out, put in or double some bytes."""
    held = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place, length = int(random.integers(0, len(held) or 1)), int(random.integers(1, 9))
        noise = random.bytes(length)
        match random.integers(0, 6):
            case 0:
                del held[place:]
            case 1:
                held[place : place + 1] = bytes([random.integers(0, 256)])
            case 2:
                held[place : place + length] = noise
            case 3:
                del held[place : place + length]
            case 4:
                held[place:place] = noise
            case _:
                held[place:place] = held[place : place + 8 * length]
    return bytes(held)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_give_a_picture_or_one_line(tmp_path: Path, form: str) -> None:
    random = np.random.default_rng(list(form.encode()))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a camera"
    plain, two = NOISE.resize((13, 9)), [NOISE.resize((13, 9)).rotate(90)]
    sound = [encoded(plain, form, **({} if form in ("GIF", "BMP") else {"exif": exif}))]
    sound.append(encoded(plain.quantize(7) if form != "JPEG" else plain.convert("CMYK"), form))
    if form in ("GIF", "PNG", "WEBP", "TIFF"):
        sound.append(encoded(plain, form, save_all=True, append_images=two))
    if form == "TIFF":
        sound += [encoded(plain, form, compression=kind) for kind in ("tiff_lzw", "jpeg", "packbits")]
    if form == "JPEG":
        sound.append(encoded(plain, form, progressive=True))
    outcomes = []
    for number in range(150):
        one = picture(tmp_path, damage(sound[number % len(sound)], random))
        try:
            image = one.pixels()
            outcomes.append(True)
            assert image.mode == "RGB" and image.width * image.height > 0
            image.tobytes()
        except PituneError as error:
            outcomes.append(False)
            assert "\n" not in str(error) and str(error).startswith(one.file)
    assert 10 < sum(outcomes) < 140, "the damage is too slight or too heavy to say anything"


# --- where a picture lies ------------------------------------------------------------------------------------------


def test_a_part_of_a_file_and_a_cell_of_a_table(tmp_path: Path) -> None:
    content = encoded(NOISE, "PNG")
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "shard").write_bytes(b"before" + content + b"after")
    assert Picture(str(tmp_path / "shard"), digest, 6, len(content)).read() == content
    many = [encoded(NOISE.rotate(turn), "PNG") for turn in range(7)]
    columns = {"raw": many, "held": [{"bytes": one, "path": "a.png"} for one in many]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=3)
    for column in columns:
        for number, one in enumerate(many):
            found = Picture(str(tmp_path / "a.parquet"), hashlib.sha256(one).hexdigest(), cell=(column, number))
            assert found.read() == one


def test_a_picture_that_is_gone_or_another_is_one_line(tmp_path: Path) -> None:
    one = picture(tmp_path, encoded(NOISE, "PNG"))
    Path(one.file).write_bytes(encoded(NOISE.rotate(180), "PNG"))
    assert refusal(one) == f"{one.file}: is not the picture that it was; put that back, or start again"
    Path(one.file).unlink()
    assert refusal(one) == f"{one.file}: the picture cannot be read (No such file or directory)"
    table = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": [b"no picture", None]}), table)
    digest = hashlib.sha256(b"no picture").hexdigest()
    said = refusal(Picture(str(table), digest, cell=("image", 0)))
    assert said.startswith(f"{table}: row 1, column 'image': the picture cannot be decoded (is none of")
    assert "row 2, column 'image': the picture cannot be read (" in refusal(Picture(str(table), "", cell=("image", 1)))
    assert "row 3, column 'image': the picture cannot be read (" in refusal(Picture(str(table), "", cell=("image", 2)))
    assert "cannot be read (" in refusal(Picture(str(table), digest, cell=("images", 0)))
    parquet.write_table(pa.table({"image": [b"another", None]}), table)
    assert "is not the picture that it was" in refusal(Picture(str(table), digest, cell=("image", 0)))
    table.unlink()
    assert "cannot be read (No such file" in refusal(Picture(str(table), digest, cell=("image", 0)))


def test_a_members_name_is_told(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    long = "d" * 150 + "/two.png"  # longer than the header's own field
    with tarfile.open(shard, "w") as archive:
        for name in ("one.png", long):
            info = tarfile.TarInfo(name)
            info.size = 10
            archive.addfile(info, io.BytesIO(b"no picture"))
    with tarfile.open(shard) as archive:
        starts = {member.name: member.offset_data for member in archive}
    for name, start in starts.items():
        one = Picture(str(shard), hashlib.sha256(b"no picture").hexdigest(), start, 10)
        assert refusal(one).startswith(f"{shard}: member {name}: the picture cannot be decoded (")
    assert "byte 77: is not the picture that it was" in refusal(Picture(str(shard), "", 77, 10))


def test_a_picture_goes_to_another_process(tmp_path: Path) -> None:
    one = Example("a", "", 0, picture(tmp_path, encoded(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG")))
    held = pickle.dumps(one)
    assert pickle.loads(held) == one and len(held) < 1000
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).picture.pixels().getpixel((1, 1)))"
    run = subprocess.run([sys.executable, "-c", code], input=held, capture_output=True, check=True, timeout=60)
    assert run.stdout.decode().strip() == "(1, 2, 3)"


def test_endings_name_the_formats_that_are_decoded() -> None:
    assert {Image.registered_extensions()[ending] for ending in PICTURE_ENDINGS} == set(FORMATS)
    assert all(re.fullmatch(r"\.[a-z]+", ending) for ending in PICTURE_ENDINGS)
