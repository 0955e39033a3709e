"""Two writers of one artifact: afterwards it is one's or the other's as a whole, and neither was disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from pyarrow import fs

from pitune.store import Store

PAIRS = 300
LETTERS = ("a", "b")


def content(letter: str) -> dict[str, bytes]:
    """Return files of one writer; each has one more than the other, and they share three, of equal sizes."""
    return {name: letter.encode() * 2000 for name in ("1.bin", "2.bin", "3.bin", f"only-{letter}.bin")}


def together(*actions: Callable[[], object]) -> list[BaseException]:
    """Run actions in threads that begin at the same moment; return what they raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(actions))

    def act(action: Callable[[], object]) -> None:
        barrier.wait()
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=act, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def commit_both(store: Callable[[], Store], artifact: str) -> list[BaseException]:
    """Let both writers commit an artifact at the same moment."""
    return together(*(partial(lambda letter: store().commit(artifact, content(letter), letter), x) for x in LETTERS))


def owner_of(folder: Path, may_have_more: bool = False) -> str:
    """Return whose artifact lies in a folder, having made sure, without pitune, that nothing else lies there.

    Without locks, a file that only the writer who gave up has, and which the manifest does not name, may be left.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    letter = str(manifest["fingerprint"])
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    if may_have_more:
        files = {name: data for name, data in files.items() if name in content(letter)}
    assert files == content(letter)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert {name: file["sha256"] for name, file in manifest["files"].items()} == hashes
    return letter


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads take turns much more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("uri", [False, True], ids=["folder", "without locks"])
def test_pairs_of_threads_leave_one_whole_artifact_each(tmp_path: Path, uri: bool) -> None:
    root = f"file://{tmp_path}" if uri else str(tmp_path)
    errors = []
    for number in range(PAIRS):
        errors += commit_both(lambda: Store(root), f"x/{number}")
    assert errors == []
    owners = [owner_of(tmp_path / "x" / str(number), may_have_more=uri) for number in range(PAIRS)]
    assert set(owners) == set(LETTERS)
    assert not list(Store(root).problems()) and not list(tmp_path.rglob("*.partial"))


@pytest.mark.usefixtures("switching")
def test_pairs_of_threads_on_a_file_system_that_is_not_local() -> None:
    store = Store("mock://study")
    assert isinstance(store._place.fs.base_fs, fs._MockFileSystem)
    for number in range(PAIRS):
        assert commit_both(lambda: store, f"x/{number}") == []
    assert not list(store.problems()) and len(store.artifacts()) == PAIRS
    for artifact, manifest in store.artifacts().items():
        files = {name: store.read(artifact, name) for name in manifest["files"]}
        assert files == content(manifest["fingerprint"])


@pytest.mark.usefixtures("switching")
def test_a_reader_never_gets_bytes_unlike_the_manifest_nor_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit("x", content("a"), "a")
    seen: set[bytes] = set()

    ended: list[None] = []

    def write() -> None:
        try:
            for number in range(100):
                store.commit("x", content(LETTERS[number % 2]), LETTERS[number % 2])
        finally:
            ended.append(None)

    def read() -> None:
        while len(ended) < 2:
            seen.add(store.read("x", "2.bin"))

    assert together(write, write, read) == []
    assert seen == {content("a")["2.bin"], content("b")["2.bin"]}


def test_processes_that_commit_and_discard_leave_whole_artifacts(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pitune.store import Store\n"
        "from test_writers import content\n"
        "letter, store = sys.argv[1], Store(sys.argv[2])\n"
        "input()\n"
        "for round in range(20):\n"
        "    for number in range(5):\n"
        "        store.commit(f'x/{number}', content(letter), letter)\n"
        "        if number == round % 5 and round < 19: store.discard(f'x/{number}')\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, letter, str(tmp_path)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for letter in (*LETTERS, *LETTERS)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert [owner_of(tmp_path / "x" / str(number)) in LETTERS for number in range(5)] == [True] * 5
    assert not list(Store(tmp_path).problems()) and not list(tmp_path.rglob("*.partial"))
