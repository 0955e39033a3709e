"""Training a projector: it learns what can be learnt, goes on where it was, and what it says of itself is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tinybridge import SIDE, save_vision
from tinymodel import save_encoder
from tinypictures import colours, stopping

from pitune.backbones.projector import read_projector
from pitune.config import BridgeConfig, load_bridge
from pitune.errors import PituneError
from pitune.store import Store
from pitune.tasks.catalogue import load_task
from pitune.training.bridge import PROJECTOR, make_projector
from pitune.training.contrastive import CHECKPOINT


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of colours, and the YAML of a bridge between tiny encoders."""
    folder = tmp_path_factory.mktemp("bridge")
    settings = {
        "to": str(folder / "made"),
        "uri": str(save_encoder(folder / "text", "bert")),
        "vision": str(save_vision(folder / "vision")),
        "max_tokens": 24,
        "tasks": {"colours": colours(folder / "pictures", SIDE)},
        "training": {"grid": 2, "hidden": 32, "epochs": 8, "batch_size": 8, "learning_rate": 5e-3},
    }
    (folder / "bridge.yaml").write_text(yaml.safe_dump(settings))
    return folder / "bridge.yaml"


@pytest.fixture(autouse=True)
def _own_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))


def make(settings: BridgeConfig, to: Path, stop_after: int | None = None) -> dict[str, Any]:
    """Make the projector; stop when so many epochs are over."""
    tasks = [load_task(name, source) for name, source in settings.tasks.items()]
    return dict(make_projector(Store(to), settings.backbone, tasks, settings.training, stopping(stop_after)))


def test_it_learns_what_can_be_learnt(config: Path, tmp_path: Path) -> None:
    made = make(load_bridge(config), tmp_path)
    assert len(made["losses"]) == 8 and min(made["losses"]) < np.log(3) / 2
    found = made["retrieval"]["colours"]
    assert found["captions"] == 3 and found["test"]["recall@1"] > 0.9 and found["test"]["recall@5"] == 1.0


def test_interrupted_it_goes_on_to_the_same_projector(config: Path, tmp_path: Path) -> None:
    settings = load_bridge(config)
    through = make(settings, tmp_path / "through")
    for stop in (0, 3, 6):
        with pytest.raises(KeyboardInterrupt):
            make(settings, tmp_path / "stopped", stop_after=stop)
        assert (Store(tmp_path / "stopped").manifest(CHECKPOINT) is not None) == (stop > 0)
        assert Store(tmp_path / "stopped").manifest(PROJECTOR) is None
    stopped = make(settings, tmp_path / "stopped")
    assert stopped["losses"] == through["losses"] and stopped["retrieval"] == through["retrieval"]
    ours, theirs = (load_file(tmp_path / name / PROJECTOR / "projector.safetensors") for name in ("through", "stopped"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert Store(tmp_path / "stopped").manifest(CHECKPOINT) is None

    made = make(settings, tmp_path / "stopped", stop_after=0)  # nothing is left to be told of
    assert made["written"] == stopped["written"]
    other = load_bridge(config, ["training.epochs=2"])
    assert make(other, tmp_path / "stopped")["losses"] != stopped["losses"]


def test_a_study_opens_what_was_made(config: Path, tmp_path: Path) -> None:
    settings = load_bridge(config, [f"to={tmp_path}"])
    make(settings, tmp_path)
    backbone = settings.backbone.open(Path(settings.uri))
    shape = read_projector(Path(settings.backbone.projector)).shape
    assert backbone.shape == shape and (shape.grid, shape.tokens, shape.hidden) == (2, 5, 32)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_the_smallest_loss_is_kept_not_the_last(config: Path, tmp_path: Path) -> None:
    """With a rate so high that it gets worse, the projector is the best epoch's, with which a shorter run ends."""
    wild = ["training.learning_rate=0.5", "training.epochs=6"]
    made = make(load_bridge(config, wild), tmp_path / "wild")
    best = int(np.argmin(made["losses"]))
    kept = load_file(tmp_path / "wild" / PROJECTOR / "projector.safetensors")
    with pytest.raises(KeyboardInterrupt):
        make(load_bridge(config, wild), tmp_path / "short", stop_after=best + 1)
    state = load_file(tmp_path / "short" / CHECKPOINT / "state.safetensors")
    assert all(torch.equal(kept[name], state[f"now.{name}"]) for name in kept)


def test_texts_are_no_pictures(config: Path, tmp_path: Path) -> None:
    table = tmp_path / "texts.jsonl"
    table.write_text("\n".join(f'{{"text": "w{row} w{row % 3}", "label": "{"ab"[row % 2]}"}}' for row in range(40)))
    source = {"train": str(table), "labels": {"a": "w1", "b": "w2"}}
    settings = BridgeConfig.model_validate({**load_bridge(config).model_dump(), "tasks": {"words": source}})
    with pytest.raises(PituneError, match="task words: its examples are text; a projector is trained on pictures"):
        make(settings, tmp_path / "made")
