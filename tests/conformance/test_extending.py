"""The kind that docs/extending.md shows in full, as a new user would add it, through the conformance tests."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import test_conformance
from members import Member

from pitune.experts import ExpertKind, checkpoint
from pitune.objectives import OBJECTIVES


def shown(section: str, name: str, folder: Path) -> Any:
    """Write the first block of code of a section into a file of its own, and return what it calls ``name``."""
    text = (Path(__file__).parents[2] / "docs/extending.md").read_text()
    block = re.search(rf"^## {section}\n.*?```python\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    (folder / "shown.py").write_text(block[1])
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
        member = Member("bert", kind(layers=2), objective())
        test_conformance.test_packed_equals_single(member)
        test_conformance.test_merged_equals_mixed(member)
        test_conformance.test_exact_fisher_equals_a_loop(member)
        test_conformance.test_two_files_read_back_and_load(member, tmp_path)
        test_conformance.test_a_neutral_start_changes_nothing(member)
        test_conformance.test_live_and_frozen_equals_all_live(member)
