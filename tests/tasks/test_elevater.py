"""Tasks in ELEVATER's layout: a registry, two forms of index, pictures in zip archives; every fault is one line."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tinyformats import elevater, png, registered, write

from pitune.errors import PituneError
from pitune.tasks.elevater import ElevaterSource
from pitune.tasks.preparing import prepare, source_of
from pitune.tasks.task import Task

NAMES = ("annual_crop", "forest", "river")
IRIS: dict[str, Any] = {
    "name": "eurosat",
    "version": 1,
    "type": "classification_multiclass",
    "description": "as in the original, what is not needed is passed over",
    "root_folder": "classification/eurosat_20210930",
    "train": {"index_path": "train.txt", "files_for_local_usage": ["train.zip"], "num_images": 18},
    "val": {"index_path": "val.txt", "files_for_local_usage": ["train.zip"], "num_images": 12},
    "test": {"index_path": "test.txt", "files_for_local_usage": ["test.zip"], "num_images": 6},
    "num_classes": 3,
    "labelmap": "labels.txt",
}
COCO = {
    **{key: value for key, value in IRIS.items() if key not in ("labelmap", "num_classes")},
    "format": "coco",
    **{
        split: {**IRIS[split], "index_path": f"{split}.json", "files_for_local_usage": ["images.zip"]}
        for split in ("train", "val", "test")
    },
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))


def made(root: Path, entry: dict[str, Any]) -> Path:
    elevater(root, entry, NAMES)
    return registered(root, [{"name": "other"}, entry])


def read(registry: Path, **fields: Any) -> Task:
    return ElevaterSource.model_validate({"registry": str(registry), "dataset": "eurosat", **fields}).task("eurosat")


def refusal(registry: Path, **fields: Any) -> str:
    with pytest.raises(PituneError) as error:
        read(registry, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("entry", [IRIS, COCO], ids=["iris", "coco"])
def test_both_forms_give_the_splits_and_the_classes(tmp_path: Path, entry: dict[str, Any]) -> None:
    task = read(made(tmp_path, entry), metric="balanced_accuracy")
    assert task.labels == NAMES and task.label_texts == ("annual crop", "forest", "river")
    assert (task.modality, task.metric) == ("image", "balanced_accuracy")
    number, stored = 0, set()
    for split, name, size in (("train", "train", 6), ("validation", "val", 4), ("test", "test", 2)):
        for place, one in enumerate(task.splits[split]):
            path = f"{entry[name]['files_for_local_usage'][0]}@{name}/some {place // size}/{number:05d}.png"
            assert (one.key, one.label) == (path if split == "train" else f"{split}/{path}", place // size)
            assert one.picture is not None and one.picture.read() == png(number)
            assert one.picture.file.endswith(".zip")
            stored.add(one.picture.inflated is None)
            number += 1
    assert number == 36 and stored == {True, False}


def test_pictures_may_be_files(tmp_path: Path) -> None:
    registry = made(tmp_path, IRIS)
    folder = tmp_path / IRIS["root_folder"]
    zipped = read(registry)
    for name in ("train", "test"):
        with zipfile.ZipFile(folder / f"{name}.zip") as archive:
            archive.extractall(folder / name)  # of the test's own making
    for name in ("train", "val", "test"):
        index = folder / f"{name}.txt"
        index.write_text("\r\n".join(index.read_text().replace(".zip@", "/").splitlines()) + "\r\n\r\n")
    task = read(registry)
    for split, examples in task.splits.items():
        digests = [one.picture.digest for one in examples if one.picture]
        assert digests == [one.picture.digest for one in zipped.splits[split] if one.picture]


def test_validation_is_held_out_where_there_is_none(tmp_path: Path) -> None:
    task = read(made(tmp_path, {key: value for key, value in IRIS.items() if key != "val"}))
    assert sorted(one.label for one in task.splits["validation"]) == [0, 1, 2]
    assert len(task.splits["train"]) == 15


@pytest.mark.parametrize("entry", [IRIS, COCO], ids=["iris", "coco"])
def test_a_picture_may_have_several_labels(tmp_path: Path, entry: dict[str, Any]) -> None:
    """The first of train gets the last class, too; in COCO's form, where each object is annotated, the second none."""
    entry = {**entry, "type": "image_classification_multilabel"}
    registry = made(tmp_path, entry)
    index = tmp_path / entry["root_folder"] / entry["train"]["index_path"]
    if entry.get("format") == "coco":
        held = json.loads(index.read_text())
        del held["annotations"][1]
        held["annotations"] += [{"image_id": 1, "category_id": 3}] * 2
        index.write_text(json.dumps(held))
    else:
        index.write_text(index.read_text().replace(" 0\n", " 2,0\n", 1))
    task = read(registry, metric="mean_average_precision")
    assert (task.family, task.labels) == ("multilabel", NAMES)
    labels = [one.label for one in task.splits["train"]]
    assert labels == [(0, 2), () if entry.get("format") == "coco" else (0,), *[(0,)] * 4, *[(1,)] * 6, *[(2,)] * 6]
    assert [one.label for one in task.splits["test"]] == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert "eurosat: its examples have several labels, accuracy is of one each" in refusal(registry)
    said = refusal(registry, metric="mean_average_precision", classes="base")
    assert said == "task eurosat: its examples have several labels, of both halves; leave classes out"
    prepare(task, tmp_path / "out", per_shard=7)
    assert source_of(task, tmp_path / "out").task("eurosat").fingerprint == task.fingerprint


