"""Which rows a study has, what its methods try, and what each has cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakelanes import make_everything
from tinystudy import make_study

from pitune.config import load_config
from pitune.errors import PituneError
from pitune.interpolation.settings import SweepSettings
from pitune.methods import METHODS
from pitune.plan import Plan
from pitune.plan.builder import RATES
from pitune.training.choice import ChoiceJob
from pitune.training.pack import ExpertJob
from pitune.training.settings import MultitaskSettings

TUNED = {
    "single": "experts/beta@2#1",
    "nearest": "transfer/beta@2#1/alpha@full#0",
    "multitask": "trials/beta@2#1/multitask/rate-1",
}
"""The methods that try learning rates, and the first trial of each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    make_study(folder, methods=[*TUNED, "pi"])
    return folder


def made(folder: Path, study: Path, *overrides: str) -> Plan:
    """Return the plan of a study, everything made up that was missing."""
    plan = Plan.of(load_config(folder / "study.yaml", [f"study={study}", *overrides]))
    make_everything(plan)
    return plan


def job_of(plan: Plan, name: str) -> ExpertJob:
    node = plan.nodes[name]
    assert node.lane == "gang" and isinstance(node.job, ExpertJob)
    return node.job


# --- rows ----------------------------------------------------------------------------------------------------------


def test_a_study_has_the_rows_that_it_names_in_the_registrys_order(folder: Path, tmp_path: Path) -> None:
    plan = made(folder, tmp_path, "methods=[full,pi,zero_shot]")
    assert list(plan.methods) == ["zero_shot", "pi", "full"]
    rows = plan.store.table("results.parquet").to_pylist()
    assert [(row["slice"], row["method"]) for row in rows] == [
        (target, method) for target in ("alpha@2#0", "beta@2#1") for method in plan.methods
    ]
    assert not any(name.startswith(("baselines", "transfer", "trials")) for name in plan.nodes)


def test_without_saying_it_has_all(folder: Path, tmp_path: Path) -> None:
    config = load_config(folder / "study.yaml", [f"study={tmp_path}", "methods=null"])
    assert Plan.of(config).methods == METHODS


def test_a_ceiling_that_nobody_asks_for_is_not_made(folder: Path, tmp_path: Path) -> None:
    settings = ("sources=[beta,gamma]", "targets=[alpha@2#0]", "sweep.top_k=[1]")
    for name, wanted in (("pi", False), ("full", True)):
        plan = made(folder, tmp_path / name, f"methods=[{name}]", *settings)
        assert ("experts/alpha@full#0" in plan.nodes, "slices/alpha@full#0.parquet" in plan.nodes) == (wanted, wanted)


def test_a_method_that_there_is_not_is_told_before_anything_is_looked_at(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PituneError, match=r"^methods: found tiess; there are zero_shot, .*full$"):
        made(folder, tmp_path, "methods=[pi,tiess]", "backbone.uri=nowhere")


# --- trials --------------------------------------------------------------------------------------------------------


def test_a_budget_is_as_many_trials_as_the_search_has() -> None:
    assert SweepSettings().budget == 2
    several = SweepSettings(top_k=(3, 5, 3), temperature=(0.3, 1.0))
    assert (several.combinations, several.budget) == (8, 8)
    assert SweepSettings(top_k=(3, 5), trials=3).budget == 3


@pytest.mark.parametrize("method", TUNED)
def test_trials_share_the_recipe_but_for_the_learning_rate(folder: Path, tmp_path: Path, method: str) -> None:
    plan = made(folder, tmp_path, "sweep.trials=null")  # four: as many as the search has
    choice = plan.nodes[f"baselines/beta@2#1/{method}"]
    assert choice.lane == "task" and isinstance(choice.job, ChoiceJob) and choice.make is not None
    others = [f"trials/beta@2#1/{method}/rate-{share}" for share in ("2", "0.5", "4")]
    assert choice.job.tried == choice.needs == (TUNED[method], *others)
    first, *rest = (job_of(plan, name) for name in choice.job.tried)
    few = plan.config.training.few
    assert first.recipe is few and not first.may_fail and all(job.may_fail for job in rest)
    for job, share in zip(rest, RATES[1:], strict=False):
        assert job.recipe.learning_rate == pytest.approx(0.01 * share)
        assert job.recipe.model_copy(update={"learning_rate": few.learning_rate}) == few
        assert (job.name, job.data, job.start) == (first.name, first.data, first.start)
        rate = {**first.inputs["recipe"], "learning_rate": job.recipe.learning_rate}
        assert job.inputs == {**first.inputs, "recipe": rate}
    assert plan.nodes[f"predictions/beta@2#1/{method}.parquet"].needs == (choice.name,)


def test_one_trial_leaves_no_choice(folder: Path, tmp_path: Path) -> None:
    plan = made(folder, tmp_path)
    assert not any(isinstance(node.job, ChoiceJob) for node in plan.nodes.values())
    trials = {name for name in plan.nodes if name.startswith("trials/")}
    assert trials == {f"trials/{target}/multitask/rate-1" for target in plan.config.targets}
    rows = plan.store.table("results.parquet").to_pylist()
    scored = {row["method"]: plan.nodes[row["prediction"]].needs for row in rows if row["slice"] == "beta@2#1"}
    assert {method: scored[method] for method in TUNED} == {method: (first,) for method, first in TUNED.items()}


