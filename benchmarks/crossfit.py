"""Ways to make one expert of single, nearest and pi by folds, on examples that none of a target's slices has drawn.

    python benchmarks/crossfit.py configs/twenty_tasks.yaml --keep /tmp/ways.jsonl --set training.precision=bf16

Of a study that is finished, so far as it was for these three methods; its folds are fitted here. Only targets of the
development half (``benchmarks/stacking.py``) are looked at, and only 300 training examples of each that the target
has neither trained nor validated on: what is chosen by these figures is chosen without a test example. What a target
came to is written down at once, and a second run goes on behind it.

Prints each way's mean gain over single in points, its interval, and where it does worst.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from common import THREADS
from numpy.typing import NDArray
from stacking import MEMBERS, is_sealed, unseen_rows

from pitune.config import load_config
from pitune.experts import Bank
from pitune.interpolation.crossfit import average, fit_folds, judge, out_of_fold, shares
from pitune.interpolation.jobs import CrossfitJob
from pitune.interpolation.stacking import likelihood_weights
from pitune.interpolation.tune import Setting, validate_all
from pitune.materials import Materials
from pitune.plan import Plan
from pitune.training.choice import manifests_of

Shares = NDArray[np.float64]
EM_STEPS = 3000


def alone(member: int) -> Shares:
    """Return the shares that give all to one of the three."""
    return np.eye(len(MEMBERS))[member]


def by_log_score(losses: Shares) -> Shares:
    """Return the shares whose mixture of predictions makes held-out examples likeliest (arXiv 1704.02030), by EM.

    Args:
        losses: (methods, examples).
    """
    likely, shares = np.exp(-losses), np.full(len(losses), 1 / len(losses))
    for _ in range(EM_STEPS):
        parts = shares[:, None] * likely
        shares = (parts / parts.sum(0)).mean(1)
    return shares


def simplest(losses: Shares) -> Shares:
    """Give all to the first that the best does not beat by more than a standard error, paired over examples."""
    apart = losses - losses[losses.mean(1).argmin()]
    near = apart.mean(1) <= apart.std(1, ddof=1) / losses.shape[1] ** 0.5
    return alone(int(near.argmax()))


def clearly(losses: Shares) -> Shares:
    """Give all to the best, where that is clearly better than single, else to single."""
    return alone(int(losses.mean(1).argmin()) if judge(torch.from_numpy(losses)).helps else 0)


def shares_of(held_out: Sequence[Shares]) -> dict[str, tuple[Shares, bool]]:
    """Return each way's shares of the three, and whether it averages over the folds.

    Args:
        held_out: the losses (methods, examples) on what the slice holds out, and each of its folds; no numbers of what
            has diverged.
    """
    few, every = (np.nan_to_num(some, nan=np.inf) for some in (held_out[0], np.concatenate(held_out, 1)))
    likely, likely_few = (np.array(likelihood_weights(some.mean(1).tolist(), some.shape[1])) for some in (every, few))
    ways = {name: alone(place) for place, name in enumerate(MEMBERS)}
    ways |= {"stacked": likely_few, "the best if clearly so, by validation examples": clearly(few)}
    ways |= {"by likelihood, not averaged": likely, "the best if clearly so, not averaged": clearly(every)}
    folded = {f"{name}, averaged": alone(place) for place, name in enumerate(MEMBERS)}
    folded |= {"by likelihood": likely, "by log score": by_log_score(every), "alike": np.full(3, 1 / 3)}
    folded |= {"the best": alone(int(every.mean(1).argmin())), "the simplest within an error": simplest(every)}
    folded |= {"the best if clearly so": clearly(every), "crossfit": np.array(shares(torch.from_numpy(every)))}
    return {name: (way, False) for name, way in ways.items()} | {name: (way, True) for name, way in folded.items()}


def scored(materials: Materials, job: CrossfitJob) -> dict[str, tuple[float, float]]:
    """Return what every way comes to on examples that a target has not drawn: the loss, and the accuracy in percent."""
    fits = fit_folds(materials, job, manifests_of(materials, job.tried))
    losses = [out_of_fold(materials, place, fit)[0].numpy() for place, fit in fits.items()]
    members: dict[tuple[tuple[float, ...], bool], list[str]] = defaultdict(list)  # to hundredths many come to the same
    for way, (weights, folded) in shares_of(losses).items():
        members[tuple(np.round(weights, 2).tolist()), folded].append(way)
    rows, found = unseen_rows(materials, job.slice), {}
    for (weights, folded), ways in members.items():
        shared = [weight / sum(weights) for weight in weights]
        [expert, _] = average(materials, list(fits.values())[: None if folded else 1], shared, None)
        bank = Bank(materials.kind, [expert]).to(materials.backbone.device)
        [score] = validate_all(Setting.of(materials), bank, 1, rows)
        found.update(dict.fromkeys(ways, (score.loss, 100 * score.accuracy)))
    return found


def show(found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Print every way's gains over single, of all targets."""
    print(f"\n{len(found)} slices\n\nway  loss  gain over single (95 % interval)  worse  worst slice  worst task")
    for way in next(iter(found.values())):
        gains = {target: scores[way][1] - scores["single"][1] for target, scores in found.items()}
        each = np.array(list(gains.values()))
        means = np.random.default_rng(0).choice(each, (10_000, len(each))).mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        tasks = defaultdict(list)
        for target, gain in gains.items():
            tasks[target.partition("@")[0]].append(gain)
        worst = min(tasks, key=lambda task: float(np.mean(tasks[task])))
        loss = np.mean([scores[way][0] for scores in found.values()])
        print(
            f"{way}  {loss:.3f}  {each.mean():+.1f} ({low:+.1f} to {high:+.1f})  {np.sum(each < 0)}  {each.min():+.1f}"
            f"  {worst} {np.mean(tasks[worst]):+.1f}"
        )


def main() -> None:
    """Score the targets that are not there yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--keep", type=Path, required=True, metavar="FILE")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--threads", type=int, default=THREADS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plan = Plan.of(load_config(given.config, given.settings))
    kept = given.keep.read_text().splitlines() if given.keep.exists() else []
    found = dict(json.loads(line) for line in kept)
    jobs = [node.job for node in plan.nodes.values() if isinstance(node.job, CrossfitJob)]
    if not jobs:
        parser.error(f"{given.config}: has no graph yet, or not crossfit among its methods; run the study first")
    for job in jobs:
        if not is_sealed(job.slice.task) and str(job.slice) not in found:
            found[str(job.slice)] = scored(plan.materials, job)
            with given.keep.open("a") as file:
                print(json.dumps([str(job.slice), found[str(job.slice)]]), file=file)
            print(f"{job.slice}: {len(found)}", flush=True)
    show(found)


if __name__ == "__main__":
    main()
