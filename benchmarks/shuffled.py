"""Is a near source nearer than chance? A null distribution of similarities, from experts on shuffled labels.

    python benchmarks/shuffled.py configs/twenty_tasks.yaml --keep /tmp/shuffled --set training.precision=bf16

Of a study that is finished. The labels of each source's training examples are permuted among them, and an expert is
trained on these and embedded, as the study's own was: it has seen the task's pictures and texts and has nothing to
teach. These experts have a store of their own, in the folder; a second run trains what is missing there. Only targets
of the development half (``benchmarks/stacking.py``) are looked at. The tables are the study's or, with ``--tables
docs/results/twenty_tasks``, the published ones. Prints, for the similarity in use and for the weights':

- how many target slices have none above chance among their five nearest sources, where chance is the 95th percentile
  of the similarities to shuffled sources of other tasks, and the mean similarities;
- how many points more the sources above chance gain a target than others do, by the measured transfer, with a bootstrap
  over targets; and the same of about as many, the nearest of each target;
- how well the similarity ranks the sources, as it is and less that to the source's shuffled twin;
- the accuracy of pi where one of the five is above chance and single elsewhere, and of a perfect choice by task.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import THREADS
from numpy.typing import NDArray
from stacking import is_sealed

from pitune.config import StudyConfig, load_config
from pitune.embedding.embed import EmbeddingJob, embed
from pitune.embedding.similarity import SIMILARITIES, Block
from pitune.embedding.spaces import SPACES, Column, Labels, column
from pitune.materials import Materials
from pitune.objectives.rows import seed_of
from pitune.plan.builder import Builder
from pitune.plan.comparing import embedding
from pitune.plan.facts import Facts
from pitune.plan.plan import materials_of
from pitune.report.prediction import fit, occurrence, skewness
from pitune.store import Store
from pitune.tasks.task import Slice, SliceData
from pitune.training.loop import Alone
from pitune.training.pack import ExpertJob, make_packs
from pitune.training.work import ExpertTraining

Matrix = NDArray[np.float64]
"""(targets, sources), NaN where both are of one task."""
Mask = NDArray[np.bool_]
SHUFFLE, CHANCE, NEAREST, DRAWS = 0, 0.95, 5, 2000


class Shuffled(Materials):
    """A study's materials with a store of their own, and shuffled labels in what slices train on."""

    def __init__(self, study: Materials, store: Store) -> None:
        super().__init__(
            store,
            backbone=study.settings,
            kind=study.kind,
            objective=study.objective,
            precision=study.precision,
            tasks=study.sources,
            validation_examples=study.validation_examples,
        )
        self._shuffled: dict[Slice, SliceData] = {}

    def data(self, chosen: Slice) -> SliceData:
        """Return what a slice drew, with the labels of its training examples permuted among them."""
        if chosen not in self._shuffled:
            drawn = super().data(chosen)
            order = np.random.default_rng([SHUFFLE, seed_of(f"shuffled {chosen}")]).permutation(len(drawn.train))
            train = tuple(replace(one, label=drawn.train[at].label) for one, at in zip(drawn.train, order, strict=True))
            self._shuffled[chosen] = SliceData(train, drawn.validation)
        return self._shuffled[chosen]


def make(config: StudyConfig, materials: Shuffled) -> None:
    """Train and embed the experts of the sources that are not there."""
    facts = Facts(config, materials)
    facts.base |= {"shuffled": SHUFFLE}  # part of their fingerprints: none is taken for one of a study
    builder, work = Builder(facts), ExpertTraining(materials, config.training, None)
    jobs = [job for one in config.source_slices if isinstance(job := builder.expert(one).job, ExpertJob)]
    missing = [job for job in jobs if not materials.store.is_current(job.artifacts[0], job.fingerprint)]
    if missing:
        work.open(Alone())
    for pack in make_packs(missing, config.training):
        work.train(pack, Alone())
        print(f"trained {', '.join(job.name for job in pack.jobs)}", flush=True)
    for job in [embedding(builder, one).job for one in config.source_slices]:
        if isinstance(job, EmbeddingJob):  # of which the first is by the labels in use
            embed(materials, replace(job, artifacts=job.artifacts[:1], labels=job.labels[:1]))


def vectors(materials: Materials, space: str, labels: Labels, names: Sequence[str]) -> tuple[list[slice], Block]:
    """Return the columns of each tensor, by name in order, and the vectors of slices: (slices, columns)."""
    rows = []
    for name in names:
        sizes, values = SPACES[space].read(materials, SPACES[space].artifact(name, labels))
        rows.append(dict(zip(sizes, np.split(values, np.cumsum(list(sizes.values()))[:-1]), strict=True)))
    tensors = sorted(rows[0])
    ends = np.cumsum([0, *(rows[0][tensor].size for tensor in tensors)]).tolist()
    block = np.array([np.concatenate([row[tensor] for tensor in tensors]) for row in rows])
    return [slice(*pair) for pair in pairwise(ends)], block


