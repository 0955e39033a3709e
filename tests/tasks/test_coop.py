"""Tasks in CoOp's layout: one file gives the splits and the classes, and every fault is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tinyformats import coop, png, write

from pitune.errors import PituneError
from pitune.tasks.coop import CoopSource
from pitune.tasks.task import Task

NAMES = ("american_bulldog", "birman", "beagle")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    (tmp_path / "pets").mkdir()
    return coop(tmp_path / "pets" / "split_zhou_OxfordPets.json", "images", NAMES)


def read(split: Path, **fields: Any) -> Task:
    return CoopSource.model_validate({"split": str(split), "images": "images", **fields}).task("pets")


def refusal(split: Path, **fields: Any) -> str:
    with pytest.raises(PituneError) as error:
        read(split, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(split: Path, name: str, place: int, entry: Any) -> Path:
    """Change an entry of the file."""
    lists = json.loads(split.read_text())
    lists[name][place] = entry
    split.write_text(json.dumps(lists))
    return split


def test_one_file_gives_the_splits_and_the_classes(split: Path) -> None:
    task = read(split, templates=["a photo of a {}, a type of pet."])
    assert task.labels == NAMES and task.label_texts == ("american bulldog", "birman", "beagle")
    assert (task.modality, task.metric, task.templates) == ("image", "accuracy", ("a photo of a {}, a type of pet.",))
    lists = json.loads(split.read_text())
    for own, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        expected = [(path if own == "train" else f"{own}/{path}", label) for path, label, _ in lists[name]]
        assert [(one.key, one.label) for one in task.splits[own]] == expected
        for one, (path, _, _) in zip(task.splits[own], lists[name], strict=True):
            assert one.picture is not None and one.picture.read() == (split.parent / "images" / path).read_bytes()


def test_pictures_may_lie_beside_the_file(tmp_path: Path) -> None:
    task = read(coop(tmp_path / "split.json", ".", NAMES), images=None)
    assert {name: len(examples) for name, examples in task.splits.items()} == {"train": 18, "validation": 12, "test": 6}


def test_texts_of_ones_own(split: Path) -> None:
    assert read(split, labels=["a dog", "a cat", "another dog"]).label_texts == ("a dog", "a cat", "another dog")
    said = refusal(split, labels=["a dog", "a cat"])
    assert f"{split}: has 3 classes, labels has 2 texts; give one for each class" in said
    assert "labels has an empty text; describe the class" in refusal(split, labels=["a dog", " ", "another dog"])


def test_classes_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    lists = json.loads(coop(tmp_path / "split.json", ".", ("missile", "crane", "other")).read_text())
    for held in lists.values():
        held[:] = [[path, label, "crane" if label == 1 else "missile"] for path, label, _ in held]
    (tmp_path / "split.json").write_text(json.dumps(lists))
    task = read(tmp_path / "split.json", images=None)
    assert task.labels == ("missile (0)", "crane", "missile (2)")
    assert task.label_texts == ("missile", "crane", "missile")


@pytest.mark.parametrize("empty", [True, False])
def test_validation_is_held_out_where_there_is_none(tmp_path: Path, empty: bool) -> None:
    sizes = {"train": 20, "test": 2} | ({"val": 0} if empty else {})
    task = read(coop(tmp_path / "split.json", ".", NAMES, sizes), images=None)
    held = [one.label for one in task.splits["validation"]]
    assert sorted(held) == [0, 0, 1, 1, 2, 2]  # a tenth of each class
    assert len(task.splits["train"]) == 54
    few = read(coop(tmp_path / "few.json", "few", NAMES, {"train": 3, "test": 2}, seed=1), images="few")
    assert sorted(one.label for one in few.splits["validation"]) == [0, 1, 2]  # one at least


@pytest.mark.parametrize(("names", "base"), [(NAMES, 2), (("a", "b", "c", "d"), 2)])
def test_base_and_new_classes(tmp_path: Path, names: tuple[str, ...], base: int) -> None:
    path = coop(tmp_path / "split.json", ".", names)
    whole = {one.key: names[one.label] for held in read(path, images=None).splits.values() for one in held}
    tasks = [read(path, images=None, classes=classes) for classes in ("base", "new")]
    assert [task.labels for task in tasks] == [names[:base], names[base:]]
    found = {one.key: task.labels[one.label] for task in tasks for examples in task.splits.values() for one in examples}
    assert found == whole
    assert len({task.fingerprint for task in tasks}) == 2


@pytest.mark.parametrize(
    ("name", "entry", "said"),
    [
        ("train", ["birman/none.png", 1, "birman"], "train, entry 1: picture 'birman/none.png': there is no file"),
        ("val", ["../../secret.png", 1, "birman"], "val, entry 1: '../../secret.png' leads outside its folder"),
        ("test", ["/etc/hostname", 1, "birman"], "test, entry 1: '/etc/hostname' leads outside its folder"),
        ("train", ["a.png", -1, "birman"], "has a class -1 and no class 0; indices begin at 0, without gaps"),
        ("test", ["a.png", 7, "siamese"], "has a class 7 and no class 3; indices begin at 0, without gaps"),
        ("test", ["a.png", 10**15, "siamese"], "and no class 3; indices begin at 0, without gaps"),
        ("val", ["a.png", 1, "siamese"], "val, entry 1: class 1 is 'siamese', and was 'birman' before"),
        ("val", ["a.png", 1], "is not lists of [path, label index, class name], one for each of train, val and test"),
        ("val", ["a.png", "one", "siamese"], "(val.0.1: found one; input should be a valid integer"),
        ("train", ["empty.png", 0, "american_bulldog"], "train, entry 1: picture 'empty.png': the file is empty"),
    ],
)
def test_what_is_wrong_is_one_line(split: Path, name: str, entry: Any, said: str) -> None:
    write(split.parent / "images" / "empty.png", b"")
    write(split.parent.parent / "secret.png", png(1))
    found = refusal(changed(split, name, 0, entry))
    assert found.startswith(f"{split}: ") and said in found


def test_files_of_another_form_are_one_line(split: Path) -> None:
    for content, said in (
        ("{", "is not lists of [path, label index, class name], one for each of train, val and test (Invalid JSON"),
        ("[]", "is not lists of [path, label index, class name]"),
        ('{"train": [["a.png", 0, "cat"]]}', "has nothing in its 'test'; it lists the pictures of train and test"),
        ("[" * 100_000, "Invalid JSON: recursion limit exceeded"),
    ):
        split.write_text(content)
        assert said in refusal(split)
    assert "no such file or folder" in refusal(split.with_name("none.json"))


def test_a_damaged_picture_is_found_when_it_is_shown(split: Path) -> None:
    write(split.parent / "images" / "bad.png", png(1)[:40])
    task = read(changed(split, "train", 0, ["bad.png", 0, "american_bulldog"]))
    picture = task.splits["train"][0].picture
    assert picture is not None
    with pytest.raises(PituneError, match=r"bad\.png: the picture cannot be decoded"):
        picture.pixels()
