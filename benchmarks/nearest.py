"""The nearest ten of 100,000 task embeddings: projected at random, then searched with an inverted file.

    python benchmarks/nearest.py
    python benchmarks/nearest.py --tasks 20000

Embeddings are made up to be as Fisher information is: positive, over many magnitudes, and all alike. The logarithm of
each is a profile of the parameters that all tasks share, plus what 30 factors add, plus noise. A task's factors lie
about those of its family; there is a family for 300 tasks, some thirty times as large as others. They are made a
block at a time and not kept, as those of a study would come from their files.

Recall is the share of a task's nearest ten that is found, over 500 tasks: of the ten that all projected vectors have,
and of the ten by cosine per tensor at full width. Time is processor seconds over the two cores, to tell it from other
work on the machine. Exits with 1 where vectors of 256 numbers miss a bound. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import numpy as np  # noqa: E402  after the number of threads is set

from pitune.embedding.nearest import WIDTH, directions, nearest, projected  # noqa: E402
from pitune.embedding.similarity import Block  # noqa: E402

TASKS, PARAMETERS, TENSORS, K = 100_000, 4_096, 16, 10
WIDTHS = (WIDTH, 1_024)
FACTORS, A_FAMILY, BLOCK, SAMPLE = 30, 300, 2_000, 500
SECONDS, RECALL = 60.0, 0.95


def embeddings(tasks: int, seed: int = 0) -> Iterator[Block]:
    """Yield made-up Fisher information of so many tasks in blocks (tasks, parameters)."""
    chance = np.random.default_rng(seed)
    profile = chance.normal(0, 1.5, PARAMETERS).astype(np.float32)
    loadings = chance.normal(0, 1 / FACTORS**0.5, (FACTORS, PARAMETERS)).astype(np.float32)
    families = chance.normal(size=(max(1, tasks // A_FAMILY), FACTORS)).astype(np.float32)
    share = 1 / np.arange(10, len(families) + 10)
    for first in range(0, tasks, BLOCK):
        size = min(BLOCK, tasks - first)
        family = chance.choice(len(families), size, p=share / share.sum())
        factors = families[family] + 0.4 * chance.standard_normal((size, FACTORS), np.float32)
        noise = 0.05 * chance.standard_normal((size, PARAMETERS), np.float32)
        yield np.exp(profile + factors @ loadings + noise)


def tensors() -> list[slice]:
    """Return the columns of each tensor."""
    size = PARAMETERS // TENSORS
    return [slice(first, first + size) for first in range(0, PARAMETERS, size)]


class Sampled:
    """Passes blocks on, and compares the first :data:`SAMPLE` vectors with all of them on the way.

    Attributes:
        similarity: (sample, all tasks so far): the cosine per tensor.
    """

    def __init__(self) -> None:
        self.parts: list[Block] = []
        self.seconds = 0.0

    def __call__(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Yield directions of the blocks' vectors."""
        first: Block | None = None
        for block in blocks:
            began = time.process_time()
            found = directions(block, tensors())
            first = found[:SAMPLE].copy() if first is None else first
            self.parts.append(first @ found.T)
            self.seconds += time.process_time() - began
            yield found

    @property
    def similarity(self) -> Block:
        """What was found."""
        return np.concatenate(self.parts, axis=1)


def top(near: Block) -> np.ndarray:
    """Return the places of the ``K`` greatest of each row but the row's own: (rows, K)."""
    near[np.arange(len(near)), np.arange(len(near))] = -np.inf
    return np.argpartition(-near, K, axis=1)[:, :K]


def recall(found: np.ndarray, right: np.ndarray) -> float:
    """Return the share of the right places that were found, in the mean over rows."""
    return float(np.mean([len(np.intersect1d(one, other)) / K for one, other in zip(found, right, strict=True)]))


@dataclass(frozen=True)
class Figures:
    """What came of it.

    Attributes:
        search: seconds that finding the nearest ten of all projected vectors takes on two cores.
        exact: seconds that comparing all pairs of them would take, by what the sample took.
        recall: against all pairs of the projected vectors.
        full: against all pairs at full width.
        cosine, best: the mean cosine per tensor of the ten that were found, and of the right ten.
        gib: the most memory that the process had.
    """

    search: float
    exact: float
    recall: float
    full: float
    cosine: float
    best: float
    gib: float


def measure(tasks: int, widths: Sequence[int]) -> dict[int, Figures]:
    """Find the nearest ten of so many tasks by vectors of each of some widths; the first numbers of wide ones are one.

    A part of a random projection's numbers is a random projection, too.
    """
    sampled = Sampled()
    wide = projected(sampled(embeddings(tasks)), max(widths))
    full = sampled.similarity
    best = top(full)
    found = {}
    for width in widths:
        vectors = np.ascontiguousarray(wide[:, :width])
        began = time.process_time()
        near = nearest(vectors, K)[0][:SAMPLE]
        search = time.process_time() - began
        began = time.process_time()
        right = top(2 * vectors[:SAMPLE] @ vectors.T - (vectors**2).sum(1))
        exact = (time.process_time() - began) * tasks / SAMPLE
        cosine, most = (float(np.take_along_axis(full, places, 1).mean()) for places in (near, best))
        gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found[width] = Figures(
            search / THREADS, exact / THREADS, recall(near, right), recall(near, best), cosine, most, gib
        )
    return found


HEAD = """\
| tasks | width | seconds | all pairs, s | recall | recall at full width | mean cosine | of the right ten | GiB |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    chosen = parser.parse_args()
    found = measure(chosen.tasks, chosen.widths)
    print(HEAD)
    for width, one in found.items():
        print(
            f"| {chosen.tasks:,} | {width} | {one.search:.1f} | {one.exact:.0f} | {one.recall:.3f} | {one.full:.3f} "
            f"| {one.cosine:.4f} | {one.best:.4f} | {one.gib:.2f} |"
        )
    wrong = WIDTH in found and (found[WIDTH].search > SECONDS or found[WIDTH].recall < RECALL)
    print("missed" if wrong else "all bounds are met")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