def matrix(table: pd.DataFrame, target: str, values: str, targets: Sequence[str], sources: Sequence[str]) -> Matrix:
    """Return a column of a table with a source in each row, and a target as another column says."""
    found = table.pivot(index=target, columns="source", values=values).reindex(index=targets, columns=sources)
    tasks, others = (np.array([name.partition("@")[0] for name in names]) for names in (targets, sources))
    return np.where(tasks[:, None] == others, np.nan, found.to_numpy())


def apart(gains: Matrix, chosen: Mask) -> str:
    """Return how much more the chosen pairs gain than the others, and its interval by a bootstrap over targets."""
    draws = np.random.default_rng(0).integers(len(gains), size=(DRAWS, len(gains)))
    drawn = [(gains[rows], chosen[rows]) for rows in (np.arange(len(gains)), *draws) if chosen[rows].any()]
    mean, *means = (float(np.nanmean(some[which]) - np.nanmean(some[~which])) for some, which in drawn)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{mean:+.2f} ({low:+.1f} to {high:+.1f})"


def ranking(near: Matrix, gains: Matrix) -> str:
    """Return how well similarities rank the sources of targets that were measured, and their hubs of all targets."""
    known = np.isfinite(near)
    found = [fit(near[row, known[row]], gains[row, known[row]]) for row in np.flatnonzero(np.isfinite(gains).any(1))]
    spearman, one, three = (np.nanmean([case[name] for case in found]) for name in ("spearman", "regret@1", "regret@3"))
    places = np.argwhere(known)
    pairs = [{"target": f"to@{row}", "source": f"from@{at:03}", "similarity": near[row, at]} for row, at in places]
    return f"Spearman {spearman:+.2f}  regret@1 {one:.1f}  regret@3 {three:.1f}  hubs {skewness(occurrence(pairs)):.1f}"


def show(near: Matrix, null: Matrix, gains: Matrix) -> Mask:
    """Print how a similarity fares; return which targets have one above chance among their nearest: (targets,)."""
    above: Mask = near > np.nanquantile(null, CHANCE, axis=1, keepdims=True)
    order = np.argsort(-near, 1, kind="stable")
    found: Mask = np.take_along_axis(above, order[:, :NEAREST], 1).sum(1) > 0
    print(f"none above chance: {np.sum(~found)} of {len(found)} slices", end="; ")
    print(f"mean similarity: to real sources {np.nanmean(near):.3f}, to shuffled ones {np.nanmean(null):.3f}")
    rows = np.isfinite(gains).any(1)
    each = max(1, round(above[rows].sum() / rows.sum()))
    print(f"gain of {above[rows].sum()} pairs above chance less the others': {apart(gains[rows], above[rows])}")
    print(f"gain of the {each} nearest less the others': {apart(gains[rows], order[rows].argsort(1) < each)}")
    print(f"as it is: {ranking(near, gains)}\nless the twin's: {ranking(near - null, gains)}")
    return found


def show_rule(takes: Mask, accuracy: pd.DataFrame) -> None:
    """Print what comes of pi for the targets that take it, and of single for the others, beside both and the best."""
    pi, single = accuracy["pi"], accuracy["single"]
    gains = (pi - single).groupby(lambda name: name.partition("@")[0]).transform("mean")
    print(f"single {single.mean():.1f}  pi {pi.mean():.1f}  by the rule {pi.where(takes, single).mean():.1f}", end="  ")
    print(f"by a perfect choice {pi.where(gains > 0, single).mean():.1f}")


def main() -> None:
    """Make the experts that are not there, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--keep", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--tables", type=Path, metavar="FOLDER")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    config = load_config(given.config, given.settings)
    if given.keep.resolve() == Path(config.study).resolve():
        parser.error(f"--keep: {given.keep} is the study's own folder; name another one")
    study = materials_of(config, Store(config.study))
    shuffled = Shuffled(study, Store(given.keep))
    make(config, shuffled)
    targets = [str(one) for one in config.target_slices if one.shots and not is_sealed(one.task)]
    sources = sorted(map(str, config.source_slices))
    folder, labels = given.tables or Path(config.study), config.embedding.labels
    graph, transfer, results = (pd.read_parquet(folder / f"{of}.parquet") for of in ("graph", "transfer", "results"))
    gains = matrix(transfer.eval("gain = 100 * (score - single)"), "slice", "gain", targets, sources)
    accuracy = 100 * results.pivot(index="slice", columns="method", values="value").loc[targets]
    for by in (column(config.embedding.similarity, labels), Column("weights", "cosine")):
        near = matrix(graph, "target", str(by), targets, sources)
        tensors, block = vectors(study, by.space, labels, targets)
        null = SIMILARITIES[by.how](block, vectors(shuffled, by.space, labels, sources)[1], tensors)
        print(f"\n{by}")
        show_rule(show(near, np.where(np.isnan(near), np.nan, null), gains), accuracy)


if __name__ == "__main__":
    main()
