"""How tasks are embedded and compared: the section ``embedding`` of a study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pitune.embedding.similarity import SIMILARITIES
from pitune.settings import Settings

Labels = Literal["empirical", "true"]
"""``empirical``: the data's labels; ``true``: one label per example drawn from the model's own distribution."""


def _known(similarity: str) -> str:
    if similarity not in SIMILARITIES:
        raise ValueError(f"found {similarity}; it is one of {', '.join(SIMILARITIES)}")
    return similarity


Similarity = Annotated[str, AfterValidator(_known)]
"""A name in :data:`pitune.embedding.similarity.SIMILARITIES`."""


class EmbeddingSettings(Settings):
    """How tasks are embedded and compared."""

    labels: Labels = "empirical"
    similarity: Similarity = "cosine_per_tensor"
    examples: int = Field(
        512, ge=1, description="the first so many of a slice's training examples, shuffled by its name"
    )
