"""Ways to bring together what single, nearest and pi came to, on examples that none of a target's slices has drawn.

    python benchmarks/stacking.py configs/twenty_tasks.yaml --set training.precision=bf16

Of a study that is finished, so far as it was for these three methods. Its tasks are halved by a hash of their names. On
the targets of the development half each way is scored on 300 training examples that the target has neither trained nor
validated on: what was chosen by these figures was chosen without a test example. Then come the scores on the test
splits, of both halves; those of the sealed half have chosen nothing.

Prints means over slices, and the task that fares worst beside single.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from common import THREADS

from pitune.config import load_config
from pitune.experts import Bank
from pitune.interpolation.merging import added_up
from pitune.interpolation.stacking import likelihood_weights
from pitune.interpolation.tune import Setting, Validation, validate_all
from pitune.materials import Materials, sample
from pitune.objectives import Rows
from pitune.plan import Plan
from pitune.report.scores import TargetScores, compare, read_targets
from pitune.tasks.task import Slice

UNSEEN = 300
MEMBERS = ("single", "nearest", "pi")
PLACES = ("baselines/{}/single", "baselines/{}/nearest", "interpolations/{}")
WAYS = (*MEMBERS, "the least loss", "the plain average", "stacked")


def is_sealed(task: str) -> bool:
    """Return whether a task is of the half that nothing is chosen on."""
    return bool(hashlib.sha256(task.encode()).digest()[0] % 2)


def shares(losses: Sequence[float], examples: int) -> list[list[float]]:
    """Return each way's weights of the three members."""
    alone = [[float(place == member) for place in range(3)] for member in range(3)]
    return [*alone, alone[int(np.argmin(losses))], [1 / 3] * 3, likelihood_weights(losses, examples)]


def unseen_rows(materials: Materials, target: Slice) -> Rows:
    """Return training examples of a target's task that it has neither trained nor validated on."""
    data, train = materials.data(target), materials.task(target.task).splits["train"]
    drawn = {example.key for example in (*data.train, *data.validation)}
    left = tuple(example for example in train if example.key not in drawn)
    return materials.rows_of(target.task, sample(left, UNSEEN, "unseen"), again=False)


def unseen(materials: Materials, target: Slice) -> list[Validation]:
    """Score every way for a target on training examples that it has not drawn."""
    manifests = [materials.store.manifest(place.format(target)) for place in PLACES]
    losses = [manifest["validation"]["loss"] for manifest in manifests if manifest]
    members = Bank(materials.kind, [materials.expert(place.format(target)) for place in PLACES])
    ways = [added_up(members, materials.start, one) for one in shares(losses, len(materials.data(target).validation))]
    bank = Bank(materials.kind, ways).to(materials.backbone.device)
    return validate_all(Setting.of(materials), bank, len(ways), unseen_rows(materials, target))


def show_unseen(materials: Materials, targets: Sequence[Slice]) -> None:
    """Print how each way fares on the development half."""
    found = {target: unseen(materials, target) for target in targets}
    print(f"development, unseen training examples, {len(targets)} slices\n")
    print("way  accuracy  loss  gain over single  worst task")
    for place, way in enumerate(WAYS):
        gains = defaultdict(list)
        for target, scores in found.items():
            gains[target.task].append(scores[place].accuracy - scores[0].accuracy)
        worst = min(gains, key=lambda task: np.mean(gains[task]))
        means = [np.mean([getattr(scores[place], what) for scores in found.values()]) for what in ("accuracy", "loss")]
        gain = 100 * (means[0] - np.mean([scores[0].accuracy for scores in found.values()]))
        print(f"{way}  {100 * means[0]:.1f}  {means[1]:.3f}  {gain:+.2f}  {worst} {100 * np.mean(gains[worst]):+.1f}")


def show_tested(half: str, targets: Sequence[TargetScores]) -> None:
    """Print how pi and stacked fare on the test splits of a half."""
    print(f"\n{half}, test, {len(targets)} tasks\n\ndifference  mean  95 % interval  better / worse  worst task")
    for one, other in (("pi", "single"), ("stacked", "single"), ("stacked", "nearest"), ("stacked", "pi")):
        found = compare(targets, one, other)
        if found:
            apart = {held.task: held.scores[one].mean - held.scores[other].mean for held in targets}
            worst = min(apart, key=lambda task: apart[task])
            ends = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
            counts = f"{found.wins} / {found.losses}"
            print(f"{one} - {other}  {100 * found.mean:+.2f}  {ends}  {counts}  {worst} {100 * apart[worst]:+.1f}")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    materials = Plan.of(load_config(given.config, given.settings)).materials
    targets = read_targets(materials.store)
    few = [target for target in load_config(given.config, given.settings).target_slices if target.shots]
    show_unseen(materials, [target for target in few if not is_sealed(target.task)])
    for half, sealed in (("development", False), ("sealed", True)):
        show_tested(half, [one for one in targets if is_sealed(one.task) == sealed and one.shots != "full"])


if __name__ == "__main__":
    main()
