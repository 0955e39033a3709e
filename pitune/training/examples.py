"""A slice's examples as model input: token ids, cached trunk outputs, and the order of the rows.

The order of a slice's rows depends on the slice alone, never on the pack that it trains in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pitune.backbones.text import Inputs, TextBackbone
from pitune.tasks.task import Example, Task

BUCKETS = 8  # batches whose rows are sorted by length together
CACHE_BYTES = 1 << 30  # trunk outputs kept per slice and role, at most


class Rows:
    """Tokenized examples, and the trunk's output for those seen so far.

    Args:
        backbone: tokenizes and runs the trunk.
        task: gives the candidate labels.
        examples: the rows.
        first: the lowest layer with experts; the layers below run once per row.
        keep: keep trunk outputs, which pays where rows are seen more than once.
    """

    def __init__(self, backbone: TextBackbone, task: Task, examples: Sequence[Example], first: int, keep: bool) -> None:
        self.backbone = backbone
        self.first = first
        self.ids = backbone.tokenize([example.text for example in examples])
        self.labels = torch.tensor([example.label for example in examples])
        self.candidates = backbone.embed(task.label_texts)  # (labels, width)
        width = self.candidates.shape[-1]
        self._keep = keep and first > 0 and 4 * width * sum(map(len, self.ids)) <= CACHE_BYTES
        self._hidden: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def by_length(self) -> list[int]:
        """Return all rows, short texts first, so that batches of neighbours pad little."""
        return sorted(range(len(self)), key=lambda row: len(self.ids[row]))

    def inputs(self, rows: Sequence[int]) -> Inputs:
        """Return a padded batch of these rows, the trunk's output included."""
        return collate([(self, rows)])

    def hidden(self, rows: Sequence[int]) -> list[Tensor]:
        """Return the trunk's output for these rows, each (tokens, width) without padding."""
        missing = sorted({row for row in rows if row not in self._hidden}, key=lambda row: len(self.ids[row]))
        found = {row: self._hidden[row] for row in rows if row in self._hidden}
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            states = self.backbone.trunk(self.backbone.collate([self.ids[row] for row in part]), self.first).hidden
            assert states is not None
            found |= {row: states[i, : len(self.ids[row])].clone() for i, row in enumerate(part)}
        if self._keep:
            self._hidden |= found
        return [found[row] for row in rows]

    def logits(self, embeddings: Tensor) -> Tensor:
        """Score the task's labels by embeddings (rows, width) of length 1: (rows, labels), float32."""
        return self.backbone.settings.scale * embeddings @ self.candidates.T

    def remember(self, rows: Sequence[int]) -> None:
        """Run the trunk for these rows, where its outputs are kept."""
        if self._keep:
            self.hidden(rows)

    def order(self, name: str, steps: int, batch_size: int) -> np.ndarray:
        """Return which rows each step takes: (steps, batch_size), the same whenever asked.

        Rows are shuffled epoch after epoch; within each run of a few batches they are sorted by length, so that a batch
        pads little, and long batches come at the same steps for all experts of a pack.
        """
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        generator = np.random.default_rng(seed)
        epochs = -(-steps * batch_size // len(self))
        stream = np.concatenate([generator.permutation(len(self)) for _ in range(epochs)])[: steps * batch_size]
        lengths = np.array([len(ids) for ids in self.ids])
        for start in range(0, len(stream), BUCKETS * batch_size):
            run = stream[start : start + BUCKETS * batch_size]
            run[:] = run[np.argsort(-lengths[run], kind="stable")]
        return stream.reshape(steps, batch_size)


def collate(parts: Sequence[tuple[Rows, Sequence[int]]]) -> Inputs:
    """Pad the rows of several slices, group after group, into one batch: (rows of all parts, longest)."""
    backbone, first = parts[0][0].backbone, parts[0][0].first
    ids = [source.ids[row] for source, rows in parts for row in rows]
    hidden = [state for source, rows in parts for state in source.hidden(rows)] if first else None
    return backbone.collate(ids, hidden)


def stack_candidates(parts: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """Stack the candidates of E slices: embeddings (E, most labels, width), and which are real (E, most labels)."""
    most = max(len(part.candidates) for part in parts)
    padded = [torch.nn.functional.pad(part.candidates, (0, 0, 0, most - len(part.candidates))) for part in parts]
    real = torch.tensor([[label < len(part.candidates) for label in range(most)] for part in parts])
    return torch.stack(padded), real.to(padded[0].device)


def label_logits(embeddings: Tensor, candidates: Tensor, real: Tensor, scale: float) -> Tensor:
    """Score candidates: (E, rows, most labels), float32; labels a task does not have get minus infinity.

    Args:
        embeddings: (E · rows, width), of length 1.
        candidates: (E, most labels, width), of length 1.
        real: (E, most labels).
        scale: what the cosine is multiplied with.
    """
    grouped = embeddings.view(len(candidates), -1, embeddings.shape[-1])
    logits = scale * torch.bmm(grouped, candidates.transpose(1, 2))
    return logits.masked_fill(~real.unsqueeze(1), float("-inf"))


def group_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each group's mean cross-entropy (E,) of logits (E, rows, labels) and labels (E, rows)."""
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(1)
