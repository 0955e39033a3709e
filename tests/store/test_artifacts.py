"""The store: done means whole, whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from pitune.errors import PituneError
from pitune.store import Store, manifest_path, table_bytes

FILES = {"a.txt": b"first", "b.bin": bytes(range(256))}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "study")


def one_line(error: pytest.ExceptionInfo[PituneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class Failing:
    """A file system whose n-th change fails (a file opened for writing, moved or deleted); the rest is the real one's.

    A ``KeyboardInterrupt`` stands for a kill: nothing can be changed after it. An ``OSError`` comes once.
    """

    def __init__(self, real: fs.FileSystem, good: int, error: BaseException) -> None:
        self.real, self.good, self.error = real, good, error

    def __getattr__(self, name: str) -> Any:
        if name in ("open_output_stream", "move", "delete_file"):
            self.good -= 1
            if self.good == -1 or (self.good < 0 and isinstance(self.error, KeyboardInterrupt)):
                raise self.error
        return getattr(self.real, name)


def leftovers(store: Store) -> list[Path]:
    return list(Path(store.root).rglob("*.partial"))


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
    assert store.table("graph.parquet", columns=("rank", "similarity")) == pa.table({"rank": [1]})
    assert list(store.artifacts()) == ["graph.parquet"] and list(store.problems()) == []


def test_a_new_commit_leaves_no_file_of_the_old_one(store: Store) -> None:
    store.commit("experts/x", FILES, "old")
    store.commit("experts/x", {"c.txt": b"new"}, "new")
    assert {path.name for path in (Path(store.root) / "experts" / "x").iterdir()} == {"c.txt", "manifest.json"}


@pytest.mark.parametrize("good", range(8))
def test_a_crash_at_any_change_leaves_the_old_artifact_or_none(
    store: Store, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    store.commit("experts/x", FILES, "old")
    with monkeypatch.context() as patch:
        patch.setattr(store._place, "fs", Failing(store._place.fs, good, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            store.commit("experts/x", {"a.txt": b"FIRST", "c.bin": b"THIRD"}, "new")
    assert list(store.problems()) == []
    if good < 4:  # three files are written under temporary names before the old manifest goes
        assert store.is_current("experts/x", "old") and store.read("experts/x", "b.bin") == FILES["b.bin"]
    else:
        assert store.manifest("experts/x") is None and store.artifacts() == {}
        with pytest.raises(PituneError, match="not finished"):
            store.read("experts/x", "a.txt")
    store.commit("experts/x", {"a.txt": b"FIRST", "c.bin": b"THIRD"}, "new")
    assert store.is_current("experts/x", "new") and list(store.problems()) == []


def test_there_are_no_more_changes_in_a_commit_than_the_test_above_breaks_off(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit("experts/x", FILES, "old")
    monkeypatch.setattr(store._place, "fs", Failing(store._place.fs, 8, KeyboardInterrupt()))
    store.commit("experts/x", {"a.txt": b"FIRST", "c.bin": b"THIRD"}, "new")


@pytest.mark.parametrize("good", range(6))
def test_a_full_disk_is_one_line_and_nothing_half_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    store.write("experts/x/other", b"")
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch, pytest.raises(PituneError) as error:
        patch.setattr(store._place, "fs", Failing(store._place.fs, good, full))
        store.commit("experts/x", FILES, "mark")
    assert "No space left on device" in one_line(error) and "experts/x" in one_line(error)
    assert store.manifest("experts/x") is None and not leftovers(store)


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


MANIFEST: Any = {"artifact": "experts/x", "fingerprint": "mark", "files": {"a.txt": {"sha256": "0" * 64, "bytes": 1}}}


def described(name: str, **file: object) -> dict[str, Any]:
    return MANIFEST | {"files": {name: MANIFEST["files"]["a.txt"] | file}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("\xff", "is not JSON"),
        ('{"a": ' + "[" * 100_000, "is not JSON"),
        ("[]", "is no manifest"),
        ("{}", "is no manifest"),
        (json.dumps(MANIFEST | {"fingerprint": 1}), "is no manifest"),
        (json.dumps(MANIFEST | {"files": []}), "is no manifest"),
        (json.dumps(MANIFEST | {"artifact": "experts/y"}), "is the manifest of 'experts/y'"),
        (json.dumps(MANIFEST | {"files": {"a.txt": 1}}), "as no manifest does"),
        (json.dumps(described("a.txt", bytes="1")), "as no manifest does"),
        (json.dumps(described("a.txt", sha256=5)), "as no manifest does"),
        (json.dumps(described("")), "as no manifest does"),
        (json.dumps(described("a\0b")), "as no manifest does"),
        (json.dumps(described("../y/a.txt")), "as no manifest does"),
        (json.dumps(described("/etc/passwd")), "as no manifest does"),
        (json.dumps(MANIFEST | {"checksum": "0" * 64}), "its checksum is another"),
    ],
)
def test_a_damaged_manifest_says_nothing_is_told_and_replaced(store: Store, content: str, says: str) -> None:
    store.commit("experts/x", FILES, "mark")
    store.commit("experts/y", FILES, "mark")
    (Path(store.root) / "experts" / "x" / "manifest.json").write_bytes(content.encode("latin-1"))
    assert not store.is_current("experts/x", "mark") and list(store.catalogue()) == ["experts/y"]
    (problem,) = store.problems()
    assert problem.startswith("experts/x/manifest.json: ") and says in problem and problem.isprintable()
    store.discard("experts/x")
    store.commit("experts/x", FILES, "mark")
    assert list(store.catalogue()) == ["experts/x", "experts/y"] and not list(store.problems())


def test_what_a_manifest_names_outside_its_artifact_is_not_deleted(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    store.commit("experts/x", FILES, "mark")
    text = json.dumps(described("../" * len(Path(store.root, "experts/x").parts) + str(precious)))
    (Path(store.root) / "experts" / "x" / "manifest.json").write_text(text)
    store.discard("experts/x")
    store.commit("experts/x", FILES, "mark")
    assert precious.read_text() == "mine"


def test_a_manifest_without_a_checksum_is_read(store: Store) -> None:
    """As older studies have it."""
    manifest = store.commit("experts/x", FILES, "mark")
    del manifest["checksum"]
    (Path(store.root) / "experts" / "x" / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    assert store.manifest("experts/x") == manifest and not list(store.problems())


def test_a_file_that_only_ends_like_a_manifest_is_none(store: Store) -> None:
    store.write("notmanifest.json", b"[]")
    assert store.artifacts() == {}


def test_looking_at_a_study_makes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "studies" / "new")
    assert not store.artifacts() and not store.is_locked() and not list(store.problems())
    assert store.manifest("experts/x") is None and not store.is_current("experts/x", "mark")
    assert not list(tmp_path.iterdir())
    store.commit("results.parquet", {"": b"x"}, "mark")
    assert Store(tmp_path / "studies" / "new").read("results.parquet") == b"x"


def test_a_damaged_table_is_one_line(store: Store) -> None:
    store.commit("graph.parquet", {"": b"PAR1 cut off"}, "mark")
    with pytest.raises(PituneError) as error:
        store.table("graph.parquet")
    assert "graph.parquet: is no parquet file" in one_line(error)


def test_bytes_unlike_the_manifest_are_not_read(store: Store) -> None:
    store.commit("graph.parquet", {"": table_bytes([{"source": "a"}])}, "mark")
    store.commit("experts/x", FILES, "mark")
    Path(store.root, "graph.parquet").write_bytes(table_bytes([{"source": "b"}]))  # same size, and a fine table
    Path(store.root, "experts", "x", "a.txt").write_bytes(b"FIRST")
    for read, path, data in (
        (lambda: store.table("graph.parquet"), "graph.parquet", Path(store.root, "graph.parquet").read_bytes()),
        (lambda: store.read("experts/x", "a.txt"), "experts/x/a.txt", b"FIRST"),
    ):
        with pytest.raises(PituneError) as error:
            read()
        assert f"{store.root}/{path}: sha256 {hashlib.sha256(data).hexdigest()[:12]}" in one_line(error)
        assert "its manifest says" in one_line(error) and "delete it and run again" in one_line(error)
    assert store.read("experts/x", "b.bin") == FILES["b.bin"]


def test_a_file_that_the_manifest_does_not_name_is_not_read(store: Store) -> None:
    store.commit("experts/x", FILES, "mark")
    store.write("experts/x/c.txt", b"left by somebody")
    with pytest.raises(PituneError) as error:
        store.read("experts/x", "c.txt")
    assert "experts/x/c.txt: is no file of experts/x, which has a.txt, b.bin" in one_line(error)


def test_commit_returns_the_manifest_as_it_is_read(store: Store) -> None:
    manifest = store.commit("experts/x", FILES, "mark", members=("a", "b"))
    assert manifest == store.manifest("experts/x") and manifest["members"] == ["a", "b"]


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