def test_every_label_is_held_out_where_a_picture_may_have_several(tmp_path: Path) -> None:
    entry = {key: value for key, value in IRIS.items() if key != "val"} | {"type": "classification_multilabel"}
    task = read(made(tmp_path, entry), metric="mean_average_precision")
    assert sorted(one.label for one in task.splits["validation"]) == [(0,), (1,), (2,)]


def test_the_newest_version_and_texts_of_ones_own(tmp_path: Path) -> None:
    newer = {**IRIS, "version": 3, "root_folder": "newer"}
    elevater(tmp_path, IRIS, NAMES)
    elevater(tmp_path, newer, NAMES, seed=1)
    task = read(registered(tmp_path, [newer, IRIS]), labels=["a field", "trees", "a river"], classes="base")
    assert task.label_texts == ("a field", "trees") and task.labels == NAMES[:2]
    picture = task.splits["train"][0].picture
    assert picture is not None and "newer" in picture.file


def test_it_is_the_same_task_when_prepared(tmp_path: Path) -> None:
    task = read(made(tmp_path, IRIS), templates=["a satellite photo of {}.", "{} from above."])
    prepare(task, tmp_path / "out", per_shard=7)
    assert source_of(task, tmp_path / "out").task("eurosat").fingerprint == task.fingerprint


def line(text: str) -> Callable[[Path], None]:
    """Replace the first line of the train index."""

    def change(folder: Path) -> None:
        lines = (folder / "train.txt").read_text().splitlines()
        (folder / "train.txt").write_text("\n".join([text, *lines[1:]]))

    return change


def of(name: str, content: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink() if content is None else (folder / name).write_text(content)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (line("train.zip@none.png 0"), "train.txt: line 1: there is no picture 'none.png' in "),
        (line("train.zip@../a.png 0"), "train.txt: line 1: there is no picture '../a.png' in "),
        (line("../train.zip@a.png 0"), "train.txt: line 1: '../train.zip' leads outside its folder"),
        (line("../../secret.png 0"), "train.txt: line 1: '../../secret.png' leads outside its folder"),
        (line("none.png 0"), "train.txt: line 1: picture 'none.png': there is no file"),
        (line("other.zip@a.png 0"), "other.zip cannot be read as a zip archive (No such file or directory)"),
        (line("labels.zip@a.png 0"), "labels.zip cannot be read as a zip archive (File is not a zip file)"),
        (line("train.zip@a.png 3"), "train.txt: line 1: label 3 is out of range; the labelmap names 3 classes"),
        (
            line("train.zip@a.png -1"),
            "line 1: is 'train.zip@a.png -1'; a line is the path of a picture and its label's",
        ),
        (
            line("train.zip@a.png"),
            "line 1: is 'train.zip@a.png'; a line is the path of a picture and its label's index",
        ),
        (
            line("train.zip@a.png 0,2"),
            "line 1 has several labels, annual_crop, river; one of this kind of task has one",
        ),
        (of("labels.txt", None), "labels.txt: cannot be read (No such file or directory)"),
        (of("labels.txt", "one\n\ntwo\n"), "vision_datasets.json: class 1 has no name; give it one"),
        (of("test.txt", None), "test.txt: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_wrong_with_an_index_is_one_line(tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    registry = made(tmp_path, IRIS)
    folder = tmp_path / IRIS["root_folder"]
    (folder / "labels.zip").write_text("no archive")
    write(tmp_path / "secret.png", png(0))
    change(folder)
    assert said in refusal(registry)


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("annotations", 0, {"image_id": 1, "category_id": 9}, "picture 1 is of category 9, which there is not"),
        (
            "annotations",
            1,
            {"image_id": 1, "category_id": 2},
            "picture 1 has several labels, annual_crop, forest; one of",
        ),
        ("annotations", 0, {"image_id": 99, "category_id": 1}, "picture 1 has no label; annotate it or take it out"),
        ("categories", 0, {"id": 3, "name": "lake"}, "val.json: its categories are not those of train.json"),
        ("images", 0, {"id": 1}, "train.json: is not a COCO index (images.0.file_name: is missing)"),
        (
            "images",
            0,
            {"id": 1, "file_name": "a.png", "zip_file": "images.zip"},
            "picture 1: there is no picture 'a.png'",
        ),
    ],
)
def test_what_is_wrong_with_a_coco_index_is_one_line(
    tmp_path: Path, name: str, place: int, value: Any, said: str
) -> None:
    registry = made(tmp_path, COCO)
    index = tmp_path / COCO["root_folder"] / "train.json"
    held = json.loads(index.read_text())
    held[name][place] = value
    index.write_text(json.dumps(held))
    assert said in refusal(registry)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "mnist"}, "has no data set 'eurosat'; it has mnist"),
        (
            {"type": "Regression"},
            "eurosat: its type is Regression; pitune reads classification_multiclass and classification_multilabel",
        ),
        ({"format": "tsv"}, "eurosat: its format is tsv; pitune reads iris and coco"),
        ({"root_folder": "../elsewhere"}, "eurosat: '../elsewhere' leads outside its folder"),
        ({"labelmap": "/etc/passwd"}, "eurosat: '/etc/passwd' leads outside its folder"),
        ({"labelmap": None}, "eurosat: has no labelmap, which names the classes; add one"),
        ({"test": {"index_path": "../../test.txt"}}, "eurosat: '../../test.txt' leads outside its folder"),
        ({"test": None}, "eurosat: test: found null; input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_with_a_registry_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    made(tmp_path, IRIS)
    assert f"vision_datasets.json: {said}" in refusal(registered(tmp_path, [{**IRIS, **change}]))
    write(tmp_path / "vision_datasets.json", b"{}")
    assert "is not a list of data sets" in refusal(tmp_path / "vision_datasets.json")
