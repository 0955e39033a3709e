"""Where manifests lie, and which names ask for which files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pitune.store import Store, manifest_path
from pitune.store.manifest import artifact_of

FOLDERS = ["sweeps/trials/x/k3-t0.3-fresh", "sweeps/trials/x/k3-t1-fresh", "experts/a.b@4#0", "experts/a.parquet@4#0"]
SINGLE = ["graph.parquet", "sweeps/trials/x/k3-t0.3-fresh.json", "report.html", "embeddings/a.b@4#0.parquet", "x.yaml"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "study")


@pytest.mark.parametrize("artifact", FOLDERS)
def test_a_folder_has_its_manifest_inside_whatever_dots_it_has(store: Store, artifact: str) -> None:
    store.commit(artifact, {"a.txt": b"1"}, "mark")
    assert {path.name for path in Path(store.root, artifact).iterdir()} == {"a.txt", "manifest.json"}
    assert {path.name for path in Path(store.root, artifact).parent.iterdir()} == {Path(artifact).name}
    assert store.read(artifact, "a.txt") == b"1" and list(store.artifacts()) == [artifact]


@pytest.mark.parametrize("artifact", SINGLE)
def test_a_single_file_has_its_manifest_beside_it(store: Store, artifact: str) -> None:
    store.commit(artifact, {"": b"1"}, "mark")
    assert Path(store.root, artifact).read_bytes() == b"1" and Path(store.root, f"{artifact}.manifest.json").exists()
    assert store.read(artifact) == b"1" and list(store.artifacts()) == [artifact]


@pytest.mark.parametrize(
    ("artifact", "files"),
    [
        ("graph.parquet", {"a.txt": b""}),
        ("graph.parquet", {}),
        ("graph.parquet", {"": b"", "a.txt": b""}),
        ("experts/x", {"": b""}),
        ("experts/x.bin", {"": b""}),
        ("experts/x", {"": b"", "a.txt": b""}),
        ("experts/x", {"a.txt": b"", "manifest.json": b""}),
    ],
)
def test_names_that_do_not_go_together_are_refused(store: Store, artifact: str, files: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match=rf"artifact {artifact}: found files named "):
        store.commit(artifact, files, "mark")
    assert not Path(store.root).exists()


@pytest.mark.parametrize(
    "path",
    [
        "manifest.json",
        "notmanifest.json",
        "a.txt",
        "graph.parquet/manifest.json",
        "a/k3-t0.3-x.manifest.json",
        ".ray/manifest.json",
    ],
)
def test_what_only_looks_like_a_manifest_is_no_artifacts(store: Store, path: str) -> None:
    store.write(path, b"[]")
    assert artifact_of(path) is None and store.artifacts() == {} and list(store.problems()) == []


@pytest.mark.parametrize("artifact", FOLDERS + SINGLE)
def test_an_artifact_is_told_from_its_manifest(artifact: str) -> None:
    assert artifact_of(manifest_path(artifact)) == artifact
