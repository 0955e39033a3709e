"""A task made into webdataset shards: in parallel, resumable, the same bytes each time, with counts and checksums.

A prepared task is a folder::

    train/000000.tar …       the shards of a split (:mod:`pitune.tasks.shards` says what is in them)
    validation/000000.tar …
    test/000000.tar …
    index.json               labels with their texts, counts by split and label, each shard's size and sha256

Within a split, examples come in the order of a hash of their keys, cut into shards of the same length, give or take
one example. So each shard is a fair sample, and its bytes depend on the task and the length alone, not on the number
of workers. ``index.json`` is written last: its presence means *done*. While shards are made, ``journal.jsonl`` has a
line for each finished one. A shard that its line or the index does not agree with is made anew; the others are kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from pitune.errors import PituneError, reason
from pitune.progress import Stage, StageProgress
from pitune.store import fingerprint_of
from pitune.store.locks import LOCK, FolderLock
from pitune.store.places import TEMPORARY, Place
from pitune.tasks.shards import PICTURES, Numbered, sample_name, write_shard
from pitune.tasks.tables import TableSource
from pitune.tasks.task import Task

FORMAT = 1
"""Version of what is written; part of a preparation's fingerprint."""
INDEX, JOURNAL = "index.json", "journal.jsonl"

Entry = dict[str, Any]
"""What the index says of a shard: ``file`` (relative to the folder), ``examples``, ``bytes``, ``sha256``."""


