"""Joint: which targets share an expert, how that is trained, and that each target chooses for itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakelanes import make_everything
from tinymodel import flat
from tinystudy import make_study

from pitune.config import load_config
from pitune.embedding.groups import grouped
from pitune.errors import PituneError
from pitune.experts import Bank
from pitune.interpolation.jobs import Neighbour, SharedChoiceJob
from pitune.interpolation.shared import choose_shared
from pitune.methods import METHODS, joint
from pitune.plan import Node, Plan
from pitune.results import wrong_scores
from pitune.tasks.task import Slice
from pitune.training.engine import EngineSettings
from pitune.training.loop import Alone, Member, PackTraining
from pitune.training.pack import ExpertJob, make_packs
from pitune.training.work import ExpertTraining

ALPHA, BETA, GAMMA = (Slice(task, 2, 0) for task in ("alpha", "beta", "gamma"))
ALL, PAIR = (ALPHA, BETA, GAMMA), (BETA, GAMMA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    targets = {"tasks": ["gamma", "alpha", "beta"], "shots": [2], "seeds": [0, 1]}
    make_study(folder, targets=targets, methods=["joint"], embedding={"all": False, "examples": 4})
    return folder


def planned(folder: Path, study: Path, *overrides: str) -> Plan:
    return Plan.of(load_config(folder / "study.yaml", [f"study={study}", *overrides]))


def shared(plan: Plan) -> dict[str, Node]:
    return {name: node for name, node in plan.nodes.items() if name.startswith("joint/")}


def members(node: Node) -> tuple[Slice, ...]:
    assert isinstance(node.job, ExpertJob)
    return tuple(part for part, _ in node.job.data)


def scored(plan: Plan) -> dict[str, str]:
    """Return the expert that each target's row is scored of."""
    rows = plan.store.table("results.parquet").to_pylist()
    return {row["slice"]: plan.nodes[row["prediction"]].needs[0] for row in rows if row["method"] == "joint"}


# --- groups that the configuration names --------------------------------------------------------------------------


def test_a_named_group_shares_one_expert_a_seed(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path, "joint.groups=[[gamma,beta]]")
    nodes = shared(plan)
    assert [members(node) for node in nodes.values()] == [PAIR, (Slice("beta", 2, 1), Slice("gamma", 2, 1))]
    assert len(plan.sketched) == 0  # nothing waits for the graph
    job, few = next(iter(nodes.values())).job, plan.config.training.few
    assert isinstance(job, ExpertJob) and [weight for _, weight in job.data] == [0.5, 0.5]
    assert job.name == "beta@2#0 + gamma@2#0" and job.start is None and not job.may_fail
    assert job.recipe == few.model_copy(update={"steps": 2 * few.steps})
    make_everything(plan)
    one, other = nodes
    assert scored(plan) == {
        "alpha@2#0": "experts/alpha@2#0", "beta@2#0": one, "gamma@2#0": one,
        "alpha@2#1": "experts/alpha@2#1", "beta@2#1": other, "gamma@2#1": other,
    }  # fmt: skip


def test_validations_are_as_many_as_alone(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path, "joint.groups=[[alpha,beta,gamma]]", "training.few.validate_every=2")
    for node in shared(plan).values():
        assert isinstance(node.job, ExpertJob)
        assert (node.job.recipe.steps, node.job.recipe.validate_every) == (12, 6)


def test_a_task_that_there_is_not_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PituneError, match=r"joint\.groups: found delta; tasks has alpha, beta, gamma$"):
        planned(folder, tmp_path, "joint.groups=[[alpha,delta]]")
    with pytest.raises(PituneError, match=r"joint\.groups: alpha is there twice; a task is in one group at most$"):
        planned(folder, tmp_path, "joint.groups=[[alpha,beta],[alpha]]")


# --- groups that are proposed -------------------------------------------------------------------------------------


def test_groups_are_proposed_as_many_as_there_are_trials(folder: Path, tmp_path: Path) -> None:
    """All together and each alone need no graph; the made-up one then finds beta and gamma the most alike."""
    waiting = planned(folder, tmp_path / "0", "sweep.trials=3")
    assert len(waiting.sketched) > 0 and [members(node) for node in shared(waiting).values()] == []
    found = {}
    for trials in (1, 2, 3, 9):
        plan = planned(folder, tmp_path / str(trials), f"sweep.trials={trials}")
        make_everything(plan)
        found[trials] = [members(node) for node in shared(plan).values() if members(node)[0].seed == 0]
    assert found == {1: [ALL], 2: [ALL], 3: [ALL, PAIR], 9: [ALL, PAIR]}