def test_a_method_that_has_fewer_settings_tries_them_all(folder: Path, tmp_path: Path) -> None:
    plan = made(folder, tmp_path, "sweep.trials=50", "methods=[single]")
    job = plan.nodes["baselines/beta@2#1/single"].job
    assert isinstance(job, ChoiceJob) and len(job.tried) == len(RATES) == len(set(RATES)) == 8


def test_a_learning_rate_stays_a_number(folder: Path, tmp_path: Path) -> None:
    plan = made(folder, tmp_path, "sweep.trials=2", "training.few.learning_rate=1.7e308", "methods=[single]")
    assert job_of(plan, "trials/beta@2#1/single/rate-2").recipe.learning_rate < float("inf")


def test_a_larger_budget_makes_only_what_is_new(folder: Path, tmp_path: Path) -> None:
    first = made(folder, tmp_path, "sweep.trials=2")
    config = load_config(folder / "study.yaml", [f"study={tmp_path}", "sweep.trials=3"])
    names = set(make_everything(Plan.of(config)))
    assert names == {
        *(f"trials/{target}/{method}/rate-0.5" for target in config.targets for method in TUNED),
        *(f"baselines/{target}/{method}" for target in config.targets for method in TUNED),
        *(f"predictions/{target}/{method}.parquet" for target in config.targets for method in TUNED),
        "results.parquet",
    }
    assert first.nodes["interpolations/beta@2#1"].job.inputs["sweep"].keys() == {
        *("top_k", "temperature", "own", "rate", "validate_every", "reduction_factor")
    }


# --- the mixture ---------------------------------------------------------------------------------------------------


def test_a_mixture_is_of_all_sources_of_other_tasks(folder: Path, tmp_path: Path) -> None:
    """It is one node for all targets of a task, and every trial of theirs starts from it."""
    sources = "sources=[alpha,beta@4#3,beta,gamma@3#0,gamma]"
    plan = made(folder, tmp_path, sources, "targets=[beta@2#1,beta@2#0,alpha@2#0]", "multitask.mixing=size")
    job = job_of(plan, "mixtures/beta")
    assert job.recipe is plan.config.training.full and job.start is None
    sizes = {str(part): len(plan.materials.data(part).train) for part, _ in job.data}
    assert list(sizes) == ["alpha@full#0", "gamma@3#0", "gamma@full#0"] and sizes["gamma@3#0"] == 6
    assert [weight for _, weight in job.data] == pytest.approx([n / sum(sizes.values()) for n in sizes.values()])
    assert {str(part) for part, _ in job_of(plan, "mixtures/alpha").data} == {
        *("beta@4#3", "beta@full#0", "gamma@3#0", "gamma@full#0")
    }
    assert [name for name in plan.nodes if name.startswith("mixtures/")] == ["mixtures/beta", "mixtures/alpha"]
    for target in ("beta@2#1", "beta@2#0"):
        tuned = plan.nodes[f"trials/{target}/multitask/rate-1"]
        assert tuned.needs == ("mixtures/beta",) and tuned.job.inputs["data"] == [[target, 1.0]]


def test_how_it_is_mixed_changes_the_mixture_alone(folder: Path, tmp_path: Path) -> None:
    sources = "sources=[alpha,beta,gamma@3#0]"
    made(folder, tmp_path, sources)
    plan = Plan.of(load_config(folder / "study.yaml", [f"study={tmp_path}", sources, "multitask.mixing=uniform"]))
    found = {item.artifact for item in plan.items() if item.state != "done"}
    tuned = [name for name in found if "multitask" in name]
    assert found - {*tuned, "results.parquet"} == {"mixtures/alpha", "mixtures/beta"} and len(tuned) == 4


def test_shares_are_by_size_by_temperature_or_equal() -> None:
    sizes = [900, 100, 1]
    assert MultitaskSettings(mixing="size").shares(sizes) == pytest.approx([n / 1001 for n in sizes])
    assert MultitaskSettings().shares(sizes) == pytest.approx([30 / 41, 10 / 41, 1 / 41])
    third = MultitaskSettings(temperature=3)
    assert third.shares([8, 27, 1]) == pytest.approx([2 / 6, 3 / 6, 1 / 6])
    assert MultitaskSettings(mixing="uniform").shares(sizes) == pytest.approx([1 / 3] * 3)
    assert MultitaskSettings(temperature=1e-300).shares(sizes) == [1.0, 0.0, 0.0]  # the largest alone


# --- cost ----------------------------------------------------------------------------------------------------------


def test_the_table_says_what_each_row_took(folder: Path, tmp_path: Path) -> None:
    plan = made(folder, tmp_path, "methods=[zero_shot,single,full]")
    rows = {row["method"]: row for row in plan.store.table("results.parquet").to_pylist() if row["slice"] == "beta@2#1"}
    took = {name: (row["trials"], row["steps"], row["seconds"]) for name, row in rows.items()}
    assert took == {"zero_shot": (0, 0, 0.0), "single": (1, 4, 1.0), "full": (1, 6, 1.0)}
    columns = list(rows["single"])
    assert columns[columns.index("seconds") :] == ["seconds", "trials", "steps", "prediction"]
