"""What the stages work with: opened once, the same rows everywhere, cheap to send to a worker."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tinymodel import make_task

from pitune.config import StudyConfig
from pitune.errors import PituneError
from pitune.materials import Materials, sample
from pitune.plan import materials_of
from pitune.store import Store
from pitune.tasks.tables import TableSource
from pitune.tasks.task import Example, Slice


@pytest.fixture
def materials(tiny_folder: Path, tmp_path: Path) -> Materials:
    config = StudyConfig.model_validate(
        {
            "study": str(tmp_path),
            "backbone": {"uri": str(tiny_folder), "max_tokens": 24},
            "tasks": ["movie", "nyt"],
            "expert": {"kind": "lora", "layers": 2},
            "sources": ["movie", "nyt"],
            "targets": ["movie@2#0"],
            "sweep": {"top_k": [1]},
            "training": {"validation_examples": 20},
            "embedding": {"examples": 7},
        }
    )
    made = materials_of(config, Store(config.study))
    made._tasks = {"movie": make_task("movie", 2, 60)}
    return made


def test_a_full_slice_validates_on_a_fixed_part(materials: Materials) -> None:
    full, few = materials.data(Slice.parse("movie@full#0")), materials.data(Slice.parse("movie@2#0"))
    assert (len(full.train), len(full.validation)) == (60, 20)
    assert full.validation == materials.data(Slice.parse("movie@full#3")).validation
    assert (len(few.train), len(few.validation)) == (4, 4)


def test_experts_are_scored_on_a_fixed_part(materials: Materials) -> None:
    whole = materials.task("movie").splits["test"]
    assert materials.test("movie") == whole
    cut = Materials(
        materials.store,
        backbone=materials.settings,
        kind=materials.kind,
        objective=materials.objective,
        tasks=materials.sources,
        test_examples=11,
    )
    cut._tasks = materials._tasks
    assert len(cut.test("movie")) == 11 and set(cut.test("movie")) <= set(whole)
    assert pickle.loads(pickle.dumps(cut)).test_examples == 11


def test_samples_are_the_names_and_keep_their_order() -> None:
    examples = make_task("movie", 2, 60).splits["train"]
    chosen = sample(examples, 20, "a")
    assert chosen == sample(examples, 20, "a") != sample(examples, 20, "b")
    assert [examples.index(example) for example in chosen] == sorted(examples.index(example) for example in chosen)
    assert sample(examples, 60, "a") == examples


def test_rows_of_several_slices_are_each_of_their_own_task(materials: Materials) -> None:
    few, full = Slice.parse("movie@2#0"), Slice.parse("movie@full#0")
    rows = materials.rows(((few, 1.0), (full, 3.0)), "train")
    assert (materials.firsts, rows.sizes, len(rows)) == ({"text": 1}, [4, 60], 64)
    assert rows.targets(range(4)) == [example.label for example in materials.data(few).train]


def test_several_slices_validate_on_as_many_rows_as_one(materials: Materials) -> None:
    full, other, few = map(Slice.parse, ("movie@full#0", "movie@full#1", "movie@2#0"))
    rows = materials.rows(((full, 1.0), (other, 3.0)), "validation")
    assert rows.sizes == [5, 15]  # of 20
    drawn = [example.label for example in materials.data(other).validation]
    assert rows.targets(range(5, 20)) == [drawn[index] for index in kept(len(drawn), 15)]
    assert materials.rows(((full, 1.0), (few, 1.0), (other, 1e-9)), "validation").sizes == [10, 4, 1]


def kept(size: int, count: int) -> list[int]:
    """Return which of ``size`` examples a sample of them keeps."""
    examples = tuple(Example(str(index), "", 0) for index in range(size))
    return [int(example.key) for example in sample(examples, count, "validation")]


def test_what_is_sent_to_a_worker_is_small(materials: Materials) -> None:
    materials.rows(((Slice.parse("movie@2#0"), 1.0),), "train")
    sent = pickle.dumps(materials)
    assert len(sent) < 20_000
    again = pickle.loads(sent)
    assert again.kind == materials.kind and again.store.root == materials.store.root
    assert "backbone" not in vars(again)


def test_a_worker_finds_relative_paths_from_its_own_folder(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    values = {
        "study": "study",
        "backbone": {"uri": tiny_folder.name},
        "tasks": {"own": {"train": "data/own.csv", "labels": {"0": "w1", "1": "w2"}}, "movie": None},
        "sources": ["movie"],
        "targets": ["own@2#0"],
        "sweep": {"top_k": [1]},
    }
    sent = pickle.dumps(materials_of(StudyConfig.model_validate(values), Store("study")))
    monkeypatch.chdir(tmp_path)
    found = pickle.loads(sent)
    own = found.sources["own"]
    assert found.settings.uri == str(tiny_folder)
    assert own is not None and own.train == str(tiny_folder.parent / "data" / "own.csv") and own.test is None
    assert found.sources["movie"] is None


def test_a_task_that_the_backbone_does_not_read_is_refused(materials: Materials, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(40):
            (tmp_path / label / f"{number}.png").write_bytes(f"{label} {number}".encode())
    source = TableSource.model_validate({"train": str(tmp_path), "labels": {"cat": "a cat", "dog": "a dog"}})
    materials.sources["pets"] = source
    with pytest.raises(PituneError, match=r"^task pets: its examples are image; backbone.kind text reads text$"):
        materials.task("pets")


def test_a_worker_with_another_copy_is_told_so(materials: Materials, tiny_folder: Path, tmp_path: Path) -> None:
    assert materials.backbone_assets["uri"].path == tiny_folder
    worker = pickle.loads(pickle.dumps(materials))
    assert worker.backbone_assets["uri"].sha256 == materials.backbone_assets["uri"].sha256
    worker = pickle.loads(pickle.dumps(materials))
    worker._hashes["backbone"] = "0" * 64
    with pytest.raises(PituneError, match=r"^backbone: has changed since the study began"):
        _ = worker.backbone_assets
