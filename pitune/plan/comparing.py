"""The nodes that compare slices: task embeddings, features, the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.embedding.embed import EmbeddingJob, embed
from pitune.embedding.features import FeaturesJob, make_features
from pitune.embedding.graph import GraphJob, make_graph
from pitune.embedding.spaces import LABELS, SPACES, Column, column, columns, embedding_path
from pitune.plan.node import Node
from pitune.tasks.task import Slice

if TYPE_CHECKING:
    from pitune.config import StudyConfig
    from pitune.plan.builder import Builder

GRAPH = "graph.parquet"


def embedding(plan: Builder, chosen: Slice) -> Node:
    """Return the task embedding of a slice, and the one of the other labels where the graph has it too.

    What an embedding is made from does not tell of the other one: a study that gets it later keeps the first.
    """
    settings = plan.config.embedding
    labels = sorted(LABELS if settings.all else (settings.labels,), key=lambda one: one != settings.labels)
    artifacts = tuple(embedding_path(one, str(chosen), settings.labels) for one in labels)
    if artifacts[0] in plan.nodes:
        return plan.nodes[artifacts[0]]
    expert = plan.expert(chosen)
    inputs = {
        "makes": "embedding",
        "expert": plan.fingerprint(expert.name),
        "embedding": {"labels": settings.labels, "examples": settings.examples},
    }
    job = EmbeddingJob(artifacts, inputs, chosen, expert.name, tuple(labels), settings.examples)
    cost = _sampled(plan, chosen) * (1 + len(labels)) / 2  # one pass forward, one back for each
    return plan.add(job, "embeddings", "task", (expert.name,), cost, embed)


def features(plan: Builder, chosen: Slice) -> Node:
    """Return what the frozen backbone makes of a slice."""
    artifact, examples = f"features/{chosen}.parquet", plan.config.embedding.examples
    if artifact in plan.nodes:
        return plan.nodes[artifact]
    inputs = {
        "makes": "features",
        "backbone": plan.facts.base["backbone"],
        "slice": str(chosen),
        "task": plan.task(chosen.task).fingerprint,
        "embedding": {"examples": examples},
    }
    job = FeaturesJob((artifact,), inputs, chosen, examples)
    return plan.add(job, "features", "task", (), _sampled(plan, chosen) / 2, make_features)


def graph(plan: Builder) -> Node:
    """Return the task graph of all slices that are compared, by all similarities or by those that rank them."""
    if GRAPH in plan.nodes:
        return plan.nodes[GRAPH]
    chosen = plan.facts.embedded
    settings, sources = plan.config.embedding, plan.config.sources
    by = column(settings.similarity, settings.labels)
    shown = columns() if settings.all else list(dict.fromkeys([by, *asked(plan.config)]))
    made = [getattr(plan, kind) for kind in dict.fromkeys(SPACES[one.space].made for one in shown)]
    nodes: list[dict[str, Node]] = [{str(one): make(one) for one in chosen} for make in made]
    inputs = {
        "makes": "graph",
        "similarity": settings.similarity,
        "columns": [str(one) for one in shown],
        "sources": list(sources),
        **{
            next(iter(held.values())).stage: {name: plan.fingerprint(node.name) for name, node in held.items()}
            for held in nodes
        },
    }
    job = GraphJob((GRAPH,), inputs, tuple(map(str, chosen)), sources, settings.labels, by, tuple(shown))
    needs = [node.name for held in nodes for node in held.values()]
    return plan.add(job, "graph", "task", needs, 0, make_graph)


def asked(config: StudyConfig) -> list[Column]:
    """Return the columns that methods of a study rank the sources by, where that is not the study's similarity."""
    from pitune.methods import named  # late: a method's file may know the plan, and come first

    rows = named(config.methods).values()
    return [column(method.similarity, config.embedding.labels) for method in rows if method.similarity]


def _sampled(plan: Builder, chosen: Slice) -> int:
    """Return how many examples stand for a slice, at most."""
    most = plan.config.embedding.examples
    return min(len(plan.task(chosen.task).pools) * (chosen.shots or most), most)
