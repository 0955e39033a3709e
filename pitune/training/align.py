"""Making a dual encoder of two models that never met: both stay as they are, two linear projections are learnt.

As LiT does (arXiv 2111.07991), with the text model locked too: of few pairs more would only be learnt by heart. What
all pictures have in common is taken off their features, and off the texts' likewise: features of different pictures
have a cosine of .7 otherwise, and what is learnt in an epoch fits nothing but the training pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pitune.assets import Asset, fetch
from pitune.backbones import Encoded, Inputs
from pitune.backbones.dual import DualBackbone, DualSettings
from pitune.backbones.features import Features
from pitune.backbones.pairing import Pair, last_bias, paired
from pitune.backbones.vision import PREPARATION
from pitune.store import Manifest, Store
from pitune.tasks.pictures import Picture
from pitune.tasks.task import Task
from pitune.training.contrastive import SCALE, Learner, Tell, learn
from pitune.training.settings import PairTraining

DUAL, MODEL = "dual", "model"
"""The artifact, and the folder in it that holds the model and nothing else."""


def make_dual(store: Store, vision: str, text: str, tasks: Sequence[Task], how: PairTraining, tell: Tell) -> Manifest:
    """Align two models, or find them aligned, as :func:`~pitune.training.contrastive.learn` does.

    Args:
        store: where the artifact ``dual`` goes; its folder ``model`` is what transformers opens.
        vision: names the vision model.
        text: names the text model.
        tasks: whose pictures and captions are learnt from.
        how: it is trained.
        tell: is told how far it is.

    Raises:
        PituneError: a model cannot be had, read or put to this use, or a task is not of pictures alone.
    """
    seen, read = fetch(vision), fetch(text)
    inputs = {"dual": {"vision": seen.sha256, "text": read.sha256}}
    with tempfile.TemporaryDirectory() as work:

        def open_learner() -> Learner:
            paired(seen, read, SCALE).save(Path(work) / "begun")
            return _Aligning(Path(work), seen, how.dropout)

        return learn(store, DUAL, inputs, open_learner, tasks, how, tell)


class _Projections(nn.Module):
    """A dual encoder's two projections; features in, cosines out."""

    def __init__(self, picture: nn.Linear, text: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.picture, self.text, self.dropout = picture, text, nn.Dropout(dropout)

    def forward(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Map features (pictures, width) and (texts, width) to cosines (pictures, texts)."""
        seen = nn.functional.normalize(self.picture(self.dropout(pictures)), dim=-1)
        read = nn.functional.normalize(self.text(self.dropout(texts)), dim=-1)
        return seen @ read.T


class _Aligning(Learner):
    """Learns the projections of a dual encoder, which is opened as a study opens it.

    Without its projections it gives what comes before them: the features.

    Args:
        work: a folder for this, whose folder ``begun`` holds the dual encoder.
        vision: the vision model's.
        dropout: of features, while they are learnt from.
    """

    def __init__(self, work: Path, vision: Asset, dropout: float) -> None:
        self.work = work
        self.dual = self.backbone = DualBackbone(work / "begun", DualSettings(uri=str(work / "begun")))
        model: Any = self.dual.model
        self.learnt = self.projections = _Projections(model.visual_projection, model.text_projection, dropout)
        self.projections.requires_grad_(True).eval()
        model.visual_projection = model.text_projection = nn.Identity()
        name = f"{vision.sha256[:32]}-{self.dual.side}-pooled-{PREPARATION}"
        self.kept = Features(name, (self.projections.picture.in_features,))
        self.read: dict[str, Tensor] = {}  # captions' features: every split of a task has them all
        self.means = (torch.zeros(()), torch.zeros(()))  # of pictures' features and of texts'

    def look(self, pictures: Sequence[Picture]) -> None:
        self._seen(pictures)

    def captions(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in texts if text not in self.read]
        for start in range(0, len(new), self.dual.rows_at_once):
            part = new[start : start + self.dual.rows_at_once]
            self.read.update(zip(part, self._features(self.dual.encode_texts(part)), strict=True))
        return torch.stack([self.read[text] for text in texts])

    def begin(self, pictures: Sequence[Encoded], captions: Tensor) -> None:
        self.means = self._seen([row.content for row in pictures]).mean(0), captions.mean(0)

    def cosines(self, pictures: Sequence[Encoded], captions: Tensor) -> Tensor:
        seen = self._seen([row.content for row in pictures])
        found: Tensor = self.projections(seen - self.means[0], captions - self.means[1])
        return found

    @torch.no_grad()
    def files(self) -> Mapping[str, bytes]:
        model: Any = self.dual.model
        for part, mean in zip((model.vision_model, model.text_model), self.means, strict=True):
            last_bias(part).sub_(mean)
        model.visual_projection, model.text_projection = self.projections.picture, self.projections.text
        made = self.work / "made"
        Pair(model, self.dual.tokenizer, self.dual.processor).save(made)
        return {f"{MODEL}/{file.name}": file.read_bytes() for file in sorted(made.iterdir())}

    def _seen(self, pictures: Sequence[Picture]) -> Tensor:
        """Return pictures' features, kept on the disk or computed."""
        return self.kept.of(pictures, lambda some: self._features(self.dual.encode_pictures(some)))

    @torch.no_grad()
    def _features(self, rows: Sequence[Encoded]) -> Tensor:
        return self.dual.embed(Inputs(rows[0].tower, self.dual.collate(rows)))
