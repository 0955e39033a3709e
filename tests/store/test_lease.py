"""The lease: what the lock does in a folder, where there are no locks."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pitune.errors import PituneError
from pitune.store import Store, lease

SECONDS = 0.8
FILES = {"a.txt": b"first"}
HOLD = (
    "import sys\n"
    "from pitune.errors import PituneError\n"
    "from pitune.store import Store, lease\n"
    f"lease.SECONDS, lease.SETTLE = {SECONDS}, 0.05\n"
    "store = Store(sys.argv[1])\n"
    "with store.lock():\n"
    "    print('held', flush=True)\n"
    "    input()\n"
    "    try: store.commit('experts/x', {'a.txt': b'mine'}, 'mine'); print('committed')\n"
    "    except PituneError as error: print(error)\n"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", SECONDS)
    monkeypatch.setattr(lease, "SETTLE", 0.05)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/study"


@pytest.fixture
def holder(uri: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the study, and commits when it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refused(store: Store) -> str:
    """Return the one line that a second writer gets."""
    with pytest.raises(PituneError) as error, store.lock():
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def same_bucket(store: Store) -> Store:
    """Return another store on the same file system in memory."""
    other = Store(store.root)
    other._place.fs = store._place.fs
    return other


def test_it_is_held_renewed_and_gone_at_the_end() -> None:
    store = Store("mock://study")
    assert not store.is_locked()
    with store.lock():
        first = json.loads(store.text(".lease"))
        time.sleep(1.5 * SECONDS)
        second = json.loads(store.text(".lease"))
        assert first["owner"] == second["owner"] and second["time"] > first["time"]
        assert store.is_locked() and same_bucket(store).is_locked()
        line = refused(same_bucket(store))
        assert line.startswith("study folder mock://study: another pitune process is working on it; wait for it to end")
        store.commit("experts/x", FILES, "mark")
    assert not same_bucket(store).is_locked() and store._place.listing().keys() == {
        "experts/x/a.txt",
        "experts/x/manifest.json",
    }
    assert not [thread for thread in threading.enumerate() if thread.name == "pitune-lease"]
    with same_bucket(store).lock():
        pass


def test_of_two_at_the_same_moment_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE", 0.3)
    stores = [Store("mock://study")]
    stores += [same_bucket(stores[0]) for _ in range(3)]
    barrier, done = threading.Barrier(4), []

    def work(store: Store) -> None:
        barrier.wait()
        try:
            with store.lock():
                time.sleep(0.5)
                done.append("worked")
        except PituneError as error:
            done.append(str(error))

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count("worked") == 1 and sum("another pitune process" in line for line in done) == 3


@pytest.mark.kill
def test_a_process_that_was_killed_loses_it_in_time(holder: subprocess.Popen[str], uri: str) -> None:
    store = Store(uri)
    assert store.is_locked() and "another pitune process" in refused(store)
    holder.kill()
    holder.wait()
    assert "another pitune process" in refused(store)  # it might live
    time.sleep(1.2 * SECONDS)
    assert not store.is_locked()
    with store.lock():
        store.commit("experts/x", FILES, "mark")
    assert store.is_current("experts/x", "mark")


@pytest.mark.kill
def test_a_holder_that_was_taken_over_stops_at_its_next_commit(holder: subprocess.Popen[str], uri: str) -> None:
    store = Store(uri)
    holder.send_signal(signal.SIGSTOP)
    time.sleep(1.2 * SECONDS)
    with store.lock():
        store.commit("experts/x", FILES, "ours")
        holder.send_signal(signal.SIGCONT)
        out, _ = holder.communicate("\n", timeout=60)
        assert "another pitune process took it over" in out and len(out.splitlines()) == 1
        store.commit("experts/y", FILES, "ours")  # the other, ending, took nothing away
    assert store.read("experts/x", "a.txt") == b"first" and not store.is_locked()


@pytest.mark.kill
def test_a_holder_that_only_slept_goes_on(holder: subprocess.Popen[str], uri: str) -> None:
    holder.send_signal(signal.SIGSTOP)
    time.sleep(1.2 * SECONDS)
    assert not Store(uri).is_locked()
    holder.send_signal(signal.SIGCONT)
    out, _ = holder.communicate("\n", timeout=60)
    assert out == "committed\n"


@pytest.mark.parametrize("off", [-3600, 3600])
def test_a_holder_whose_clock_is_wrong_is_not_taken_over(monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    store = Store("mock://study")
    with store.lock():
        clock = time.time
        monkeypatch.setattr(lease.time, "time", lambda: clock() + off * (threading.current_thread().name == "other"))
        lines: list[str] = []
        thread = threading.Thread(target=lambda: lines.append(refused(same_bucket(store))), name="other")
        thread.start()
        thread.join()
        assert len(lines) == 1 and "another pitune process" in lines[0]
        store.commit("experts/x", FILES, "mark")


def test_a_worker_commits_under_the_lease_of_its_run(uri: str) -> None:
    store = Store(uri)
    with store.lock():
        worker = pickle.loads(pickle.dumps(store))
        worker.commit("experts/x", FILES, "mark")
    for action in (lambda: worker.commit("experts/x", FILES, "late"), lambda: worker.discard("experts/x")):
        with pytest.raises(PituneError, match="took it over, or its run has ended"):
            action()
    assert store.is_current("experts/x", "mark")
    with store.lock(), pytest.raises(PituneError, match="took it over"):
        worker.commit("experts/x", FILES, "late")
    store.commit("experts/x", FILES, "alone")  # a notebook, say, that holds nothing


def test_a_lease_that_says_nothing_is_taken(uri: str) -> None:
    store = Store(uri)
    for text in (b"", b"[]", b'{"owner": 1}'):
        store.write(".lease", text)
        assert not store.is_locked()
        with store.lock():
            assert store.is_locked()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written (Not a directory); name one that can" in refused(Store(f"file://{tmp_path}/file/study"))
