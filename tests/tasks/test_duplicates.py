"""Near-duplicates: what the hash sees and does not, who is dropped, and that it is computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError

from pitune.errors import PituneError
from pitune.tasks import duplicates
from pitune.tasks.duplicates import NEAR, perceptual_hash, perceptual_hashes, without_near_duplicates
from pitune.tasks.pictures import Picture
from pitune.tasks.readers import whole_file
from pitune.tasks.tables import TableSource
from pitune.tasks.task import SPLITS, Example


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))


def drawing(number: int, ink: str = "red", side: int = 96, margin: int = 0) -> Image.Image:
    """Draw a few shapes that depend on the number, with white around them."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (side, side), "gold")
    pen = ImageDraw.Draw(image)
    for corner, size in zip(rng.random((6, 2)), rng.random((6, 2)), strict=True):
        pen.ellipse([*(corner * side * 0.6), *((corner * 0.6 + 0.1 + size * 0.3) * side)], fill=ink)
    whole = Image.new("RGB", (side + 3 * margin, side + margin), "white")
    whole.paste(image, (2 * margin, margin))
    return whole


def apart(a: Image.Image, b: Image.Image) -> int:
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


def plain_hash(image: Image.Image) -> int:
    """Compute the hash from the cosines' definition, of the picture as it is."""
    greys = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
    waves = np.cos(np.pi / 32 * np.arange(8)[:, None] * (np.arange(32) + 0.5))
    heights = waves @ greys @ waves.T
    return int("".join("01"[int(above)] for above in (heights > np.median(heights)).ravel()), 2)


def test_the_hash_is_that_of_the_lowest_frequencies() -> None:
    for number in range(20):
        assert perceptual_hash(drawing(number)) == plain_hash(drawing(number))


def test_the_same_drawing_is_near_and_another_is_not() -> None:
    for number in range(10):
        first = drawing(number)
        assert apart(first, drawing(number, margin=31)) == 0
        assert apart(first, drawing(number, ink="brown")) <= NEAR
        assert apart(first, first.resize((61, 61))) <= NEAR
        assert apart(first, drawing(number + 1)) > NEAR


def test_plain_pictures_have_hashes_that_are_known_to_say_nothing() -> None:
    stripes = Image.new("RGB", (60, 40), "red")
    stripes.paste("navy", (0, 20, 60, 40))
    for image in (Image.new("RGB", (9, 9), "white"), Image.new("RGB", (9, 9), "black"), stripes):
        assert perceptual_hash(image).bit_count() != duplicates.SET_BITS
    assert perceptual_hash(drawing(0)).bit_count() == duplicates.SET_BITS


def picture(name: str) -> Picture:
    return Picture(f"/{name}", hashlib.sha256(name.encode()).hexdigest())


def random_hashes(rng: np.random.Generator, count: int) -> list[int]:
    """Return hashes with 32 bits set, some of them near each other, and some of plain pictures."""
    found: list[int] = []
    while len(found) < count:
        bits = rng.permutation(64) < 32
        for flips in (0, 0, 1, 2, 3, 4, 5):
            turned = bits.copy()
            turned[rng.permutation(np.flatnonzero(bits))[:flips]] = False
            turned[rng.permutation(np.flatnonzero(~bits))[:flips]] = True
            found.append(int("".join(map(str, turned.astype(int))), 2))
        found += [0, int(rng.integers(1 << 20)), found[-7] & (found[-7] - 1)]  # the last: one bit off a whole one
    return [found[place] for place in rng.permutation(len(found))[:count]]


