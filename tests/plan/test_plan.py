"""The plan: its nodes, what they are made from, what is there, what comes next."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakelanes import make, make_everything
from tinystudy import LABELS, make_study, tasks_with_zeta

from pitune.config import load_config
from pitune.errors import PituneError
from pitune.plan import Plan
from pitune.store import fingerprint_of
from pitune.tasks.task import Slice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study's configuration; nothing is made."""
    folder = tmp_path_factory.mktemp("plan")
    make_study(folder)
    return folder


def planned(folder: Path, study: Path, *overrides: str) -> Plan:
    return Plan.of(load_config(folder / "study.yaml", [f"study={study}", *overrides]))


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> Plan:
    """A study of which everything is made, if only made up."""
    plan = planned(folder, tmp_path / "study")
    make_everything(plan)
    return plan


def changed(plan: Plan) -> dict[str, str]:
    return {item.artifact: item.why for item in plan.items() if item.state != "done"}


# --- a new study ---------------------------------------------------------------------------------------------------


def test_a_new_study_knows_what_waits_for_the_graph(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path / "study")
    waits = {item.artifact for item in plan.items() if item.state == "waits"}
    assert waits == {
        # pairs with the first source, as long as the nearest is not known
        *("transfer/alpha@2#0/beta@full#0", "predictions/alpha@2#0/transfer/beta@full#0.parquet"),
        *("transfer/beta@2#1/alpha@full#0", "predictions/beta@2#1/transfer/alpha@full#0.parquet"),
        *(f"{place}/{t}{end}" for t in plan.config.targets for place, end in (
            ("interpolations", ""), ("sweeps", ".parquet"), ("baselines", "/uniform"),
            ("predictions", "/uniform.parquet"), ("predictions", "/pi.parquet"),
        )),
        "results.parquet",
    }  # fmt: skip
    assert {item.why for item in plan.items() if item.state == "new"} == {"not there"}
    assert plan.stages() == {
        **{"tasks": (3, 0), "slices": (5, 0), "experts": (5, 0), "embeddings": (5, 0), "features": (5, 0)},
        "graph": (1, 0),
        **{"uniform": (2, 0), "transfer": (2, 0), "interpolations": (2, 0), "predictions": (12, 0), "results": (1, 0)},
    }
    assert plan.lanes() == {"driver", "gang", "task", "search"}
    assert not (tmp_path / "study").exists()


def test_what_needs_nothing_can_be_made_first(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path / "study")
    ready = Counter(node.name.partition("/")[0] for node in plan.ready())
    assert ready == {
        "tasks": 3,
        "slices": 5,
        "experts": 5,
        "features": 5,
        "predictions": 2,
    }  # the backbone alone can be scored at once
    assert plan.ready() == []


def test_nodes_follow_what_they_need_and_grow_with_the_graph(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path / "study")
    made: set[str] = set()
    while ready := plan.ready():
        for node in ready:
            assert set(node.needs) <= made, node
            make(plan, node)
            plan.done(node)
            made.add(node.name)
    assert made == set(plan.nodes) and not plan.sketched
    assert all(total == there for total, there in plan.stages().values())
    assert {item.state for item in plan.items()} == {"done"}
    assert {item.artifact for item in plan.items()} == set(plan.store.artifacts())


def test_costs_are_rows_and_the_first_artifact_carries_them(folder: Path, tmp_path: Path) -> None:
    rows = {item.artifact: item.rows for item in planned(folder, tmp_path / "study").items()}
    assert rows["experts/alpha@full#0"] == 6 * 8 and rows["transfer/alpha@2#0/beta@full#0"] == 4 * 4
    assert rows["interpolations/beta@2#1"] == 4 * (4 * 4) and rows["sweeps/beta@2#1.parquet"] == 0
    assert rows["embeddings/beta@2#1.parquet"] == 1.5 * 6 and rows["embeddings/beta@full#0.parquet"] == 1.5 * 16
    assert rows["embeddings/beta@2#1/true.parquet"] == 0 and rows["features/beta@2#1.parquet"] == 0.5 * 6


def test_what_fails_stops_only_what_depends_on_it(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path / "study")
    while ready := plan.ready():
        for node in ready:
            if node.name == "experts/alpha@2#0":
                plan.failed(node, "no luck")
            else:
                make(plan, node)
                plan.done(node)
    assert plan.errors == {"experts/alpha@2#0": "no luck"}
    left = {item.artifact for item in plan.items() if item.state == "new"}
    assert left == {
        *("experts/alpha@2#0", "embeddings/alpha@2#0.parquet", "embeddings/alpha@2#0/true.parquet", "graph.parquet"),
        "predictions/alpha@2#0/single.parquet",
    }


# --- what is there -------------------------------------------------------------------------------------------------


def test_planned_again_everything_is_there(made: Plan, folder: Path) -> None:
    again = planned(folder, Path(made.store.root))
    assert not changed(again) and not again.lanes() and not again.ready()
    assert {name: node.job.fingerprint for name, node in made.nodes.items()} == {
        name: node.job.fingerprint for name, node in again.nodes.items()
    }


