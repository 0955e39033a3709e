"""Spaces: where the vectors lie that slices are compared by.

A slice has a vector in each space: the Fisher information of its expert's parameters, what training has added to
them, the mean of what the frozen backbone makes of its examples, or of its label texts. Two slices are compared by
their vectors in one space, with one of :data:`~pitune.embedding.similarity.SIMILARITIES`, and by CSLS, which corrects
the space's usual one for hubs. A new space is a function that reads a vector and a line in :data:`SPACES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from pitune.embedding.similarity import CSLS, SIMILARITIES, Block
from pitune.errors import PituneError

if TYPE_CHECKING:
    from pitune.materials import Materials  # brings torch, which the plan does without
    from pitune.store import Store

Labels = Literal["empirical", "true"]
"""``empirical``: the data's labels; ``true``: one label per example drawn from the model's own distribution."""
LABELS: tuple[Labels, ...] = get_args(Labels)


class Vector(NamedTuple):
    """A slice's vector in a space: how many numbers each tensor has, by name and in order, and all of them, float32."""

    sizes: dict[str, int]
    values: Block


@dataclass(frozen=True)
class Space:
    """Where the vectors of slices lie.

    Attributes:
        made: which of a slice's nodes of the plan has to be there.
        artifact: where a slice's vector lies, by the slice and by which labels ``embedding.labels`` names.
        read: reads the vector that lies in an artifact.
        compared: the similarities that mean something here, the usual one first; None: all.
    """

    made: Literal["expert", "embedding", "features"]
    artifact: Callable[[str, Labels], str]
    read: Callable[[Materials, str], Vector]
    compared: tuple[str, ...] | None = ("cosine",)


def embedding_path(which: Labels, name: str, configured: Labels) -> str:
    """Return where a slice's Fisher information lies: what the study is configured for comes first."""
    return f"embeddings/{name}.parquet" if which == configured else f"embeddings/{name}/{which}.parquet"


def read_fisher(materials: Materials, artifact: str) -> Vector:
    """Read a task embedding.

    Raises:
        PituneError: it is not there or damaged.
    """
    return _vector(materials.store, artifact, "parameter", "fisher")


def read_task_vector(materials: Materials, artifact: str) -> Vector:
    """Read what training has added to an expert's parameters since the common start.

    Raises:
        PituneError: it is not there or damaged.
    """
    start = materials.start
    parts = {}
    for site, held in materials.expert(artifact).items():
        for name, tensor in held.items():
            first = start.get(site, {}).get(name)
            if first is None or first.shape != tensor.shape:
                raise PituneError(
                    f"{materials.store.where(artifact)}: {name} of {site} is not as the study's experts start; delete "
                    "the expert and run the study again"
                )
            parts[f"{site}|{name}"] = (tensor - first).flatten().float().numpy()
    return Vector({name: part.size for name, part in parts.items()}, np.concatenate(list(parts.values())))


def read_mean(of: str, materials: Materials, artifact: str) -> Vector:
    """Read the mean of a slice's frozen features: ``of`` its ``examples`` or its ``labels``.

    Raises:
        PituneError: it is not there or damaged.
    """
    found = _vector(materials.store, artifact, "of", "mean")
    parts = dict(zip(found.sizes, np.split(found.values, np.cumsum(list(found.sizes.values()))[:-1]), strict=True))
    if of not in parts:
        raise _wrong(materials.store, artifact, "of", "mean", f"has no row of {of}")
    return Vector({of: parts[of].size}, parts[of])


def _vector(store: Store, artifact: str, name: str, values: str) -> Vector:
    """Read a table with names in one column and lists of float32 in another."""
    table: Any = store.table(artifact)
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    if kinds.get(name) != pa.string() or getattr(kinds.get(values), "value_type", None) != pa.float32():
        there = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise _wrong(store, artifact, name, values, f"has the columns {there}")
    names, lists = table[name].to_pylist(), table[values].combine_chunks()
    numbers = lists.flatten().to_numpy(zero_copy_only=False)
    if not numbers.size or lists.null_count or len(set(names)) < len(names):
        raise _wrong(
            store, artifact, name, values, f"has {numbers.size} numbers in {len(names)} rows, some twice or none"
        )
    if not np.isfinite(numbers).all():
        raise _wrong(store, artifact, name, values, "holds numbers that are not finite")
    return Vector(dict(zip(names, lists.value_lengths().to_pylist(), strict=True)), numbers)


def _wrong(store: Store, artifact: str, name: str, values: str, found: str) -> PituneError:
    return PituneError(
        f"{store.where(artifact)}: {found}; it has a list of finite float32 (the column {values}) for each {name}: "
        "delete it and run the study again"
    )


def _fisher(which: Labels) -> Space:
    return Space("embedding", partial(embedding_path, which), read_fisher, None)


def _features(of: str) -> Space:
    return Space("features", lambda name, _: f"features/{name}.parquet", partial(read_mean, of))


SPACES: dict[str, Space] = {
    "empirical": _fisher("empirical"),
    "true": _fisher("true"),
    "weights": Space("expert", lambda name, _: f"experts/{name}", read_task_vector),
    "features": _features("examples"),
    "labels": _features("labels"),
}
"""The spaces by name. A similarity is the column ``<space>_<how>`` of the graph."""


class Column(NamedTuple):
    """A similarity as a column of the graph: how vectors are compared, and in which space.

    ``csls`` is the space's usual similarity, less what any two slices share.
    """

    space: str
    how: str

    def __str__(self) -> str:
        return f"{self.space}_{self.how}"


def similarity_names() -> list[str]:
    """Return what ``embedding.similarity`` may name: a similarity, of embeddings, or another space."""
    return [*SIMILARITIES, CSLS, *(name for name in SPACES if name not in LABELS)]


def column(similarity: str, labels: Labels) -> Column:
    """Return the column that ``embedding.similarity`` and ``embedding.labels`` name; of a space, its first one."""
    if similarity in (*SIMILARITIES, CSLS):
        return Column(labels, similarity)
    return columns_of(similarity)[0]


def columns_of(space: str) -> list[Column]:
    """Return the columns that compare slices in a space."""
    return [Column(space, how) for how in (*(SPACES[space].compared or SIMILARITIES), CSLS)]


def columns() -> list[Column]:
    """Return the columns of all spaces."""
    return [found for space in SPACES for found in columns_of(space)]
