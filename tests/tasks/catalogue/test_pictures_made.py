"""The catalogue's pictures from packages made up here: no network, and the same bytes wherever they are made."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tinypictures import RNG, picture, place

from pitune.assets import derived
from pitune.errors import PituneError
from pitune.tasks.building import split_of
from pitune.tasks.catalogue import albums, arrays, drawings, load_task, photos, pickles
from pitune.tasks.catalogue.albums import Drawn, album_rows, bmp
from pitune.tasks.task import Task


def idx(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return gzip.compress(
        bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )


def greys(count: int, side: int = 28) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return RNG.integers(0, 256, (count, side, side), np.uint8)


def sizes(task: Task) -> dict[str, int]:
    return {split: len(examples) for split, examples in task.splits.items()}


def fashion(folder: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    folder.mkdir()
    images = {"train": greys(400), "t10k": greys(30)}
    for part, values in images.items():
        labels = (np.arange(len(values)) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(values))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return images


def test_fashion_has_the_official_test_set_and_the_pixels_of_the_arrays(
    tmp_path: Path, serve: Callable[[str, Path], None]
) -> None:
    images = fashion(tmp_path / "fashion")
    serve(arrays.FASHION, tmp_path / "fashion")
    task = load_task("fashion_mnist")
    assert task.modality == "image" and sizes(task)["test"] == 30
    assert sizes(task)["train"] + sizes(task)["validation"] == 400
    for examples in task.splits.values():
        for example in examples:
            origin, _, number = example.key.partition("-")
            assert example.label == int(number) % 10 and example.picture is not None
            found = np.asarray(example.picture.pixels())
            assert (found == images["train" if origin == "train" else "t10k"][int(number)][..., None]).all()


def test_an_album_is_the_same_everywhere_made_once_and_made_again_when_damaged(
    tmp_path: Path, serve: Callable[[str, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fashion(tmp_path / "fashion")
    serve(arrays.FASHION, tmp_path / "fashion")
    first = load_task("fashion_mnist")
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "another"))
    second = load_task("fashion_mnist")
    assert first.fingerprint == second.fingerprint
    files = [task.splits["test"][0].picture.file for task in (first, second)]  # type: ignore[union-attr]
    assert files[0] != files[1] and Path(files[0]).read_bytes() == Path(files[1]).read_bytes()

    made: list[Path] = []
    write = albums.write_album

    def counted(folder: Path, drawn: Any) -> Path:
        made.append(folder)
        return write(folder, drawn)

    monkeypatch.setattr(albums, "write_album", counted)
    load_task("fashion_mnist")
    assert not made
    with Path(files[1]).open("r+b") as stream:
        stream.seek(2000)
        stream.write(b"damage")
    os.utime(files[1], ns=(1, 1))
    assert load_task("fashion_mnist").fingerprint == first.fingerprint and len(made) == 1
    assert Path(files[0]).read_bytes() == Path(files[1]).read_bytes()


def test_an_album_is_a_tar_of_bmp_files(cache: Path) -> None:
    drawn = [Drawn(f"{number:03d}", "a", greys(1, side=side)[0]) for number, side in enumerate((1, 3, 4, 29))]
    rows = album_rows("some", [], lambda: drawn)
    with tarfile.open(rows[0].picture.file) as tar:  # type: ignore[union-attr]
        for row, one, member in zip(rows, drawn, tar.getmembers(), strict=True):
            content = tar.extractfile(member).read()  # type: ignore[union-attr]
            assert row.picture is not None and row.picture.read() == content and member.name == f"{row.key}.bmp"
            image = Image.open(io.BytesIO(content))
            assert image.format == "BMP" and image.mode == "L" and (np.asarray(image) == one.greys).all()
    for wrong in (np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)):
        with pytest.raises(PituneError, match="is no picture"):
            bmp(wrong)  # type: ignore[arg-type]


def test_what_cannot_be_made_is_one_line(cache: Path) -> None:
    def fails(work: Path) -> Path:
        raise OSError(28, "No space left on device")

    with pytest.raises(PituneError, match=r"^a thing: cannot be made \(.*[Nn]o space left"):
        derived("a thing", [], fails)


def test_mnist5k_from_lines_of_numbers(tmp_path: Path, serve: Callable[[str, Path], None]) -> None:
    images, labels = greys(300), np.arange(300) % 10
    lines = [",".join(map(str, [*image.ravel(), label])) for image, label in zip(images, labels, strict=True)]
    (tmp_path / "a.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    serve(arrays.MNIST5K, tmp_path / "a.gz")
    task = load_task("mnist5k")
    assert sum(sizes(task).values()) == 300 and all(sizes(task).values())
    example = task.splits["test"][0]
    assert example.picture is not None and example.label == int(example.key) % 10
    assert (np.asarray(example.picture.pixels())[..., 0] == images[int(example.key)]).all()


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x01\0\0\0\x09abc", b"\0\0\x0d\x01\0\0\0\x01abcd", b"\0\0\x08\xff"])
def test_damaged_arrays_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    for read in (arrays.read_idx, arrays.read_numbers, pickles.read_pickled_array):
        if content or read is not arrays.read_numbers:
            with pytest.raises(PituneError, match=r"^[^\n]*a\.gz: [^\n]*$"):
                read(tmp_path / "a.gz")
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(1000))[:20])
    with pytest.raises(PituneError, match=r"a\.gz: cannot be unpacked"):
        arrays.read_idx(tmp_path / "a.gz")


def test_silhouettes_out_of_pickles(tmp_path: Path, serve: Callable[[str, Path], None]) -> None:
    images, labels = greys(300), np.arange(300) % 10
    for file, values in zip(arrays.KNOWN_PICKLES, (images, labels), strict=True):
        (tmp_path / file).write_bytes(gzip.compress(pickle.dumps(values)))
    serve(arrays.SILHOUETTES, tmp_path)
    task = load_task("silhouettes")
    assert sum(sizes(task).values()) == 300 and task.labels[0] == "bear"
    kept = [file.name for file in (tmp_path / "cache" / "content").rglob("*") if file.is_file()]
    assert sorted(kept) == ["pictures.tar", "pictures.tsv"], "no pickle is kept"


def categories(folder: Path, labels: Any, count: int = 60) -> None:
    for label in labels:
        for number in range(count):
            picture(folder / label / "inner" / f"{number}.png")


def almost(folder: Path) -> None:
    """Put a picture that goes to test, each of its values one off, where it goes to train."""
    parts = {split_of(f"food/inner/{number}.png", (0.6, 0.15, 0.25)): number for number in range(10)}
    image = np.asarray(Image.open(folder / "food" / "inner" / f"{parts['test']}.png"))
    name = next(f"food/{number}.png" for number in range(10) if split_of(f"food/{number}.png", (0.6, 0, 0)) == "train")
    Image.fromarray(image ^ 1).save(folder / name)


def test_stamps_and_clipart_by_their_top_folder(tmp_path: Path, serve: Callable[[str, Path], None]) -> None:
    for name, labels, uri in (
        ("stamps", drawings.STAMP_LABELS, drawings.STAMPS),
        ("clipart", drawings.CLIPART_LABELS, drawings.CLIPART),
    ):
        folder = tmp_path / name
        categories(folder, labels)
        picture(folder / "unsorted" / "a.png")
        picture(folder / "plants" / "small.png", width=7)
        (folder / "food" / "a.svg").write_text("<svg/>")
        (folder / "animals" / "again.png").write_bytes((folder / "animals" / "inner" / "3.png").read_bytes())
        (folder / "food" / "also.png").write_bytes((folder / "plants" / "inner" / "5.png").read_bytes())
        picture(folder / "animals" / "inner" / "3_mirror.png")
        picture(folder / "shapes" / "stars" / "3.png")
        almost(folder)
        serve(uri, folder)
        task = load_task(name)
        keys = {example.key for examples in task.splits.values() for example in examples}
        extra = {"animals/inner/3_mirror.png"} if name == "clipart" else set()
        wanted = {f"{label}/inner/{number}.png" for label in labels for number in range(60)}
        wanted = (wanted - {"animals/inner/3.png", "plants/inner/5.png"}) | {"animals/again.png"} | extra
        aside = {key for key in wanted if name == "clipart" and place(key) < 0.2}
        assert keys == wanted - aside and (len(aside) > 50) == (name == "clipart")
    (folder / "food" / "broken.png").write_bytes(b"no picture at all, but long")
    with pytest.raises(PituneError, match=r"broken\.png: is no png file"):
        load_task("clipart")


def test_emoji_are_tested_on_others_in_the_other_style(tmp_path: Path, serve: Callable[[str, Path], None]) -> None:
    twitter, fluent, listed = tmp_path / "twitter", tmp_path / "fluent", []
    for index, group in enumerate([*drawings.EMOJI_LABELS, "Component"]):
        for number in range(30):
            code = f"{index:02x}{number:02x}"
            listed.append({"image": f"{code}.png", "category": group})
            picture(twitter / "img" / "twitter" / "64" / f"{code}.png")
            if number:
                picture(fluent / f"{code}.webp")
    (twitter / "emoji.json").write_text(json.dumps(listed))
    serve(drawings.TWITTER, twitter)
    serve(drawings.FLUENT, fluent)
    task = load_task("emoji")
    keys = {split: {example.key for example in examples} for split, examples in task.splits.items()}
    assert not keys["test"] & (keys["train"] | keys["validation"])
    codes = [f"{group:02x}{number:02x}" for group in range(9) for number in range(1, 30)]
    assert set.union(*keys.values()) == {code for code in codes if place(code) >= 0.2}
    for split, examples in task.splits.items():
        for example in examples:
            assert example.picture is not None and int(example.key[:2], 16) == example.label
            assert Path(example.picture.file).parent == (fluent if split == "test" else twitter / "img/twitter/64")
    (twitter / "emoji.json").write_text('{"a": 1}')
    with pytest.raises(PituneError, match=r"emoji\.json: is no list of emoji"):
        load_task("emoji")


def test_solar_cells_by_their_level(tmp_path: Path, serve: Callable[[str, Path], None]) -> None:
    lines = []
    for number in range(120):
        picture(tmp_path / "images" / f"cell{number:04d}.png")
        lines.append(f"images/cell{number:04d}.png  {(number % 4) / 3}   mono")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    serve(photos.CELLS, tmp_path)
    task = load_task("solar")
    assert sum(sizes(task).values()) == 120
    assert all(int(e.key[4:]) % 4 == e.label for examples in task.splits.values() for e in examples)
    for line, words in (("images/cell0000.png 7 mono", "is no file"), ("images/none.png 1.0 mono", "there is no file")):
        (tmp_path / "labels.csv").write_text(line)
        with pytest.raises(PituneError, match=rf"labels\.csv: line 1: .*{words}"):
            load_task("solar")
