"""How tasks are embedded and compared: the section ``embedding`` of a study."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pitune.settings import Settings

Labels = Literal["empirical", "true"]
"""``empirical``: the data's labels; ``true``: one label per example drawn from the model's own distribution."""
Similarity = Literal["cosine_per_tensor", "cosine", "task2vec"]
"""``cosine_per_tensor``: cosine of each parameter tensor, averaged (pi-Tuning, arXiv 2304.14381, section 3.2);
``cosine``: of the whole vector; ``task2vec``: cosine of the embeddings, normalised by their sum
(arXiv 1902.03545, eq. 5)."""


class EmbeddingSettings(Settings):
    """How tasks are embedded and compared."""

    labels: Labels = "empirical"
    similarity: Similarity = "cosine_per_tensor"
    examples: int = Field(
        512, ge=1, description="the first so many of a slice's training examples, shuffled by its name"
    )
