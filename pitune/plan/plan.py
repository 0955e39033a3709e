"""The plan of a study: the graph of its nodes, what of it is there, and what can be made next."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from pitune import methods  # not its names: a method's file may know the plan, and come first
from pitune.config import StudyConfig
from pitune.embedding.graph import COLUMNS, TaskGraph
from pitune.materials import Materials
from pitune.methods.transfer import build_matrix
from pitune.plan.builder import Builder, Sketch, Waits
from pitune.plan.comparing import GRAPH, asked
from pitune.plan.facts import Facts
from pitune.plan.node import Item, Lane, Node, State
from pitune.results import RESULTS, TRANSFER
from pitune.store import Store
from pitune.tasks.task import Slice
from pitune.training.memory import PackMemory, footprint
from pitune.training.pack import ExpertJob

LAST = ("predictions", "results")
"""Stages that come after those of the methods."""
Wanted = list[tuple[methods.base.Method, Slice]]
Built = dict[tuple[str, Slice], Node]  # predictions by method and target


class Plan:
    """All nodes of a study and their states.

    It is made from the configuration, the tasks and one look at the store; after that, it is told what is done. Nodes
    that depend on the graph's content are built when the graph is there, at once or by :meth:`grow`.

    Args:
        config: the study.
        materials: its store, and its tasks.
        goal: the name of a node that needs no graph: the plan has it and what it needs; None: everything.

    Raises:
        PituneError: there is no such method, a task or the backbone cannot be had, or a slice not be drawn.

    Attributes:
        methods: those of the study by name, in the order of the result table.
    """

    def __init__(self, config: StudyConfig, materials: Materials, goal: str | None = None) -> None:
        self.methods = methods.named(config.methods)
        self.config, self.materials, self.store, self.goal = config, materials, materials.store, goal
        self.facts = Facts(config, materials)
        self._catalogue = self.store.catalogue()
        self._states: dict[str, tuple[State, str]] = {}  # of the artifacts that are not done
        self._unmet: dict[str, int] = {}  # by node, how many of its needs are not there
        self._wanted_by: dict[str, list[str]] = {}
        self._ready: list[str] = []
        self._to_come: Counter[Lane] = Counter()  # nodes that are missing and were not returned by ready()
        self._failed: dict[str, str] = {}
        self._counts: dict[str, list[int]] = {}  # by stage: nodes, and those that are there
        self._predictions: Built = {}
        self._waits: Wanted = []
        self.sketched: dict[str, Node] = {}
        self._builder = Builder(self.facts)
        self._plant()

    @classmethod
    def of(cls, config: StudyConfig) -> Plan:
        """Return the plan of a study.

        Raises:
            PituneError: see the class; or the store cannot be opened.
        """
        return cls(config, materials_of(config, Store(config.study)))

    # --- building ----------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Every node whose inputs are known, by name."""
        return self._builder.nodes

    def slices(self) -> dict[Slice, None]:
        """Return every slice of the study: sources, targets, and full slices that are some method's ceilings only."""
        needs_all = any(method.sees == "all" for method in self.methods.values())
        ceilings = (self.facts.ceiling(target) for target in self.facts.targets if needs_all)
        return dict.fromkeys((*self.facts.embedded, *ceilings))

    def _plant(self) -> None:
        """Build what needs no graph, look at the graph, and build the rest if it is there and no goal without it."""
        chosen = self.slices()
        for task in dict.fromkeys(one.task for one in chosen):
            self._builder.card(task)
        for one in chosen:
            self._builder.slice(one)
        for one in sorted(chosen, key=self._turn):
            self._builder.expert(one)
        graph = self._builder.graph()
        self._waits = _build(self._builder, self._rows(), self._predictions)
        build_matrix(self._builder)
        if self.goal is not None:
            self._builder = Builder(self.facts, None, _needed(self._builder.nodes, self.goal))
            self._enter()
            self._count()
            return
        self._enter()
        if self._is_done(graph):
            self.grow()
        else:
            self._methods()

    def _rows(self) -> Wanted:
        """Return every method with each target whose task is of its families."""
        family = {target: self.facts.task(target.task).family for target in self.facts.targets}
        rows = itertools.product(self.methods.values(), self.facts.targets)
        return [(method, target) for method, target in rows if family[target] in method.families]

    def _turn(self, chosen: Slice) -> tuple[Any, ...]:
        """Return a sort key for experts: full ones come first, short texts before long ones."""
        few, length = chosen.shots is not None, self.facts.length(chosen.task)
        return few, length, chosen.task, chosen.shots or 0, chosen.seed

    def grow(self) -> None:
        """Build what depends on the graph's content; the graph is there now."""
        columns = dict.fromkeys([*COLUMNS, *map(str, asked(self.config))])
        graph = TaskGraph(self.store.table(GRAPH, columns=list(columns)))
        self._builder = Builder(self.facts, graph, self._builder.nodes)
        self._methods()

    def _methods(self) -> None:
        """Build the methods' nodes, as far as the graph is known, and sketch the others."""
        self._waits = _build(self._builder, self._waits, self._predictions)
        sketch = Sketch(self.facts, None, self._builder.nodes)
        predictions = dict(self._predictions)
        _build(sketch, self._waits, predictions)
        last = sketch if self._waits else self._builder
        rows = itertools.product(self.facts.targets, self.methods)
        last.results([(t, m, predictions[m, t]) for t, m in rows if (m, t) in predictions])
        self.sketched = dict(list(sketch.nodes.items())[len(self._builder.nodes) :]) if self._waits else {}
        self._enter()
        self._count()

    # --- states ------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Find out the states of the nodes that were built since the last time."""
        known = len(self._unmet)
        new = list(self._builder.nodes.values())[known:]
        for node in new:
            self._look(node)
        for node in new:
            self._unmet[node.name] = 0
            if self._is_done(node):
                continue
            self._to_come[node.lane] += 1
            for need in dict.fromkeys(node.needs):
                if not self._is_done(self._builder.nodes[need]):
                    self._unmet[node.name] += 1
                    self._wanted_by.setdefault(need, []).append(node.name)
            if not self._unmet[node.name]:
                self._ready.append(node.name)

    def _look(self, node: Node) -> None:
        """Note which artifacts of a node are not there as it would make them, and why."""
        fingerprint = node.job.fingerprint
        for artifact in node.job.artifacts:
            if self._catalogue.is_current(artifact, fingerprint):
                continue
            found = self._catalogue.fingerprint(artifact)
            if found is None:
                self._states[artifact] = "new", "not there"
            elif found == fingerprint:
                self._states[artifact] = "new", "files are missing"
            else:
                before = self._catalogue[artifact].get("inputs", {})
                self._states[artifact] = "changed", _why(before, node.job.inputs)

    def _is_done(self, node: Node) -> bool:
        return not any(artifact in self._states for artifact in node.job.artifacts)

    def ready(self) -> list[Node]:
        """Return the nodes that can be made now and were not returned before."""
        ready, self._ready = self._ready, []
        nodes = [self._builder.nodes[name] for name in ready]
        self._to_come.subtract(node.lane for node in nodes)
        return nodes

    def done(self, node: Node) -> None:
        """Note that a node is made; what waited for the graph is built when it is that."""
        for artifact in node.job.artifacts:
            self._states.pop(artifact, None)
        self._counts[node.stage][1] += 1
        for name in self._wanted_by.pop(node.name, ()):
            self._unmet[name] -= 1
            if not self._unmet[name]:
                self._ready.append(name)
        if node.name == GRAPH and self.goal is None:
            self.grow()

    def failed(self, node: Node, error: str) -> None:
        """Note that a node cannot be made; what depends on it is not made either."""
        self._failed[node.name] = error

    @property
    def errors(self) -> dict[str, str]:
        """The error of each node that failed, the first one first."""
        return dict(self._failed)

    def missing(self) -> Iterator[Node]:
        """Yield the nodes that are not there, those that wait for the graph included."""
        yield from (node for node in self._builder.nodes.values() if not self._is_done(node))
        yield from self.sketched.values()

    def waits(self, lane: Lane) -> bool:
        """Say whether nodes of a lane are still to come: they are missing, and were not returned as ready."""
        return self._to_come[lane] > 0 or any(node.lane == lane for node in self.sketched.values())

    def lanes(self) -> set[Lane]:
        """Return the lanes that something is still to be made in."""
        return {node.lane for node in self.missing()}

    @cached_property
    def memory(self) -> PackMemory:
        """How much memory packs take; opens the backbone, if it is not open, the first time.

        Raises:
            PituneError: the backbone cannot be opened, or experts do not fit it.
        """
        kinds = {node.job.kind or self.config.expert for node in self.missing() if isinstance(node.job, ExpertJob)}
        tasks = list(dict.fromkeys(one.task for one in self.slices()))
        found = {kind: footprint(self.materials, kind, tasks) for kind in kinds}
        return PackMemory(found, self.materials, self.config.training, self.config.runtime.workers)

    # --- what people see ---------------------------------------------------------------------------------------

    def stages(self) -> dict[str, tuple[int, int]]:
        """Return how many nodes each stage has, and how many of them are there; in order."""
        return {stage: (total, there) for stage, (total, there) in self._counts.items()}

    def _count(self) -> None:
        """Count the nodes of each stage; after that, :meth:`done` counts on."""
        self._counts = {}
        for node in self._in_order():
            counts = self._counts.setdefault(node.stage, [0, 0])
            counts[0] += 1
            counts[1] += node.name not in self.sketched and self._is_done(node)

    def items(self) -> Iterator[Item]:
        """Yield every artifact with its state, in the order of the stages."""
        for node in self._in_order():
            if node.name in self.sketched:
                states: list[tuple[State, str]] = [("waits", "for the graph")] * len(node.job.artifacts)
            else:
                states = [self._states.get(artifact, ("done", "")) for artifact in node.job.artifacts]
            cost = node.cost if any(state != "done" for state, _ in states) else 0.0
            for artifact, (state, why) in zip(node.job.artifacts, states, strict=True):
                yield Item(node.stage, artifact, state, why, cost)
                cost = 0.0  # the first artifact carries it

    def _in_order(self) -> list[Node]:
        nodes = [*self._builder.nodes.values(), *self.sketched.values()]
        places: dict[str, int] = {}
        for node in nodes:
            places.setdefault(node.stage, len(places))
        places |= {stage: len(places) + place for place, stage in enumerate(LAST)}
        return sorted(nodes, key=lambda node: places[node.stage])

    def drop_old_results(self) -> None:
        """Discard tables of scores where a run will make others: old scores must not stand beside new artifacts.

        A table that is no part of the plan is old as soon as anything that it may be made from is replaced.
        """
        tables = (RESULTS, TRANSFER)
        replaced = any(state == "changed" for name, (state, _) in self._states.items() if name not in tables)
        for table in tables:
            node = self.nodes.get(table)
            is_old = not self._is_done(node) if node else replaced or table in self.sketched
            if is_old:
                self.store.discard(table)
                self._catalogue.note(table, None)


