"""The builder: what methods make the plan's nodes with. A node asked for twice is one node.

What a node is made from refers to other nodes by their fingerprints, so that a change travels as far as it matters and
no further: what is made from a target's neighbours holds their names, similarities and experts, not the graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pitune.embedding.graph import TaskGraph
from pitune.embedding.spaces import column
from pitune.interpolation.jobs import Neighbour
from pitune.interpolation.scoring import ScoringJob, score
from pitune.plan import comparing
from pitune.plan.facts import Facts
from pitune.plan.node import Lane, Node
from pitune.results import (
    COLUMNS,
    LINE,
    PAIRS,
    RESULTS,
    SHOWN,
    SIDE,
    CardJob,
    ResultsJob,
    SliceJob,
    write_card,
    write_results,
    write_slice,
)
from pitune.store import Job, fingerprint_of
from pitune.tasks.task import Slice, Task
from pitune.training.choice import ChoiceJob, choose
from pitune.training.pack import ExpertJob

if TYPE_CHECKING:
    from pitune.config import StudyConfig
    from pitune.experts import ExpertKind
    from pitune.training.recipe import Recipe

RATES = (1.0, 2.0, 0.5, 4.0, 0.25, 1.5, 0.75, 3.0)
"""Learning rates that are tried, as shares of the recipe's, in order."""
Data = Sequence[tuple[Slice, float]]


class Waits(Exception):
    """A node's inputs depend on the graph, which is not there yet."""


