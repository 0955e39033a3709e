"""Exporting: the study's own bytes, a card that says what is in them, and one line where it cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import peft
import pytest
import tinystudy
import torch
from huggingface_hub import ModelCard
from madestudy import MEMBERS, SCORES, TARGET, WEIGHTS, make_study
from tinymodel import EVERY_KIND, KINDS, embed, open_encoder

import pitune
from pitune.backbones.text import TextBackbone
from pitune.cli import main
from pitune.errors import PituneError
from pitune.experts import ExpertKind
from pitune.experts import checkpoint as files
from pitune.sharing import export
from pitune.store import Store, table_bytes

TARGETS = (TARGET, "beta@2#1")
TEXTS = ["w1 w2 w3 w4", "w30 w7"]


def exported(store: Store, to: Path, target: str = TARGET, method: str = "pi") -> Path:
    export(store, TARGETS, target, method, to, "mit")
    return to


def refusal(store: Store, to: Path, target: str = TARGET, method: str = "pi") -> str:
    with pytest.raises(PituneError) as caught:
        exported(store, to, target, method)
    assert not to.exists() and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("method", ["pi", "single", "uniform"])
def test_the_weights_are_the_studys_and_nothing_else_is_there(study: Store, tmp_path: Path, method: str) -> None:
    folder = exported(study, tmp_path / "out", method=method)
    artifact = {"pi": "interpolations/{}", "single": "experts/{}", "uniform": "baselines/{}/uniform"}[method]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", files.CONFIG, files.WEIGHTS]
    assert (folder / files.WEIGHTS).read_bytes() == study.read(artifact.format(TARGET), files.WEIGHTS)
    before = json.loads(study.read(artifact.format(TARGET), files.CONFIG))
    after = json.loads((folder / files.CONFIG).read_text())
    assert after == {**before, "base_model_name_or_path": "tiny"}
    before = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert [path.read_bytes() for path in sorted(exported(study, folder, method=method).iterdir())] == before


def test_the_card_says_what_the_study_says(study: Store, tmp_path: Path) -> None:
    card = ModelCard.load(exported(study, tmp_path / "out") / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "peft" and card.data.base_model is None
    (result,) = card.data.eval_results or []
    assert (result.dataset_name, result.dataset_split) == ("alpha", "test")
    assert (result.task_type, result.metric_type, result.metric_value) == ("text-classification", "accuracy", 0.75)
    assert "somebody" not in card.text and "ab" * 32 in card.text
    for member, weights in zip(MEMBERS, zip(*WEIGHTS.values(), strict=True), strict=True):
        own = " (its own)" if member == TARGET else ""
        assert f"| `{member}`{own} | {sum(weights) / 2:.3f} |\n" in card.text
    for method, score in SCORES.items():
        title = "**pi**" if method == "pi" else method.replace("_", "-")
        assert re.search(rf"^\| {re.escape(title)} \| {score:.4f} \| 1 \|$", card.text, re.MULTILINE)
    for part in (
        "`study-mark`",
        "`pi-mark`",
        f"pitune {pitune.__version__}",
        "    neg: a bad | film\n",
        "alpha, 2 shots, seed 0",
    ):
        assert part in card.text
    assert "knows neither the licence of the backbone nor those of the data" in card.text
    assert "{{" not in card.text and "{%" not in card.text


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_it_loads_as_the_card_says(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path, tmp_path: Path) -> None:
    folder = exported(make_study(tmp_path / "study", tiny, kind, str(tiny_folder)), tmp_path / "out")
    plain, ours = open_encoder(tiny_folder), open_encoder(tiny_folder)
    pitune.load(ours.model, folder)
    found = embed(ours, TEXTS)
    assert (found - embed(plain, TEXTS)).abs().max() > 1e-3
    studys = open_encoder(tiny_folder)
    pitune.load(studys.model, tmp_path / "study" / "interpolations" / TARGET)
    assert found.equal(embed(studys, TEXTS))
    card = (folder / "README.md").read_text()
    assert ("PEFT has no such kind" in card) == ("peft.PeftModel" not in card) == (kind.kind != "lora")
    if kind.kind == "lora":
        plain.model = peft.PeftModel.from_pretrained(plain.model, str(folder)).base_model.model.eval()
        torch.testing.assert_close(embed(plain, TEXTS), found, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("uri", "base", "revision", "fetched"),
    [
        ("hf:owner/name@v1", "owner/name", "v1", "hf:owner/name@v1"),
        ("hf:owner/name", "owner/name", None, "hf:owner/name"),
        ("pypi:gt==1#gt/model", "pypi:gt==1#gt/model", "none", "pypi:gt==1#gt/model"),
    ],
)
def test_the_backbone_is_named_for_others(
    uri: str, base: str, revision: str | None, fetched: str, tiny: TextBackbone, tmp_path: Path
) -> None:
    folder = exported(make_study(tmp_path / "study", tiny, KINDS[0], uri), tmp_path / "out")
    config = json.loads((folder / files.CONFIG).read_text())
    assert config["base_model_name_or_path"] == base and config.get("revision", "none") == revision
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == (base if uri.startswith("hf:") else None)
    assert f'fetch("{fetched}")' in card.text


def test_what_cannot_be_exported_is_one_line(study: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert refusal(study, out, "delta@2#0") == "target: found delta@2#0; the study has alpha@2#0, beta@2#1"
    assert "target beta@2#1 is not finished; run the study first" in refusal(study, out, "beta@2#1")
    assert refusal(study, out, method="ties") == "--method: found ties; alpha@2#0 has zero_shot, single, uniform, pi"
    assert refusal(study, out, method="zero_shot").startswith("--method: zero_shot scores the backbone alone")
    weights = tmp_path / "study" / "interpolations" / TARGET / files.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert f"{weights}: sha256" in refusal(study, out)
    study.commit(f"interpolations/{TARGET}", {"a": b""}, "another")
    assert "is not the expert that was scored; run the study again" in refusal(study, out)
    study.discard(f"interpolations/{TARGET}")
    assert "is not there or not finished" in refusal(study, out)
    study.discard("results.parquet")
    assert "target alpha@2#0 is not finished" in refusal(study, out)


def test_captions_are_not_listed(study: Store, tmp_path: Path) -> None:
    captions = [{"label": str(number), "text": f"caption {number}"} for number in range(300)]
    facts = {"modality": "image", "metric": "accuracy", "labels": 300}
    study.commit("tasks/alpha", {"labels.parquet": table_bytes(captions)}, "t", **facts)
    card = (exported(study, tmp_path / "out") / "README.md").read_text()
    assert "300 candidates" in card and "caption" not in card.replace("captions", "")


def test_the_command_exports(
    study: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "out", str(tinystudy.make_study(tmp_path))
    monkeypatch.setattr("sys.argv", ["pitune", "export", config, TARGET, "--to", str(out), "--method", "single"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and capsys.readouterr().out.startswith(f"{out}: read README.md, then pitune push ")
    assert (out / files.WEIGHTS).read_bytes() == study.read(f"experts/{TARGET}", files.WEIGHTS)
    assert ModelCard.load(out / "README.md").data.license == "other"
