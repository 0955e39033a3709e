"""The store: done means whole, whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from pitune.errors import PituneError
from pitune.store import Store, fingerprint_of, manifest_path, table_bytes

FILES = {"a.txt": b"first", "b.bin": bytes(range(256))}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "study")


def one_line(error: pytest.ExceptionInfo[PituneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class FailingStreams:
    """A file system whose n-th file to be opened for writing fails; all else goes to the real one."""

    def __init__(self, real: fs.FileSystem, good: int, error: BaseException) -> None:
        self.real, self.good, self.error = real, good, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def open_output_stream(self, path: str) -> Any:
        self.good -= 1
        if self.good < 0:
            raise self.error
        return self.real.open_output_stream(path)


def test_fingerprint_is_of_the_values_not_of_their_order() -> None:
    assert fingerprint_of({"a": 1, "b": [2, 3]}) == fingerprint_of({"b": [2, 3], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
    with pytest.raises(ValueError):
        fingerprint_of({"a": float("nan")})


def test_a_committed_folder_is_read_back(store: Store) -> None:
    store.commit("experts/movie@16#0", FILES, "mark", seconds=1.5)
    folder = Path(store.root) / "experts" / "movie@16#0"
    assert {path.name for path in folder.iterdir()} == {"a.txt", "b.bin", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["b.bin"] == {"sha256": hashlib.sha256(FILES["b.bin"]).hexdigest(), "bytes": 256}
    assert manifest["seconds"] == 1.5
    assert "pyarrow" not in manifest["versions"] and manifest["versions"]["python"] == sys.version.split()[0]
    assert store.read("experts/movie@16#0", "b.bin") == FILES["b.bin"]
    assert store.is_current("experts/movie@16#0", "mark") and not store.is_current("experts/movie@16#0", "other")


def test_a_single_table_has_its_manifest_beside_it(store: Store) -> None:
    assert manifest_path("graph.parquet") == "graph.parquet.manifest.json"
    store.commit("graph.parquet", {"": table_bytes([{"source": "a", "rank": 1}])}, "mark")
    assert store.table("graph.parquet") == pa.table({"source": ["a"], "rank": [1]})
    assert list(store.artifacts()) == ["graph.parquet"] and list(store.problems()) == []


def test_a_new_commit_leaves_no_file_of_the_old_one(store: Store) -> None:
    store.commit("experts/x", FILES, "old")
    store.commit("experts/x", {"c.txt": b"new"}, "new")
    assert {path.name for path in (Path(store.root) / "experts" / "x").iterdir()} == {"c.txt", "manifest.json"}


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_crash_midway_leaves_the_artifact_not_done(store: Store, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    store.commit("experts/x", FILES, "old")
    with monkeypatch.context() as patch:
        patch.setattr(store, "_fs", FailingStreams(store._fs, good, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            store.commit("experts/x", {"a.txt": b"FIRST", "b.bin": b"SECOND"}, "new")
    assert store.manifest("experts/x") is None and store.artifacts() == {}
    with pytest.raises(PituneError, match="not finished"):
        store.read("experts/x", "a.txt")
    store.commit("experts/x", FILES, "new")
    assert store.is_current("experts/x", "new") and list(store.problems()) == []


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_full_disk_is_one_line_and_nothing_half_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(store, "_fs", FailingStreams(store._fs, good, full))
    with pytest.raises(PituneError) as error:
        store.commit("experts/x", FILES, "mark")
    assert "No space left on device" in one_line(error) and "experts/x" in one_line(error)
    assert store.manifest("experts/x") is None
    assert not list(Path(store.root).rglob("*.partial"))


def test_a_fact_that_is_no_json_value_does_not_cost_what_is_there(store: Store) -> None:
    store.commit("experts/x", FILES, "old")
    with pytest.raises(TypeError):
        store.commit("experts/x", FILES, "new", bad=object())
    assert store.is_current("experts/x", "old") and list(store.problems()) == []


def test_problems_name_a_flipped_byte_and_a_missing_file(store: Store) -> None:
    store.commit("experts/x", FILES, "mark")
    store.commit("experts/y", FILES, "mark")
    flipped = Path(store.root) / "experts" / "x" / "b.bin"
    flipped.write_bytes(bytes([FILES["b.bin"][0] ^ 1]) + FILES["b.bin"][1:])
    (Path(store.root) / "experts" / "y" / "a.txt").unlink()
    problems = list(store.problems())
    assert len(problems) == 2
    assert problems[0].startswith("experts/x/b.bin: sha256 ") and problems[1] == "experts/y/a.txt: missing"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"fingerprint": "x"}'])
def test_a_spoilt_manifest_is_one_line(store: Store, content: str) -> None:
    store.commit("experts/x", FILES, "mark")
    (Path(store.root) / "experts" / "x" / "manifest.json").write_text(content)
    with pytest.raises(PituneError) as error:
        store.is_current("experts/x", "mark")
    assert "experts/x/manifest.json" in one_line(error)


def test_a_file_that_only_ends_like_a_manifest_is_none(store: Store) -> None:
    store.write("notmanifest.json", b"[]")
    assert store.artifacts() == {}


def test_a_second_process_is_told_and_the_lock_ends_with_its_holder(store: Store) -> None:
    code = (
        "import sys; from pitune.store import Store\nwith Store(sys.argv[1]).lock(): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, store.root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(PituneError) as error, store.lock():
            pass
        assert "another pitune process" in one_line(error)
        other.kill()
        other.wait()
    with store.lock():
        pass


def test_looking_at_a_study_makes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "studies" / "new")
    assert not store.artifacts() and not store.is_locked() and not list(store.problems())
    assert store.manifest("experts/x") is None and not store.is_current("experts/x", "mark")
    assert not list(tmp_path.iterdir())
    store.commit("results.parquet", {"": b"x"}, "mark")
    assert Store(tmp_path / "studies" / "new").read("results.parquet") == b"x"


def test_a_root_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "study")
    with pytest.raises(PituneError) as error, store.lock():
        pass
    assert "cannot be written" in one_line(error) and "file is no folder" in one_line(error)


def test_a_damaged_table_is_one_line(store: Store) -> None:
    store.commit("graph.parquet", {"": b"PAR1 cut off"}, "mark")
    with pytest.raises(PituneError) as error:
        store.table("graph.parquet")
    assert "graph.parquet: is no parquet file" in one_line(error)


def test_what_ray_keeps_is_removed_only_where_all_went_well(store: Store) -> None:
    with store.scratch("train") as place:
        (Path(place) / "gang").mkdir(parents=True)
    assert not Path(place).exists()
    with pytest.raises(KeyError), store.scratch("train") as place:
        (Path(place) / "gang").mkdir(parents=True)
        raise KeyError
    assert (Path(place) / "gang").is_dir()


def test_a_store_by_uri_does_the_same_and_survives_pickling_to_a_worker(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/study")
    with store.lock():
        store.write("study.yaml", b"a: 1")
        store.commit("experts/x", FILES, "mark")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read("experts/x", "a.txt") == b"first" and (tmp_path / "study" / "study.yaml").read_bytes() == b"a: 1"


def test_a_relative_root_means_the_same_in_a_worker_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Store("study"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(sent).root == str(tmp_path / "study")
