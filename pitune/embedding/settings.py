"""How tasks are embedded and compared: the section ``embedding`` of a study."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from pitune.embedding.spaces import Labels, similarity_names
from pitune.settings import Settings


def _known(similarity: str) -> str:
    if similarity not in similarity_names():
        raise ValueError(f"found {similarity}; it is one of {', '.join(similarity_names())}")
    return similarity


class EmbeddingSettings(Settings):
    """How tasks are embedded and compared."""

    labels: Annotated[Labels, BeforeValidator(lambda value: "true" if value is True else value)] = Field(
        "empirical", description="of Fisher information: the data's, or true: drawn from the model's own distribution"
    )  # YAML reads true as a truth value
    similarity: Annotated[str, AfterValidator(_known)] = Field(
        "cosine_per_tensor", description="what ranks the sources: a similarity of embeddings, or another space's"
    )
    examples: int = Field(
        512, ge=1, description="the first so many of a slice's training examples, shuffled by its name"
    )
    all: bool = Field(
        True, description="the graph has every similarity, side by side; false: only the one that ranks the sources"
    )
