"""Features on the disk: the same as computed, kept apart, mended, shared by processes, bounded."""

from __future__ import annotations

import hashlib
import multiprocessing
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pitune.assets import Asset
from pitune.backbones import features
from pitune.backbones.bridge import kept_features
from pitune.backbones.features import Features
from pitune.backbones.vision import VisionEncoder

SHAPE = (5, 8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def made(numbers: Iterable[int]) -> dict[bytes, Tensor]:
    """Make features by key; what belongs to a key is told by its number."""
    return {
        hashlib.sha256(bytes([number // 256, number % 256])).digest(): torch.randn(
            SHAPE, generator=torch.Generator().manual_seed(number)
        )
        for number in numbers
    }


def same(found: dict[bytes, Tensor], expected: dict[bytes, Tensor]) -> bool:
    """Return whether the same is there, bit for bit, in half precision."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key].half().float()) for key in found
    )


def test_what_is_kept_is_what_was_computed_in_half_precision() -> None:
    new = made(range(1200))  # more than are asked for at once
    Features("one", SHAPE).put(new)
    found = Features("one", SHAPE).get([*new, b"unknown"])
    assert same(found, new)
    assert {value.dtype for value in found.values()} == {torch.float32}
    odd = torch.tensor([[0.0, -0.0, 65504.0, 2**-24, 1 / 3, -1e-9, 1.0, 2.0]]).expand(SHAPE)
    Features("one", SHAPE).put({b"odd": odd})
    assert torch.equal(Features("one", SHAPE).get([b"odd"])[b"odd"], odd.half().float())
    Features("one", SHAPE).put({})
    assert Features("one", SHAPE).get([]) == {}


def test_what_is_kept_again_takes_the_place_of_what_was() -> None:
    kept, (first, second) = Features("one", SHAPE), made(range(2)).values()
    kept.put({b"key": first})
    kept.put({b"key": second})
    assert same(kept.get([b"key"]), {b"key": second})


def encoder(side: int, whole: bool = True) -> VisionEncoder:
    def look(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        return pixels[:, :, :4, :4], pixels[:, :, 0, 0] if whole else None

    return VisionEncoder(torch.nn.Identity(), look, lambda _: torch.zeros(3, side, side), side)


def test_encoders_sides_and_grids_are_kept_apart() -> None:
    one, other = (Asset(Path("model"), digit * 64, "model") for digit in "ab")
    kept = [
        kept_features(encoder(16), one, 2),
        kept_features(encoder(16), other, 2),  # other weights, or another preprocessor_config.json beside them
        kept_features(encoder(20), one, 2),
        kept_features(encoder(16), one, 4),
    ]
    assert [one.shape for one in kept] == [(5, 3), (5, 3), (5, 3), (17, 3)]
    assert kept_features(encoder(16, whole=False), one, 2).shape == (4, 3)
    for number, each in enumerate(kept):
        assert each.get([b"key"]) == {}
        each.put({b"key": torch.full(each.shape, float(number))})
    assert [float(each.get([b"key"])[b"key"].mean()) for each in kept] == [0, 1, 2, 3]


def damage(file: Path, what: str) -> None:
    content = bytearray(file.read_bytes())
    if what == "another file":
        content[:] = b"this was never a database " * 100
    elif what == "cut":
        del content[len(content) // 2 :]
    elif what == "zeros":
        content[4096:] = bytes(len(content) - 4096)
    elif what == "scribbled over":
        for start in range(200, len(content), 300):
            content[start : start + 40] = b"\xa5" * 40
    elif what == "nothing":
        content.clear()
    file.write_bytes(content)


@pytest.mark.parametrize("what", ["another file", "cut", "zeros", "scribbled over", "nothing"])
def test_a_damaged_file_is_made_again(what: str) -> None:
    kept, new = Features("one", SHAPE), made(range(100))
    kept.put(new)
    damage(kept.file, what)
    found = kept.get(list(new))
    assert same(found, {key: new[key] for key in found}) and len(found) < 100  # nothing wrong, less than all
    for _ in range(2):  # it may be found damaged once more when it is written
        kept.put({key: value for key, value in new.items() if key not in kept.get(list(new))})
    assert same(kept.get(list(new)), new)


@pytest.mark.parametrize("what", ["X'00'", "zeroblob(length(value))", "substr(value, 2) || X'00'", "NULL", "'text'"])
def test_a_damaged_row_is_made_again(what: str) -> None:
    kept, new = Features("one", SHAPE), made(range(3))
    kept.put(new)
    key = next(iter(new))
    with sqlite3.connect(kept.file) as database:
        database.execute(f"UPDATE features SET value = {what} WHERE key = ?", (key,))
    database.close()
    found = kept.get(list(new))
    assert same(found, {other: new[other] for other in new if other != key})
    kept.put({key: new[key]})
    assert same(kept.get(list(new)), new)


def test_rows_that_changed_places_are_not_taken_for_each_other() -> None:
    kept, new = Features("one", SHAPE), made(range(2))
    kept.put(new)
    one, other = new
    with sqlite3.connect(kept.file) as database:
        swapped = "(SELECT value FROM features AS f WHERE f.key = ?)"
        database.execute(f"UPDATE features SET value = {swapped} WHERE key = ?", (one, other))
    database.close()
    assert same(kept.get([one, other]), {one: new[one]})


def work(start: int, at: float) -> int:
    """Keep 150 of 200 features, ten at a time, and look each ten up; return how many were found as they were kept."""
    kept, found = Features("one", SHAPE), 0
    time.sleep(max(0.0, at - time.time()))
    for part in range(start, start + 150, 10):
        new = made(range(part, part + 10))
        kept.put(new)
        found += 10 * same(kept.get(list(new)), new)
    return found


def test_two_processes_at_once_lose_nothing() -> None:
    # Forked, as a new process would spend its time on imports.
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(work, [(0, time.time() + 0.2), (50, time.time() + 0.2)], chunksize=1) == [150, 150]
    new = made(range(200))
    assert same(Features("one", SHAPE).get(list(new)), new)


def test_the_oldest_make_room() -> None:
    row = 8 + 2 * 5 * 8
    kept, new = Features("one", SHAPE, most=50 * row), made(range(300))
    keys = list(new)
    for start in range(0, 300, 10):
        kept.put({key: new[key] for key in keys[start : start + 10]})
    assert same(kept.get(keys), {key: new[key] for key in keys[-50:]})
    size = kept.file.stat().st_size
    for _ in range(5):
        kept.put(new)  # more than there is room for: what is new is kept as a whole, until the next
    assert len(kept.get(keys)) == 300
    kept.put(made([300]))
    assert len(kept.get(keys)) == 49
    for start in range(0, 300, 10):
        kept.put({key: new[key] for key in keys[start : start + 10]})
    assert kept.file.stat().st_size < 12 * size  # what is deleted makes room


def test_a_file_that_cannot_be_written_costs_time_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, new = Features("one", SHAPE), made(range(3))
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    kept.put(new)
    assert kept.get(list(new)) == {}
    folder.unlink()
    kept.file.mkdir(parents=True)
    kept.put(new)
    assert kept.get(list(new)) == {}
    kept.file.rmdir()
    kept.put(new)
    monkeypatch.setattr(features, "WAIT_SECONDS", 0.05)
    database = sqlite3.connect(kept.file, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")  # another process that holds it for too long
    kept.put(made([9]))
    assert kept.get(list(new)) == {}
    database.close()
    assert same(kept.get([*new, *made([9])]), new)