def prepare(
    task: Task,
    folder: str | Path,
    per_shard: int = 1000,
    pool: Executor | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Write a task's shards and their index into ``folder``, or what is missing of them; check those that are there.

    Args:
        task: of any kind.
        folder: of this task alone; it is made if it is not there.
        per_shard: the most examples of a shard.
        pool: makes the shards (see :func:`workers`); None: this process.
        progress: is told how far it is, in shards.

    Returns:
        The index.

    Raises:
        PituneError: the folder holds something else, is in use or cannot be written, or a picture cannot be decoded.
    """
    folder = Path(folder)
    mark = fingerprint_of({"shards": FORMAT, "task": task.fingerprint, "per_shard": per_shard})
    place = Place(folder)
    try:
        with FolderLock(place).held():
            known = _known(folder, mark, task.name)
            _begin(folder, mark, known.values())
            jobs = _jobs(task, folder, per_shard, known)
            entries = _entries(jobs, known, pool, functools.partial(_show, progress, task.name, len(jobs), len(known)))
            index = _index(task, per_shard, mark, entries)
            place.write(INDEX, (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())
            (folder / JOURNAL).unlink()
    except BrokenProcessPool as error:
        raise PituneError(f"{folder}: a worker was killed or had no memory; run again, with fewer workers") from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    return index


def source_of(task: Task, folder: str | Path) -> TableSource:
    """Return the task as it lies prepared in ``folder``, as a study's configuration may name it."""
    uris = {split: str(Path(folder) / split) for split in task.splits}
    image = ";".join(PICTURES) if "image" in task.modality else None
    text = "text" if task.modality == "image+text" else None
    same: dict[str, Any] = {**uris, "text": text, "image": image, "key": "key", "metric": task.metric}
    same["templates"] = task.templates
    if task.family == "retrieval":
        return TableSource(**same, caption="label")
    return TableSource(**same, labels=dict(zip(task.labels, task.label_texts, strict=True)))


@contextlib.contextmanager
def workers(count: int) -> Iterator[Executor | None]:
    """Lend processes that make shards; of one alone none, for this process is one."""
    if count == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")  # a copy of this process could inherit a lock that is held
    with ProcessPoolExecutor(count, context, _start_worker) as pool:
        yield pool


def _start_worker() -> None:
    """Leave Ctrl-C to the process that lends this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


# --- shards --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A shard to make: its file in the folder, what goes into it, and what is known of it if it was finished before."""

    folder: Path
    file: str
    samples: tuple[Numbered, ...]
    labels: tuple[str, ...]
    known: Entry | None


def _jobs(task: Task, folder: Path, per_shard: int, known: Mapping[str, Entry]) -> list[_Job]:
    jobs = []
    for split, examples in task.splits.items():
        (folder / split).mkdir(exist_ok=True)
        mixed = sorted(enumerate(examples), key=lambda numbered: sample_name(numbered[1].key))
        count = -(-len(mixed) // per_shard)
        for number in range(count):
            samples = tuple(mixed[len(mixed) * number // count : len(mixed) * (number + 1) // count])
            file = f"{split}/{number:06d}.tar"
            jobs.append(_Job(folder, file, samples, task.labels, known.get(file)))
    return jobs


def _entries(
    jobs: Sequence[_Job], known: Mapping[str, Entry], pool: Executor | None, show: Callable[[int], None]
) -> list[Entry]:
    """Have all shards made or checked, note and show each new one, and return their entries in order."""
    entries: dict[str, Entry] = {}
    show(len(known))
    for entry in _made(jobs, pool):
        entries[entry["file"]] = entry
        if entry["file"] not in known:
            _note(jobs[0].folder, entry)
            show(len(known.keys() | entries.keys()))
    return [entries[job.file] for job in jobs]


def _made(jobs: Sequence[_Job], pool: Executor | None) -> Iterator[Entry]:
    """Yield the entry of each shard as soon as it is there."""
    if pool is None:
        yield from map(_make, jobs)
        return
    futures = [pool.submit(_make, job) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _make(job: _Job) -> Entry:
    """Make a shard, or find that it is as it was; return its entry."""
    path = job.folder / job.file
    if job.known is not None and path.is_file() and _entry(job) == job.known:
        return job.known
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        write_shard(temporary, job.samples, job.labels)
        temporary.replace(path)
        return _entry(job)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _entry(job: _Job) -> Entry:
    with (job.folder / job.file).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"file": job.file, "examples": len(job.samples), "bytes": stream.tell(), "sha256": digest}


def _show(progress: StageProgress | None, name: str, total: int, there: int, done: int) -> None:
    if progress is not None:
        progress.show([Stage(name, total, there, done)])


# --- index and journal ---------------------------------------------------------------------------------------------


def _index(task: Task, per_shard: int, mark: str, entries: Sequence[Entry]) -> dict[str, Any]:
    splits = {}
    for split, examples in task.splits.items():
        counts = Counter(task.labels[label] for example in examples for label in example.labels)
        splits[split] = {
            "examples": len(examples),
            "labels": {label: counts[label] for label in task.labels},
            "shards": [entry for entry in entries if entry["file"].startswith(f"{split}/")],
        }
    return {
        "preparation": mark,
        "task": task.name,
        "fingerprint": task.fingerprint,
        "modality": task.modality,
        "metric": task.metric,
        "labels": dict(zip(task.labels, task.label_texts, strict=True)),
        "templates": list(task.templates),
        "per_shard": per_shard,
        "splits": splits,
    }


def _begin(folder: Path, mark: str, known: Iterable[Entry]) -> None:
    """Write the journal, whole lines only, and remove what was being written when the last process was killed."""
    lines = [json.dumps(one) for one in ({"preparation": mark}, *known)]
    Place(folder).write(JOURNAL, "".join(f"{line}\n" for line in lines).encode())
    for left in folder.rglob(f"*{TEMPORARY}"):
        left.unlink()


def _note(folder: Path, entry: Entry) -> None:
    with (folder / JOURNAL).open("a") as journal:
        journal.write(json.dumps(entry) + "\n")


def _known(folder: Path, mark: str, name: str) -> dict[str, Entry]:
    """Return what is known of finished shards, by file.

    Raises:
        PituneError: the folder has shards of something else, or what no preparation has written.
    """
    found = {path.name for path in folder.iterdir() if path.suffix != TEMPORARY} - {LOCK}
    if not found & {INDEX, JOURNAL}:
        if found:
            raise PituneError(
                f"{folder}: has {min(found)} and no {INDEX}, so it is no prepared task; name a new folder"
            )
        return {}
    file = folder / (INDEX if INDEX in found else JOURNAL)
    try:
        head, entries = _read_index(file) if INDEX in found else _read_journal(file)
        known = {str(entry["file"]): entry for entry in entries}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PituneError(f"{file}: cannot be read ({reason(error)}); delete {folder} and run again") from error
    if head != mark:
        raise PituneError(
            f"{folder}: has shards of other data than task {name}'s, or of another length; delete it or name another"
        )
    return known


def _read_index(file: Path) -> tuple[str, list[Entry]]:
    index = json.loads(file.read_text(encoding="utf-8"))
    return index["preparation"], [entry for split in index["splits"].values() for entry in split["shards"]]


def _read_journal(file: Path) -> tuple[str, list[Entry]]:
    """Read the journal's whole lines: its end may be cut off."""
    head, *rest = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines(True) if line[-1] == "\n"]
    return head["preparation"], rest


def _unwritable(path: Path, error: OSError) -> PituneError:
    return PituneError(f"{path}: cannot be written ({reason(error)}); free or change it, then run again")