@pytest.mark.parametrize(("most", "texts", "block"), [(0, 1, 1024), (6, 1, 7), (6, 3, 1024), (10, 2, 1)])
def test_who_is_dropped_is_who_a_plain_loop_drops(
    monkeypatch: pytest.MonkeyPatch, most: int, texts: int, block: int
) -> None:
    rng = np.random.default_rng(most)
    values = random_hashes(rng, 240)
    examples = [Example(f"{i}", "abc"[i % texts], i % 2, picture(f"{i}")) for i in range(len(values))]
    table = {one.picture.digest: value for one, value in zip(examples, values, strict=True) if one.picture}
    monkeypatch.setattr(
        duplicates, "perceptual_hashes", lambda pictures: {one.digest: table[one.digest] for one in pictures}
    )
    monkeypatch.setattr(duplicates, "BLOCK", block)
    splits = {"train": tuple(examples[:140]), "validation": tuple(examples[140:180]), "test": tuple(examples[180:])}

    def near(a: Example, b: Example) -> bool:
        first, second = (table[one.picture.digest] for one in (a, b) if one.picture)
        whole = first.bit_count() == second.bit_count() == 32
        return whole and a.text == b.text and (first ^ second).bit_count() <= most

    wanted: dict[str, tuple[Example, ...]] = {"test": splits["test"]}
    for split in ("validation", "train"):
        above = [one for others in wanted.values() for one in others]
        wanted[split] = tuple(one for one in splits[split] if not any(near(one, other) for other in above))
    found = without_near_duplicates("some", splits, most)
    assert found == wanted and tuple(found) == SPLITS
    assert len(found["train"]) < 140 and len(found["validation"]) < 40, "the reference drops some"


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def pets(folder: Path) -> dict[str, str]:
    """Write a folder of pictures for each split; in train and validation one is like one of test, or of validation."""
    start = {"train": 0, "validation": 20, "test": 40}
    for split in SPLITS:
        for number in range(8):
            for label in ("cats", "dogs"):
                image = drawing(start[split] + number + 100 * (label == "dogs"))
                save(image, folder / split / label / f"{number}.png")
    for split, original in (("train", 41), ("train", 22), ("validation", 43)):
        save(drawing(original, ink="brown", margin=9), folder / split / "cats" / f"like-{original}.png")
    return {split: str(folder / split) for split in SPLITS}


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    return {**pets(tmp_path / "pets"), "labels": {"cats": "a cat", "dogs": "a dog"}}


def keys(source: dict[str, Any], **settings: Any) -> dict[str, set[str]]:
    task = TableSource.model_validate({**source, **settings}).task("pets")
    return {split: {example.key for example in examples} for split, examples in task.splits.items()}


def test_a_table_says_whether_near_duplicates_are_dropped(source: dict[str, Any]) -> None:
    before, after = keys(source), keys(source, near_duplicates=NEAR)
    assert {split: before[split] - after[split] for split in SPLITS} == {
        "train": {"cats/like-41.png", "cats/like-22.png"},
        "validation": {"validation/cats/like-43.png"},
        "test": set(),
    }
    for wrong in (-1, 17, "many"):
        with pytest.raises(ValidationError, match="near_duplicates"):
            TableSource.model_validate({**source, "near_duplicates": wrong})


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    calls: list[object] = []
    compute: Callable[[Any], int] = getattr(duplicates, name)

    def counted(image: Any) -> int:
        calls.append(image)
        return compute(image)

    monkeypatch.setattr(duplicates, name, counted)
    return calls


def test_pictures_are_decoded_once_and_only_where_it_is_asked_for(
    source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, "perceptual_hash")
    keys(source)
    assert not calls
    first = keys(source, near_duplicates=NEAR)
    assert len(calls) == 51
    assert keys(source, near_duplicates=NEAR) == first and keys(source, near_duplicates=0)["train"] >= first["train"]
    assert len(calls) == 51, "another distance, or the same again, is computed from the same hashes"
    save(drawing(77), Path(source["train"]) / "cats" / "new.png")
    keys(source, near_duplicates=NEAR)
    assert len(calls) == 51 + 52


def test_hashes_from_the_cache_are_those_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [save(drawing(number), tmp_path / f"{number}.png") for number in range(5)]
    save(Image.new("RGB", (9, 9), "black"), tmp_path / "5.png")  # whose hash begins with zeros
    pictures = [whole_file(file, str(file)) for file in [*files, tmp_path / "5.png"]]
    wanted = {one.digest: perceptual_hash(one.pixels()) for one in pictures}
    calls = count_calls(monkeypatch, "perceptual_hash")
    assert perceptual_hashes(pictures + pictures[:2]) == wanted and len(calls) == 6
    assert perceptual_hashes(reversed(pictures)) == wanted and len(calls) == 6


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, source: dict[str, Any]) -> None:
    texts = {split: (Example(split, "a", 0),) for split in SPLITS}
    with pytest.raises(PituneError, match=r"^task words: has examples without pictures; near_duplicates [^\n]*$"):
        without_near_duplicates("words", texts, NEAR)
    broken = Path(source["train"]) / "cats" / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(PituneError, match=r"^[^\n]*cats/broken\.png: the picture cannot be decoded[^\n]*$"):
        keys(source, near_duplicates=NEAR)
    broken.unlink()
    assert keys(source, near_duplicates=NEAR), "the failure left nothing behind"