def materials_of(config: StudyConfig, store: Store) -> Materials:
    """Return what a study's stages work with."""
    return Materials(
        store,
        backbone=config.backbone,
        kind=config.expert,
        objective=config.objective,
        precision=config.training.precision,
        tasks=config.tasks,
        validation_examples=config.training.validation_examples,
        test_examples=config.test_examples,
        gpu=config.runtime.gpus_per_worker > 0,
    )


def _build(
    builder: Builder, wanted: list[tuple[methods.Method, Slice]], predictions: Built
) -> list[tuple[methods.Method, Slice]]:
    """Build methods' nodes and note their predictions; return what waits for the graph."""
    waits: Wanted = []
    experts: list[tuple[methods.Method, Slice, Node | None]] = []
    for method, target in wanted:
        try:
            experts.append((method, target, method.build(builder, target)))
        except Waits:
            waits.append((method, target))
    for method, target, expert in experts:
        predictions[method.name, target] = method.score(builder, target, expert)
    return waits


def _needed(nodes: Mapping[str, Node], goal: str) -> dict[str, Node]:
    """Return a node and all that it needs, in the order of their building."""
    needed, waiting = set(), [goal]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += nodes[name].needs
    return {name: node for name, node in nodes.items() if name in needed}


def _why(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say which inputs changed."""
    changed = sorted(key for key in {*before, *now} if before.get(key) != _plain(now.get(key)))
    return f"{', '.join(changed) or 'layout'} changed"


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON would give it back: tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value
