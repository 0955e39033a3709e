"""A plan with a goal, and how a matrix grows: what is asked for again is not made again."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakelanes import make, make_everything
from tinystudy import LABELS, make_study, tasks_with_zeta

from pitune.config import load_config
from pitune.materials import Materials
from pitune.plan import Plan, materials_of
from pitune.results import RESULTS, TRANSFER
from pitune.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study's configuration; nothing is made."""
    folder = tmp_path_factory.mktemp("goal")
    make_study(folder)
    return folder


def planned(path: Path, study: Path, *overrides: str, goal: str | None = None) -> Plan:
    config = load_config(path, [f"study={study}", *overrides])
    return Plan(config, materials_of(config, Store(study)), goal)


def left(plan: Plan) -> set[str]:
    return {item.artifact for item in plan.items() if item.state != "done"}


def test_a_plan_with_a_goal_has_what_it_needs(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder / "study.yaml", tmp_path / "study", "transfer.sources=[beta,gamma]", goal=TRANSFER)
    assert plan.stages() == {"experts": (4, 0), "transfer": (5, 0), "predictions": (6, 0)}
    assert plan.lanes() == {"driver", "gang", "task"}
    assert {node.name for node in plan.missing()} == {
        *("experts/beta@full#0", "experts/gamma@full#0", "experts/alpha@2#0", "experts/beta@2#1"),
        *(f"transfer/{target}/{source}@full#0" for target in plan.config.targets for source in ("beta", "gamma")),
        *(f"predictions/{t}/transfer/{s}@full#0.parquet" for t in plan.config.targets for s in ("beta", "gamma")),
        *("predictions/alpha@2#0/single.parquet", "predictions/beta@2#1/single.parquet", TRANSFER),
    }
    made = make_everything(plan)
    assert made[-1] == TRANSFER and not left(plan)
    assert set(plan.store.artifacts()) == set(plan.nodes) == set(made)


def test_a_run_goes_on_where_a_goal_was_reached(folder: Path, tmp_path: Path) -> None:
    goal = planned(folder / "study.yaml", tmp_path / "study", "transfer={}", goal=TRANSFER)
    done = set(make_everything(goal))
    whole = planned(folder / "study.yaml", tmp_path / "study", "transfer={}")
    assert not done & set(make_everything(whole))
    assert whole.store.table(RESULTS).num_rows == 2 * 6
    assert not left(planned(folder / "study.yaml", tmp_path / "study", "transfer={}", goal=TRANSFER))


def test_what_was_made_before_a_kill_is_there(folder: Path, tmp_path: Path) -> None:
    """Pair by pair: the first half is committed, the second half is what is left."""
    first = planned(folder / "study.yaml", tmp_path / "study", "transfer={}", goal=TRANSFER)
    made: list[str] = []
    while (ready := first.ready()) and len(made) < len(first.nodes) // 2:
        for node in ready[: len(first.nodes) // 2 - len(made)]:
            make(first, node)
            first.done(node)
            made.append(node.name)
    again = planned(folder / "study.yaml", tmp_path / "study", "transfer={}", goal=TRANSFER)
    assert any(name.startswith("transfer/") for name in made)
    assert sorted(make_everything(again)) == sorted(set(first.nodes) - set(made))


def test_a_matrix_added_to_a_finished_study_makes_only_its_pairs(folder: Path, tmp_path: Path) -> None:
    before = planned(folder / "study.yaml", tmp_path / "study")
    make_everything(before)
    after = planned(folder / "study.yaml", tmp_path / "study", "transfer={}")
    pairs = {
        f"{t}/{{}}{s}@full#0" for t in before.config.targets for s in LABELS
    } - {"alpha@2#0/{}beta@full#0", "beta@2#1/{}alpha@full#0"}  # of the nearest  # fmt: skip
    assert left(after) == {
        *(f"transfer/{pair.format('')}" for pair in pairs),
        *(f"predictions/{pair.format('transfer/')}.parquet" for pair in pairs),
        TRANSFER,
    }


def test_slices_of_the_matrix_alone_enter_the_graph_and_no_method(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder / "study.yaml", tmp_path / "study", "transfer.targets=[gamma@2#5]", "transfer.sources=[beta]")
    made = set(make_everything(plan))
    assert {name for name in made if "gamma@2#5" in name} == {
        *(
            "slices/gamma@2#5.parquet",
            "experts/gamma@2#5",
            "embeddings/gamma@2#5.parquet",
            "features/gamma@2#5.parquet",
        ),
        *("predictions/gamma@2#5/transfer/common.parquet", "predictions/gamma@2#5/transfer/beta@full#0.parquet"),
        "transfer/gamma@2#5/beta@full#0",
    }
    assert "gamma@2#5" in plan.store.table("graph.parquet")["target"].to_pylist()
    assert "gamma@2#5" not in plan.store.table(RESULTS)["slice"].to_pylist()


def test_a_new_task_adds_its_row_and_its_column(folder: Path, tmp_path: Path) -> None:
    seeds = {"tasks": list(LABELS), "shots": [2], "seeds": [0]}
    first = make_study(tmp_path / "first", targets=seeds, transfer={})
    make_everything(planned(first, tmp_path / "study", goal=TRANSFER))
    settings = tasks_with_zeta(first, tmp_path / "data")
    names = [*LABELS, "zeta"]
    more = make_study(
        tmp_path / "more", tasks=settings, sources=names, targets=seeds | {"tasks": names}, transfer={}
    )  # fmt: skip
    plan = planned(more, tmp_path / "study", goal=TRANSFER)
    pairs = {("zeta@2#0", f"{name}@full#0") for name in names} | {(f"{name}@2#0", "zeta@full#0") for name in names}
    assert left(plan) == {
        *("experts/zeta@full#0", "experts/zeta@2#0", "predictions/zeta@2#0/single.parquet", TRANSFER),
        *(f"transfer/{target}/{source}" for target, source in pairs),
        *(f"predictions/{target}/transfer/{source}.parquet" for target, source in pairs),
    }
    make_everything(plan)
    assert plan.store.table(TRANSFER).num_rows == 16


# --- tables that have become old -----------------------------------------------------------------------------------


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> Materials:
    """A study with a matrix of which everything is made."""
    plan = planned(folder / "study.yaml", tmp_path / "study", "transfer={}")
    make_everything(plan)
    return plan.materials


@pytest.mark.parametrize(
    ("goal", "overrides", "kept"),
    [
        (None, ["transfer={}"], {RESULTS, TRANSFER}),
        (TRANSFER, ["transfer={}"], {RESULTS, TRANSFER}),
        (TRANSFER, ["transfer.sources=[beta]"], {RESULTS}),  # the results are made from nothing that changes
        (TRANSFER, ["transfer={}", "training.few.steps=5"], set()),
        (None, ["transfer={}", "interpolation.granularity=global"], {TRANSFER}),
        (None, [], {RESULTS, TRANSFER}),  # no longer asked for, but true
        (None, ["training.few.steps=5"], set()),
    ],
)
def test_tables_of_scores_go_where_others_will_come(
    made: Materials, folder: Path, goal: str | None, overrides: list[str], kept: set[str]
) -> None:
    plan = planned(folder / "study.yaml", Path(made.store.root), *overrides, goal=goal)
    plan.drop_old_results()
    assert {RESULTS, TRANSFER} & made.store.artifacts().keys() == kept
