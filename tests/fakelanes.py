"""Lanes that compute nothing: what they make is committed with made-up content, to try plans and loops on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pitune.embedding.graph import GraphJob
from pitune.interpolation.scoring import ScoringJob
from pitune.methods.transfer import TransferJob
from pitune.plan import Lane, Node, Plan
from pitune.results import CardJob, ResultsJob, SliceJob
from pitune.runtime.driver import DriverLane
from pitune.store import table_bytes
from pitune.tasks.task import Slice
from pitune.training.pack import ExpertJob


def make(plan: Plan, node: Node) -> None:
    """Commit a node's artifacts, made up; the graph and the tables of scores as they would be."""
    job, store = node.job, plan.store
    if isinstance(job, CardJob | SliceJob | ResultsJob | TransferJob):
        assert node.make is not None
        node.make(plan.materials, job)
    elif isinstance(job, GraphJob):
        store.commit(job.artifacts[0], {"": table_bytes(edges(job))}, job.fingerprint, inputs=job.inputs)
    elif isinstance(job, ScoringJob):
        table = [{"key": "a", "label": "yes", "prediction": "yes", "score": 1.0}]
        facts = {"metric": "accuracy", "value": 1.0, "examples": 1, "expert": job.expert}
        store.commit(job.artifacts[0], {"": table_bytes(table)}, job.fingerprint, inputs=job.inputs, **facts)
    else:
        for artifact in job.artifacts:
            files = (
                {"": b"made up"} if artifact.endswith(".parquet") else {"made_up.json": json.dumps(artifact).encode()}
            )
            steps = job.recipe.steps if isinstance(job, ExpertJob) else 0
            facts = {"trials": 1, "steps": steps, "seconds": 1.0}
            store.commit(artifact, files, job.fingerprint, inputs=job.inputs, **facts)


def edges(job: GraphJob) -> list[dict[str, Any]]:
    """Make up a graph: the sources are the nearer, the earlier their names come; by label texts, the later."""
    found = []
    for target in sorted(job.slices):
        own = Slice.parse(target).task
        others = sorted(source for source in job.sources if Slice.parse(source).task != own)
        for source in job.sources:
            if source != target:
                rank = others.index(source) + 1 if source in others else 0
                similarity = 1.0 - 0.125 * sum(map(ord, Slice.parse(source).task)) / 1000
                row = {"source": source, "target": target, "similarity": similarity, "rank": rank}
                found.append(row | {"labels_cosine": rank / 10 if rank else 1.0})
    return found


def make_everything(plan: Plan) -> list[str]:
    """Make all that is missing, one node at a time; return their names."""
    made = []
    while ready := plan.ready():
        for node in ready:
            make(plan, node)
            plan.done(node)
            made.append(node.name)
    return made


class FakeLane:
    """A lane that makes up a node a look, the costliest first; those in ``broken`` fail."""

    def __init__(self, plan: Plan, where: Lane, broken: dict[str, str], log: list[tuple[str, str]]) -> None:
        self.plan, self.where, self.broken, self.log = plan, where, broken, log
        self.nodes: list[Node] = []
        self.flushed = self.closed = False

    def add(self, nodes: Sequence[Node]) -> None:
        assert nodes and all(node.lane == self.where for node in nodes)
        assert not self.closed
        self.nodes += nodes
        self.flushed = False

    def finished(self) -> list[tuple[Node, str | None]]:
        ready = [node for node in self.nodes if self.flushed or not node.together]
        node = max(ready, key=lambda node: node.cost, default=None)
        if node is None:
            return []
        self.nodes.remove(node)
        self.log.append((self.where, node.name))
        if node.name in self.broken:
            return [(node, self.broken[node.name])]
        make(self.plan, node)
        return [(node, None)]

    def running(self) -> dict[str, float]:
        return {node.name: 0.5 for node in self.nodes[:1]}

    def unfinished(self) -> int:
        return len(self.nodes)

    def flush(self) -> None:
        self.flushed = True

    def close(self) -> None:
        self.closed = True


class Opener:
    """Opens fake lanes; remembers which were asked for and what they made, in order."""

    def __init__(self, broken: dict[str, str] | None = None) -> None:
        self.broken = broken or {}
        self.wanted: set[Lane] = set()
        self.log: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def __call__(self, plan: Plan, wanted: set[Lane]) -> Iterator[dict[Lane, Any]]:
        self.wanted = wanted
        lanes: dict[Lane, Any] = {where: FakeLane(plan, where, self.broken, self.log) for where in wanted - {"driver"}}
        yield {"driver": DriverLane(plan.materials), **lanes}
