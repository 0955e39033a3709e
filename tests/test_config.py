"""The study's configuration: what it means, and one line for anything that is wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import ValidationError
from tinystudy import CONFIGS, SHIPPED

from pitune.cli import main as cli_main
from pitune.config import StudyConfig, TargetProduct, load_align, load_bridge, load_config
from pitune.errors import PituneError
from pitune.settings import OneOf, Settings, wrong
from pitune.tasks.task import Slice
from pitune.training.recipe import Recipe

GOOD: dict[str, Any] = {
    "study": "studies/test",
    "backbone": {"uri": "some/folder"},
    "tasks": ["movie", "amazon", "nyt"],
    "sources": ["movie", "amazon", "nyt"],
    "targets": ["movie@16#0", "nyt@4#1"],
    "sweep": {"top_k": [1, 2]},
}


def written(folder: Path, values: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def with_value(place: str, value: Any) -> dict[str, Any]:
    """Return the good values with the one at a dotted place changed."""
    found: dict[str, Any] = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = place.split(".")
    inner = found
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return found


def test_a_good_file_is_read(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD))
    assert config.sources == ("movie@full#0", "amazon@full#0", "nyt@full#0")  # bare names are whole tasks
    assert config.source_slices[0] == Slice("movie", None, 0)
    assert config.target_slices == (Slice("movie", 16, 0), Slice("nyt", 4, 1))
    assert config.tasks == {"movie": None, "amazon": None, "nyt": None}
    assert config.expert.kind == "lora"


def test_the_resolved_configuration_says_the_same(tmp_path: Path) -> None:
    values = with_value("training.shots", {4: {"steps": 7}}) | {"expert": {"kind": "adapter", "width": 5}}
    values |= {"study": "2020-01-01", "backbone": {"uri": "here"}}
    text = yaml.safe_dump(values).replace("here", "'1e5'")  # not the number
    config = load_config(written(tmp_path, text))
    resolved = config.yaml()
    assert load_config(written(tmp_path, resolved)) == config
    assert all(name in resolved for name in ("reduction_factor", "experts_rate", "activation: gelu", "zero_stage"))


def test_targets_as_a_product() -> None:
    product = TargetProduct.model_validate({"tasks": ["a", "b"], "shots": [4, "full"], "seeds": [0, 1]})
    assert product.slices() == (
        *("a@4#0", "a@4#1", "a@full#0", "a@full#1"),
        *("b@4#0", "b@4#1", "b@full#0", "b@full#1"),
    )
    config = StudyConfig.model_validate(
        GOOD | {"targets": {"tasks": ["movie", "nyt"], "shots": [4], "seeds": [0, 1, 2]}}
    )
    assert config.targets == tuple(f"{task}@4#{seed}" for task in ("movie", "nyt") for seed in range(3))


def test_targets_as_several_products() -> None:
    some = [
        {"tasks": ["movie"], "shots": [4, 8], "seeds": [1]},
        "nyt@full#0",
        {"tasks": ["nyt"], "shots": [2], "seeds": [1]},
    ]
    config = StudyConfig.model_validate(GOOD | {"targets": some})
    assert config.targets == ("movie@4#1", "movie@8#1", "nyt@full#0", "nyt@2#1")
    with pytest.raises(ValidationError) as caught:
        StudyConfig.model_validate(GOOD | {"targets": [*some, {"tasks": ["nyt"], "shots": [2], "seed": [1]}]})
    assert wrong(caught.value).startswith("targets.seed: is no setting; there are tasks, shots")


def test_the_matrix_is_of_the_study_where_nothing_is_said(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, GOOD)).transfer is None
    whole = load_config(written(tmp_path, GOOD), ["transfer={}"])
    assert whole.transfer is not None and whole.transfer.sources == whole.sources
    assert whole.transfer.target_slices == whole.target_slices
    assert load_config(written(tmp_path, whole.yaml())) == whole
    product = {"tasks": ["amazon"], "shots": [4], "seeds": [0, 1]}
    part = load_config(written(tmp_path, GOOD | {"transfer": {"sources": ["nyt"], "targets": product}}))
    assert part.transfer is not None and part.transfer.source_slices == (Slice("nyt", None, 0),)
    assert part.transfer.targets == ("amazon@4#0", "amazon@4#1")


def test_what_a_matrix_takes_from_a_study_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(PituneError) as caught:
        load_config(written(tmp_path, GOOD | {"transfer": {}, "sources": ["movie@16"]}))
    assert "sources: 'movie@16' is not a slice" in str(caught.value) and "more)" not in str(caught.value)


def test_recipes_by_shots(tmp_path: Path) -> None:
    training = {"full": {"steps": 100}, "few": {"steps": 10}, "shots": {4: {"steps": 5}}}
    config = load_config(written(tmp_path, GOOD | {"training": training}))
    steps = {text: config.training.recipe(Slice.parse(text)).steps for text in ("a@full#0", "a@16#0", "a@4#3")}
    assert steps == {"a@full#0": 100, "a@16#0": 10, "a@4#3": 5}


def test_overrides(tmp_path: Path) -> None:
    values = with_value("training.shots", {4: {"steps": 7, "batch_size": 8}})
    overrides = [
        *("training.few.steps=30", "targets=[nyt@8#2]", "sweep.top_k=[2]", "expert.kind=adapter", "expert.width=3"),
        *("interpolation.max_rank=null", "runtime.gangs=2", "training.shots.4.steps=9", "study=elsewhere=here"),
    ]
    config = load_config(written(tmp_path, values), overrides)
    assert config.training.few.steps == 30 and config.targets == ("nyt@8#2",) and config.sweep.top_k == (2,)
    assert (config.expert.kind, config.expert.model_dump()["width"]) == ("adapter", 3)
    assert config.interpolation.max_rank is None and config.runtime.gangs == 2 and config.study == "elsewhere=here"
    four = config.training.shots[4]
    assert (four.steps, four.batch_size) == (9, 8)  # the file's other settings stay


TABLE = {"train": "a.csv", "labels": {"0": "no", "1": "yes"}}
WRONG = [
    # unknown keys
    ("shot", 3, "shot: is no setting; there are study, backbone, tasks, objective, expert, sources, targets"),
    ("training.few.step", 3, "training.few.step: is no setting; there are steps, batch_size, learning_rate"),
    ("training.shots", {4: {"stepz": 1}}, "training.shots.4.stepz: is no setting; there are steps, batch_size"),
    ("backbone.url", "x", "backbone.url: is no setting; there are kind, uri, pooling, max_tokens"),
    ("expert", {"kind": "lora", "rnk": 4}, "expert.rnk: is no setting; there are kind, layers, towers, seed, rank"),
    (
        "expert",
        {"kind": "adapter", "rank": 4},
        "expert.rank: is no setting; there are kind, layers, towers, seed",
    ),
    ("tasks", {"adapter": {**TABLE, "txt": "a"}}, "tasks.adapter.txt: is no setting; there are kind, templates"),
    ("targets", {"tasks": ["nyt"], "shots": [4], "seed": [0]}, "targets.seed: is no setting; there are tasks, shots"),
    ("targets", {"tasks": ["nyt"], "shots": [4]}, "targets.seeds: is missing"),
    (
        "backbone",
        {"uri": "a", "urk": 1, "url": 2},
        "backbone.urk: is no setting; there are kind, uri, pooling",
    ),
    # wrong types and values
    ("training.few.steps", "many", "training.few.steps: found many; input should be a valid integer"),
    ("training.few.steps", 0, "training.few.steps: found 0; input should be greater than or equal to 1"),
    ("training.few.learning_rate", -1, "training.few.learning_rate: found -1; input should be greater than 0"),
    ("training.few.select", "first", "training.few.select: found first; input should be 'last' or 'best'"),
    ("training.precision", "int8", "training.precision: found int8; input should be 'fp32', 'bf16' or 'fp16'"),
    ("training.zero_stage", 4, "training.zero_stage: found 4; input should be 0, 1, 2 or 3"),
    ("training.shots", {0: {}}, "training.shots.0"),
    ("backbone", "minilm", "backbone: found minilm; give its settings by name, kind being one of text"),
    ("backbone", {}, "backbone.uri: is missing"),
    ("sweep.top_k", 3, "sweep.top_k: found 3; input should be a valid list"),
    ("targets", {"tasks": ["nyt"], "shots": 4, "seeds": [0]}, "targets.shots: found 4; input should be a valid list"),
    ("targets", {"tasks": ["nyt"], "shots": [0], "seeds": [0]}, "targets.shots.0: found 0; input should be greater"),
    (
        "targets",
        {"tasks": ["nyt"], "shots": [4, None], "seeds": [0]},
        "targets.shots.1: found null; give a number of shots per class, or full",
    ),
    (
        "targets",
        {"tasks": ["nyt"], "shots": ["all"], "seeds": [0]},
        "targets.shots.0: found all; give a number of shots per class, or full",
    ),
    ("targets", [], "targets: found []; "),
    # names
    ("tasks", ["movie", "amazon", "nyt", "muvie"], "tasks: found 'muvie'; the catalogue has movie, amazon, nyt"),
    ("tasks", ["movie", ["amazon"]], "tasks: found ['amazon'] in a list; a list has names of the catalogue"),
    ("tasks", [{"movie": None}], "tasks: found {'movie': None} in a list; a list has names of the catalogue"),
    ("training.few.steps", "9" * 20, "training.few.steps: found 99999999999999999999; a whole number has at most 15"),
    ("tasks", {"Movie": TABLE}, "tasks: found 'Movie'; a name has lower-case letters"),
    ("tasks", ["movie", "amazon", "nyt", "nyt"], "tasks: nyt is there twice; name each task once"),
    ("expert", {"kind": "lorra"}, "expert.kind: found lorra; it is one of lora, adapter"),
    ("expert", {"rank": 4}, "expert.kind: is missing; name one of lora, adapter"),
    ("sources", ["movie", "tweets"], "sources: found tweets@full#0; tasks has movie, amazon, nyt"),
    ("targets", ["reuters@4#0"], "targets: found reuters@4#0; tasks has movie, amazon, nyt"),
    # slices
    ("targets", ["movie@16"], "targets: 'movie@16' is not a slice; write task@shots#seed"),
    ("targets", ["movie@4#0", "nyt@4#0", "movie@4#0"], "targets: movie@4#0 is there twice; name each slice once"),
    ("targets", ["movie@4#0~1of2"], "targets: found movie@4#0~1of2, a fold; a study makes those by itself, name the"),
    ("targets", ["movie@4#0", "movie@4#00"], "targets: movie@4#0 is there twice; name each slice once"),
    ("sources", ["movie", "movie@full#0"], "sources: movie@full#0 is there twice; name each slice once"),
    # the transfer matrix
    ("transfer", True, "transfer: found true; input should be a valid dictionary"),
    ("transfer.shots", [4], "transfer.shots: is no setting; there are sources, targets"),
    (
        "transfer.sources",
        ["movie", "tweets"],
        "transfer.sources: found tweets@full#0; sources has movie@full#0, amazon",
    ),
    ("transfer.sources", ["nyt", "nyt"], "transfer.sources: nyt@full#0 is there twice; name each slice once"),
    ("transfer.sources", [], "transfer.sources: found []; "),
    ("transfer.targets", ["nyt@4#0", "nyt@4#0"], "transfer.targets: nyt@4#0 is there twice; name each slice once"),
    ("transfer.targets", ["tweets@4#0"], "transfer.targets: found tweets@4#0; tasks has movie, amazon, nyt"),
    ("transfer.targets", {"tasks": [], "shots": [4], "seeds": [0]}, "transfer.targets.tasks: found []; "),
    ("transfer.targets", {"tasks": ["nyt"], "shots": [4]}, "transfer.targets.seeds: is missing"),
    (
        "transfer.targets",
        {"tasks": ["nyt"], "shots": [4], "seeds": list(range(40_000))},
        "transfer: found 120,000 pairs; a transfer matrix has at most 100,000",
    ),
    # the sweep
    ("sweep.top_k", [1, 3], "sweep.top_k: found 3, target movie@16#0 has 2 sources of other tasks; use at most 2"),
    ("sweep.top_k", [0], "sweep.top_k.0: found 0; input should be greater than or equal to 1"),
    ("sweep.temperature", [0.5, -0.1], "sweep.temperature.1: found -0.1; input should be greater than 0"),
    ("sweep.temperature", [float("nan")], "sweep.temperature.0: found nan; input should be a finite number"),
    ("training.few.learning_rate", float("inf"), "training.few.learning_rate: found inf; input should be a finite"),
    ("study", "s3://KEY:SECRET@bucket/study", "study: found a URI with credentials; give them in the environment"),
    ("sweep.folds", 1, "sweep.folds: found 1; input should be greater than or equal to 2"),
    ("sweep.trials", 0, "sweep.trials: found 0; input should be greater than or equal to 1"),
    # rows of the table
    ("methods", ["pi", "single", "pi"], "methods: pi is there twice; name each method once"),
    ("methods", [], "methods: found []; "),
    ("methods", "pi", "methods: found pi; input should be a valid list"),
    ("multitask.mixing", "equal", "multitask.mixing: found equal; input should be 'size', 'temperature' or 'uniform'"),
    ("multitask.temperature", 0, "multitask.temperature: found 0; input should be greater than 0"),
    (
        "multitask",
        {"mixing": "size", "temperature": 3},
        "multitask.temperature: changes nothing where mixing is size; leave it out",
    ),
    # what does not fit together
    (
        "runtime.workers",
        3,
        "training.full.batch_size: found 16, 3 workers with gradient_accumulation 1 need a multiple of 3",
    ),
    (
        "training",
        {"shots": {4: {"batch_size": 6}}, "gradient_accumulation": 4},
        "training.shots.4.batch_size: found 6, ",
    ),
]


@pytest.mark.parametrize(("place", "value", "says"), WRONG, ids=[f"{place}={value}"[:60] for place, value, _ in WRONG])
def test_what_is_wrong_is_one_line(place: str, value: Any, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, with_value(place, value))
    with pytest.raises(PituneError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {says}")
    assert "\n" not in message and len(message) - len(str(path)) < 300


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "study: is missing (and 4 more)"),
        ("- a\n- b\n", "holds a list"),
        ("just words", "holds just words; a study has settings by name"),
        ("a: [1", "cannot be read as YAML"),
        ("study: a\nstudy: b\n", "cannot be read as YAML"),
        ("study: ${nothing}", "cannot be put together"),
    ],
)
def test_what_is_no_configuration_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PituneError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {says}") and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PituneError, match=r"missing\.yaml: no such file; give a study's YAML"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(PituneError, match="cannot be read as YAML"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(PituneError, match="cannot be read as YAML"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.few.steps", "--set training.few.steps: found no value; write --set training.few.steps=30"),
        ("training.few.stepz=3", "training.few.stepz: is no setting"),
        ("sources.movie=3", "cannot be put together"),
        ("training.few.steps=[1", "cannot be read as YAML"),
    ],
)
def test_wrong_overrides_are_one_line(override: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with pytest.raises(PituneError) as caught:
        load_config(path, [override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["interpolation.start=uniform", "sweep.temperature=[0.1,0.2]"], "sweep.temperature: changes nothing where"),
        (["interpolation.max_rank=8", "expert.kind=adapter"], "interpolation.max_rank: cuts the rank of a merged lora"),
    ],
)
def test_what_would_change_nothing_is_refused(overrides: list[str], says: str, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert load_config(path, overrides[:1])
    with pytest.raises(PituneError, match=says):
        load_config(path, overrides)


def test_the_command_line_says_it_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = with_value("sweep.temperature", [-1.0]) | {"study": str(tmp_path / "study")}
    monkeypatch.setattr("sys.argv", ["pitune", "plan", str(written(tmp_path, values))])
    with pytest.raises(SystemExit) as caught:
        cli_main()
    assert caught.value.code == 2
    assert "sweep.temperature.0: found -1.0; input should be greater than 0" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_configurations_that_come_along_are_right(path: Path) -> None:
    assert load_config(path).targets


@pytest.mark.parametrize(("name", "shots", "more"), [("4_shots", 4, set()), ("full", None, {"sweep"})])
def test_the_other_regimes_of_the_twenty_tasks_are_over_the_same_experts(
    name: str, shots: int | None, more: set[str]
) -> None:
    first, other = (load_config(CONFIGS / f"{file}.yaml") for file in ("twenty_tasks", f"twenty_tasks_{name}"))
    differing = {name for name in StudyConfig.model_fields if getattr(first, name) != getattr(other, name)}
    assert differing == {"targets", "transfer", "methods"} | more
    assert {target.shots for target in other.target_slices} == {shots} and other.transfer is None


def test_the_encoders_that_come_along_are_right() -> None:
    assert load_bridge(CONFIGS / "bridge.yaml").tasks
    assert load_align(CONFIGS / "align.yaml").tasks


class Round(Settings):
    kind: Literal["round"] = "round"
    radius: int = 1


class Square(Settings):
    kind: Literal["square", "box"] = "square"
    side: int = 2


class OfOne(Settings):
    shape: Annotated[Settings, OneOf((Round,), default="round")] = Round()


class OfTwo(Settings):
    shape: Annotated[Settings, OneOf((Round, Square))]


def test_a_registry_names_its_members() -> None:
    assert OfOne.model_validate({"shape": {"radius": 3}}) == OfOne(shape=Round(radius=3))  # the kind goes unsaid
    assert OfOne() == OfOne.model_validate({"shape": {}}) == OfOne.model_validate({"shape": {"kind": "round"}})
    two = OfTwo.model_validate({"shape": {"kind": "box"}})
    assert two.model_dump(mode="json") == {"shape": {"kind": "box", "side": 2}}  # every field, of the member
    assert OfTwo.model_validate(two.model_dump()) == two == OfTwo.model_validate_json(two.model_dump_json())


@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        (OfOne, {"kind": "square"}, "shape.kind: found square; it is one of round"),
        (OfOne, {"side": 1}, "shape.side: is no setting; there are kind, radius"),
        (OfOne, None, "shape: found null; give its settings by name, kind being one of round"),
        (OfTwo, {"side": 1}, "shape.kind: is missing; name one of round, square, box"),
        (OfTwo, {"kind": ["box"]}, "shape.kind: found ['box']; it is one of round, square, box"),
        (OfTwo, {"kind": "box", "side": "x"}, "shape.side: found x; input should be a valid integer"),
        (OfTwo, "box", "shape: found box; give its settings by name, kind being one of round, square, box"),
        (OfTwo, Recipe(), "shape.kind: is missing; name one of round, square, box"),
    ],
)
def test_what_is_no_member_is_one_line(model: type[Settings], shape: Any, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"shape": shape})
    assert wrong(caught.value).startswith(says)