def test_each_target_chooses_among_the_groups_that_it_is_in(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path, "sweep.trials=3")
    make_everything(plan)
    together, pair = (name for name, node in shared(plan).items() if members(node)[0].seed == 0)
    tried = {}
    for target in ALL:
        node = plan.nodes[f"baselines/{target}/joint"]
        assert isinstance(node.job, SharedChoiceJob) and node.job.slice == target and node.needs == node.job.tried
        assert node.job.inputs["trials"] == [[name, plan.nodes[name].job.fingerprint] for name in node.job.tried]
        tried[target] = node.job.tried
    assert tried == {
        ALPHA: (together, "experts/alpha@2#0"),
        BETA: (together, "experts/beta@2#0", pair),
        GAMMA: (together, "experts/gamma@2#0", pair),
    }
    assert all(node.job.may_fail for node in shared(plan).values() if isinstance(node.job, ExpertJob))
    assert scored(plan)["beta@2#0"] == "baselines/beta@2#0/joint"


def test_one_trial_is_all_together_and_a_lone_target_is_alone(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path / "a", "sweep.trials=1")
    make_everything(plan)
    assert set(scored(plan).values()) == set(shared(plan)) and len(shared(plan)) == 2
    alone = planned(folder, tmp_path / "b", "targets.tasks=[beta]", "targets.seeds=[0]", "sweep.trials=9")
    make_everything(alone)
    assert scored(alone) == {"beta@2#0": "experts/beta@2#0"} and not shared(alone)


KNOWN = {"alpha": {"beta": 0.75}, "beta": {"alpha": 0.25}, "gamma": {"alpha": 0.5, "beta": 1.0}, "delta": {}}


class Graph:
    """Stands for a plan that knows how similar sources are to targets, of which alpha and beta alone are sources."""

    def others(self, target: Slice) -> int:
        return len(KNOWN[target.task])

    def neighbours(self, target: Slice, k: int) -> tuple[Neighbour, ...]:
        found = KNOWN[target.task].items()
        return tuple(Neighbour(f"{task}@full#0", similarity, "") for task, similarity in list(found)[:k])


def test_two_targets_are_as_alike_as_the_sources_of_either_task_are_to_the_other() -> None:
    """Of alpha and beta that is the mean of 0.75 and 0.25; nothing is known of delta, which is as the least alike."""
    plan: Any = Graph()
    found = joint._similarities(plan, (ALPHA, BETA, Slice("delta", 2, 0), GAMMA))
    off_diagonal = ~np.eye(4, dtype=bool)
    expected = np.array([[0, 0.5, 0.5, 0.5], [0.5, 0, 0.5, 1.0], [0.5, 0.5, 0, 0.5], [0.5, 1.0, 0.5, 0]])
    assert np.array_equal(found[off_diagonal], expected[off_diagonal])
    assert grouped(found, 3) == [[0], [1, 3], [2]]


# --- in earnest ---------------------------------------------------------------------------------------------------


def make_in_earnest(plan: Plan) -> None:
    """Make all that is missing as a run would, in this process and without Ray."""
    work = ExpertTraining(plan.materials, plan.config.training)
    while ready := plan.ready():
        for pack in make_packs([node.job for node in ready if isinstance(node.job, ExpertJob)], plan.config.training):
            assert not work.train(pack, Alone())
        for node in ready:
            job: Any = node.job
            if node.make is not None:
                node.make(plan.materials, [job] if node.together else job)
            plan.done(node)


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    study = tmp_path_factory.mktemp("earnest")
    plan = planned(folder, study, "targets.seeds=[0]", "sweep.trials=3", "training.few.steps=10")
    make_in_earnest(plan)
    return plan


