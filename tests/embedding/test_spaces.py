"""All similarities of a graph, from stages to columns, against plain references; what is there is kept; damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from plainsimilarity import plain_cosine, plain_similarity
from safetensors.torch import load_file
from test_extending import shown
from tinymodel import open_encoder, plain_embedding, random_expert, token_ids
from tinystudy import make_study

from pitune.config import load_config
from pitune.embedding.embed import embedded
from pitune.embedding.fisher import fisher, fishers
from pitune.embedding.similarity import SIMILARITIES
from pitune.embedding.spaces import SPACES, column, columns, similarity_names
from pitune.errors import PituneError
from pitune.experts.checkpoint import to_files
from pitune.plan import Plan
from pitune.store import table_bytes

OF_FISHER = ("cosine_per_tensor", "cosine", "task2vec", "csls")
NAMES = [
    *(f"{labels}_{how}" for labels in ("empirical", "true") for how in OF_FISHER),
    *(f"{space}_{how}" for space in ("weights", "features", "labels") for how in ("cosine", "csls")),
]


def planned(folder: Path, *overrides: str) -> Plan:
    """Plan a study whose experts are there, made up."""
    plan = Plan.of(load_config(folder / "study.yaml", list(overrides)))
    materials = plan.materials
    for number, (name, node) in enumerate(plan.nodes.items()):
        if name.startswith("experts/") and not plan.store.manifest(name):
            files = to_files(materials.kind, random_expert(materials.kind, materials.backbone, number), "tiny")
            plan.store.commit(name, files, node.job.fingerprint, inputs=node.job.inputs)
    return plan


def make(plan: Plan, *families: str) -> None:
    """Make the nodes of some families in this process."""
    for name, node in plan.nodes.items():
        if name.partition("/")[0] in families and node.make:
            node.make(plan.materials, node.job)


def numbers(embedding: pa.Table) -> list[float]:
    """Return all numbers of an embedding, by the names of the parameters: files have these in any order."""
    return [
        number for row in sorted(embedding.to_pylist(), key=lambda row: row["parameter"]) for number in row["fisher"]
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A study of which the graph is made, from experts that are made up."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("spaces")
    make_study(folder)
    plan = planned(folder)
    make(plan, "embeddings", "features", "graph.parquet")
    return plan


# --- the columns ---------------------------------------------------------------------------------------------------


def test_every_similarity_stands_beside_the_one_that_ranks(made: Plan) -> None:
    table = made.store.table("graph.parquet")
    assert table.column_names == ["source", "target", "similarity", "rank", *NAMES]
    assert {str(kind) for kind in table.schema.types[4:]} == {"double"}
    assert table["similarity"].equals(table["empirical_cosine_per_tensor"])
    assert len({tuple(table[name].to_pylist()) for name in NAMES}) == len(NAMES)  # none is another one by mistake


def test_what_any_two_share_is_taken_off_the_usual_similarity_of_each_space(made: Plan) -> None:
    rows = made.store.table("graph.parquet").to_pylist()
    for space, usual in {"true": "cosine_per_tensor", "weights": "cosine", "labels": "cosine"}.items():
        near: dict[str, list[float]] = {}
        for row in rows:
            if row["rank"]:
                near.setdefault(row["target"], []).append(row[f"{space}_{usual}"])
        mean = {slice_: float(np.mean(held)) for slice_, held in near.items()}  # all: there are less than ten
        for row in rows:
            expected = row[f"{space}_{usual}"] - (mean[row["target"]] + mean[row["source"]]) / 2
            assert row[f"{space}_csls"] == pytest.approx(expected, abs=1e-9)


def test_embeddings_are_compared_by_each_labels_fisher(made: Plan) -> None:
    """The Fisher information computed alone, the formulas by pairs."""
    materials, found = made.materials, {}
    for which in ("empirical", "true"):
        for name in (*made.config.sources, *made.config.targets):
            chosen = made.nodes[f"embeddings/{name}.parquet"].job.slice  # type: ignore[attr-defined]
            rows = materials.rows_of(chosen.task, embedded(materials, chosen, 16))
            expert = materials.expert(f"experts/{name}")
            alone = fisher(
                *(materials.backbone, materials.kind, materials.objective, expert, rows),
                labels=which,  # type: ignore[arg-type]
                name=name,
            )
            found[which, name] = [
                alone[site][key].flatten().numpy() for site in sorted(alone) for key in sorted(alone[site])
            ]
    for row in made.store.table("graph.parquet").to_pylist():
        for which in ("empirical", "true"):
            one, other = found[which, row["target"]], found[which, row["source"]]
            for how in ("cosine_per_tensor", "cosine", "task2vec"):
                assert row[f"{which}_{how}"] == pytest.approx(plain_similarity(one, other, how), abs=1e-5)


def test_weights_are_compared_by_what_training_has_added(made: Plan) -> None:
    start = made.materials.start
    added = {}
    for name in (*made.config.sources, *made.config.targets):
        tensors = load_file(Path(made.store.root, "experts", name, "adapter_model.safetensors"))
        first = {f"base_model.model.{site}.{key}": t for site, held in start.items() for key, t in held.items()}
        added[name] = torch.cat([(tensors[key] - first[key]).flatten() for key in sorted(tensors)]).numpy()
    for row in made.store.table("graph.parquet").to_pylist():
        expected = plain_cosine(*(added[row[end]].astype(np.float64) for end in ("source", "target")))
        assert row["weights_cosine"] == pytest.approx(expected, abs=1e-9)


def test_features_and_labels_are_compared_by_the_mean_of_what_the_backbone_alone_makes(made: Plan) -> None:
    """One text at a time, unpadded, through the plain model."""
    encoder = open_encoder(Path(made.config.backbone.uri), max_tokens=16)
    means: dict[tuple[str, str], np.ndarray] = {}
    for name in (*made.config.sources, *made.config.targets):
        chosen = made.nodes[f"features/{name}.parquet"].job.slice  # type: ignore[attr-defined]
        texts = {
            "features": [example.text for example in embedded(made.materials, chosen, 16)],
            "labels": made.materials.task(chosen.task).label_texts,
        }
        for of, some in texts.items():
            with torch.no_grad():
                vectors = [plain_embedding(encoder.model, ids) for ids in token_ids(encoder, some)]
            means[of, name] = torch.stack(vectors).double().mean(0).numpy()
    for row in made.store.table("graph.parquet").to_pylist():
        for of in ("features", "labels"):
            expected = plain_cosine(means[of, row["source"]], means[of, row["target"]])
            assert row[f"{of}_cosine"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("similarity", ["task2vec", "weights", "features", "labels"])
@pytest.mark.parametrize("everything", [True, False])
def test_the_configured_one_ranks(made: Plan, similarity: str, everything: bool) -> None:
    settings = f"embedding.similarity={similarity}", f"embedding.all={str(everything).lower()}"
    before = made.store.table("graph.parquet")
    plan = planned(Path(made.store.root).parent, *settings)
    node = plan.nodes["graph.parquet"]
    assert node.make
    node.make(plan.materials, node.job)
    name = str(column(similarity, "empirical"))
    table = made.store.table("graph.parquet")
    assert table.column_names[4:] == (NAMES if everything else [name])
    assert table["similarity"].to_pylist() == before[name].to_pylist()
    for target in {row["target"] for row in table.to_pylist()}:
        ranked = [row for row in table.to_pylist() if row["target"] == target and row["rank"]]
        by_similarity = sorted(ranked, key=lambda row: (-row["similarity"], row["source"]))
        assert [row["rank"] for row in by_similarity] == list(range(1, len(ranked) + 1))
    make(planned(Path(made.store.root).parent), "graph.parquet")


def test_true_labels_rank_where_they_are_configured(tmp_path: Path, made: Plan) -> None:
    make_study(tmp_path)
    plan = planned(tmp_path, "embedding.labels=true")  # the same made-up experts
    make(plan, "embeddings", "features", "graph.parquet")
    table, other = (one.store.table("graph.parquet") for one in (plan, made))
    assert table["similarity"].equals(table["true_cosine_per_tensor"])
    assert plan.store.manifest("embeddings/alpha@2#0/empirical.parquet")
    for name in NAMES:
        np.testing.assert_allclose(table[name], other[name], atol=1e-6)


# --- two embeddings in one node ------------------------------------------------------------------------------------


def test_both_labels_together_are_what_each_is_alone(made: Plan) -> None:
    materials = made.materials
    held = materials.backbone, materials.kind, materials.objective, materials.expert("experts/beta@2#1")
    rows = materials.rows_of("beta", materials.task("beta").splits["train"][:10])
    for labels in (("empirical", "true"), ("true", "empirical")):
        for which, found in zip(labels, fishers(*held, rows, labels, name="n", batch=4), strict=True):  # type: ignore[arg-type]
            alone = fisher(*held, rows, labels=which, name="n", batch=4)  # type: ignore[arg-type]
            for site, tensors in alone.items():
                for key, tensor in tensors.items():
                    torch.testing.assert_close(found[site][key], tensor, rtol=1e-5, atol=1e-12)


def test_an_embedding_that_is_there_is_kept(made: Plan) -> None:
    store, node = made.store, made.nodes["embeddings/alpha@2#0.parquet"]
    assert node.job.artifacts == ("embeddings/alpha@2#0.parquet", "embeddings/alpha@2#0/true.parquet")
    kept, other = (numbers(store.table(artifact)) for artifact in node.job.artifacts)
    changed = table_bytes([{"parameter": "s|w", "shape": [1], "fisher": np.ones(1, np.float32)}])
    store.commit(node.job.artifacts[0], {"": changed}, node.job.fingerprint, inputs=node.job.inputs)
    store.discard(node.job.artifacts[1])
    assert node.make
    node.make(made.materials, node.job)
    assert store.read(node.job.artifacts[0]) == changed
    assert numbers(store.table(node.job.artifacts[1])) == pytest.approx(other, rel=1e-5)
    store.discard(node.job.artifacts[0])
    node.make(made.materials, node.job)
    assert numbers(store.table(node.job.artifacts[0])) == pytest.approx(kept, rel=1e-5)
    for artifact, labels in zip(node.job.artifacts, ("empirical", "true"), strict=True):
        manifest = store.manifest(artifact)
        assert manifest and manifest["labels"] == labels and manifest["examples"] == 4


# --- other spaces, damage ------------------------------------------------------------------------------------------


def test_the_space_of_the_documents(made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPACES, "norms", shown("A space", "NORMS", tmp_path))
    assert similarity_names()[-1] == "norms" and [str(one) for one in columns()][-2] == "norms_cosine"
    plan = planned(Path(made.store.root).parent, "embedding.similarity=norms", "embedding.all=false")
    make(plan, "graph.parquet")
    table, start = made.store.table("graph.parquet"), made.materials.start
    assert table.column_names[4:] == ["norms_cosine"]
    norms = {}
    for name in (*made.config.sources, *made.config.targets):
        expert = made.materials.expert(f"experts/{name}")
        norms[name] = np.array([float((expert[s][k] - start[s][k]).norm()) for s in sorted(start) for k in start[s]])
    for row in table.to_pylist():
        assert row["similarity"] == pytest.approx(plain_cosine(norms[row["source"]], norms[row["target"]]), abs=1e-6)
    make(made, "graph.parquet")


def test_the_similarity_of_the_documents(made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIMILARITIES, "overlap", shown("A similarity", "overlap", tmp_path))
    assert [str(one) for one in columns() if one.how == "overlap"] == ["empirical_overlap", "true_overlap"]
    assert column("overlap", "true") == ("true", "overlap") and "overlap" in similarity_names()
    make(planned(Path(made.store.root).parent, "embedding.similarity=overlap"), "graph.parquet")
    for row in made.store.table("graph.parquet").to_pylist():
        shares = []
        for end in ("source", "target"):
            found = np.array(numbers(made.store.table(f"embeddings/{row[end]}/true.parquet")))
            shares.append(found / found.sum())
        assert row["true_overlap"] == pytest.approx(float(np.minimum(*shares).sum()), abs=1e-5)
    make(made, "graph.parquet")


@pytest.mark.parametrize(
    ("artifact", "data", "said"),
    [
        ("features/alpha@2#0.parquet", [{"of": "examples", "mean": np.ones(32, np.float32)}], "has no row of labels"),
        ("features/alpha@2#0.parquet", [{"of": "labels", "values": [1.0]}], "has the columns of (string), values (lis"),
        (
            "embeddings/alpha@2#0/true.parquet",
            [{"parameter": "s|w", "fisher": np.ones(1, np.float32)}],
            "has 0 numbers for enc",
        ),
    ],
)
def test_what_is_damaged_is_told_in_one_line(made: Plan, artifact: str, data: list[dict[str, Any]], said: str) -> None:
    store = made.store
    kept, manifest = store.read(artifact), store.manifest(artifact)
    assert manifest
    store.commit(artifact, {"": table_bytes(data)}, "damaged")
    try:
        with pytest.raises(PituneError) as told:
            make(made, "graph.parquet")
        line = str(told.value)
        assert f"{artifact}: has " in line and said in line and "\n" not in line
    finally:
        store.commit(artifact, {"": kept}, manifest["fingerprint"], inputs=manifest["inputs"], labels=None, examples=0)


def test_an_expert_of_other_shapes_is_told_in_one_line(made: Plan) -> None:
    store, kind, name = made.store, made.materials.kind, "experts/alpha@2#0"
    kept = {file: store.read(name, file) for file in ("adapter_config.json", "adapter_model.safetensors")}
    wide = kind.model_copy(update={"rank": 3})
    store.commit(name, to_files(wide, random_expert(wide, made.materials.backbone, 1), "tiny"), "damaged")
    try:
        with pytest.raises(PituneError, match=f"{name}: .* is not as the study's experts start"):
            make(planned(Path(store.root).parent, "embedding.similarity=weights"), "graph.parquet")
    finally:
        job = made.nodes[name].job
        store.commit(name, kept, job.fingerprint, inputs=job.inputs)
