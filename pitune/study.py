"""The study: makes what the plan says is missing, each node as soon as what it needs is there."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property

from pitune.config import StudyConfig
from pitune.errors import PituneError
from pitune.plan import Lane, Plan, materials_of
from pitune.progress import Progress, Stage
from pitune.runtime.cluster import connect
from pitune.runtime.lanes import Lanes, open_lanes
from pitune.store import Store
from pitune.watching import recorded

LOOK_SECONDS = 0.1  # between looks at the lanes
ORDER: tuple[Lane, ...] = ("gang", "search", "task", "driver")
Opener = Callable[[Plan, set[Lane]], AbstractContextManager[Lanes]]


class Study:
    """One configuration and everything made from it.

    Args:
        config: the study.
        opener: opens the lanes that something is to be made in; by default on Ray.
        goal: the one artifact to be made, with what it needs; see :class:`~pitune.plan.Plan`. None: everything.

    Raises:
        PituneError: the store cannot be opened.
    """

    def __init__(self, config: StudyConfig, opener: Opener = open_lanes, goal: str | None = None) -> None:
        self.config, self.goal = config, goal
        self.store = Store(config.study)
        self.materials = materials_of(config, self.store)
        self._opener = opener

    @cached_property
    def plan(self) -> Plan:
        """The plan, made when it is first asked for, and kept up to date by :meth:`run`.

        Raises:
            PituneError: see :class:`~pitune.plan.Plan`.
        """
        return Plan(self.config, self.materials, self.goal)

    def run(self, progress: Progress, address: str | None = None) -> None:
        """Make everything that is missing, or the goal alone, on a local Ray or on the cluster at ``address``.

        The report, which is of everything, is written where there is no goal.

        Raises:
            PituneError: another process works on the study; or something failed, what does not depend on it is made.
        """
        with ExitStack() as stack:
            self._check(stack, address)
            with self.store.lock(), recorded(self.store, progress) as told:
                self.store.write("study.yaml", self.config.yaml().encode())
                self.plan.drop_old_results()
                wanted = self.plan.lanes()
                if wanted - {"driver"}:
                    stack.enter_context(connect(address))
                with self._opener(self.plan, wanted) as lanes:
                    make_all(self.plan, lanes, told)
                    _raise(self.plan)
                if self.goal is None:
                    from pitune.report import write_report  # brings matplotlib, which nothing before needs

                    write_report(self.store)

    def _check(self, stack: ExitStack, address: str | None) -> None:
        """Make the plan, and see that experts fit the backbone: what is wrong is told before anything is written.

        Meanwhile Ray starts, where there is surely something to be made.
        """
        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(self._look)
            last = self.goal or f"experts/{self.config.targets[-1]}"
            if not self.store.is_locked() and not self.store.manifest(last):
                stack.enter_context(connect(address))
            checked.result()

    def _look(self) -> None:
        wanted = self.plan.lanes()
        if wanted - {"driver"}:
            _ = self.materials.start
            if "gang" in wanted and self.config.training.pack_size is None:
                _ = self.plan.memory  # packs are to fit
            del self.materials.backbone  # the workers open their own, this process has no more use for it


def make_all(plan: Plan, lanes: Lanes, progress: Progress) -> None:
    """Make every node that is missing, in its lane, until nothing is left that can be made."""
    there: dict[str, int] = {}  # by stage that has begun, how many nodes were there before
    under_way = 0
    while True:
        counts, ready = plan.stages(), plan.ready()
        begun = {stage for stage, (total, held) in counts.items() if total == held} | {node.stage for node in ready}
        there |= {stage: counts[stage][1] for stage in begun - there.keys()}
        for where in ORDER:
            chosen = [node for node in ready if node.lane == where]
            if chosen:
                lanes[where].add(chosen)
        under_way += len(ready)
        progress.show(_stages(plan, lanes, there))
        if not under_way:
            return
        _tell_lanes(plan, lanes)
        ended = [pair for lane in lanes.values() for pair in lane.finished()]
        for node, error in ended:
            if error is None:
                plan.done(node)
            else:
                plan.failed(node, error)
        under_way -= len(ended)
        if not ended:
            time.sleep(LOOK_SECONDS)


def _tell_lanes(plan: Plan, lanes: Lanes) -> None:
    """Tell lanes that nothing more will come: for ever, or as long as no other is busy."""
    if "task" in lanes and not any(lanes[where].unfinished() for where in ("gang", "search") if where in lanes):
        lanes["task"].flush()
    if "gang" in lanes and not plan.waits("gang"):
        lanes["gang"].close()


def _stages(plan: Plan, lanes: Lanes, there: Mapping[str, int]) -> list[Stage]:
    """Return how far each stage is that has begun."""
    running: dict[str, dict[str, float]] = defaultdict(dict)
    for lane in lanes.values():
        for name, share in lane.running().items():
            running[plan.nodes[name].stage][shown_name(name)] = share
    found = []
    for stage, (total, done) in plan.stages().items():
        if stage in there:
            part = min(sum(running[stage].values()), total - done)
            found.append(Stage(stage, total, there[stage], done + part, list(running[stage])))
    return found


def shown_name(name: str) -> str:
    """Return a node's name as people see it beside its stage: ``movie@16#0`` for ``experts/movie@16#0``."""
    return name.partition("/")[2].removesuffix(".parquet") or name


def _raise(plan: Plan) -> None:
    """Raise where something failed; what does not depend on it is committed."""
    if plan.errors:
        name, reason = next(iter(plan.errors.items()))
        stage, shown = plan.nodes[name].stage, shown_name(name)
        said = reason if reason.startswith(shown) else f"{shown}: {reason}"
        more = f" (and {len(plan.errors) - 1} more)" if len(plan.errors) > 1 else ""
        raise PituneError(f"{stage}: failed, what does not depend on it is done: {said}{more}")
