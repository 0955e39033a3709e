"""Prepared tasks: the same bytes however they are made, the same task when read back, every fault one line."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from PIL import Image

from pitune.errors import PituneError
from pitune.store.locks import FolderLock
from pitune.store.places import Place
from pitune.tasks import preparing
from pitune.tasks.building import build_task, split_rows
from pitune.tasks.pictures import Picture
from pitune.tasks.preparing import prepare, source_of, workers
from pitune.tasks.readers import Row
from pitune.tasks.shards import stream
from pitune.tasks.task import Slice, Task, draw

LABELS = {"01": "a cat", "dog.s/é": "a dog"}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
KEYS = ("plain-{}", "cats/{}.tar.gz", ".hidden {}", "ключ/é.{}", "..//{}\n")


def content(number: int) -> bytes:
    """A small picture of its own, in one of the formats."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 2 % 256, 7, number // 128)).save(stream, FORMATS[number % len(FORMATS)])
    return stream.getvalue()


def made(folder: Path, modality: str, count: int = 60, name: str = "mine") -> Task:
    """A task with awkward keys, labels and texts; its pictures are files below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        picture = None
        if "image" in modality:
            path = folder / f"{number}.picture"
            path.write_bytes(content(number))
            picture = Picture(str(path), hashlib.sha256(content(number)).hexdigest())
        text = f'say "{number}"\n\u2028 й' if "text" in modality else None
        key = KEYS[number % len(KEYS)].format(number)
        rows.append(Row(key, text, list(LABELS)[number % 3 % 2], f"row {number}", picture))
    return build_task(name, "macro_f1", LABELS, split_rows(rows, ("validation", "test")))


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for its lock."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def said(task: Task, folder: Path, **how: Any) -> str:
    with pytest.raises(PituneError) as error:
        prepare(task, folder, **how)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["text", "image", "image+text"])
def test_a_task_read_back_is_the_task(tmp_path: Path, modality: str) -> None:
    task = made(tmp_path / "data", modality)
    prepare(task, tmp_path / "out", per_shard=7)
    back = source_of(task, tmp_path / "out").task("mine")
    assert back.fingerprint == task.fingerprint and back.modality == modality
    for split, examples in task.splits.items():
        for one, other in zip(examples, back.splits[split], strict=True):
            assert replace(one, picture=None) == replace(other, picture=None)
            if one.picture is not None and other.picture is not None:
                assert other.picture.read() == one.picture.read() and other.picture.file.endswith(".tar")
                assert other.picture.pixels().tobytes() == one.picture.pixels().tobytes()
            assert (one.picture is None) == (other.picture is None)
    few = Slice("mine", 4, 1)
    assert [one.key for one in draw(back, few).train] == [one.key for one in draw(task, few).train]


def test_captions_are_captions_again(tmp_path: Path) -> None:
    rows = [Row(f"k{number}", f"text {number % 50}", f"caption {number // 2}", "row") for number in range(60)]
    task = build_task("mine", "accuracy", None, split_rows(rows, ("validation", "test")))
    index = prepare(task, tmp_path / "out", per_shard=7)
    back = source_of(task, tmp_path / "out").task("mine")
    assert back.family == "retrieval" and back.fingerprint == task.fingerprint
    assert back.splits == task.splits and set(index["labels"]) == set(task.labels)


def test_several_labels_are_several_labels_again(tmp_path: Path) -> None:
    sets = ((), ("01",), ("dog.s/é",), ("01", "dog.s/é"))
    rows = [Row(f"k{number}", f"text {number}", sets[number % 4], "row") for number in range(80)]
    task = build_task("mine", "mean_average_precision", LABELS, split_rows(rows, ("validation", "test")))
    index = prepare(task, tmp_path / "out", per_shard=7)
    back = source_of(task, tmp_path / "out").task("mine")
    assert back.family == "multilabel" and back.fingerprint == task.fingerprint and back.splits == task.splits
    for split, examples in task.splits.items():
        counts = {label: sum(i in one.labels for one in examples) for i, label in enumerate(LABELS)}
        assert index["splits"][split]["labels"] == counts
    streamed = {one["key"]: one["label"] for one in stream(tmp_path / "out" / "train")}
    assert streamed == {one.key: [list(LABELS)[label] for label in one.labels] for one in task.splits["train"]}


def test_the_index_tells_what_there_is(tmp_path: Path) -> None:
    task = made(tmp_path / "data", "image")
    index = prepare(task, tmp_path / "out", per_shard=8)
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == index
    assert index["labels"] == LABELS and index["metric"] == "macro_f1" and index["fingerprint"] == task.fingerprint
    assert set(files(tmp_path / "out")) == {"index.json"} | {
        shard["file"] for split in index["splits"].values() for shard in split["shards"]
    }
    for split, examples in task.splits.items():
        told = index["splits"][split]
        assert told["examples"] == len(examples) == sum(told["labels"].values())
        assert told["labels"] == {label: sum(e.label == i for e in examples) for i, label in enumerate(LABELS)}
        sizes = [shard["examples"] for shard in told["shards"]]
        assert sum(sizes) == len(examples) and max(sizes) <= 8 and max(sizes) - min(sizes) <= 1
        for shard in told["shards"]:
            data = (tmp_path / "out" / shard["file"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])


def test_webdataset_and_tar_read_the_shards(tmp_path: Path) -> None:
    """By libraries of others alone: the pictures are the files' own bytes, in an order that mixes the rows."""
    task = made(tmp_path / "data", "image+text")
    index = prepare(task, tmp_path / "out", per_shard=9)
    shards = [str(tmp_path / "out" / shard["file"]) for shard in index["splits"]["train"]["shards"]]
    found, rows = {}, []
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        fields = json.loads(sample["json"])
        (picture,) = [value for name, value in sample.items() if name in {"png", "jpg", "webp", "gif", "bmp", "tiff"}]
        found[fields["key"]] = (fields["text"], fields["label"], picture)
        rows.append(fields["__row__"])
    wanted = task.splits["train"]
    assert found == {e.key: (e.text, task.labels[e.label], e.picture.read()) for e in wanted if e.picture}
    assert sorted(rows) == list(range(len(wanted))) != rows
    with tarfile.open(shards[0]) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive} == {(0, 0, 0, "", "", 0o444)}
        names = [Path(m.name).stem for m in archive]
    assert names == sorted(names)


