"""One expert for a group of targets (multitask adaptation, MVLPT, arXiv 2211.11720)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from pitune.embedding.groups import grouped, numbers_of_groups
from pitune.interpolation.jobs import SharedChoiceJob
from pitune.methods.base import Method
from pitune.store import fingerprint_of
from pitune.tasks.task import Slice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pitune.plan.builder import Builder
    from pitune.plan.node import Node

Group = tuple[Slice, ...]
"""Targets that share an expert, in order: of different tasks, of the same shots and seed."""


def _choose_shared(materials: Any, job: SharedChoiceJob) -> None:
    from pitune.interpolation.shared import choose_shared  # brings torch, which a report does without

    choose_shared(materials, job)


class Joint(Method):
    """One expert for a group of targets, trained on the shots of all of them together (MVLPT, arXiv 2211.11720).

    A group's expert takes the steps of one target's recipe times the size of the group, so that each target's rows come
    as often as alone; all are drawn from equally. Where the configuration names the groups there is one trial. Else
    groups are proposed: all targets together, each alone, then so many groups as
    :func:`pitune.embedding.groups.numbers_of_groups` says, of those that the task graph finds alike.
    """

    name = "joint"
    title = "joint"
    note = "one expert for a group of targets, trained on the shots of all of them together (MVLPT)"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the experts of all groups that the target may be in, and the choice among them."""
        groups = _groups_of(plan, target)
        several = len(groups) > 1
        tried = [self._expert(plan, group, may_fail=several and len(group) > 1) for group in groups]
        if not several:
            return tried[0]
        names = tuple(node.name for node in tried)
        inputs = {
            "makes": "shared choice",
            "slice": str(target),
            "trials": [[name, plan.fingerprint(name)] for name in names],
        }
        job = SharedChoiceJob((f"baselines/{target}/{self.name}",), inputs, names, target)
        cost = len(names) * plan.facts.validated(target) / 2  # forward only
        return plan.add(job, self.name, "task", names, cost, _choose_shared)

    def _expert(self, plan: Builder, group: Group, may_fail: bool) -> Node:
        """Return the expert of a group; that of a target alone is its own."""
        first, size = group[0], len(group)
        if size == 1:
            return plan.expert(first)
        mark = fingerprint_of({"group": [str(one) for one in group]})[:8]
        artifact = f"joint/{first.shots_text}#{first.seed}/{first.task}+{size - 1}-{mark}"
        if artifact in plan.nodes:
            return plan.nodes[artifact]
        recipe = plan.facts.longer(plan.recipe(first), size)
        data = [(one, 1 / size) for one in group]
        return plan.expert(data, None, artifact, recipe=recipe, stage=self.name, may_fail=may_fail)


def _groups_of(plan: Builder, target: Slice) -> list[Group]:
    """Return the groups that a target may be in, in the order in which they are tried, each once."""
    given = plan.config.joint.groups
    peers = _peers(plan, target.shots, target.seed)
    if given is not None:
        tasks = next((group for group in given if target.task in group), (target.task,))
        return [tuple(one for one in peers if one.task in tasks)]
    proposals = _proposals(plan, target.shots, target.seed)
    return list(dict.fromkeys(group for groups in proposals for group in groups if target in group))


@functools.lru_cache(maxsize=64)
def _peers(plan: Builder, shots: int | None, seed: int) -> Group:
    """Return the targets of these shots and this seed, by task."""
    return tuple(sorted(one for one in plan.facts.targets if (one.shots, one.seed) == (shots, seed)))


@functools.lru_cache(maxsize=64)
def _proposals(plan: Builder, shots: int | None, seed: int) -> list[list[Group]]:
    """Return the ways to group the targets of these shots and this seed, as many as a method may try."""
    peers = _peers(plan, shots, seed)
    found: list[list[Group]] = []
    for count in numbers_of_groups(len(peers), plan.trials):
        if count in (1, len(peers)):  # which the task graph has no say in
            found.append([peers] if count == 1 else [(one,) for one in peers])
        else:
            cut = grouped(_similarities(plan, peers), count)
            found.append([tuple(peers[place] for place in group) for group in cut])
    return found


@functools.lru_cache(maxsize=64)
def _similarities(plan: Builder, peers: Group) -> NDArray[np.float64]:
    """Return how similar the task graph finds targets: (targets, targets), symmetric.

    Of two targets it is the mean over what the sources of either one's task are to the other; where neither task is a
    source, that of the two which are least alike.
    """
    place = {one.task: index for index, one in enumerate(peers)}
    total, count = np.zeros((2, len(peers), len(peers)))
    for row, target in enumerate(peers):
        for near in plan.neighbours(target, plan.others(target)):
            column = place.get(Slice.parse(near.slice).task)
            if column is not None:
                total[row, column] += near.similarity
                count[row, column] += 1
    total, count = total + total.T, count + count.T
    least = (total[count > 0] / count[count > 0]).min(initial=np.inf)
    found: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), least if np.isfinite(least) else 0.0)
    return found
