"""Training reads prepared shards, in a gang of two workers each its share."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_two
from tinydual import open_dual, save_dual, with_pictures
from tinymodel import MATCH, flat, make_rows, make_task

from pitune.experts import Lora
from pitune.tasks.pictures import Picture
from pitune.tasks.preparing import prepare, source_of
from pitune.tasks.tables import TableSource
from pitune.training.engine import EngineSettings
from pitune.training.loop import Alone, Member, PackTraining
from pitune.training.recipe import Recipe

EXAMPLES, BATCH, EPOCHS = 24, 4, 2
RECIPE = Recipe(steps=EPOCHS * EXAMPLES // BATCH, batch_size=BATCH, learning_rate=0.02, validate_every=None)


class Seat(Alone):
    """A place in a gang, which notes at which step the loop is."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.step = rank, world_size, 0

    def progress(self, step: int, steps: int, rows: int) -> None:
        self.step = step


def train(folder: Path, rank: int, world_size: int) -> tuple[list[tuple[int, str]], torch.Tensor]:
    """Train on the prepared task; return the step and digest of each picture decoded, and the expert's numbers."""
    source = TableSource.model_validate_json((folder / "source.json").read_text())
    task, encoder, kind = source.task("pictures"), open_dual(folder / "model"), Lora(rank=2, layers=2)
    seat, decoded, pixels = Seat(rank, world_size), [], Picture.pixels

    def noting(picture: Picture) -> Any:
        assert picture.file.endswith(".tar")
        decoded.append((seat.step, picture.digest))
        return pixels(picture)

    rows, checks = make_rows(encoder, task, again=False), make_rows(encoder, task, "validation", again=False)
    member = Member("pictures@full#0", kind.start(encoder), rows, checks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "pixels", noting)
        (found,) = PackTraining(encoder, kind, MATCH, [member], RECIPE, EngineSettings(), seat).run()
    held_out = {one.picture.digest for one in task.splits["validation"] if one.picture}
    return [one for one in decoded if one[1] not in held_out], flat(found.expert)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny dual encoder, and a task of pictures in shards of five."""
    save_dual(tmp_path / "model", "clip")
    task = replace(with_pictures(make_task("pictures", 2, EXAMPLES), tmp_path / "data"), modality="image")
    prepare(task, tmp_path / "out", per_shard=5)
    (tmp_path / "source.json").write_text(source_of(task, tmp_path / "out").model_dump_json())
    return tmp_path


def check(shares: list[list[tuple[int, str]]], folder: Path) -> None:
    """Each epoch each picture is decoded once, by one worker, and each worker has its half."""
    source = TableSource.model_validate_json((folder / "source.json").read_text())
    every = {one.picture.digest for one in source.task("pictures").splits["train"] if one.picture}
    steps = EXAMPLES // BATCH
    assert len(every) == EXAMPLES
    for epoch in range(EPOCHS):
        seen = [[digest for step, digest in share if step // steps == epoch] for share in shares]
        assert Counter(digest for part in seen for digest in part) == Counter(every)
        assert {len(part) for part in seen} == {EXAMPLES // len(shares)}


def test_two_seats_decode_each_picture_once_an_epoch(folder: Path) -> None:
    """One seat after the other, in this process."""
    check([train(folder, rank, 2)[0] for rank in range(2)], folder)


@pytest.mark.slow
def test_a_gang_of_two_processes_decodes_each_picture_once_an_epoch(folder: Path) -> None:
    """And what it trains is what one process trains."""
    run_two(__file__, str(folder))
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    check([one["decoded"] for one in found], folder)
    _, alone = train(folder, 0, 1)
    for one in found:
        torch.testing.assert_close(torch.tensor(one["expert"]), alone, atol=2e-5, rtol=1e-3)


def work(folder: str) -> None:
    """What a process of the gang does."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    decoded, expert = train(Path(folder), rank, int(os.environ["WORLD_SIZE"]))
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps({"decoded": decoded, "expert": expert.tolist()}))
