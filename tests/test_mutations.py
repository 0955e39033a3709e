"""Configurations changed at random: whatever stands in the file, it is read, or refused in one line."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinystudy import CONFIGS, SHIPPED, make_study

from pitune.cli import main
from pitune.config import StudyConfig, load_config
from pitune.errors import PituneError

TABLES = {
    "mine": {"train": "a.csv", "test": "b.csv", "key": "id", "labels": {"0": "no", "1": "yes"}, "metric": "macro_f1"},
    "theirs": {"train": "c.tsv", "text": "body", "label": "class", "labels": {"a": "one", "b": "two", "c": "three"}},
}
LIMITS = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}
QUICKSTART: dict[str, Any] = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
Place = tuple[str | int, ...]


def bases() -> list[dict[str, Any]]:
    """Return the shipped configurations as they are and with all defaults, and one with tables and another kind."""
    found = [yaml.safe_load(path.read_text()) for path in SHIPPED]
    found += [yaml.safe_load(load_config(path).yaml()) for path in SHIPPED]
    own = {"tasks": TABLES, "sources": ["mine", "theirs"], "targets": ["mine@4#0"], "expert": {"kind": "adapter"}}
    return [*found, yaml.safe_load(StudyConfig.model_validate(QUICKSTART | own | {"sweep": {"top_k": [1]}}).yaml())]


BASES = bases()


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    """Walk all that a configuration holds, itself included."""
    yield above
    for name in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[name], (*above, name))


def put(values: Any, place: Place, change: Callable[[Any, Any], None]) -> Any:
    """Return a copy in which ``change`` was let loose on the container of a place and its key or index there."""
    top = {"top": copy.deepcopy(values)}
    inner: Any = top
    for name in ("top", *place)[:-1]:
        inner = inner[name]
    change(inner, ("top", *place)[-1])
    return top["top"]


def loaded(text: str, folder: Path, overrides: list[str] | None = None) -> StudyConfig | str:
    """Read a configuration; return it, or the one line that refuses it."""
    path = folder / "study.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        return load_config(path, overrides or [])
    except PituneError as error:
        said = str(error)
        assert said.startswith((f"{path}: ", "--set ")), said
        assert len(said.splitlines()) == 1 and said.isprintable() and said.removeprefix(f"{path}: "), said
        assert len(said) < len(str(path)) + 330, said
        return said


NUMBERS = (
    *(0, -1, 1, 2**31, -(2**63), 2**64, 10**30, 10**400, 0.0, -0.5, 0.5, 1e308, -1e-320, 7.0),
    *(math.nan, math.inf, -math.inf, True, False, None),
)
NAMES = (
    *("", " ", "kind", "lora", "adapter", "uri", "movie", "movie@16#0", "movie@full#0", "nyt@4", "@", "#", "full"),
    *("1e5", "0x10", "null", "~", "true", "2020-01-01", "1:30", "=", "<<", "???", "${", "${study}", "\\${study}"),
    *("a\nb", "\x00", "\x1b[31m", "\u2028", "ä", "𝔪", "\u202e", "[kind] lora", "[key]", "a.b", "x" * 5000),
    *("9" * 30, "movie@" + "9" * 30 + "#0", "movie@1#" + "9" * 5000, "s3://key:secret@bucket/a", "*a", "&a", "!!x"),
)
numbers, names = st.sampled_from(NUMBERS), st.sampled_from(NAMES)
scalars = numbers | names | st.text(max_size=8) | st.integers() | st.floats()
keys = names | st.integers(-3, 30) | st.none() | st.booleans() | st.text(max_size=4)
odd = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


@st.composite
def mutated(draw: st.DrawFn, base: Any = None) -> Any:
    """Draw a configuration with one to three changes of any kind at any place."""
    values = draw(st.sampled_from(BASES)) if base is None else base
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        place = draw(st.sampled_from(list(places(values))))
        values = put(values, place, draw(st.sampled_from([replace, delete, double, rename, add]))(draw))
    return values


def replace(draw: st.DrawFn) -> Callable[[Any, Any], None]:
    value = draw(odd)
    return lambda container, name: container.__setitem__(name, value)


def delete(draw: st.DrawFn) -> Callable[[Any, Any], None]:
    return lambda container, name: container.__delitem__(name) if name != "top" else None


def double(draw: st.DrawFn) -> Callable[[Any, Any], None]:
    """Have an entry of a list twice; of anything else make a list of itself."""

    def change(container: Any, name: Any) -> None:
        if isinstance(container, list):
            container.append(container[name])
        else:
            container[name] = [container[name]]

    return change


def rename(draw: st.DrawFn) -> Callable[[Any, Any], None]:
    to = draw(keys)

    def change(container: Any, name: Any) -> None:
        if isinstance(container, dict) and name != "top":
            container[to] = container.pop(name)

    return change


def add(draw: st.DrawFn) -> Callable[[Any, Any], None]:
    key, value = draw(keys), draw(odd)

    def change(container: Any, name: Any) -> None:
        if isinstance(container[name], dict):
            container[name][key] = value
        elif isinstance(container[name], list):
            container[name].append(value)

    return change


ODD = [None, True, -1, 0, 2.5, math.nan, math.inf, 10**30, 16**5000, "", "x", "a\nb", "9" * 30, [], {}]
ODD += [[[]], [None], [{"a": 1}], {"a": 1}, {"kind": []}, {1: {2: [3]}}, ["x", "x"]]


@pytest.mark.parametrize("base", [0, 1, -1])
def test_every_field_with_every_odd_value(base: int, tmp_path: Path) -> None:
    values = BASES[base]
    for place in places(values):
        if any(isinstance(part, int) and part > 0 for part in place):
            continue  # one entry of a list is like the next
        for value in ODD:
            loaded(written(put(values, place, lambda inner, name, v=value: inner.__setitem__(name, v))), tmp_path)


def written(values: Any) -> str:
    return yaml.dump(values, Dumper=Whole, sort_keys=False, allow_unicode=True)


class Whole(SafeDumper):
    """Writes every value out, without aliases, and whole numbers of any length."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Whole.add_representer(
    int,
    lambda dumper, value: dumper.represent_scalar(
        "tag:yaml.org,2002:int", f"{value:#x}" if value > 10**400 else str(value)
    ),
)