# --- how it is made ------------------------------------------------------------------------------------------------


def test_the_bytes_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    task = made(tmp_path / "data", "image")
    prepare(task, tmp_path / "alone", per_shard=8)
    with workers(2) as pool:
        prepare(task, tmp_path / "pool", per_shard=8, pool=pool)
        assert files(tmp_path / "pool") == files(tmp_path / "alone")
        Path(task.splits["test"][0].picture.file).write_bytes(b"gone bad")  # type: ignore[union-attr]
        assert "is not the picture that it was" in said(task, tmp_path / "bad", per_shard=8, pool=pool)


class Stopped(Exception):
    """Stands for a kill."""


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = made(tmp_path / "data", "image")
    prepare(task, tmp_path / "through", per_shard=5)
    write, written = preparing.write_shard, []

    def stopping(path: Path, *what: Any) -> None:
        if len(written) == 3:
            path.write_bytes(b"half")
            raise Stopped
        write(path, *what)
        written.append(path.name.split(".")[0])

    monkeypatch.setattr(preparing, "write_shard", stopping)
    with pytest.raises(Stopped):
        prepare(task, tmp_path / "out", per_shard=5)
    kept = files(tmp_path / "out")
    assert "journal.jsonl" in kept and "index.json" not in kept and sum(name.endswith(".tar") for name in kept) == 3
    # What a kill -9 leaves besides: half a line, half a shard; and meanwhile a finished shard was damaged.
    with (tmp_path / "out" / "journal.jsonl").open("a") as journal:
        journal.write('{"file": "train/0000')
    (tmp_path / "out" / "train" / "000003.tar.77.partial").write_bytes(b"half")
    (tmp_path / "out" / "train" / "000001.tar").write_bytes(b"damaged")
    written.clear()
    monkeypatch.setattr(preparing, "write_shard", lambda path, *what: (write(path, *what), written.append(path.name)))
    prepare(task, tmp_path / "out", per_shard=5)
    assert files(tmp_path / "out") == files(tmp_path / "through")
    assert len(written) == sum(name.endswith(".tar") for name in files(tmp_path / "out")) - 2
    # Done, nothing is written again but what was lost or damaged.
    written.clear()
    prepare(task, tmp_path / "out", per_shard=5)
    assert not written
    (tmp_path / "out" / "test" / "000000.tar").unlink()
    prepare(task, tmp_path / "out", per_shard=5)
    assert len(written) == 1 and files(tmp_path / "out") == files(tmp_path / "through")


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_shards
from pitune.tasks import preparing
if __name__ == "__main__":
    task = test_shards.made(Path(sys.argv[2]) / "data", "image", 400)
    with preparing.workers(2) as pool:
        preparing.prepare(task, Path(sys.argv[2]) / "out", 2, pool)
