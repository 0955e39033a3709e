"""Training a bridge's projector: pictures, read by the text encoder, are to mean what their captions mean to it.

The captions' side is frozen: nothing but the projector is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pitune.assets import fetch
from pitune.backbones import Encoded
from pitune.backbones.bridge import BridgeBackbone, BridgeSettings, untrained
from pitune.backbones.projector import to_bytes
from pitune.backbones.text import TEXT
from pitune.store import Manifest, Store
from pitune.tasks.pictures import Picture
from pitune.tasks.task import Task
from pitune.training.contrastive import Learner, Tell, learn
from pitune.training.settings import BridgeTraining

PROJECTOR = "projector"


def make_projector(
    store: Store, settings: BridgeSettings, tasks: Sequence[Task], how: BridgeTraining, tell: Tell
) -> Manifest:
    """Train the projector for two encoders, or find it trained, as :func:`~pitune.training.contrastive.learn` does.

    Args:
        store: where the artifact ``projector`` goes.
        settings: name the encoders.
        tasks: whose pictures and captions it learns from.
        how: it is trained.
        tell: is told how far it is.

    Raises:
        PituneError: an encoder cannot be had or read, or a task is not of pictures alone.
    """
    inputs = {
        "projector": {"text": fetch(settings.uri).sha256, "vision": fetch(settings.vision).sha256},
        "settings": settings.as_text.model_dump(mode="json", exclude={"uri"}),
    }

    def open_learner() -> Learner:
        return _Bridging(untrained(settings, how.grid, how.hidden, how.dropout))

    return learn(store, PROJECTOR, inputs, open_learner, tasks, how, tell)


class _Bridging(Learner):
    """Learns a bridge's projector."""

    def __init__(self, backbone: BridgeBackbone) -> None:
        self.bridge = self.backbone = backbone
        self.learnt = backbone.projector

    def look(self, pictures: Sequence[Picture]) -> None:
        self.bridge.pictures(pictures)

    def captions(self, texts: Sequence[str]) -> Tensor:
        embedded = self.bridge.inputs(self.bridge.encode_texts(texts), {}).embeddings
        assert embedded is not None  # no expert touches the tower
        return embedded

    def cosines(self, pictures: Sequence[Encoded], captions: Tensor) -> Tensor:
        found: Tensor = self.bridge(self.bridge.inputs(pictures, {TEXT: 0}))
        return found @ captions.T

    def files(self) -> Mapping[str, bytes]:
        return {"projector.safetensors": to_bytes(self.bridge.projector)}
