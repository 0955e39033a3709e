"""Stacking: shares by hand, the average beside a plain sum of updates, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tinymerges import SOURCES, TARGET, experts_of, materials_with_experts, plain_scores

from pitune.errors import PituneError
from pitune.experts import Lora
from pitune.experts.checkpoint import to_files
from pitune.experts.lora import A
from pitune.interpolation.jobs import StackingJob
from pitune.interpolation.stacking import likelihood_weights, stack
from pitune.materials import Materials
from pitune.sharing.card import members

MEMBERS = tuple(f"experts/{name}" for name in (*SOURCES[:2], TARGET))
PLACE = f"baselines/{TARGET}/stacked"


def test_shares_are_products_of_probabilities() -> None:
    """Two models, three examples, by hand: of what each says of all three."""
    chances = {"one": (0.5, 0.8, 0.4), "other": (0.25, 0.5, 0.9)}
    losses: list[float | None] = [-math.log(math.prod(held)) / 3 for held in chances.values()]
    one, other = (math.prod(held) for held in chances.values())
    assert likelihood_weights(losses, 3) == pytest.approx([one / (one + other), other / (one + other)])
    assert likelihood_weights([0.7, 0.7, None], 8) == pytest.approx([0.5, 0.5, 0.0])
    assert likelihood_weights([5.0, 3.0], 10_000) == [0.0, 1.0]  # the least likely one is no number any more
    few, many = (likelihood_weights([0.6, 0.5], count)[1] for count in (8, 80))
    assert 0.5 < few < 0.75 < 0.99 < many


@pytest.fixture
def materials(tmp_path: Path, tiny_folder: Path) -> Materials:
    return materials_with_experts(tmp_path, tiny_folder)


def finish(materials: Materials, losses: list[float | None]) -> None:
    """Let the members have been validated."""
    for name, loss in zip(MEMBERS, losses, strict=True):
        files = {file: materials.store.read(name, file) for file in materials.store.manifest(name)["files"]}  # type: ignore[index]
        materials.store.commit(
            name, files, "mark", validation={"loss": loss, "accuracy": 0.5}, trials=2, steps=12, seconds=1.5
        )


def stacked(materials: Materials, max_rank: int | None = None) -> dict[str, Any]:
    stack(materials, StackingJob((PLACE,), {"made": "up"}, MEMBERS, TARGET, max_rank))
    manifest = materials.store.manifest(PLACE)
    assert manifest
    return dict(manifest)


def test_updates_are_added_up_by_their_shares(materials: Materials) -> None:
    finish(materials, [1.3, 1.2, 1.25])
    manifest = stacked(materials)
    count = len(materials.data(TARGET).validation)
    odds = [math.exp(-count * loss) for loss in (1.3, 1.2, 1.25)]
    shares = [one / sum(odds) for one in odds]
    assert manifest["members"] == list(MEMBERS) and manifest["weights"] == pytest.approx(shares)
    assert members(materials.store, PLACE, manifest) == list(zip(MEMBERS, manifest["weights"], strict=True))
    kind, found = materials.saved(PLACE)
    assert isinstance(kind, Lora)
    experts = [materials.expert(name) for name in MEMBERS]
    for site, held in found.items():
        expected = sum(w * materials.kind.delta(one[site]) for w, one in zip(shares, experts, strict=True))  # type: ignore[attr-defined]
        torch.testing.assert_close(kind.delta(held), expected, rtol=1e-4, atol=1e-6)
        assert len(held[A]) == sum(len(one[site][A]) for one in experts)
    loss, accuracy = plain_scores(materials, materials.expert(PLACE))
    assert manifest["validation"] == {"loss": pytest.approx(loss, abs=1e-5), "accuracy": pytest.approx(accuracy)}
    assert (manifest["trials"], manifest["steps"]) == (6, 36) and manifest["seconds"] > 4.5
    assert manifest["tried"] == dict(zip(MEMBERS, (1.3, 1.2, 1.25), strict=True))
    assert manifest["rank_error"] == 0.0


def test_padding_takes_no_rank(materials: Materials) -> None:
    """A member of twice the rank, as interpolations have, pads the others; a rank may be cut, and says what it took."""
    finish(materials, [1.0, 1.0, 1.0])
    wide = {
        site: {name: torch.cat([held[name], held[name]], 0 if name == A else 1) for name in held}
        for site, held in experts_of(materials)[0].items()
    }
    materials.store.commit(
        MEMBERS[0], to_files(materials.kind, wide, "tiny"), "mark", validation={"loss": 1.0, "accuracy": 0.5}
    )
    rank = materials.kind.rank  # type: ignore[attr-defined]
    stacked(materials)
    found = materials.expert(PLACE)
    assert {len(held[A]) for held in found.values()} == {2 * rank + rank + rank}
    cut = stacked(materials, max_rank=rank)
    assert {len(held[A]) for held in materials.expert(PLACE).values()} == {rank}
    assert 0 < cut["rank_error"] < 1


def test_who_failed_has_no_share(materials: Materials) -> None:
    finish(materials, [None, 1.2, None])
    assert stacked(materials)["weights"] == [0.0, 1.0, 0.0]
    only, found = materials.expert(MEMBERS[1]), materials.expert(PLACE)
    kind: Any = materials.kind
    for site, held in found.items():
        torch.testing.assert_close(kind.delta(held), kind.delta(only[site]), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_stacked_is_one_line(materials: Materials) -> None:
    finish(materials, [None, None, None])
    with pytest.raises(PituneError, match=r"baselines/a@4#0/stacked: none of experts/b@2#0, .* has a validation loss"):
        stacked(materials)
    materials.store.discard(MEMBERS[1])
    with pytest.raises(PituneError, match=r"experts/b@2#1: is missing; run the study again"):
        stacked(materials)
    assert materials.store.manifest(PLACE) is None