"""


@pytest.mark.slow
@pytest.mark.kill
def test_a_killed_process_takes_its_workers_along_and_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, str(tmp_path / "child.py"), str(Path(__file__).parent), str(tmp_path)]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    while len(list(tmp_path.glob("out/*/*.tar"))) < 5:
        assert child.poll() is None, "it has ended before it could be killed"
        time.sleep(0.01)
    below = [int(one) for one in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    child.send_signal(signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{one}/cmdline").exists() and Path(f"/proc/{one}/cmdline").read_bytes() for one in below):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)
    task = made(tmp_path / "data", "image", 400)
    assert "index.json" not in files(tmp_path / "out")
    prepare(task, tmp_path / "out", 2)
    prepare(task, tmp_path / "through", 2)
    assert files(tmp_path / "out") == files(tmp_path / "through")


# --- faults --------------------------------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    task, out = made(tmp_path / "data", "text"), tmp_path / "out"
    assert said(task, tmp_path).endswith("has data and no index.json, so it is no prepared task; name a new folder")
    prepare(task, out, per_shard=9)
    before = files(out)
    other = f"{out}: has shards of other data than task mine's, or of another length; delete it or name another"
    assert said(task, out, per_shard=8) == said(made(tmp_path / "data", "text", 61), out, per_shard=9) == other
    assert files(out) == before
    with FolderLock(Place(out)).held():
        assert "another pitune process is working on it; wait for it to end" in said(task, out, per_shard=9)
    (out / "index.json").write_text("{}")
    assert f"{out / 'index.json'}: cannot be read" in said(task, out, per_shard=9)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    task = made(tmp_path / "data", "image")
    picture = task.splits["train"][3].picture
    assert picture is not None
    Path(picture.file).write_bytes(content(3)[:40] or b"")
    broken = replace(picture, digest=hashlib.sha256(Path(picture.file).read_bytes()).hexdigest())
    splits = {**task.splits, "train": (replace(task.splits["train"][3], picture=broken),)}
    line = said(replace(task, splits=splits), tmp_path / "out")
    assert line.startswith(f"{picture.file}: the picture cannot be decoded")
    assert set(files(tmp_path / "out")) == {"journal.jsonl"}


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, write = made(tmp_path / "data", "image"), preparing.write_shard

    def filling(path: Path, *what: Any) -> None:
        if path.name.startswith("000002"):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "x")
        write(path, *what)

    monkeypatch.setattr(preparing, "write_shard", filling)
    out = tmp_path / "out"
    line = said(task, out, per_shard=8)
    assert line == (
        f"{out}/train/000002.tar: cannot be written (No space left on device); free or change it, then run again"
    )
    assert set(files(out)) == {"journal.jsonl", "train/000000.tar", "train/000001.tar"}


def test_a_row_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    task = made(tmp_path / "data", "text")
    prepare(task, tmp_path / "out")
    shard = tmp_path / "out" / "train" / "000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b'"__row__": 0', b'"__row__":""'))
    with pytest.raises(PituneError, match=r"train/000000\.tar: cannot be read as .*__row__ is '', no number"):
        source_of(task, tmp_path / "out").task("mine")


# --- streaming -----------------------------------------------------------------------------------------------------


def test_a_stream_gives_each_example_once_over_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = made(tmp_path / "data", "image+text", 80)
    prepare(task, tmp_path / "out", per_shard=5)
    seen: list[dict[str, Any]] = []
    parts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        for worker in range(2):  # as in the two processes of a DataLoader
            monkeypatch.setenv("WORKER", str(worker))
            monkeypatch.setenv("NUM_WORKERS", "2")
            part = list(stream(tmp_path / "out" / "train"))
            parts.append(len(part))
            seen += part
    wanted = {one.key: one for one in task.splits["train"]}
    assert Counter(one["key"] for one in seen) == Counter(list(wanted)) and min(parts) > 5
    for one in seen:
        example = wanted[one["key"]]
        assert (one["text"], one["label"]) == (example.text, task.labels[example.label])
        assert example.picture is not None and one["image"].tobytes() == example.picture.pixels().tobytes()
    with pytest.raises(PituneError, match="has no shards; give the folder of a split"):
        stream(tmp_path)


@pytest.mark.slow
def test_a_stream_through_the_loader_of_torch(tmp_path: Path) -> None:
    task = made(tmp_path / "data", "text")
    prepare(task, tmp_path / "out", per_shard=5)
    loader: Iterator[Any] = torch.utils.data.DataLoader(  # type: ignore[assignment]
        stream(tmp_path / "out" / "train"), batch_size=None, num_workers=2
    )
    for _ in range(2):
        assert Counter(one["key"] for one in loader) == Counter(one.key for one in task.splits["train"])
