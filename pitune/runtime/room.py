"""Room on a cluster: how many workers fit, machine by machine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import ray

from pitune.errors import PituneError
from pitune.runtime.settings import SHARE, RuntimeSettings

Machine = Mapping[str, float]  # amounts by resource: CPU, GPU


def needs(settings: RuntimeSettings) -> dict[str, float]:
    """Return what one worker takes: CPU, and GPU where it has one."""
    found = {"CPU": float(settings.cpus_per_worker), "GPU": float(settings.gpus_per_worker)}
    return {kind: amount for kind, amount in found.items() if amount > 0}


def seats(machines: Sequence[Machine], each: Machine) -> int:
    """Return how many workers that take ``each`` fit on ``machines``; a worker is never shared between two."""
    return sum(
        min(math.floor(machine.get(kind, 0.0) / amount + 1e-6) for kind, amount in each.items()) for machine in machines
    )


def check_room(settings: RuntimeSettings, machines: Sequence[Machine] | None = None) -> None:
    """Check that the cluster has room for a gang; Ray itself would wait for ever for a machine that is larger.

    Args:
        settings: how large a gang is.
        machines: what each machine has; None: those of the connected Ray.

    Raises:
        PituneError: there is no such room.
    """
    machines = there() if machines is None else machines
    each = needs(settings)
    fit = seats(machines, each)
    if fit < settings.workers:
        wanted = f"a gang of {settings.workers}" if settings.workers > 1 else "a worker"
        raise PituneError(
            f"runtime: {wanted} takes {_amounts(each)}{' for each worker' if settings.workers > 1 else ''}, there is "
            f"room for {fit} on {_listed(machines)}; lower runtime.workers, runtime.cpus_per_worker or "
            "runtime.gpus_per_worker"
        )


def there() -> list[Machine]:
    """Return what each living machine of the connected Ray has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def gang_count(settings: RuntimeSettings, most: int | None = None) -> int:
    """Return how many gangs to start: as many as the settings say, or as there is room for now.

    Args:
        settings: how large a gang is, and how many are wanted.
        most: no more than this are of use.
    """
    count = settings.gangs or max(1, seats(_free(), needs(settings)) // settings.workers)
    return count if most is None else max(1, min(count, most))


def has_room(
    settings: RuntimeSettings,
    gangs: int,
    machines: Sequence[Machine] | None = None,
    free: Sequence[Machine] | None = None,
) -> bool:
    """Say whether there is room for one more gang.

    It must be there beside all gangs by what the machines have, for what tasks leave free beside a gang is no room for
    another; and by what is free, for others may use the cluster.

    Args:
        settings: how large a gang is.
        gangs: how many there are, with those that wait for room.
        machines: what each machine has; None: those of the connected Ray.
        free: what is free of it; None: as the connected Ray says.
    """
    machines = there() if machines is None else machines
    free = _free() if free is None else free
    each = needs(settings)
    share = {kind: SHARE * amount for kind, amount in each.items()}
    return seats(machines, each) // settings.workers > gangs and seats(free, share) >= settings.workers


def _free() -> list[Machine]:
    """Return what is free on each living machine of the connected Ray."""
    return list(ray._private.state.available_resources_per_node().values())  # type: ignore[no-untyped-call]


def _listed(machines: Sequence[Machine]) -> str:
    """Return what the machines have, the same ones counted."""
    kinds = Counter(f"{_amounts({kind: m.get(kind, 0.0) for kind in ('CPU', 'GPU')})}" for m in machines)
    return ", ".join(f"{count} machine{'s' if count > 1 else ''} of {what}" for what, count in kinds.items()) or "none"


def _amounts(machine: Machine) -> str:
    return " and ".join(f"{amount:g} {kind}{'' if amount == 1 else 's'}" for kind, amount in machine.items())
