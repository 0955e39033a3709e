"""The transfer matrix as packs, and the same pairs one after another: training, and scoring on whole test splits.

    python benchmarks/transfer.py
    python benchmarks/transfer.py --targets nyt@16#0 --set training.precision=fp32

The pairs, recipes and test splits of ``configs/six_texts.yaml``: six sources, whose experts are made up here, and each
of the targets. Both ways go through the stages that a run goes through, in this process, on two threads, taking turns,
each beginning with nothing kept: as packs, in which the pairs of a target share rows, trunk and test rows; and one
after another, each trained and scored alone, where the trunk of the shots is still kept from pair to pair. Prints
seconds and, last, the ratio; exits with 1 where it is below two.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import THREADS, trained_looking

from pitune.backbones.cache import CACHE
from pitune.config import load_config
from pitune.experts.checkpoint import to_files
from pitune.interpolation.scoring import ScoringJob, score
from pitune.plan import Plan, materials_of
from pitune.results import PAIRS, TRANSFER
from pitune.runtime.tasks import calls
from pitune.store import Store
from pitune.training.loop import Alone
from pitune.training.pack import Pack, make_packs
from pitune.training.work import ExpertTraining

CONFIG = Path(__file__).parents[1] / "configs" / "six_texts.yaml"
GOAL = 2.0
ROUNDS = 3


class Matrix:
    """The pairs of a study's plan, and two ways to make them."""

    def __init__(self, folder: str, overrides: Sequence[str]) -> None:
        self.config = load_config(CONFIG, [f"study={folder}", *overrides])
        self.materials = materials_of(self.config, Store(folder))
        self.nodes = Plan(self.config, self.materials, TRANSFER).nodes
        self.pairs: list[Any] = [n.job for n in self.nodes.values() if n.stage == PAIRS and n.lane == "gang"]
        scored = {job.artifacts[0] for job in self.pairs}
        self.scores = [n for n in self.nodes.values() if isinstance(n.job, ScoringJob) and n.job.expert in scored]
        self.work = ExpertTraining(self.materials, self.config.training, checkpoint_every=None)
        self.work.open(Alone())
        self._make_sources_up()

    def _make_sources_up(self) -> None:
        kind, encoder = self.materials.kind, self.materials.backbone
        for seed, name in enumerate(dict.fromkeys(job.start for job in self.pairs)):
            files = to_files(kind, trained_looking(kind, encoder, seed), self.materials.settings.uri)
            self.materials.store.commit(name, files, self.nodes[name].job.fingerprint)

    def together(self) -> tuple[float, float]:
        """Make the pairs as a run does; return the seconds of training and of scoring."""
        packs = make_packs(self.pairs, self.config.training)
        return self._timed([pack.jobs for pack in packs], [[n.job for n in call] for call in calls(self.scores, True)])

    def one_after_another(self) -> tuple[float, float]:
        """Make each pair alone; return the seconds of training and of scoring."""
        return self._timed([(job,) for job in self.pairs], [[node.job] for node in self.scores])

    def _timed(self, packs: Sequence[Sequence[Any]], scores: Sequence[Sequence[Any]]) -> tuple[float, float]:
        CACHE.clear()
        began = time.perf_counter()
        for number, jobs in enumerate(packs):
            self.work.train(Pack(f"pack-{number}", tuple(jobs)), Alone())
        trained = time.perf_counter()
        for some in scores:
            score(self.materials, some)
        return trained - began, time.perf_counter() - trained


def main() -> int:
    """Measure, and say whether the goal is met."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["nyt@16#0", "movie@16#0", "tweets@16#0"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="take this setting of the study")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    found: dict[str, list[tuple[float, float]]] = {"as packs": [], "one after another": []}
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(folder, [f"transfer.targets=[{','.join(options.targets)}]", *options.set])
        sources = len(matrix.pairs) // len(options.targets)
        print(
            f"{sources} sources x {len(options.targets)} targets; median of {options.rounds} rounds after one",
            flush=True,
        )
        for round_ in range(options.rounds + 1):
            for name, way in (("as packs", matrix.together), ("one after another", matrix.one_after_another)):
                seconds = way()
                if round_:
                    found[name].append(seconds)
    totals = {name: statistics.median(train + scoring for train, scoring in held) for name, held in found.items()}
    for name, held in found.items():
        train, scoring = (statistics.median(part) for part in zip(*held, strict=True))
        each = totals[name] / len(matrix.pairs)
        print(
            f"{name}: training {train:.1f} s, scoring {scoring:.1f} s, in all {totals[name]:.1f} s, {each:.2f} s a pair"
        )
    ratio = totals["one after another"] / totals["as packs"]
    print(f"one after another / as packs: {ratio:.2f} (goal: at least {GOAL:g})")
    return int(ratio < GOAL)


if __name__ == "__main__":
    sys.exit(main())
