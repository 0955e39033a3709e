"""A whole study on a real, local Ray: from tables to the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tinystudy import LABELS, make_study

from pitune.config import load_config
from pitune.errors import PituneError
from pitune.interpolation.scoring import answers
from pitune.plan import METHODS
from pitune.results import drop_old_results, write_results, wrong_scores
from pitune.study import Study
from pitune.tasks.metrics import METRICS

pytestmark = pytest.mark.slow


class Told:
    """Remembers what a study tells of its progress."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, int]] = {}
        self.shares: list[float] = []

    def stage(self, name: str, total: int, there: int) -> None:
        self.stages[name] = (total, there)

    def update(self, done: float, total: float, running: Sequence[str]) -> None:
        self.shares.append(done / total)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study whose paths are all relative; the tests run in its folder."""
    folder = tmp_path_factory.mktemp("study")
    path = make_study(folder)
    path.write_text(path.read_text().replace(f"{folder}/", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield path


@pytest.fixture(scope="module")
def study(config: Path, ray_session: None) -> Study:
    made = Study(load_config(config))
    told = Told()
    made.run(told)
    assert told.stages == {
        "experts": (5, 0),
        "embeddings": (5, 0),
        "nearest": (2, 0),
        "uniform": (2, 0),
        "interpolations": (2, 0),
        "predictions": (12, 0),
    }
    assert all(0 <= share <= 1 for share in told.shares)
    return made


def test_every_artifact_of_the_layout_is_there_and_whole(study: Study) -> None:
    for target in study.config.targets:
        for artifact in (
            f"slices/{target}.parquet",
            f"experts/{target}",
            f"baselines/{target}/nearest",
            f"baselines/{target}/uniform",
            f"embeddings/{target}.parquet",
            f"interpolations/{target}",
            f"sweeps/{target}.parquet",
            *(f"predictions/{target}/{method}.parquet" for method in METHODS),
        ):
            assert study.store.manifest(artifact), artifact
    assert study.store.manifest("report.html")
    assert not list(study.store.problems())
    assert not wrong_scores(study.store)
    assert all(item.state == "done" for item in study.plan.items())


def test_every_value_is_what_the_committed_expert_scores(study: Study) -> None:
    for row in study.store.table("results.parquet").to_pylist():
        task = study.materials.task(row["task"])
        rows = study.materials.rows_of(row["task"], task.splits["test"], again=False)
        artifact = {
            "zero_shot": None,
            "single": f"experts/{row['slice']}",
            "uniform": f"baselines/{row['slice']}/uniform",
            "nearest": f"baselines/{row['slice']}/nearest",
            "pi": f"interpolations/{row['slice']}",
            "full": f"experts/{row['task']}@full#0",
        }[row["method"]]
        experts = [study.materials.expert(artifact)] if artifact else []
        made = study.materials
        choices = answers(made.backbone, made.kind, made.objective, experts, rows)[0][0]
        expected = METRICS[task.metric]([example.label for example in task.splits["test"]], choices)
        assert row["value"] == pytest.approx(expected), row


def test_neighbours_are_of_other_tasks_and_weights_sum_to_one(study: Study) -> None:
    for target in study.config.target_slices:
        rows = study.store.table(f"interpolations/{target}", "weights.parquet").to_pylist()
        members = {row["member"] for row in rows}
        assert str(target) in members
        assert f"{target.task}@full#0" not in members
        for site in {row["site"] for row in rows}:
            assert sum(row["weight"] for row in rows if row["site"] == site) == pytest.approx(1)


def test_the_chosen_trial_is_the_best_that_finished(study: Study) -> None:
    for target in study.config.targets:
        rows = study.store.table(f"sweeps/{target}.parquet").to_pylist()
        last = {row["trial"]: row for row in rows}  # the rows of a trial are in the order of its steps
        finished = [row for row in last.values() if row["state"] == "finished"]
        assert len(last) == 4
        assert min(finished, key=lambda row: row["validation"])["chosen"]
        manifest = study.store.manifest(f"interpolations/{target}")
        assert manifest and manifest["validation"]["loss"] == pytest.approx(min(row["validation"] for row in finished))


def test_running_again_makes_nothing(study: Study, config: Path) -> None:
    before = {artifact: manifest["written"] for artifact, manifest in study.store.artifacts().items()}
    Study(load_config(config)).run(Told())
    assert {artifact: manifest["written"] for artifact, manifest in study.store.artifacts().items()} == before


def test_what_is_deleted_is_made_again(study: Study, config: Path) -> None:
    before = set(study.store.artifacts())
    target = study.config.targets[0]
    for artifact in (f"embeddings/{target}.parquet", f"baselines/{target}/uniform", f"interpolations/{target}"):
        study.store.discard(artifact)
    Study(load_config(config)).run(Told())
    assert set(study.store.artifacts()) == before
    assert not list(study.store.problems()) and not wrong_scores(study.store)


def test_old_results_do_not_outlive_what_they_came_from(study: Study, config: Path) -> None:
    changed = Study(load_config(config, ["interpolation.granularity=global"]))
    kept = study.store.table("results.parquet").drop_columns("seconds")
    drop_old_results(study.plan)
    assert study.store.manifest("results.parquet") is not None
    drop_old_results(changed.plan)
    assert study.store.manifest("results.parquet") is None
    write_results(study.plan)
    assert study.store.table("results.parquet").drop_columns("seconds").equals(kept)


def test_a_changed_setting_makes_only_what_depends_on_it(study: Study, config: Path) -> None:
    changed = Study(load_config(config, ["interpolation.granularity=global"]))
    states = {item.artifact: (item.state, item.why) for item in changed.plan.items() if item.state != "done"}
    targets = study.config.targets
    assert {artifact for artifact, (_, why) in states.items() if "interpolation" in why} == {
        *(f"interpolations/{target}" for target in targets),
        *(f"sweeps/{target}.parquet" for target in targets),
    }
    assert set(states) - {artifact for artifact, (_, why) in states.items() if "interpolation" in why} == {
        *(f"predictions/{target}/pi.parquet" for target in targets),
        "results.parquet",
    }


def test_a_second_process_is_told_so(study: Study, config: Path) -> None:
    with study.store.lock(), pytest.raises(PituneError, match="another pitune process") as caught:
        Study(load_config(config)).run(Told())
    assert "\n" not in str(caught.value)


def test_an_expert_that_is_not_a_number_stops_alone(tmp_path: Path, ray_session: None) -> None:
    path = make_study(tmp_path, sources=["alpha", "beta", "gamma"], targets=["alpha@2#0"])
    # A learning rate far beyond float32: every few-shot loss overflows, the full experts are well.
    study = Study(load_config(path, ["training.few.learning_rate=1e30", "sweep.top_k=[1]"]))
    with pytest.raises(PituneError, match=r"alpha@2#0: the loss is nan") as caught:
        study.run(Told())
    assert "\n" not in str(caught.value)
    assert all(study.store.manifest(f"experts/{name}@full#0") for name in LABELS)
    assert study.store.manifest("experts/alpha@2#0") is None


def test_the_order_of_shots_is_fixed_by_the_seed(study: Study) -> None:
    keys = [row["key"] for row in study.store.table("slices/alpha@2#0.parquet").to_pylist() if row["role"] == "train"]
    data = study.materials.data(study.config.target_slices[0])
    assert keys == [example.key for example in data.train]