def plain_loss(plan: Plan, expert: str, target: Slice) -> float:
    """Return an expert's loss on a target's validation examples, row by row."""
    materials = plan.materials
    rows = materials.rows(((target, 1.0),), "validation").rows
    bank, losses = Bank(materials.kind, [materials.expert(expert)]), []
    with torch.no_grad():
        for row in rows:
            batch = materials.objective.collate(materials.backbone, materials.firsts, [[row]])
            losses.append(float(materials.objective.losses(materials.backbone, bank, batch)))
    return math.fsum(losses) / len(losses)


def test_a_shared_expert_is_what_the_loop_makes_of_the_same_rows(made: Plan) -> None:
    materials, few = made.materials, made.config.training.few
    for name, node in shared(made).items():
        targets = members(node)
        data = tuple((target, 1 / len(targets)) for target in targets)
        recipe = few.model_copy(update={"steps": few.steps * len(targets)})
        rows = [materials.rows(data, role) for role in ("train", "validation")]
        member = Member(" + ".join(map(str, targets)), materials.start, *rows)
        settings = EngineSettings()
        (alone,) = PackTraining(
            materials.backbone, materials.kind, materials.objective, [member], recipe, settings
        ).run()
        torch.testing.assert_close(flat(materials.expert(name)), flat(alone.expert), atol=2e-5, rtol=1e-3)
        order = rows[0].order(member.name, recipe.steps, recipe.batch_size)
        drawn = np.bincount(np.searchsorted(np.cumsum(rows[0].sizes), order.ravel(), side="right"))
        assert len(drawn) == len(targets) and drawn.min() > 0.5 * few.steps * few.batch_size  # as often as alone, about


def test_a_target_gets_what_is_best_on_its_own_validation_examples(made: Plan) -> None:
    rows = {row["slice"]: row for row in made.store.table("results.parquet").to_pylist()}
    for target in ALL:
        manifest = made.store.manifest(f"baselines/{target}/joint")
        assert manifest is not None
        losses = {name: plain_loss(made, name, target) for name in manifest["tried"]}
        assert manifest["tried"] == pytest.approx(losses, abs=1e-5)
        for name in losses.keys() & shared(made).keys():
            held = made.store.manifest(name)
            assert held is not None and abs(held["validation"]["loss"] - losses[name]) > 1e-4  # that is of a mixture
        assert manifest["chosen"] == min(losses, key=lambda name: losses[name])
        assert manifest["validation"]["loss"] == manifest["tried"][manifest["chosen"]]
        torch.testing.assert_close(
            flat(made.materials.expert(f"baselines/{target}/joint")), flat(made.materials.expert(manifest["chosen"]))
        )
        sizes = sum(len(members(made.nodes[name])) for name in losses)  # of shared experts all steps count
        row = rows[str(target)]
        assert (row["trials"], row["steps"]) == (len(losses), 10 * sizes) and row["seconds"] > 0
    assert not wrong_scores(made.store) and not list(made.store.problems())
    assert not planned_again(made).lanes()


def planned_again(plan: Plan) -> Plan:
    return Plan.of(plan.config)


def test_what_has_failed_is_no_choice(made: Plan, tmp_path: Path) -> None:
    """A diverged expert has an error in its manifest; one whose loss on the target is no number counts as such."""
    store, materials = made.store, made.materials
    name = f"baselines/{BETA}/joint"
    job = made.nodes[name].job
    assert isinstance(job, SharedChoiceJob)
    before = store.manifest(name)
    assert before is not None
    best = before["chosen"]
    held = store.manifest(best)
    assert held is not None
    files = {file: store.read(best, file) for file in held["files"]}
    facts = {key: held[key] for key in ("data", "recipe", "steps", "trials", "seconds", "validation")}
    store.commit(best, files, held["fingerprint"], inputs=held["inputs"], **facts, error="the loss is nan")
    try:
        choose_shared(materials, job)
        after = store.manifest(name)
        assert after is not None and after["chosen"] != best and after["tried"][best] is None
        others = {trial: loss for trial, loss in before["tried"].items() if trial != best}
        assert after["chosen"] == min(others, key=lambda trial: others[trial])
    finally:
        store.commit(best, files, held["fingerprint"], inputs=held["inputs"], **facts)
        choose_shared(materials, job)


def test_it_is_in_the_registry() -> None:
    assert METHODS["joint"].sees == "shots" and not METHODS["joint"].control
