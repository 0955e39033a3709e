"""The stage that merges: every rule's weights, all candidates in one pass, and what is committed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tinymerges import NEAR, SIMILARITIES, SOURCES, TARGET, experts_of, materials_with_experts, plain_scores
from tinymodel import EVERY_KIND, flat, random_expert

from pitune.backbones.base import ROWS_AT_ONCE
from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import Bank, Expert, ExpertKind, Lora
from pitune.experts.checkpoint import to_files
from pitune.interpolation.jobs import MergeJob
from pitune.interpolation.merges import ties
from pitune.interpolation.merging import WEIGHTS, candidates, merge_best
from pitune.interpolation.tune import Setting, validate_all
from pitune.materials import Materials

RULES: dict[str, list[dict[str, Any]]] = {
    "average": [{"top_k": 1}, {"top_k": 3}, {"top_k": 3, "own": 0.0}, {"top_k": 2, "own": 0.75}],
    "softmax": [{"top_k": 2, "temperature": heat, "own": own} for heat in (0.2, 1.0) for own in ("trained", "fresh")],
    "sum": [{"top_k": k, "scale": scale} for scale in (0.3, 1.0) for k in (1, 3)],
    "trim": [{"top_k": 2, "density": 0.5, "scale": scale} for scale in (1.0, 0.5, 2.0)],
    "drop": [{"top_k": k, "density": 0.5, "scale": 1.0} for k in (2, 3)],
}


def make_job(rule: str, tried: Sequence[dict[str, Any]]) -> MergeJob:
    return MergeJob(("baselines/a@4#0/x",), {"rule": rule}, TARGET, NEAR, "experts/a@4#0", rule, tuple(tried))


@pytest.fixture
def materials(tiny_folder: Path, tmp_path: Path) -> Materials:
    return materials_with_experts(tmp_path, tiny_folder)


def test_the_rules_weigh_as_they_say() -> None:
    assert WEIGHTS["average"]({"top_k": 3}, SIMILARITIES) == pytest.approx([0.25] * 4)
    assert WEIGHTS["average"]({"top_k": 3, "own": 0.4}, SIMILARITIES) == pytest.approx([0.2, 0.2, 0.2, 0.4])
    assert WEIGHTS["sum"]({"top_k": 3, "scale": 0.3}, SIMILARITIES) == pytest.approx([0.3] * 4)
    for own, at in (("trained", 1.0), ("fresh", 0.0)):
        shares = [math.exp(value / 0.2) for value in (*SIMILARITIES, at)]
        found = WEIGHTS["softmax"]({"temperature": 0.2, "own": own}, SIMILARITIES)
        assert found == pytest.approx([share / sum(shares) for share in shares], rel=1e-5)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_each_candidate_is_the_start_and_its_weighted_vectors(kind: ExpertKind, tiny: TextBackbone) -> None:
    """The reference adds up task vectors one by one, a fresh own expert none."""
    start, experts = kind.start(tiny), [random_expert(kind, tiny, seed) for seed in range(4)]
    for rule, tried in RULES.items():
        job = make_job(rule, tried)
        for one in candidates(kind, job, experts, start):
            k = one.setting["top_k"]
            some = [*experts[:k], start if one.setting.get("own") == "fresh" else experts[-1]]
            if rule == "drop":
                continue  # its luck is its own: what comes of it is in the tests of merges
            for path, held in one.expert.items():
                moved = [kind.vector(expert[path], start[path]) for expert in some]
                for name, reached in kind.vector(held, start[path]).items():
                    parts = [vector[name] for vector in moved]
                    if rule == "trim":
                        expected = one.setting["scale"] * ties(parts, 0.5)
                        if isinstance(kind, Lora):  # of rank 6
                            u, s, v = torch.linalg.svd(expected.double())
                            expected = (u[:, :6] @ torch.diag(s[:6]) @ v[:6]).float()
                    else:
                        weights = WEIGHTS[rule](one.setting, SIMILARITIES[:k])
                        expected = sum(w * part for w, part in zip(weights, parts, strict=True))  # type: ignore[assignment]
                    torch.testing.assert_close(reached, expected, atol=1e-5, rtol=1e-4)
            if rule in WEIGHTS or not isinstance(kind, Lora):
                assert one.rank_error == 0
            else:
                assert one.rank_error > 0.05


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_what_is_drawn_depends_on_the_names_and_the_density_alone(kind: ExpertKind, tiny: TextBackbone) -> None:
    """Neither on what else is tried nor on the order of a file's tensors."""
    start, experts = kind.start(tiny), [random_expert(kind, tiny, seed) for seed in range(4)]
    turned = [{path: dict(reversed(held.items())) for path, held in reversed(expert.items())} for expert in experts]

    def drawn(experts: list[Expert], *tried: tuple[int, float]) -> list[torch.Tensor]:
        job = make_job("drop", [{"top_k": k, "density": density, "scale": 1.0} for k, density in tried])
        return [flat(one.expert) for one in candidates(kind, job, experts, start)]

    one, other = drawn(experts, (2, 0.5)), drawn(turned, (3, 0.5), (2, 0.3), (2, 0.5))
    torch.testing.assert_close(one[0], other[2])
    assert other[1].shape == one[0].shape and not torch.allclose(other[1], one[0])


