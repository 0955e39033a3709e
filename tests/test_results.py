"""Cards of tasks: what a study tells of a task to those who lack its data."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pitune.errors import PituneError
from pitune.results import LINE, SHOWN, SIDE, CardJob, write_card
from pitune.store import Store, fingerprint_of
from pitune.tasks.pictures import Picture
from pitune.tasks.task import Example, Task

INPUTS = {"makes": "card", "task": "0"}


def picture(path: Path, size: tuple[int, int] = (300, 150), content: bytes = b"") -> Picture:
    """A red picture in a file, or whatever ``content`` is."""
    if not content:
        Image.new("RGB", size, (200, 30, 30)).save(path, "PNG")
        content = path.read_bytes()
    path.write_bytes(content)
    return Picture(str(path), hashlib.sha256(content).hexdigest())


def task(modality: str, examples: list[Example]) -> Task:
    splits = {"train": tuple(examples[:3]), "validation": (), "test": tuple(examples)}
    return Task("t", modality, "accuracy", ("y", "n"), ("yes it is", "no"), splits, "0")


def card(made: Task, folder: Path, scored: int | None = None) -> tuple[Store, dict[str, Any]]:
    store = Store(folder / "study")
    job = CardJob(("tasks/t",), INPUTS, "t")
    test = made.splits["test"][:scored]
    materials: Any = SimpleNamespace(task=lambda name: made, test=lambda name: test, store=store)
    write_card(materials, job)
    manifest = store.manifest("tasks/t")
    assert manifest is not None and manifest["fingerprint"] == fingerprint_of(INPUTS)
    return store, manifest


def test_a_card_has_labels_sizes_and_a_few_examples(tmp_path: Path) -> None:
    texts = ["  two\n lines ", "word " * 100, *(f"text {n}" for n in range(18))]
    examples = [Example(f"test-{n}", text, n % 2) for n, text in enumerate(texts)]
    store, manifest = card(task("text", examples), tmp_path)
    assert (manifest["modality"], manifest["metric"], manifest["labels"]) == ("text", "accuracy", 2)
    assert manifest["examples"] == {"train": 3, "validation": 0, "test": 20}
    labels = store.table("tasks/t", "labels.parquet").to_pylist()
    assert labels == [{"label": "y", "text": "yes it is"}, {"label": "n", "text": "no"}]
    rows = store.table("tasks/t", "examples.parquet").to_pylist()
    lots = sorted((hashlib.sha256(f"shown {one.key}".encode()).hexdigest(), one.key) for one in examples)
    assert [row["key"] for row in rows] == [key for _, key in lots[:SHOWN]]
    by_key = {one.key: one for one in examples}
    for row in rows:
        one = by_key[row["key"]]
        assert row["label"] == "yn"[one.label] and row["picture"] is None
        assert len(row["text"]) <= LINE and "\n" not in row["text"]
        start = " ".join(one.text.split())
        assert row["text"] == start or (row["text"].endswith("…") and start.startswith(row["text"][:-1]))


def test_the_same_examples_are_shown_however_many_others_there_are(tmp_path: Path) -> None:
    many = [Example(f"test-{n}", f"text {n}", 0) for n in range(400)]
    keys = []
    for folder, some in (("a", many), ("b", many[::-1])):
        store, _ = card(task("text", some), tmp_path / folder)
        keys.append(store.table("tasks/t", "examples.parquet").column("key").to_pylist())
    assert keys[0] == keys[1] and len(keys[0]) == SHOWN


def test_examples_are_of_those_that_experts_are_scored_on(tmp_path: Path) -> None:
    many = [Example(f"test-{n}", f"text {n}", 0) for n in range(400)]
    store, manifest = card(task("text", many), tmp_path, scored=10)
    keys = store.table("tasks/t", "examples.parquet").column("key").to_pylist()
    assert len(keys) == SHOWN and set(keys) < {f"test-{n}" for n in range(10)}
    assert manifest["examples"]["test"] == 400


def test_pictures_are_made_small_and_small_ones_are_left(tmp_path: Path) -> None:
    sizes = [(300, 150), (28, 28), (5000, 2)]
    examples = [Example(f"k{n}", "", 0, picture(tmp_path / f"{n}.png", size)) for n, size in enumerate(sizes)]
    store, manifest = card(task("image", examples), tmp_path)
    assert manifest["modality"] == "image"
    rows = {row["key"]: row for row in store.table("tasks/t", "examples.parquet").to_pylist()}
    found = []
    for n in range(len(sizes)):
        with Image.open(io.BytesIO(rows[f"k{n}"]["picture"])) as image:
            assert image.format == "WEBP"
            found.append(image.size)
            colour = image.convert("RGB").getpixel((0, 0))
            assert max(abs(a - b) for a, b in zip(colour, (200, 30, 30), strict=True)) < 8
    assert found == [(SIDE, SIDE // 2), (28, 28), (SIDE, 1)]
    assert all(len(row["picture"]) < 2000 for row in rows.values())


def test_a_picture_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    examples = [Example("k", "", 0, picture(tmp_path / "0.png", content=b"no picture"))]
    with pytest.raises(PituneError, match=r"0\.png: the picture cannot be decoded") as error:
        card(task("image", examples), tmp_path)
    assert "\n" not in str(error.value)
    assert Store(tmp_path / "study").manifest("tasks/t") is None
