"""Gangs on a real, local Ray: results, failures, deaths, interruption."""

from __future__ import annotations

import _thread
import itertools
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from toygangs import Pack, Work, settings, storage, work

from pitune.errors import PituneError
from pitune.runtime.gangs import run_packs
from pitune.runtime.room import check_room
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.snapshot import Snapshot
from pitune.signals import stoppable

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Ten good packs and two that fail, by one gang of one worker."""
    tmp_path = tmp_path_factory.mktemp("alone")
    made = work(tmp_path)
    packs = [Pack("bad", error="clear"), Pack("worse", error="two\nlines")] + [Pack(f"p{i}") for i in range(10)]
    seen: list[Snapshot] = []
    errors = run_packs(packs, made, settings(), storage(tmp_path), seen.append)
    assert errors["bad"] == "clear"
    assert errors["worse"].startswith("ValueError: two lines (toygangs.py:")
    assert len(errors) == 2
    assert (seen[-1].total, len(seen[-1].done), seen[-1].waiting, len(seen[-1].failed)) == (12, 10, 0, 2)
    return made


@slow
def test_a_failed_pack_leaves_the_others_and_the_gang_alone(alone: Work) -> None:
    assert len(alone.notes("open")) == 1
    assert alone.notes("open")[0]["threads"] == 1
    assert all(alone.result(f"p{i}") == alone.result("p0") for i in range(10))


@slow
def test_orchestration_costs_less_than_two_seconds_a_pack(alone: Work) -> None:
    begun = [note["at"] for note in alone.notes("begun")]
    # With an engine and six steps of training in it; the first pack has DeepSpeed's import in it as well.
    assert statistics.median(after - before for before, after in itertools.pairwise(begun)) < 2.0


@slow
def test_two_workers_train_like_one(alone: Work, tmp_path: Path) -> None:
    both = work(tmp_path)
    packs = [Pack("two", 2), Pack("three", 3)]
    assert run_packs(packs, both, settings(workers=2), storage(tmp_path)) == {}
    expected = alone.result("p0")
    for pack in packs:
        found = both.result(pack.name)
        torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(expected["losses"]))
        torch.testing.assert_close(
            torch.tensor(found["weight"]), torch.tensor(expected["weight"]), atol=1e-5, rtol=1e-4
        )


@slow
@pytest.mark.kill
def test_a_killed_worker_resumes_its_pack(alone: Work, tmp_path: Path) -> None:
    killed = work(tmp_path)
    assert run_packs([Pack("mortal", die_at=3), Pack("next")], killed, settings(), storage(tmp_path)) == {}
    found = killed.result("mortal")
    assert found["first"] in (1, 2, 3)  # the last checkpoint may not have been taken note of
    assert found["weight"] == alone.result("p0")["weight"]
    assert found["losses"] == alone.result("p0")["losses"][found["first"] :]
    assert killed.result("next") == alone.result("p0")


@slow
def test_a_backbone_that_does_not_load_fails_every_pack_in_one_line(ray_session: None, tmp_path: Path) -> None:
    errors = run_packs([Pack("p0"), Pack("p1")], work(tmp_path, refuse=True), settings(), storage(tmp_path))
    assert errors == dict.fromkeys(["p0", "p1"], "no gang is left to train it (backbone x: is not there)")


@slow
def test_an_interrupt_stops_the_gangs_at_once(ray_session: None, tmp_path: Path) -> None:
    interrupted: list[float] = []

    def watch(snapshot: Snapshot) -> None:
        if snapshot.running and not interrupted:
            interrupted.append(time.monotonic())
            threading.Timer(0.5, _thread.interrupt_main).start()

    with stoppable(), pytest.raises(KeyboardInterrupt):
        run_packs([Pack("long", sleep=300)], work(tmp_path), settings(), storage(tmp_path), watch)
    assert time.monotonic() - interrupted[0] < 10


@slow
def test_a_gang_that_does_not_fit_is_refused(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(PituneError, match="a gang of 9 takes 1 CPU for each worker, there is room for 2 on 1 machine"):
        run_packs([Pack("p0")], work(tmp_path), settings(workers=9), storage(tmp_path))


def test_no_packs_are_no_work(tmp_path: Path) -> None:
    assert run_packs([], work(tmp_path), settings(), storage(tmp_path)) == {}


CHILD = """
import os, sys
from pitune.runtime.cluster import connect
from pitune.signals import stoppable
with stoppable(), connect(cpus=1):
    import ray
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    os.kill(os.getpid(), int(sys.argv[1]))
    import time
    time.sleep(60)
"""


@slow
@pytest.mark.ray
@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_local_ray_ends_with_its_driver(number: int) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-c", CHILD, str(int(number))],  # in background
        capture_output=True,
        text=True,
        timeout=90,
        cwd=root,
        check=False,
    )
    assert child.returncode != 0 and "Traceback" not in child.stderr.partition("KeyboardInterrupt")[2]
    folder = Path(child.stdout.strip()).parent
    assert folder.name.startswith("pitune-")
    deadline = time.monotonic() + 30
    while (folder.exists() or _processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.25)
    assert not folder.exists() and not _processes(folder)


@slow
def test_a_worker_that_no_machine_has_room_for_is_refused(ray_session: None) -> None:
    check_room(RuntimeSettings(cpus_per_worker=2))
    with pytest.raises(
        PituneError, match="a worker takes 3 CPUs, there is room for 0 on 1 machine of 2 CPUs and 0 GPU"
    ):
        check_room(RuntimeSettings(cpus_per_worker=3))


def _processes(folder: Path) -> list[Path]:
    """Return the processes whose command line names ``folder``."""
    return [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if str(folder) in _read(entry)]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
