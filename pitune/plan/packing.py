"""How a plan's experts come into packs on the machine that plans, and what is said of their memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from pitune.plan.plan import Plan
from pitune.training.pack import ExpertJob, Pack, make_packs

GIB = 1 << 30


def packer(plan: Plan, room: int | None) -> Callable[[Sequence[ExpertJob]], list[Pack]]:
    """Return what groups a plan's jobs into packs.

    Args:
        plan: of the study.
        room: bytes of a worker, which packs without a size of their own are to fit into; None: not known.
    """
    fits = None if room is None else lambda jobs: plan.memory.of(jobs) <= room
    return functools.partial(make_packs, settings=plan.config.training, fits=fits)


def to_train(plan: Plan) -> list[ExpertJob]:
    """Return the jobs of all experts that are to be trained, those that wait for the graph included."""
    return [node.job for node in plan.missing() if isinstance(node.job, ExpertJob)]


def told(plan: Plan, room: int | None) -> list[str]:
    """Say how much memory the largest pack takes, in a line; where that is too much, name the setting in another.

    Args:
        plan: of the study.
        room: bytes of a worker; None: not known.
    """
    jobs = to_train(plan)
    if not jobs:
        return []
    packs = packer(plan, room)(jobs)
    size, pack = max(((plan.memory.of(pack.jobs), pack) for pack in packs), key=lambda pair: pair[0])
    count, rows = len(pack.jobs), max(map(plan.memory.rows, pack.jobs))
    there = "this machine has no GPU to compare with" if room is None else f"of the {_gib(room)} that it has here"
    experts = f"{count} expert{'s' if count > 1 else ''} x {rows} rows"
    lines = [f"largest pack: {experts}, about {_gib(size)} a worker, {there}"]
    if room is not None and size > room:
        if count > 1:
            remedy = f"training.pack_size: {plan.config.training.pack_size} found; lower it, or leave it out"
        else:
            remedy = "lower training.*.batch_size, or raise training.gradient_accumulation"
            remedy += "" if plan.config.runtime.gpus_per_worker else " or runtime.cpus_per_worker"
        lines.append(f"warning: that is more than there is; {remedy}")
    return lines


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
