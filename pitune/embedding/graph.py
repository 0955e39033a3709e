"""The task graph: every slice's sources by similarity, as an artifact; and a target's neighbours in it.

What is notable:

- Embeddings go from their files into float32 matrices without a Python number in between. The sources' lie in a file
  that is mapped into memory, the other slices' come a block at a time: what is in memory does not grow with the slices.
- A similarity is written down to :data:`DIGITS` decimals. What is beyond depends on how a machine adds, and would
  decide between equally near sources, and make anew what is made from the neighbours.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pitune.embedding.settings import Similarity
from pitune.embedding.similarity import SIMILARITIES, Block, Matrix
from pitune.errors import PituneError
from pitune.store import Job, Store, table_bytes
from pitune.tasks.task import Slice

if TYPE_CHECKING:
    from pitune.materials import Materials  # brings torch, which the plan does without

DIGITS = 10
BLOCK_BYTES = 64 * 2**20  # of embeddings compared at once, on either side
READERS = 4  # files read at once: most of the time goes into waiting for an object store, or into unpacking
COLUMNS = ("source", "target", "similarity", "rank")


@dataclass(frozen=True)
class GraphJob(Job):
    """The graph of a study.

    Attributes:
        embeddings: the embedded slices by name, all of them targets of edges.
        sources: the slices whose experts can be neighbours; each of them is embedded.
        similarity: how embeddings are compared.
    """

    embeddings: tuple[str, ...]
    sources: tuple[str, ...]
    similarity: Similarity


def make_graph(materials: Materials, job: GraphJob) -> None:
    """Rank the sources for every embedded slice, and commit the graph.

    Rank 1 is the nearest source, and of equally near ones the first by name. A source of the slice's own task gets
    rank 0: it is never a neighbour. A slice is no source of its own.

    Raises:
        PituneError: an embedding is not there or damaged, or not of the same parameters as the others.
    """
    began = time.perf_counter()
    targets = sorted(job.embeddings)
    similarity = np.round(_similarities(materials.store, targets, job.sources, job.similarity), DIGITS)
    table = _table(targets, job.sources, similarity)
    materials.store.commit(
        job.artifacts[0],
        {"": table_bytes(table)},
        job.fingerprint,
        inputs=job.inputs,
        seconds=time.perf_counter() - began,
    )


def _similarities(store: Store, targets: Sequence[str], sources: Sequence[str], how: str) -> Matrix:
    """Compare every target with every source: (targets, sources)."""
    compare = SIMILARITIES[how]
    found = np.zeros((len(targets), len(sources)))
    reader = _Reader(store, sources[0])
    rows = max(1, BLOCK_BYTES // (4 * reader.width))
    with tempfile.TemporaryFile() as file, ThreadPoolExecutor(READERS) as pool:
        kept: Block = np.memmap(file, np.float32, "w+", shape=(len(sources), reader.width))
        list(pool.map(reader.read, sources, kept))
        place = {source: row for row, source in enumerate(sources)}
        block: Block = np.empty((min(rows, len(targets)), reader.width), np.float32)

        def fill(target: str, row: Block) -> None:
            if target in place:
                row[:] = kept[place[target]]
            else:
                reader.read(target, row)

        for first in range(0, len(targets), rows):
            some = targets[first : first + rows]
            list(pool.map(fill, some, block))
            for other in range(0, len(sources), rows):
                part = slice(other, other + rows)
                found[first : first + rows, part] = compare(block[: len(some)], kept[part], reader.tensors)
    return found


class _Reader:
    """Reads embeddings that all have the parameters of the first one, in its order.

    Attributes:
        width: the numbers of an embedding.
        tensors: the columns of each parameter tensor.
    """

    def __init__(self, store: Store, first: str) -> None:
        self.store, self.first = store, first
        self._layout = self._open(first)[0]
        sizes = list(self._layout.values())
        edges = np.cumsum([0, *sizes]).tolist()
        self.width: int = edges[-1]
        self.tensors = [slice(start, stop) for start, stop in itertools.pairwise(edges)]

    def read(self, name: str, row: Block) -> None:
        """Read a slice's embedding into ``row`` (width,).

        Raises:
            PituneError: it is not there or damaged, or has other parameters.
        """
        layout, values = self._open(name)
        if layout != self._layout:
            self._differs(name, layout)
        if list(layout) != list(self._layout):
            pieces = dict(zip(layout, np.split(values, np.cumsum(list(layout.values()))[:-1]), strict=True))
            values = np.concatenate([pieces[parameter] for parameter in self._layout])
        row[:] = values

    def _open(self, name: str) -> tuple[dict[str, int], Block]:
        """Return the size of each parameter tensor of an embedding, in its own order, and all of its numbers."""
        path = f"embeddings/{name}.parquet"
        table: Any = self.store.table(path)
        kinds = dict(zip(table.column_names, table.schema.types, strict=True))
        if kinds.get("parameter") != pa.string() or getattr(kinds.get("fisher"), "value_type", None) != pa.float32():
            raise self._wrong(path, f"has the columns {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}")
        parameters, fisher = table["parameter"].to_pylist(), table["fisher"].combine_chunks()
        values = fisher.flatten().to_numpy(zero_copy_only=False)
        if not values.size or fisher.null_count or len(set(parameters)) < len(parameters):
            raise self._wrong(path, f"has {values.size} numbers for {len(parameters)} parameters, some twice or none")
        if not np.isfinite(values).all():
            raise self._wrong(path, "holds numbers that are not finite")
        return dict(zip(parameters, fisher.value_lengths().to_pylist(), strict=True)), values

    def _wrong(self, path: str, found: str) -> PituneError:
        return PituneError(
            f"{self.store.root}/{path}: {found}; an embedding has a list of finite float32 (the column fisher) for "
            "each parameter; delete it and run the study again"
        )

    def _differs(self, name: str, layout: dict[str, int]) -> None:
        """Raise for an embedding whose parameters are not those of the first."""
        odd = sorted(layout.items() ^ self._layout.items())[0][0]
        here, there = (found.get(odd, 0) for found in (layout, self._layout))
        raise PituneError(
            f"{self.store.root}/embeddings/{name}.parquet: has {here} numbers for {odd}, the embedding of {self.first} "
            f"has {there}; the experts of a graph are of one kind: delete the one that is old and run the study again"
        )


def _table(targets: Sequence[str], sources: Sequence[str], similarity: Matrix) -> pa.Table:
    """Return the graph's table: targets by name, a slice's sources in the order that they are given in."""
    tasks = {name: Slice.parse(name).task for name in {*targets, *sources}}
    names, of = np.array(sources), np.array([tasks[source] for source in sources])
    by_name = np.argsort(np.argsort(names))  # each source's place among them
    rank = np.zeros(similarity.shape, np.int64)
    kept = np.ones(similarity.shape, bool)
    for row, target in enumerate(targets):
        others = np.flatnonzero(of != tasks[target])
        nearest = others[np.lexsort((by_name[others], -similarity[row, others]))]
        rank[row, nearest] = np.arange(1, len(nearest) + 1)
        kept[row] = names != target
    row_of, column_of = np.nonzero(kept)
    columns: dict[str, Any] = {
        "source": names[column_of],
        "target": np.array(targets)[row_of],
        "similarity": similarity[kept],
        "rank": rank[kept],
    }
    return pa.table(columns)


class TaskGraph:
    """The graph as it is asked: a target's neighbours. Made once from the table; a question costs what it returns.

    Args:
        table: of ``graph.parquet``.

    Raises:
        PituneError: the table lacks a column.
    """

    def __init__(self, table: pa.Table) -> None:
        if not set(COLUMNS) <= set(table.column_names):
            raise PituneError(
                f"the graph's table: has the columns {', '.join(table.column_names)}; right are {', '.join(COLUMNS)}; "
                "delete it and run the study again"
            )
        self._sources, source = _coded(table["source"])
        targets, target = _coded(table["target"])
        rank = table["rank"].to_numpy()
        order = np.lexsort((rank, target))
        order = order[rank[order] > 0]  # by target, its nearest source first
        self._source, self._similarity = source[order], table["similarity"].to_numpy()[order]
        edges = np.searchsorted(target[order], np.arange(len(targets) + 1)).tolist()
        self._parts = dict(zip(targets, itertools.pairwise(edges), strict=True))

    def neighbours(self, target: str, k: int) -> list[tuple[str, float]]:
        """Return the ``k`` nearest sources of other tasks (all, where there are fewer) with their similarities.

        Raises:
            PituneError: the graph does not know the target.
        """
        if target not in self._parts:
            raise PituneError(f"the task graph: knows no {target}; delete graph.parquet and run the study again")
        start, stop = self._parts[target]
        part = slice(start, min(stop, start + k))
        found = zip(self._source[part].tolist(), self._similarity[part].tolist(), strict=True)
        return [(self._sources[source], similarity) for source, similarity in found]


def _coded(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different names of a column, and for each row which one it is."""
    coded = column.combine_chunks().dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)
