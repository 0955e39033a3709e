"""The catalogue: what is finished, from one listing and one look into each manifest."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from pitune.store import Store

FILES = {"a.txt": b"first", "b.bin": b"second"}


class Counting:
    """A file system that counts what is asked of it."""

    def __init__(self, real: fs.FileSystem) -> None:
        self.real = real
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self.real, name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "study")
    for name in ("b@4#0", "a@4#0"):
        store.commit(f"experts/{name}", FILES, f"mark of {name}", seconds=1.5, inputs={"task": name})
        store.commit(f"embeddings/{name}.parquet", {"": b"table"}, f"mark of {name}.parquet")
    return store


def test_it_has_every_artifact_in_order_with_its_manifest(store: Store) -> None:
    catalogue = store.catalogue()
    names = ["embeddings/a@4#0.parquet", "embeddings/b@4#0.parquet", "experts/a@4#0", "experts/b@4#0"]
    assert list(catalogue) == names and len(catalogue) == 4
    assert dict(catalogue) == {name: store.manifest(name) for name in names} == store.artifacts()
    assert "experts/a@4#0" in catalogue and "experts/c@4#0" not in catalogue
    assert catalogue.get("experts/c@4#0") is None and catalogue.fingerprint("experts/c@4#0") is None
    assert catalogue.fingerprint("experts/a@4#0") == "mark of a@4#0"


def test_it_takes_one_listing_and_one_read_each_and_nothing_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(store._place.fs)
    monkeypatch.setattr(store._place, "fs", counting)
    catalogue = store.catalogue()
    assert counting.calls == {"get_file_info": 1, "open_input_file": 4}
    for artifact, manifest in catalogue.items():
        assert catalogue.is_current(artifact, manifest["fingerprint"]) and not catalogue.is_current(artifact, "other")
    assert not catalogue.is_current("experts/c@4#0", "mark")
    assert counting.calls == {"get_file_info": 1, "open_input_file": 4}


def test_what_is_not_whole_is_not_current(store: Store) -> None:
    Path(store.root, "experts", "a@4#0", "a.txt").unlink()
    Path(store.root, "embeddings", "b@4#0.parquet").write_bytes(b"tab")
    current = {name for name, manifest in store.artifacts().items() if store.is_current(name, manifest["fingerprint"])}
    catalogue = store.catalogue()
    assert {name for name in catalogue if catalogue.is_current(name, catalogue[name]["fingerprint"])} == current
    assert current == {"embeddings/a@4#0.parquet", "experts/b@4#0"} and len(catalogue) == 4


def test_it_is_a_snapshot_that_is_told_of_later_commits(store: Store) -> None:
    catalogue = store.catalogue()
    manifest = store.commit("experts/c@4#0", FILES, "new", members=("a", "b"))
    store.discard("experts/a@4#0")
    assert "experts/c@4#0" not in catalogue and "experts/a@4#0" in catalogue
    catalogue.note("experts/c@4#0", manifest)
    catalogue.note("experts/a@4#0", store.manifest("experts/a@4#0"))
    catalogue.note("experts/never", None)
    assert dict(catalogue) == store.artifacts() and catalogue.is_current("experts/c@4#0", "new")
    assert list(catalogue) == sorted(catalogue)


def test_a_manifest_that_was_looked_up_can_be_changed_without_harm(store: Store) -> None:
    catalogue = store.catalogue()
    catalogue["experts/a@4#0"]["inputs"]["task"] = "other"
    assert catalogue["experts/a@4#0"]["inputs"] == {"task": "a@4#0"}


def test_what_has_a_damaged_manifest_is_not_finished(store: Store) -> None:
    Path(store.root, "experts", "a@4#0", "manifest.json").write_text("{")
    assert "experts/a@4#0" not in store.catalogue()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_it_can_be_made_while_others_write(tmp_path: Path, scheme: str) -> None:
    store = Store(f"{scheme}{tmp_path}/study")

    def write() -> None:
        for number in range(200):
            store.commit(f"experts/{number % 7}", {"a.txt": b"a" * (number % 3)}, "mark")
            store.write(f".ray/{number % 5}/state", b"x")
            store.remove(f".ray/{(number + 2) % 5}")

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        assert len(store.catalogue()) <= 7
    catalogue = store.catalogue()
    assert len(catalogue) == 7 and all(catalogue.is_current(name, "mark") for name in catalogue)