class Builder:
    """Builds nodes.

    Args:
        facts: of the study.
        graph: the task graph, or None where it is not there as the configuration wants it.
        nodes: what is built already, by name.

    Attributes:
        config: the study's configuration.
        nodes: every node, by the name of its first artifact, in the order of their building.
    """

    def __init__(self, facts: Facts, graph: TaskGraph | None = None, nodes: Mapping[str, Node] | None = None) -> None:
        self.facts = facts
        self.nodes: dict[str, Node] = dict(nodes or {})
        self._graph = graph
        self._scores = {(n.job.task, n.job.expert): n for n in self.nodes.values() if isinstance(n.job, ScoringJob)}

    @property
    def config(self) -> StudyConfig:
        """The study's configuration."""
        return self.facts.config

    # --- what methods build with -------------------------------------------------------------------------------

    def expert(
        self,
        data: Slice | Data,
        start: str | None = None,
        artifact: str | None = None,
        *,
        recipe: Recipe | None = None,
        kind: ExpertKind | None = None,
        stage: str = "experts",
        may_fail: bool = False,
    ) -> Node:
        """Return an expert to train.

        Args:
            data: a slice, or slices with their weights.
            start: the expert that it starts from (a node's name); None: the common start.
            artifact: where it goes; None: ``experts/<slice>``.
            recipe: how it is trained; None: as its first slice is.
            kind: of the expert, where it is not the study's.
            stage: under what name people see it.
            may_fail: it is one of several trials, which may come to no number.
        """
        parts = ((data, 1.0),) if isinstance(data, Slice) else tuple(data)
        artifact = artifact or f"experts/{parts[0][0]}"
        recipe = recipe or self.facts.recipe(parts[0][0])
        wanted, known = (parts, start, recipe), self.nodes.get(artifact)
        if known and isinstance(known.job, ExpertJob) and (known.job.data, known.job.start, known.job.recipe) == wanted:
            return known
        for chosen, _ in parts:
            self.facts.check(chosen)
        inputs: dict[str, Any] = {
            "makes": "expert",
            **self.facts.base,
            "data": [[str(chosen), weight] for chosen, weight in parts],
            "tasks": {chosen.task: self.task(chosen.task).fingerprint for chosen, _ in parts},
            "recipe": self.dump(recipe),
            "start": self.fingerprint(start) if start else "common",
        }
        if kind:
            inputs["kind"] = kind.model_dump(mode="json")
        if len(parts) > 1 or parts[0][0].shots is None:
            inputs["validation_examples"] = self.config.training.validation_examples
        name = " + ".join(str(chosen) for chosen, _ in parts)
        length = max(self.facts.length(chosen.task) for chosen, _ in parts)
        job = ExpertJob((artifact,), inputs, name, parts, recipe, start, length, may_fail, kind)
        return self.add(job, stage, "gang", (start,) if start else (), recipe.steps * recipe.batch_size)

    def pair(self, source: Slice, target: Slice) -> Node:
        """Return a pair of the transfer matrix: a source's expert, tuned on a target as the target's own is trained."""
        return self.expert(target, self.expert(source).name, f"{PAIRS}/{target}/{source}", stage=PAIRS)

    @property
    def trials(self) -> int:
        """How many of its settings a method may try."""
        return self.config.sweep.budget

    def at_rates(self, method: str, target: Slice, first: Node) -> list[Node]:
        """Return a method's trials: ``first``, an expert to train, and the same at the next rates of :data:`RATES`.

        Those go to ``trials/<target>/<method>/rate-<share>``, and may fail.
        """
        job = first.job
        assert isinstance(job, ExpertJob)
        found = [first]
        for share in RATES[1 : self.trials]:
            trial = self.expert(
                job.data,
                job.start,
                f"trials/{target}/{method}/rate-{share:g}",
                recipe=self.facts.at_rate(job.recipe, share),
                kind=job.kind,
                stage=method,
                may_fail=True,
            )
            found.append(trial)
        return found

    def chosen(self, method: str, target: Slice, trials: Sequence[Node]) -> Node:
        """Return the best of a method's trials by validation loss; of equals, or of a single one, the first."""
        if len(trials) == 1:
            return trials[0]
        names = tuple(node.name for node in trials)
        inputs = {"makes": "choice", "trials": [[name, self.fingerprint(name)] for name in names]}
        job = ChoiceJob((f"baselines/{target}/{method}",), inputs, names)
        return self.add(job, method, "task", names, make=choose)

    def embedding(self, chosen: Slice) -> Node:
        """Return the task embedding of a slice, and the one of the other labels where the graph has it too."""
        return comparing.embedding(self, chosen)

    def features(self, chosen: Slice) -> Node:
        """Return what the frozen backbone makes of a slice."""
        return comparing.features(self, chosen)

    def graph(self) -> Node:
        """Return the task graph of all sources and targets, by all similarities or by those that rank them."""
        return comparing.graph(self)

    def neighbours(self, target: Slice, k: int, similarity: str | None = None) -> tuple[Neighbour, ...]:
        """Return the ``k`` sources that are nearest to a target, nearest first.

        Args:
            target: a target.
            k: how many.
            similarity: a method's, which is then its :attr:`~pitune.methods.Method.similarity`; None: the study's.

        Raises:
            Waits: the graph is not there yet; leave it to the plan, which comes again.
        """
        if self._graph is None:
            raise Waits
        by = str(column(similarity, self.config.embedding.labels)) if similarity else "similarity"
        near = self._graph.neighbours(str(target), k, by)
        return tuple(Neighbour(name, value, f"experts/{name}") for name, value in near)

    def farthest(self, target: Slice, k: int) -> tuple[Neighbour, ...]:
        """Return the ``k`` sources that are farthest from a target, farthest first.

        Raises:
            Waits: as :meth:`neighbours`.
        """
        return self.neighbours(target, self.others(target))[::-1][:k]

    def others(self, target: Slice) -> int:
        """Return how many sources are of other tasks than a target's."""
        return self.facts.others(target.task)

    def add(
        self,
        job: Job,
        stage: str,
        lane: Lane,
        needs: Sequence[str] = (),
        cost: float = 0,
        make: Callable[[Any, Any], None] | None = None,
        together: str | None = None,
    ) -> Node:
        """Return the node of any other job; see :class:`~pitune.plan.node.Node` for what its parts mean.

        Raises:
            ValueError: there is another node for the same artifact.
        """
        node = self.nodes.setdefault(job.artifacts[0], Node(job, stage, lane, tuple(needs), cost, make, together))
        if node.job is not job and node.job.fingerprint != job.fingerprint:
            raise ValueError(f"{job.artifacts[0]}: two nodes of the plan make it, from different inputs")
        return node

    def fingerprint(self, name: str) -> str:
        """Return the fingerprint of a node that is built."""
        return self.nodes[name].job.fingerprint

    def mixed(self, target: Slice, near: Sequence[Neighbour]) -> dict[str, Any]:
        """Return the inputs of what is made from a target's own expert and its neighbours'."""
        return {
            "neighbours": [[one.slice, one.similarity, self.fingerprint(one.expert)] for one in near],
            "own": self.fingerprint(self.expert(target).name),
        }

    def task(self, name: str) -> Task:
        """Return a task."""
        return self.facts.task(name)

    def recipe(self, target: Slice) -> Recipe:
        """Return how a slice is trained."""
        return self.facts.recipe(target)

    def dump(self, settings: Any) -> dict[str, Any]:
        """Return a section of the configuration as JSON values."""
        return self.facts.dump(settings)

    def ceiling(self, target: Slice) -> Slice:
        """Return the full slice of a target's task."""
        return self.facts.ceiling(target)

    # --- what the plan adds ------------------------------------------------------------------------------------

    def card(self, task: str) -> Node:
        """Return what the study tells of a task to those who lack its data: labels, sizes, a few test examples."""
        shown = {"examples": SHOWN, "side": SIDE, "line": LINE}
        inputs = {"makes": "card", "task": self.task(task).fingerprint, "shown": shown, **self._scored_on(task)}
        return self.add(CardJob((f"tasks/{task}",), inputs, task), "tasks", "driver", make=write_card)

    def slice(self, chosen: Slice) -> Node:
        """Return the table of the examples that a slice drew."""
        full = chosen.shots is None
        inputs = {
            "makes": "slice",
            "slice": str(chosen),
            "task": self.task(chosen.task).fingerprint,
            "validation_examples": self.config.training.validation_examples if full else None,
        }
        job = SliceJob((f"slices/{chosen}.parquet",), inputs, chosen)
        return self.add(job, "slices", "driver", make=write_slice)

    def score(self, method: str, target: Slice, expert: Node | None, make: Callable[[Any, Any], None] = score) -> Node:
        """Return the predictions of an expert (None: of the backbone alone) on the test split of a target's task.

        ``make`` scores several of one task in one call; it is a method's own where what it made is no expert.

        An expert is scored once, whoever asks: its predictions lie under the slice or the task whose expert it is, or
        under the target where that is another task's, by the name of the method that asked first; a pair's by its own.
        """
        task, scored = target.task, expert.name if expert else None
        if (task, scored) in self._scores:
            return self._scores[task, scored]
        inputs = {
            "makes": "prediction",
            **self.facts.base,
            "task": self.task(task).fingerprint,
            "expert": self.fingerprint(expert.name) if expert else "",
            **self._scored_on(task),
        }
        job = ScoringJob((f"predictions/{_place(method, target, expert)}.parquet",), inputs, task, scored)
        needs = (expert.name,) if expert else ()
        cost = len(self.facts.materials.test(task)) / 2  # forward only
        node = self.add(job, "predictions", "task", needs, cost, make, f"predictions of {task} by {make.__name__}")
        return self._scores.setdefault((task, scored), node)

    def _scored_on(self, task: str) -> dict[str, Any]:
        """Return the inputs that tell which of a task's test examples experts are scored on; none where on all."""
        some = len(self.facts.materials.test(task))
        return {"test_examples": some} if some < len(self.task(task).splits["test"]) else {}

    def results(self, rows: Sequence[tuple[Slice, str, Node]]) -> Node:
        """Return the table of the scores of all (target, method, predictions)."""
        listed = [[str(target), method, node.name, self.fingerprint(node.name)] for target, method, node in rows]
        inputs = {
            "makes": "results",
            "columns": list(COLUMNS),
            "rows": len(rows),
            "predictions": fingerprint_of({"rows": listed}),
        }
        job = ResultsJob((RESULTS,), inputs, tuple((target, method, node.name) for target, method, node in rows))
        # The experts too, whose manifests say what they took: one may be made again whose predictions are there.
        needs = tuple({name: None for _, _, node in rows for name in (node.name, *node.needs)})
        return self.add(job, "results", "driver", needs, 0, write_results)


class Sketch(Builder):
    """Builds what the graph will ask for with made-up neighbours, to tell what waits for it."""

    def neighbours(self, target: Slice, k: int, similarity: str | None = None) -> tuple[Neighbour, ...]:
        """Return the first ``k`` sources of other tasks."""
        others = (source for source in self.facts.sources if source.task != target.task)
        return tuple(Neighbour(str(one), 0.0, f"experts/{one}") for one in itertools.islice(others, k))

    def fingerprint(self, name: str) -> str:
        """Return nothing: what is made up is not made."""
        return ""

    def add(self, job: Job, *node: Any, **more: Any) -> Node:
        """Return the node that is built already, or a new one, of which this knows no fingerprint."""
        return self.nodes.get(job.artifacts[0]) or super().add(job, *node, **more)


def _place(method: str, target: Slice, expert: Node | None) -> str:
    """Return under what name an expert's predictions for a target lie."""
    if expert is None:
        return f"{target.task}/{method}"
    family, _, rest = expert.name.partition("/")
    owner, _, source = rest.partition("/")
    if family == PAIRS:
        return f"{target}/{PAIRS}/{source}"
    return f"{owner if owner.partition('@')[0] == target.task else target}/{method}"
