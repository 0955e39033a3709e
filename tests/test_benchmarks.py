"""The configurations of published benchmarks: on tiny data in their layouts, every task is read and planned with."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tinydual import save_dual
from tinyformats import coop, elevater, png, registered, write
from tinystudy import CONFIGS

from pitune.config import StudyConfig
from pitune.config.reading import read
from pitune.plan import Plan

SIZES = {"train": 27, "val": 1, "test": 1}
"""Pictures of each class: 20 shots and 4 to validate on, and a tenth is held out where there is no ``val``."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PITUNE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def settings(name: str, model: Path, study: Path) -> dict[str, Any]:
    """Return what a configuration holds, for the tiny model."""
    return read(CONFIGS / name, [f"backbone.uri={model}", f"study={study}"])


def planned(values: dict[str, Any]) -> Plan:
    plan = Plan.of(StudyConfig.model_validate(values))
    assert len(plan.stages()) > 3 and plan.items()
    return plan


def write_elevater(data: Path, tasks: dict[str, dict[str, Any]]) -> None:
    """Write data for all tasks: of the three that are in COCO's form in it, of those without a val without it."""
    entries = []
    for seed, (name, source) in enumerate(tasks.items()):
        form = "coco" if name in ("kitti_distance", "resisc45", "hateful_memes") else "iris"
        held = [split for split in SIZES if split != "val" or name not in ("caltech_101", "cifar_10", "hateful_memes")]
        end = "json" if form == "coco" else "txt"
        entry = {
            "name": source["dataset"],
            "type": f"classification_multi{'label' if name == 'voc_2007' else 'class'}",
            "root_folder": f"classification/{name}_20211007",
            **{split: {"index_path": f"{split}.{end}", "files_for_local_usage": [f"{split}.zip"]} for split in held},
            **({"format": "coco"} if form == "coco" else {"labelmap": "labels.txt"}),
        }
        elevater(data, entry, [f"kind_{at}" for at in range(len(source.get("labels", "two")))], SIZES, seed)
        entries.append(entry)
    registered(data, entries)


def test_elevater(data: Path, model: Path, tmp_path: Path) -> None:
    values = settings("elevater_20.yaml", model, tmp_path / "study")
    write_elevater(data, values["tasks"])
    plan = planned(values)
    metrics = Counter(plan.facts.task(name).metric for name in values["tasks"])
    assert metrics == {"accuracy": 14, "balanced_accuracy": 4, "roc_auc": 1, "mean_average_precision": 1}
    assert plan.facts.task("voc_2007").family == "multilabel"
    assert plan.facts.task("hateful_memes").label_texts == ("meme", "hatespeech meme")
    assert plan.facts.task("cifar_100").templates == plan.facts.task("cifar_10").templates != ("{}",)


def write_coop(data: Path, tasks: dict[str, dict[str, Any]]) -> None:
    """Write the split files that CoOp has, and what ``coop_splits.py`` makes the other two from."""
    for seed, source in enumerate(tasks.values()):
        file, images = Path(source["split"]), source.get("images", ".")
        names = [f"kind_{at}_{file.stem}" for at in range(3)]
        coop(file, images, names, SIZES, seed)
        if file.stem == "split_zhou_FGVCAircraft":
            as_variants(file.parent, names)
        if file.stem == "split_zhou_ImageNet":
            as_synsets(file.parent, names)
    spec = importlib.util.spec_from_file_location("coop_splits", CONFIGS / "coop_splits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(data)


def as_variants(folder: Path, names: list[str]) -> None:
    """Lay a data set out as FGVCAircraft is."""
    shutil.rmtree(folder)
    write(folder / "variants.txt", "".join(f"{name.replace('_', ' ')}\n" for name in names).encode())
    number = 500_000
    for split, size in SIZES.items():
        lines = []
        for name in names * size:
            write(folder / "images" / f"{number}.jpg", png(number))
            lines.append(f"{number} {name.replace('_', ' ')}\n")
            number += 1
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))


def as_synsets(folder: Path, names: list[str]) -> None:
    """Lay a data set out as ImageNet is."""
    shutil.rmtree(folder)
    write(
        folder / "classnames.txt",
        "".join(f"n{at} {name.replace('_', ' ')}\n" for at, name in enumerate(names)).encode(),
    )
    number = 600_000
    for split, size in (("train", SIZES["train"]), ("val", SIZES["test"])):
        for at in range(len(names)):
            for _ in range(size):
                write(folder / "images" / split / f"n{at}" / f"{number}.JPEG", png(number))
                number += 1


@pytest.mark.parametrize("name", ["coop_11.yaml", "coop_11_base_to_new.yaml"])
def test_coop(name: str, data: Path, model: Path, tmp_path: Path) -> None:
    values = settings(name, model, tmp_path / "study")
    parts = {source["split"]: source for source in values["tasks"].values()}
    assert len(parts) == 11
    write_coop(data, {source["split"]: source for source in parts.values()})
    plan = planned(values)
    half = name != "coop_11.yaml"
    sizes = {one: len(plan.facts.task(one).labels) for one in values["tasks"]}
    assert set(sizes.values()) == ({2, 1} if half else {3})
    assert (
        plan.facts.task("fgvc_aircraft_base" if half else "fgvc_aircraft").labels[0] == "kind 0 split zhou FGVCAircraft"
    )
    assert plan.facts.task("imagenet_new" if half else "imagenet").labels[-1] == "kind 2 split zhou ImageNet"
