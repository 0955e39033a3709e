"""The task graph: every slice's sources by similarity, as an artifact; and a target's neighbours in it.

What is notable:

- One similarity ranks the sources, the one that the configuration names; the others stand beside it, a column each.
- Vectors go from their files into float32 matrices without a Python number in between. The sources' lie in a file
  that is mapped into memory, the other slices' come a block at a time: what is in memory does not grow with the slices.
- A similarity is written down to :data:`DIGITS` decimals. What is beyond depends on how a machine adds, and would
  decide between equally near sources, and make anew what is made from the neighbours.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pitune.embedding.similarity import CSLS, SIMILARITIES, Block, Matrix, csls
from pitune.embedding.spaces import SPACES, Column, Labels, Vector, columns_of
from pitune.errors import PituneError
from pitune.store import Job, table_bytes
from pitune.tasks.task import Slice

if TYPE_CHECKING:
    from pitune.materials import Materials  # brings torch, which the plan does without

DIGITS = 10
BLOCK_BYTES = 64 * 2**20  # of vectors compared at once, on either side
READERS = 4  # files read at once: most of the time goes into waiting for an object store, or into unpacking
COLUMNS = ("source", "target", "similarity", "rank")


@dataclass(frozen=True)
class GraphJob(Job):
    """The graph of a study.

    Attributes:
        slices: what is compared with the sources, each of them a target of edges.
        sources: the slices whose experts can be neighbours; each of them is among the slices.
        labels: which labels the study's embeddings are of.
        similarity: what ranks the sources; one of ``columns``.
        columns: what stands in the graph.
    """

    slices: tuple[str, ...]
    sources: tuple[str, ...]
    labels: Labels
    similarity: Column
    columns: tuple[Column, ...]


def make_graph(materials: Materials, job: GraphJob) -> None:
    """Rank the sources for every slice, and commit the graph.

    Rank 1 is the nearest source, and of equally near ones the first by name. A source of the slice's own task gets
    rank 0: it is never a neighbour. A slice is no source of its own.

    Raises:
        PituneError: a slice's vector is not there or damaged, or not of the same tensors as the others.
    """
    began = time.perf_counter()
    targets = sorted(job.slices)
    found: dict[Column, Matrix] = {}
    for space in dict.fromkeys(column.space for column in job.columns):
        found |= _similarities(materials, job, space, targets)
        if Column(space, CSLS) in job.columns:
            usual = columns_of(space)[0]
            found[Column(space, CSLS)] = _corrected(found[usual], targets, job.sources)
    table = _table(targets, job.sources, {column: found[column] for column in job.columns}, job.similarity)
    materials.store.commit(
        job.artifacts[0],
        {"": table_bytes(table)},
        job.fingerprint,
        inputs=job.inputs,
        seconds=time.perf_counter() - began,
    )


def _similarities(materials: Materials, job: GraphJob, space: str, targets: Sequence[str]) -> dict[Column, Matrix]:
    """Compare every target with every source by their vectors in a space: by column, (targets, sources)."""
    usual = columns_of(space)[0]
    asked = [usual if column.how == CSLS else column for column in job.columns if column.space == space]
    found = {column: np.zeros((len(targets), len(job.sources))) for column in asked}
    reader = _Reader(materials, space, job.labels, job.sources[0])
    rows = max(1, BLOCK_BYTES // (4 * reader.width))
    with tempfile.TemporaryFile() as file, ThreadPoolExecutor(READERS) as pool:
        kept: Block = np.memmap(file, np.float32, "w+", shape=(len(job.sources), reader.width))
        list(pool.map(reader.read, job.sources, kept))
        place = {source: row for row, source in enumerate(job.sources)}
        block: Block = np.empty((min(rows, len(targets)), reader.width), np.float32)

        def fill(target: str, row: Block) -> None:
            if target in place:
                row[:] = kept[place[target]]
            else:
                reader.read(target, row)

        for first in range(0, len(targets), rows):
            some = targets[first : first + rows]
            list(pool.map(fill, some, block))
            for other in range(0, len(job.sources), rows):
                part = slice(other, other + rows)
                for column, matrix in found.items():
                    near = SIMILARITIES[column.how](block[: len(some)], kept[part], reader.tensors)
                    matrix[first : first + rows, part] = near
    return {column: np.round(matrix, DIGITS) for column, matrix in found.items()}


def _corrected(similarity: Matrix, targets: Sequence[str], sources: Sequence[str]) -> Matrix:
    """Return similarities (targets, sources) less what any two slices share; those within a task do not count."""
    one, other = (np.array([Slice.parse(name).task for name in names]) for names in (targets, sources))
    rows = {target: row for row, target in enumerate(targets)}
    return np.round(csls(similarity, one[:, None] != other, [rows[source] for source in sources]), DIGITS)


class _Reader:
    """Reads vectors of a space that all have the tensors of the first one, in its order.

    Attributes:
        width: the numbers of a vector.
        tensors: the columns of each tensor.
    """

    def __init__(self, materials: Materials, space: str, labels: Labels, first: str) -> None:
        self._materials, self._space, self._labels, self._first = materials, SPACES[space], labels, first
        self._sizes = self._open(first).sizes
        edges = np.cumsum([0, *self._sizes.values()]).tolist()
        self.width: int = edges[-1]
        self.tensors = [slice(start, stop) for start, stop in itertools.pairwise(edges)]

    def read(self, name: str, row: Block) -> None:
        """Read a slice's vector into ``row`` (width,).

        Raises:
            PituneError: it is not there or damaged, or has other tensors.
        """
        sizes, values = self._open(name)
        if sizes != self._sizes:
            self._differs(name, sizes)
        if list(sizes) != list(self._sizes):
            pieces = dict(zip(sizes, np.split(values, np.cumsum(list(sizes.values()))[:-1]), strict=True))
            values = np.concatenate([pieces[tensor] for tensor in self._sizes])
        row[:] = values

    def _open(self, name: str) -> Vector:
        return self._space.read(self._materials, self._space.artifact(name, self._labels))

    def _differs(self, name: str, sizes: dict[str, int]) -> None:
        """Raise for a vector whose tensors are not those of the first."""
        odd = sorted(sizes.items() ^ self._sizes.items())[0][0]
        here, there = (found.get(odd, 0) for found in (sizes, self._sizes))
        raise PituneError(
            f"{self._materials.store.where(self._space.artifact(name, self._labels))}: has {here} numbers for {odd}, "
            f"that of {self._first} has {there}; what a graph compares is of one kind: delete the one that is old and "
            "run the study again"
        )


def _table(targets: Sequence[str], sources: Sequence[str], found: Mapping[Column, Matrix], by: Column) -> pa.Table:
    """Return the graph's table: targets by name, a slice's sources in the order that they are given in.

    Args:
        targets: the slices.
        sources: those that are ranked for each of them.
        found: the similarities, (targets, sources) each.
        by: the one that ranks the sources.
    """
    similarity = found[by]
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
        **{str(column): matrix[kept] for column, matrix in found.items()},
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
        self._source = source[order]
        values = [name for name in table.column_names if name not in ("source", "target", "rank")]
        self._similarities = {name: table[name].to_numpy()[order] for name in values}
        self._by_name = np.argsort(np.argsort(self._sources))
        edges = np.searchsorted(target[order], np.arange(len(targets) + 1)).tolist()
        self._parts = dict(zip(targets, itertools.pairwise(edges), strict=True))

    def neighbours(self, target: str, k: int, by: str = "similarity") -> list[tuple[str, float]]:
        """Return the ``k`` nearest sources of other tasks (all, where there are fewer) with their similarities.

        Args:
            target: a slice.
            k: how many.
            by: the column that says what is near; of equally near sources the first by name comes first.

        Raises:
            PituneError: the graph does not know the target, or has no such column.
        """
        if by not in self._similarities:
            raise PituneError(f"the task graph: has no column {by}; delete graph.parquet and run the study again")
        if target not in self._parts:
            raise PituneError(f"the task graph: knows no {target}; delete graph.parquet and run the study again")
        start, stop = self._parts[target]
        sources, similarities = self._source[start:stop], self._similarities[by][start:stop]
        order = slice(k) if by == "similarity" else np.lexsort((self._by_name[sources], -similarities))[:k]
        found = zip(sources[order].tolist(), similarities[order].tolist(), strict=True)
        return [(self._sources[source], similarity) for source, similarity in found]


def _coded(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different names of a column, and for each row which one it is."""
    coded = column.combine_chunks().dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)
