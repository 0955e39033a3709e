"""Full slices as targets, beside few-shot ones: their recipe, their ceiling, their costs, their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakelanes import make_everything
from tinystudy import make_study

from pitune.config import load_config
from pitune.interpolation.jobs import MergeJob, TuningJob
from pitune.methods.transfer import wrong_pairs
from pitune.plan import Plan
from pitune.report import markdown
from pitune.report.contents import wanted
from pitune.results import wrong_scores
from pitune.runtime.trials import commit_best, points, run_trial
from pitune.tasks.task import Slice
from pitune.training.loop import Alone
from pitune.training.pack import ExpertJob, make_packs
from pitune.training.work import ExpertTraining

FULL = Slice("alpha", None, 0)
PRODUCT = {"tasks": ["alpha", "beta"], "shots": [2, "full"], "seeds": [0, 1]}
NAMED = ["zero_shot", "single", "uniform", "lorahub", "nearest", "pi", "pi_random", "full"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    make_study(folder, targets=PRODUCT, methods=NAMED, transfer={"targets": ["alpha@full#0", "alpha@2#0"]})
    return folder


def planned(folder: Path, study: Path, *overrides: str) -> Plan:
    return Plan.of(load_config(folder / "study.yaml", [f"study={study}", *overrides]))


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    plan = planned(folder, folder / "study")
    make_everything(plan)
    return plan


def job_of(plan: Plan, name: str) -> Any:
    return plan.nodes[name].job


def test_a_full_target_is_tuned_by_the_full_recipe(plan: Plan) -> None:
    full, few = plan.config.training.full, plan.config.training.few
    pi, few_pi = (job_of(plan, f"interpolations/{name}") for name in ("alpha@full#0", "alpha@2#0"))
    assert isinstance(pi, TuningJob) and (pi.recipe, few_pi.recipe) == (full, few)
    for name in ("experts/alpha@full#1", "transfer/alpha@full#0/beta@full#0", "transfer/alpha@full#1/beta@full#0"):
        assert isinstance(job_of(plan, name), ExpertJob) and job_of(plan, name).recipe == full
    assert job_of(plan, "controls/alpha@full#0/random").recipe == full


def test_its_full_expert_is_in_the_mixture_with_experts_of_other_tasks(plan: Plan) -> None:
    for name in ("interpolations/alpha@full#0", "baselines/alpha@full#0/uniform"):
        job = job_of(plan, name)
        assert isinstance(job, TuningJob | MergeJob) and job.own == "experts/alpha@full#0"
        assert [one.slice for one in job.neighbours] == ["beta@full#0", "gamma@full#0"][: len(job.neighbours)]


def test_full_is_single_where_the_target_is_full(plan: Plan, folder: Path, tmp_path: Path) -> None:
    rows = {(row["slice"], row["method"]): row for row in plan.store.table("results.parquet").to_pylist()}
    for name in ("alpha@full#0", "alpha@full#1", "beta@full#0"):
        assert rows[name, "full"]["prediction"] == rows[name, "single"]["prediction"]
    tried = planned(folder, tmp_path / "study", "sweep.trials=3")
    make_everything(tried)
    scores = {(r["slice"], r["method"]): r["prediction"] for r in tried.store.table("results.parquet").to_pylist()}
    assert scores["alpha@full#1", "full"] == scores["alpha@full#1", "single"]
    assert tried.nodes[scores["alpha@full#1", "full"]].needs == ("baselines/alpha@full#1/single",)
    assert tried.nodes[scores["alpha@2#1", "full"]].needs == ("experts/alpha@full#1",)


def test_the_ceiling_of_a_full_target_is_itself_and_no_other_is_made(tmp_path: Path) -> None:
    make_study(tmp_path, sources=["beta", "gamma"], targets=["alpha@full#3", "alpha@2#3", "alpha@2#0"])
    plan = planned(tmp_path, tmp_path / "study")
    ceilings = {str(target): str(plan.facts.ceiling(target)) for target in plan.facts.targets}
    assert ceilings == dict.fromkeys(("alpha@full#3", "alpha@2#3", "alpha@2#0"), "alpha@full#3")
    assert "experts/alpha@full#3" in plan.nodes and "experts/alpha@full#0" not in plan.nodes


def test_tables_say_full(plan: Plan) -> None:
    results, pairs = (plan.store.table(name).to_pylist() for name in ("results.parquet", "transfer.parquet"))
    assert {(row["slice"], row["shots"]) for row in results} == {
        (f"{task}@{shots}#{seed}", shots) for task in ("alpha", "beta") for shots in ("2", "full") for seed in (0, 1)
    }
    assert {row["shots"] for row in pairs} == {"full", "2"}
    text = markdown(plan.store)
    assert "| alpha | full | " in text and "| *mean of 2* | full | " in text and "None" not in text


def test_what_is_not_trained_costs_what_it_validates_on(plan: Plan) -> None:
    """The validation split, twenty examples at most; LoraHub also looks at three batches of eight, six times."""
    for chosen in (FULL, Slice("alpha", 2, 0)):
        drawn = plan.materials.data(chosen)
        assert (plan.facts.size(chosen), plan.facts.validated(chosen)) == (len(drawn.train), len(drawn.validation))
    validated = plan.facts.validated(FULL)
    assert plan.nodes["baselines/alpha@full#0/uniform"].cost == validated / 2
    assert plan.nodes["baselines/alpha@full#0/lorahub"].cost == validated / 2 + 6 * 24 / 2


def test_everything_of_a_full_target_is_of_the_study(plan: Plan) -> None:
    plan.store.write("study.yaml", plan.config.yaml().encode())
    is_wanted = wanted(plan.store.text("study.yaml"))
    assert all(is_wanted(artifact) for artifact in plan.store.artifacts())
    assert not is_wanted("baselines/gamma/zero_shot_uniform") and is_wanted("baselines/alpha/zero_shot_uniform")


def test_planned_again_nothing_is_left_and_few_shot_targets_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    make_everything(planned(folder, tmp_path / "study", "targets.shots=[2]", "transfer=null"))
    more = planned(folder, tmp_path / "study", "transfer=null")
    made = make_everything(more)
    again = [name for name in made if "@2#" in name]
    assert not [name for name in again if not name.endswith("/full.parquet")]
    assert not planned(folder, tmp_path / "study", "transfer=null").lanes()


# --- in earnest ----------------------------------------------------------------------------------------------------


def make_in_earnest(plan: Plan) -> None:
    """Make all that is missing as a run would, in this process and without Ray."""
    work = ExpertTraining(plan.materials, plan.config.training)
    work.open(Alone())
    while ready := plan.ready():
        for pack in make_packs([node.job for node in ready if isinstance(node.job, ExpertJob)], plan.config.training):
            assert not work.train(pack, Alone())
        for node in ready:
            job: Any = node.job
            if node.lane == "search":
                for point in points(job):
                    run_trial(plan.materials, point, lambda *_, **__: None)
                commit_best(plan.store, job)
            elif node.make is not None:
                node.make(plan.materials, [job] if node.together else job)
            plan.done(node)


def test_full_and_few_shot_targets_in_earnest(tmp_path: Path) -> None:
    make_study(
        tmp_path,
        targets=["alpha@full#0", "alpha@2#0"],
        transfer={"sources": ["beta"]},
        methods=["zero_shot_uniform", "single", "ties", "lorahub", "pi", "pi_random", "full"],
        sweep={"top_k": [2], "temperature": [0.5], "own": ["trained", "fresh"], "validate_every": 2, "trials": 1},
        embedding={"all": False, "examples": 8},
    )
    plan = planned(tmp_path, tmp_path / "study")
    make_in_earnest(plan)
    store = plan.store
    store.write("study.yaml", plan.config.yaml().encode())
    assert not list(plan.missing()) and not list(store.problems())
    assert not wrong_scores(store) and not wrong_pairs(store)
    for name in ("interpolations/alpha@full#0", "baselines/alpha@full#0/ties"):
        manifest = store.manifest(name)
        assert manifest is not None and set(manifest["members"]) == {"alpha@full#0", "beta@full#0", "gamma@full#0"}
    rows = {(row["shots"], row["method"]): row for row in store.table("results.parquet").to_pylist()}
    assert rows["full", "full"]["value"] == rows["full", "single"]["value"] == rows["2", "full"]["value"]
    assert rows["full", "zero_shot_uniform"]["prediction"] == rows["2", "zero_shot_uniform"]["prediction"]
    steps = {shots: rows[shots, "single"]["steps"] for shots in ("full", "2")}
    assert steps == {"full": plan.config.training.full.steps, "2": plan.config.training.few.steps}
    assert not planned(tmp_path, tmp_path / "study").lanes()
