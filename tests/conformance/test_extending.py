"""The members that docs/extending.md shows in full, as a new user would add them, through the conformance tests."""

from __future__ import annotations

import html
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import members
import pytest
import test_conformance
from members import Member
from tinymodel import save_encoder
from tinystudy import make_study

import pitune
from pitune.config import load_config
from pitune.experts import KINDS, ExpertKind, checkpoint
from pitune.methods import METHODS
from pitune.objectives import OBJECTIVES
from pitune.results import wrong_scores
from pitune.study import Study


def block(section: str) -> str:
    """Return the first block of code of a section."""
    text = (Path(__file__).parents[2] / "docs/extending.md").read_text()
    found = re.search(rf"^## {section}\n.*?```python\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def shown(section: str, name: str, folder: Path) -> Any:
    """Write the first block of code of a section into a file of its own, and return what it calls ``name``."""
    (folder / "shown.py").write_text(block(section))
    spec = importlib.util.spec_from_file_location("shown", folder / "shown.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = shown("An expert kind", "Gain", tmp_path)
    assert issubclass(kind, ExpertKind)
    monkeypatch.setitem(checkpoint.PEFT_TYPES, kind.peft_type, kind)
    for objective in OBJECTIVES:
        conforms(Member("bert", kind(layers=2), objective()), tmp_path)


def test_the_objective(tmp_path: Path) -> None:
    objective = shown("An objective", "Sigmoid", tmp_path)
    for kind in KINDS:
        conforms(Member("bert", kind(layers=2), objective()), tmp_path)


def test_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = shown("A backbone", "MaxTextSettings", tmp_path)
    folder = save_encoder(tmp_path / "bert", "bert")
    monkeypatch.setitem(members._ALL, "max_text", lambda: settings(uri="tiny", max_tokens=24).open(folder))
    for kind in KINDS:
        conforms(Member("max_text", kind(layers=2), OBJECTIVES[0]()), tmp_path)


@pytest.mark.slow
def test_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None) -> None:
    """It is a row of the results, a column of the report, and its expert saw the shots and the nearest source."""
    method = shown("A method", "WithNearest", tmp_path)
    monkeypatch.setitem(METHODS, method.name, method())
    methods = ["single", method.name]
    study = Study(load_config(make_study(tmp_path, targets=["alpha@2#0"], methods=methods)))
    study.run(Silent())
    (row,) = (row for row in study.store.table("results.parquet").to_pylist() if row["method"] == "with_nearest")
    assert row["prediction"] == "predictions/alpha@2#0/with_nearest.parquet"
    manifest = study.store.manifest("rivals/alpha@2#0/with_nearest")
    assert manifest is not None
    (own, weight), (source, rest) = manifest["data"]
    assert (own, weight, rest) == ("alpha@2#0", 0.75, 0.25) and source in ("beta@full#0", "gamma@full#0")
    assert method.note in html.unescape(study.store.read("report.html").decode())
    assert not wrong_scores(study.store)


def test_a_method_may_be_imported_first(tmp_path: Path) -> None:
    """A file and a line, in a copy of the package: a worker that unpickles a method's stage imports methods first."""
    shutil.copytree(Path(pitune.__file__).parent, tmp_path / "pitune", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pitune/methods/with_nearest.py").write_text(block("A method"))
    registry = tmp_path / "pitune/methods/__init__.py"
    text = registry.read_text()
    assert "ZeroShot()," in text
    registered = text.replace("ZeroShot(),", "ZeroShot(), WithNearest(),")
    registry.write_text("from pitune.methods.with_nearest import WithNearest\n" + registered)
    for first in ("pitune.methods.uniform", "pitune.methods.with_nearest", "pitune.plan", "pitune.cli"):
        code = f"import {first}, pitune.plan; from pitune.methods import METHODS; assert 'with_nearest' in METHODS"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


class Silent:
    def show(self, stages: object) -> None:
        """Tell nobody."""


def conforms(member: Member, folder: Path) -> None:
    """Put a member through what the registered ones are put through."""
    test_conformance.test_packed_equals_single(member)
    test_conformance.test_merged_equals_mixed(member)
    test_conformance.test_a_task_vector_leads_back_to_its_expert(member)
    test_conformance.test_task_vectors_add_up(member)
    test_conformance.test_exact_fisher_equals_a_loop(member)
    test_conformance.test_two_files_read_back_and_load(member, folder)
    if member.kind.neutral:
        test_conformance.test_a_neutral_start_changes_nothing(member)
    test_conformance.test_live_and_frozen_equals_all_live(member)