def test_what_was_made_from_what_is_in_the_manifests(made: Plan) -> None:
    for artifact, manifest in made.store.artifacts().items():
        assert fingerprint_of(manifest["inputs"]) == manifest["fingerprint"], artifact


@pytest.mark.parametrize(
    ("setting", "why", "dependents"),
    [
        ("interpolation.granularity=global", "interpolation", ["interpolations", "sweeps", "predictions/*/pi"]),
        ("sweep.temperature=[0.1]", "sweep", ["interpolations", "sweeps", "predictions/*/pi"]),
        ("embedding.examples=8", "embedding", ["embeddings", "features", "graph"]),
        ("embedding.similarity=cosine", "similarity", ["graph"]),
    ],
)
def test_a_changed_setting_changes_only_what_depends_on_it(
    made: Plan, folder: Path, setting: str, why: str, dependents: list[str]
) -> None:
    plan = planned(folder, Path(made.store.root), setting)
    found = {item.artifact: (item.state, item.why) for item in plan.items() if item.state in ("new", "changed")}
    assert {reason for _, reason in found.values()} <= {
        f"{why} changed", "expert changed", "embeddings, features changed", "predictions changed"
    }  # fmt: skip
    families = {artifact.split("/")[0].removesuffix(".parquet") for artifact in found}
    assert families - {"results", "predictions"} == {name for name in dependents if "/" not in name}
    scored = {artifact.split("/")[-1] for artifact in found if artifact.startswith("predictions/")}
    assert scored == {f"{name.split('/')[-1]}.parquet" for name in dependents if "/" in name}


@pytest.mark.parametrize(
    ("settings", "there", "needed"),
    [
        ((), {"embeddings": 10, "features": 5}, {"embeddings", "features", "experts"}),
        (("embedding.similarity=labels",), {"embeddings": 10, "features": 5}, {"embeddings", "features", "experts"}),
        (("embedding.all=false",), {"embeddings": 5}, {"embeddings"}),
        (("embedding.all=false", "embedding.labels=true"), {"embeddings": 5}, {"embeddings"}),
        (("embedding.all=false", "embedding.similarity=weights"), {}, {"experts"}),
        (("embedding.all=false", "embedding.similarity=features"), {"features": 5}, {"features"}),
    ],
)
def test_the_graph_needs_what_its_similarities_are_made_from(
    folder: Path, tmp_path: Path, settings: tuple[str, ...], there: dict[str, int], needed: set[str]
) -> None:
    plan = planned(folder, tmp_path / "study", *settings)
    families = Counter(item.artifact.partition("/")[0] for item in plan.items())
    assert {family: families[family] for family in ("embeddings", "features") if family in families} == there
    assert {need.partition("/")[0] for need in plan.nodes["graph.parquet"].needs} == needed


def test_a_study_of_one_similarity_gets_the_others_and_keeps_its_neighbours(folder: Path, tmp_path: Path) -> None:
    """As studies were that were made before there were others: what is there of them is made no second time."""
    alone = planned(folder, tmp_path / "study", "embedding.all=false")
    make_everything(alone)
    for slice_ in ("alpha@2#0", "gamma@full#0"):
        job = alone.nodes[f"embeddings/{slice_}.parquet"].job
        assert dict(job.inputs) == {
            "makes": "embedding",
            "expert": alone.nodes[f"experts/{slice_}"].job.fingerprint,
            "embedding": {"labels": "empirical", "examples": 16},
        }
    before = alone.store.artifacts()
    plan = planned(folder, tmp_path / "study")
    slices = (*plan.config.sources, *plan.config.targets)
    assert {item.artifact: item.state for item in plan.items() if item.state in ("new", "changed")} == {
        **{f"embeddings/{slice_}/true.parquet": "new" for slice_ in slices},
        **{f"features/{slice_}.parquet": "new" for slice_ in slices},
        "graph.parquet": "changed",
    }
    make_everything(plan)
    after = plan.store.artifacts()
    assert {name for name in before if before[name]["fingerprint"] != after[name]["fingerprint"]} == {"graph.parquet"}


def test_the_few_shot_recipe_changes_nothing_of_the_full_experts(made: Plan, folder: Path) -> None:
    found = changed(planned(folder, Path(made.store.root), "training.few.steps=5"))
    assert {a: w for a, w in found.items() if a.startswith("experts/")} == {
        "experts/alpha@2#0": "recipe changed", "experts/beta@2#1": "recipe changed"
    }  # fmt: skip
    assert not any("full" in artifact.split("/")[1] for artifact in found if "/" in artifact)


