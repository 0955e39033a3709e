"""The house: who may import whom, how long files and functions are, and what is named in one place only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pitune

ROOT = Path(pitune.__file__).parent
LAYERS = (
    "cli study runtime report sharing",
    "plan methods",
    "config",
    "results watching",
    "training embedding interpolation",
    "materials",
    "objectives",
    "experts",
    "backbones",
    "tasks",
    "store assets",
    "progress settings errors signals",
)
"""From above to below; arrows go down. What stands in one line may know each other, but for :data:`APART`."""
APART = {
    ("study", "cli"), ("runtime", "cli"), ("runtime", "study"), ("report", "cli"), ("report", "study"),
    ("report", "runtime"), ("runtime", "report"), ("report", "plan"), ("report", "sharing"), ("runtime", "sharing"),
    ("study", "sharing"), ("sharing", "cli"), ("sharing", "study"), ("sharing", "runtime"), ("sharing", "report"),
    ("training", "embedding"), ("training", "interpolation"), ("embedding", "training"),
    ("embedding", "interpolation"), ("interpolation", "embedding"), ("assets", "store"), ("store", "assets"),
}  # fmt: skip
"""Who may not import whom, beside those that are lower: (who, whom)."""
LIGHT = "settings"
"""Modules of this name hold a part of the configuration; whoever configures may know them, wherever they lie."""
OUTSIDE = {"ray": {"runtime"}, "deepspeed": {"training"}, "faiss": {"embedding"}, "nevergrad": {"interpolation"}}
LINES, FUNCTION_LINES = 350, 50


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Yield every module's dotted name within the package, its file and its syntax tree."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path, ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports when it runs: not what only a type checker reads."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (
                [f"pitune.{alias.name}" for alias in node.names] if node.module == "pitune" else [str(node.module)]
            )
        waiting.extend(ast.iter_child_nodes(node))


def part_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def height(part: str) -> int:
    return next(-place for place, line in enumerate(LAYERS) if part in line.split())


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {part_of(name) for name, _, _ in modules() if name}
    assert parts == {part for line in LAYERS for part in line.split()}


def test_arrows_go_down_only() -> None:
    wrong = []
    for name, _, tree in modules():
        for other in imports(tree):
            if not name or not other.startswith("pitune."):
                continue
            who, whom = part_of(name), part_of(other.removeprefix("pitune."))
            light = LIGHT in other.split(".") and who == "config"
            if who != whom and not light and (height(whom) > height(who) or (who, whom) in APART):
                wrong.append(f"{name} imports {other}")
    assert not wrong


@pytest.mark.parametrize("package", OUTSIDE)
def test_what_is_heavy_is_imported_in_one_place(package: str) -> None:
    found = {part_of(name) for name, _, tree in modules() for other in imports(tree) if part_of(other) == package}
    assert found == OUTSIDE[package]


def test_settings_are_light() -> None:
    """The configuration imports them: of Ray and DeepSpeed they know nothing, nor of what they configure."""
    for name, _, tree in modules():
        if name.endswith(f".{LIGHT}"):
            heavy = [
                other for other in imports(tree) if part_of(other) in ("torch", "ray", "deepspeed", "transformers")
            ]
            assert not heavy, name


def test_files_and_functions_are_short() -> None:
    long = []
    for name, path, tree in modules():
        lines = len(path.read_text().splitlines())
        if lines > LINES:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES:
                long.append(f"{name}.{node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines")
    assert not long


def test_methods_are_named_in_their_files_only() -> None:
    """But for the two that the report compares."""
    from pitune.methods import METHODS

    named = []
    for name, _, tree in modules():
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if part_of(name) not in ("methods", "report"):
            named += [f"{name}: {text}" for text in sorted(texts & METHODS.keys()) if text != "full"]  # also of slices
    allowed = (": uniform", ": similarity")  # also how weights may start, and a column of the graph
    assert [line for line in named if not line.endswith(allowed)] == []
