"""A whole study on a real, local Ray: from tables to the report. What the loop does is in ``test_loop.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tinymodel import plain_embedding
from tinystudy import LABELS, TEXTS, make_study
from transformers import AutoModel, AutoTokenizer

from pitune.config import load_config
from pitune.errors import PituneError
from pitune.plan import Plan
from pitune.progress import Stage
from pitune.results import wrong_scores
from pitune.study import Study

pytestmark = pytest.mark.slow


class Told:
    """Remembers what a study tells of its progress."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, int]] = {}

    def show(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self.stages.setdefault(stage.name, (stage.total, stage.there))
            assert stage.there <= stage.done <= stage.total


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
        "tasks": (3, 0),
        "slices": (5, 0),
        "experts": (5, 0),
        "embeddings": (5, 0),
        "features": (5, 0),
        "graph": (1, 0),
        "transfer": (2, 0),
        "uniform": (2, 0),
        "interpolations": (2, 0),
        "predictions": (12, 0),
        "results": (1, 0),
    }
    return made


def scored(study: Study) -> dict[tuple[str, str], str]:
    """Return which artifact's predictions each target and method has."""
    return {
        (row["slice"], row["method"]): row["prediction"] for row in study.store.table("results.parquet").to_pylist()
    }


def test_every_artifact_of_the_layout_is_there_and_whole(study: Study, config: Path) -> None:
    for target in study.config.targets:
        for artifact in (
            f"tasks/{target.partition('@')[0]}",
            f"slices/{target}.parquet",
            f"experts/{target}",
            f"baselines/{target}/uniform",
            f"embeddings/{target}.parquet",
            f"embeddings/{target}/true.parquet",
            f"features/{target}.parquet",
            f"interpolations/{target}",
            f"sweeps/{target}.parquet",
            *(scored(study)[target, method] for method in study.plan.methods),
        ):
            assert study.store.manifest(artifact), artifact
    assert study.store.manifest("report.html")
    assert not list(study.store.problems())
    assert not wrong_scores(study.store)
    assert not study.plan.lanes() and not Plan.of(load_config(config)).lanes()
    assert (
        not list(Path(study.store.root).glob("sweeps/trials/*")) and not Path(study.store.root, ".ray/train").exists()
    )


def test_targets_share_what_is_the_same_for_all_of_them(study: Study) -> None:
    found = scored(study)
    assert found["alpha@2#0", "zero_shot"] == "predictions/alpha/zero_shot.parquet"
    assert found["beta@2#1", "full"] == "predictions/beta@full#0/full.parquet"
    assert found["beta@2#1", "pi"] == "predictions/beta@2#1/pi.parquet"


def test_every_value_is_what_the_committed_expert_scores(study: Study) -> None:
    """Against transformers and PEFT alone: PEFT reads the committed files, texts are embedded one by one."""
    folder, root = Path(study.config.backbone.uri), Path(study.store.root)
    tokenizer, alone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    experts = {
        "zero_shot": None,
        "single": "experts/{slice}",
        "uniform": "baselines/{slice}/uniform",
        "nearest": "transfer/{slice}/{nearest}",
        "pi": "interpolations/{slice}",
        "full": "experts/{task}@full#0",
    }
    near = {row["target"]: row["source"] for row in study.store.table("graph.parquet").to_pylist() if row["rank"] == 1}
    for row in study.store.table("results.parquet").to_pylist():
        place = experts[row["method"]]
        model = AutoModel.from_pretrained(folder).eval()
        if place:
            model = PeftModel.from_pretrained(model, str(root / place.format(**row, nearest=near[row["slice"]]))).eval()

        @torch.no_grad()
        def embedded(text: str, model: torch.nn.Module) -> torch.Tensor:
            return plain_embedding(model, tokenizer(text, truncation=True, max_length=16)["input_ids"])

        task = study.materials.task(row["task"])
        labels = task.labels
        candidates = torch.stack([embedded(TEXTS[label], alone) for label in labels])
        chosen = [labels[int((candidates @ embedded(one.text, model)).argmax())] for one in task.splits["test"]]
        right = sum(labels[one.label] == said for one, said in zip(task.splits["test"], chosen, strict=True))
        assert row["value"] == pytest.approx(right / len(chosen)), row
        assert study.store.table(row["prediction"])["prediction"].to_pylist() == chosen, row


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
    kept = study.store.table("results.parquet").drop_columns("seconds")
    target = study.config.targets[0]
    for artifact in (f"embeddings/{target}.parquet", f"baselines/{target}/uniform", f"interpolations/{target}"):
        study.store.discard(artifact)
    Study(load_config(config)).run(Told())
    assert set(study.store.artifacts()) == before
    assert study.store.table("results.parquet").drop_columns("seconds").equals(kept)
    assert not list(study.store.problems()) and not wrong_scores(study.store)


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
    assert study.store.manifest("predictions/alpha@full#0/full.parquet") is not None


def test_the_best_trial_is_scored_and_the_table_says_what_all_took(tmp_path: Path, ray_session: None) -> None:
    """The third learning rate is too large for float32: that trial is out, and the study goes on."""
    rates = (1.0, 2.0, 1e32)
    tuned = ["single", "nearest", "multitask"]
    path = make_study(tmp_path, targets=["alpha@2#0"], methods=[*tuned, "pi"], sweep={"top_k": [1], "trials": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pitune.plan.builder.RATES", rates)
        study = Study(load_config(path))
        study.run(Told())
    rows = {row["method"]: row for row in study.store.table("results.parquet").to_pylist()}
    for method in tuned:
        manifest = study.store.manifest(f"baselines/alpha@2#0/{method}")
        assert manifest is not None
        losses = list(manifest["tried"].values())
        assert losses[2] is None and manifest["validation"]["loss"] == min(losses[:2])
        assert (rows[method]["trials"], rows[method]["steps"]) == (3, 3 * 4)
        assert rows[method]["seconds"] == manifest["seconds"] > 0
    curve = study.store.table("sweeps/alpha@2#0.parquet").to_pylist()
    assert (rows["pi"]["trials"], rows["pi"]["steps"]) == (2, sum({r["trial"]: r["step"] for r in curve}.values()))
    assert not wrong_scores(study.store) and not list(study.store.problems())


def test_the_order_of_shots_is_fixed_by_the_seed(study: Study) -> None:
    keys = [row["key"] for row in study.store.table("slices/alpha@2#0.parquet").to_pylist() if row["role"] == "train"]
    data = study.materials.data(study.config.target_slices[0])
    assert keys == [example.key for example in data.train]