def test_fewer_test_examples_change_scores_and_only_where_there_are_more(made: Plan, folder: Path) -> None:
    sizes = {target.task: len(made.facts.task(target.task).splits["test"]) for target in made.facts.targets}
    assert changed(planned(folder, Path(made.store.root), f"test_examples={max(sizes.values())}")) == {}
    found = changed(planned(folder, Path(made.store.root), f"test_examples={max(sizes.values()) - 1}"))
    larger = {task for task, size in sizes.items() if size == max(sizes.values())}
    scored = {name.split("/")[1].partition("@")[0] for name in found if name.startswith("predictions/")}
    assert scored == larger <= {name.partition("/")[2] for name in found if name.startswith("tasks/")}  # sources too
    assert {name.partition("/")[0] for name in found} == {"predictions", "results.parquet", "tasks"}


@pytest.mark.parametrize("setting", ["objective.scale=10", "expert.rank=3", "training.precision=bf16"])
def test_what_all_experts_share_changes_all_of_them(made: Plan, folder: Path, setting: str) -> None:
    found = changed(planned(folder, Path(made.store.root), setting))
    key = {"objective.scale=10": "objective", "expert.rank=3": "kind", "training.precision=bf16": "backbone"}[setting]
    assert {w for a, w in found.items() if a.startswith("experts/")} == {f"{key} changed"}
    assert not any(artifact.startswith("slices/") for artifact in found)


@pytest.mark.parametrize("setting", ["training.pack_size=2", "training.zero_stage=0", "runtime.cpus_per_worker=2"])
def test_how_it_is_computed_changes_nothing(made: Plan, folder: Path, setting: str) -> None:
    assert not changed(planned(folder, Path(made.store.root), setting))


def test_a_new_source_makes_only_what_it_is_near_to(made: Plan, folder: Path, tmp_path: Path) -> None:
    """A far source enters the graph; what is made from the neighbours' values stays."""
    settings = tasks_with_zeta(folder / "study.yaml", tmp_path / "data")
    path = make_study(tmp_path / "more", tasks=settings, sources=["alpha", "beta", "gamma", "zeta"])
    plan = planned(path.parent, Path(made.store.root))
    names = set(make_everything(plan))
    assert names - {name for name in names if "zeta" in name} == {"graph.parquet"}


def test_damaged_files_are_made_again(made: Plan, folder: Path) -> None:
    (Path(made.store.root) / "experts/alpha@2#0/made_up.json").unlink()
    assert changed(planned(folder, Path(made.store.root))) == {"experts/alpha@2#0": "files are missing"}


def test_of_a_pair_of_artifacts_one_may_be_missing(made: Plan, folder: Path) -> None:
    made.store.discard("sweeps/beta@2#1.parquet")
    plan = planned(folder, Path(made.store.root))
    assert changed(plan) == {"sweeps/beta@2#1.parquet": "not there"}
    assert [node.name for node in plan.ready()] == ["interpolations/beta@2#1"]


# --- errors and scale ----------------------------------------------------------------------------------------------


def test_a_slice_that_cannot_be_drawn_is_told_without_drawing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PituneError, match=r"slice beta@40#1: class 'bad' of task beta has \d+ training examples"
    ) as told:
        planned(folder, tmp_path / "study", "targets=[beta@2#0,beta@40#1]")
    assert "\n" not in str(told.value) and not (tmp_path / "study").exists()


def test_the_ceiling_is_the_source_of_the_same_seed(folder: Path, tmp_path: Path) -> None:
    sources = "sources=[alpha@full#3,alpha@full#1,beta,gamma]"
    plan = planned(folder, tmp_path / "study", sources, "targets=[alpha@2#0,alpha@2#1]")
    found = [str(plan.facts.ceiling(target)) for target in plan.facts.targets]
    assert found == ["alpha@full#3", "alpha@full#1"]
    without = planned(folder, tmp_path / "study", "sources=[beta,gamma]", "targets=[alpha@2#5]")
    assert str(without.facts.ceiling(Slice.parse("alpha@2#5"))) == "alpha@full#0"
    assert "experts/alpha@full#0" in without.nodes


def test_each_fingerprint_is_computed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[str] = Counter()

    def counting(inputs: Any) -> str:
        counted[str(inputs)] += 1
        return fingerprint_of(inputs)

    monkeypatch.setitem(vars(__import__("sys").modules[fingerprint_of.__module__]), "fingerprint_of", counting)
    plan = planned(folder, tmp_path / "study")
    make_everything(plan)
    list(plan.items())
    named = [inputs for inputs in counted if "'makes': 'expert'" in inputs]
    assert len(named) == 7  # five from the common start and two from the nearest source
    assert max(counted.values()) == 1


def test_a_thousand_slices_are_planned_in_seconds(tmp_path: Path) -> None:
    targets = {"tasks": list(LABELS), "shots": [2], "seeds": list(range(300))}
    config = load_config(make_study(tmp_path, targets=targets))
    began = time.process_time()
    plan = Plan.of(config)
    assert time.process_time() - began < 5  # less than one on a quiet core
    assert len({node.name for node in plan.missing()}) == plan_size(903, 900, 3)


def plan_size(slices: int, targets: int, tasks: int) -> int:
    """Four of each slice, graph and results; three experts and four scores a target; a card and two scores a task."""
    return 4 * slices + 2 + (3 + 4) * targets + 3 * tasks