@given(values=mutated())
@settings(max_examples=400, **LIMITS)
def test_any_change_is_read_or_refused(values: Any, tmp_path: Path) -> None:
    config = loaded(written(values), tmp_path)
    if isinstance(config, StudyConfig):  # then what it resolves to says the same
        assert loaded(config.yaml(), tmp_path) == config


@given(place=st.sampled_from(list(places(BASES[0]))), value=names | st.text(max_size=12), deeper=names)
@settings(max_examples=25, **LIMITS)
def test_any_override_is_read_or_refused(place: Place, value: str, deeper: str, tmp_path: Path) -> None:
    name = ".".join(map(str, place))
    for override in (f"{name}={value}", f"{name}.{deeper}=[{value}]", f"{deeper}={value}"):
        loaded(written(BASES[0]), tmp_path, [override])


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
FORMS = [
    ("\tstudy: a", "cannot be read as YAML"),
    ("study: a\n\tbackbone: b", "cannot be read as YAML"),
    ("study: &a [*a]", "the alias *a stands in what it is an alias of"),
    ("study: &a {b: {c: *a}}", "the alias *a stands in what it is an alias of"),
    ("study: *nothing", "the alias *nothing stands in what it is an alias of, or for nothing"),
    (LAUGHS, "300,000 values with its aliases written out"),
    ("study: a\nstudy: b", "line 2: study is there twice"),
    ("training: {shots: {4: {steps: 1}, 4: {steps: 2}}}", "line 1: 4 is there twice"),
    ("? [a]\n: b", "cannot be read as YAML"),
    ("? {a: b}\n: c", "cannot be read as YAML"),
    ("<<: 3", "cannot be read as YAML"),
    ("study: =", "cannot be read as YAML"),
    ("study: " + "[" * 100_000, "more than 20 levels"),
    ("study: " + "{a: " * 100_000, "more than 20 levels"),
    ("\n".join("  " * i + "a:" for i in range(3_000)), "more than 20 levels"),
    ("- " * 3_000 + "a", "more than 20 levels"),
    ("a: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2_000)), "cannot be read as YAML"),
    ("study: !!python/object/apply:os.getcwd []", "found the tag tag:yaml.org,2002:python/object/apply:os.getcwd"),
    ("study: !!python/object/apply:pathlib.WindowsPath [a]", "found the tag"),
    ("study: !!bool maybe", "found the tag"),
    ("study: !own a", "found the tag !own"),
    ("study: a\n---\nstudy: b", "cannot be read as YAML"),
    ("%YAML 9.9\n---\nstudy: b", "cannot be read as YAML"),
    ("3", "holds 3; a study has settings by name"),
    ("~", "study: is missing"),
    ("1e-3", "holds 0.001; a study has settings by name"),
    ("study: 0x" + "f" * 9_000, "found a number of 36000 bits"),
    ("study: " + "9" * 9_000, "cannot be read as YAML"),
    ("study: ${study}", "cannot be put together"),
    ("study: ${backbone}\nbackbone: {uri: '${study}'}", "cannot be put together"),
    ("study: ${nothing:1}", "cannot be put together"),
    ("study: ${", "cannot be put together"),
    ("study: ${oc.env:NO_SUCH_VARIABLE}", "cannot be put together"),
    ("study: '${oc.decode:\"" + "[" * 5_000 + "\"}'", "cannot be put together"),
    ("a0: xxxx\n" + "".join(f"a{i}: '{f'${{a{i - 1}}}' * 10}'\n" for i in range(1, 12)), "found 110 references"),
    ("study: \x00", "cannot be read as YAML"),
    ('study: "\\ud800"', "cannot be read as YAML"),
    ("\ud800: a", "cannot be read as YAML"),
    ('"a\\nb": 1', "a b: is no setting"),
    ('"": 1', "is no setting"),
    ("x" * 900 + ": 1", "xxx"),
    ("? " + "x" * 100_000 + "\n: 1", "xxx"),
    (
        "targets: {tasks: [" + "movie, " * 1_000 + "], shots: [" + "4, " * 1_000 + "], seeds: [" + "0, " * 1_000 + "]}",
        "",
    ),
]


@pytest.mark.parametrize(("text", "says"), FORMS, ids=[text[:40] for text, _ in FORMS])
def test_odd_yaml_is_refused_in_one_line_and_soon(text: str, says: str, tmp_path: Path) -> None:
    started = time.process_time()
    said = loaded(text, tmp_path)
    assert isinstance(said, str) and says in said
    assert time.process_time() - started < 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_any_change_of_the_text_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    lines = path.read_text()
    bits = (
        "\t",
        "&a ",
        "*a ",
        "[",
        "]",
        "{",
        "}",
        ": ",
        "- ",
        "\n",
        "#",
        "'",
        '"',
        "|",
        "!",
        "%",
        "${",
        "\x85",
        "<<: ",
    )

    @given(places=st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=3), bit=st.sampled_from(bits))
    @settings(max_examples=150, **LIMITS)
    def check(places: list[int], bit: str) -> None:
        text = lines
        for place in places:
            text = text[:place] + bit + text[place:]
        loaded(text, tmp_path)

    check()