@pytest.mark.parametrize("rule", RULES)
def test_validated_together_they_score_as_one_by_one(
    rule: str, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged experts of unlike ranks in one bank, against each alone and row by row."""
    found = candidates(materials.kind, make_job(rule, RULES[rule]), experts_of(materials), materials.start)
    rows = materials.rows(((TARGET, 1.0),), "validation")
    bank = Bank(materials.kind, [one.expert for one in found])
    monkeypatch.setitem(ROWS_AT_ONCE, "cpu", 12)
    scores = validate_all(Setting.of(materials), bank, len(found), rows)
    assert len(rows) == 8 and len({score.loss for score in scores}) == len(found)
    for one, score in zip(found, scores, strict=True):
        assert (score.loss, score.accuracy) == pytest.approx(plain_scores(materials, one.expert), abs=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_the_best_is_committed_and_scores_as_it_did(rule: str, materials: Materials) -> None:
    job = make_job(rule, RULES[rule])
    merge_best(materials, job)
    manifest = materials.store.manifest(job.artifacts[0])
    assert manifest is not None
    losses = [tried["loss"] for tried in manifest["tried"]]
    best = losses.index(min(losses))
    assert manifest["setting"] == RULES[rule][best]
    assert manifest["validation"]["loss"] == losses[best]
    assert [{**tried, "loss": 0, "accuracy": 0} for tried in manifest["tried"]] == [
        {**tried, "loss": 0, "accuracy": 0} for tried in RULES[rule]
    ]
    k = manifest["top_k"]
    assert manifest["members"] == [*SOURCES[:k], "a@4#0"]
    assert (manifest["trials"], manifest["steps"]) == (len(RULES[rule]), 0) and manifest["seconds"] > 0
    exported = materials.expert(job.artifacts[0])
    found = manifest["validation"]["loss"], manifest["validation"]["accuracy"]
    assert plain_scores(materials, exported) == pytest.approx(found, abs=1e-5)
    assert isinstance(materials.kind, Lora)
    assert {len(held["lora_A.weight"]) for held in exported.values()} == {(k + 1) * materials.kind.rank}
    assert (manifest["rank_error"] > 0) is (rule in ("trim", "drop"))


def test_of_equally_good_ones_it_is_the_first(materials: Materials) -> None:
    job = make_job("average", [{"top_k": 1, "own": 1.0}, {"top_k": 3, "own": 1.0}, {"top_k": 2, "own": 1.0}])
    merge_best(materials, job)  # all of them are the own expert
    manifest = materials.store.manifest(job.artifacts[0])
    assert manifest is not None and manifest["top_k"] == 1


def test_what_is_no_number_loses_and_alone_is_an_error(materials: Materials) -> None:
    broken = experts_of(materials)[2]
    next(iter(broken.values()))["lora_A.weight"][:] = math.nan
    materials.store.commit(f"experts/{SOURCES[2]}", to_files(materials.kind, broken, "tiny"), "mark")
    job = make_job("average", [{"top_k": 3}, {"top_k": 2}])
    merge_best(materials, job)
    manifest = materials.store.manifest(job.artifacts[0])
    assert manifest is not None and manifest["top_k"] == 2
    assert manifest["tried"][0]["loss"] is None and manifest["tried"][1]["loss"] > 0
    with pytest.raises(PituneError, match=r"^baselines/a@4#0/x: no merge has a validation loss that is a number"):
        merge_best(materials, make_job("average", [{"top_k": 3}]))