def test_large_studies_are_read_soon(tmp_path: Path) -> None:
    tasks = {f"t{i}": {"train": "a.csv", "labels": {"0": "no", "1": "yes"}} for i in range(1_000)}
    targets = {"tasks": list(tasks), "shots": [4, 16], "seeds": [0, 1, 2, 3, 4]}
    values = QUICKSTART | {"tasks": tasks, "sources": list(tasks), "targets": targets}
    started = time.process_time()
    config = loaded(written(values), tmp_path)
    assert isinstance(config, StudyConfig) and len(config.targets) == 10_000
    assert loaded(config.yaml(), tmp_path) == config
    assert time.process_time() - started < 10
    said = loaded(written(values | {"targets": {**targets, "seeds": list(range(51))}}), tmp_path)
    assert isinstance(said, str) and "targets: found 102,000 slices; a study has at most 100,000" in said


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(make_study(tmp_path_factory.mktemp("tiny")).read_text())
    return found


@pytest.mark.parametrize("command", ["plan", "verify"])
def test_the_command_line_exits_with_0_or_2(
    command: str, tiny_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"

    @given(values=mutated(tiny_study if command == "plan" else None))  # a plan fetches the data, so they are made here
    @settings(max_examples=40, **LIMITS)
    def check(values: Any) -> None:
        path.write_text(written(values))
        said = StringIO()
        with redirect_stdout(StringIO()), redirect_stderr(said), pytest.raises(SystemExit) as caught:
            monkeypatch.setattr("sys.argv", ["pitune", command, str(path)])
            main()
        assert caught.value.code in (None, 0, 2)
        assert not caught.value.code or (said.getvalue().count("\n") == 1 and said.getvalue().startswith("pitune: "))

    check()
