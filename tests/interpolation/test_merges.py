"""Merges of task vectors: against plain loops over numbers, and against PEFT's merges of the same LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils import merge_utils
from tinymodel import EVERY_KIND, open_encoder, random_expert
from torch import Tensor

from pitune.backbones.text import TextBackbone
from pitune.experts import Bank, Expert, ExpertKind, Lora
from pitune.experts.checkpoint import to_files
from pitune.interpolation.merges import dare_ties, dropped, elected, ties, trimmed
from pitune.interpolation.merging import added_up, merged

LORA = Lora(rank=2, alpha=6, layers=2)
NUMBERS = [[0.5, -0.1, 0.3, 0.0], [-0.6, 0.2, 0.4, 0.0], [0.2, -0.7, -0.9, 0.0]]


def vectors(count: int = 3, shape: tuple[int, ...] = (7, 5)) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def plain_trimmed(numbers: Sequence[float], density: float) -> list[float]:
    ranked = sorted(range(len(numbers)), key=lambda index: -abs(numbers[index]))
    kept = set(ranked[: int(density * len(numbers))])
    return [number if index in kept else 0.0 for index, number in enumerate(numbers)]


def plain_elected(rows: Sequence[Sequence[float]]) -> list[float]:
    found = []
    for column in zip(*rows, strict=True):
        positive = sum(column) >= 0
        agree = [number for number in column if number and (number > 0) == positive]
        found.append(sum(agree) / len(agree) if agree else 0.0)
    return found


def test_by_hand() -> None:
    assert trimmed(torch.tensor(NUMBERS[0]), 0.5).tolist() == pytest.approx([0.5, 0.0, 0.3, 0.0])
    # Sums 0.1, -0.6, -0.2, 0: the signs are +, -, -, and nobody has a say in the last.
    assert elected(list(map(torch.tensor, NUMBERS))).tolist() == pytest.approx([0.35, -0.4, -0.9, 0.0])


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
def test_ties_equals_a_loop_over_numbers(density: float) -> None:
    given = vectors()
    rows = [plain_trimmed(vector.flatten().tolist(), density) for vector in given]
    found = ties(given, density)
    assert found.shape == (7, 5)
    torch.testing.assert_close(found.flatten(), torch.tensor(plain_elected(rows)))


def test_dare_keeps_each_number_or_none_of_it_and_the_mean() -> None:
    vector = vectors(1, (40, 30))[0]
    generator = torch.Generator().manual_seed(0)
    several = torch.stack([dropped(vector, 0.25, generator) for _ in range(2000)])
    kept = several != 0
    torch.testing.assert_close(several[kept], (vector * 4).expand_as(several)[kept])
    assert abs(float(kept.float().mean()) - 0.25) < 1e-3
    assert (kept.float().mean(0) - 0.25).abs().max() < 0.05  # of each number
    spread = vector.abs() * (3 / 2000) ** 0.5  # of the mean of 2000: 1/4 of them 4 times as large
    assert ((several.mean(0) - vector).abs() < 5 * spread).all()
    assert not torch.equal(several[0], several[1])


def test_dare_ties_elects_what_is_left() -> None:
    given = vectors()
    first, second = (torch.Generator().manual_seed(4) for _ in range(2))
    rows = [dropped(vector, 0.5, first).flatten().tolist() for vector in given]
    torch.testing.assert_close(dare_ties(given, 0.5, second).flatten(), torch.tensor(plain_elected(rows)))


@pytest.mark.parametrize("shape", [(7, 5), (12,), (2, 3, 4)])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_any_tensor_merges_as_pefts(density: float, shape: tuple[int, ...]) -> None:
    given, ones = vectors(shape=shape), torch.ones(3)
    torch.testing.assert_close(ties(given, density), merge_utils.ties(given, ones, density))
    torch.manual_seed(3)
    expected = merge_utils.dare_ties(given, ones, density)
    torch.testing.assert_close(dare_ties(given, density, torch.Generator().manual_seed(3)), expected)


# --- whole experts, against PEFT's own merges --------------------------------------------------------------------


@pytest.fixture
def experts(tiny: TextBackbone) -> list[Expert]:
    return [random_expert(LORA, tiny, seed) for seed in range(3)]


@pytest.fixture
def peft_merge(experts: list[Expert], tiny_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """Let PEFT load the experts' files, merge them, and say what it adds to the weight of each module."""
    for number, expert in enumerate(experts):
        (tmp_path / str(number)).mkdir()
        for name, content in to_files(LORA, expert, "tiny").items():
            (tmp_path / str(number) / name).write_bytes(content)
    model: Any = peft.PeftModel.from_pretrained(open_encoder(tiny_folder).model, str(tmp_path / "0"), "0")
    for number in ("1", "2"):
        model.load_adapter(str(tmp_path / number), number)

    def merge(weights: Sequence[float], how: str, **options: Any) -> dict[str, Tensor]:
        model.add_weighted_adapter(["0", "1", "2"], list(weights), "merged", how, **options)
        return {path: model.base_model.model.get_submodule(path).get_delta_weight("merged") for path in experts[0]}

    return merge


def updates(expert: Expert) -> dict[str, Tensor]:
    return {path: 6 / 2 * held["lora_B.weight"] @ held["lora_A.weight"] for path, held in expert.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for path, update in expected.items():
        assert update.norm() > 0.01
        torch.testing.assert_close(found[path], update, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("weights", [(0.3, 0.3, 0.3), (0.7, -0.4, 1.2)])
@pytest.mark.parametrize("how", ["svd", "cat"])
def test_sums_are_pefts(
    weights: tuple[float, ...],
    how: str,
    experts: list[Expert],
    tiny: TextBackbone,
    peft_merge: Callable[..., dict[str, Tensor]],
) -> None:
    found = added_up(Bank(LORA, experts), LORA.start(tiny), weights)
    assert all(len(held["lora_A.weight"]) == 6 for held in found.values())
    assert_same(updates(found), peft_merge(weights, how, svd_rank=6))


@pytest.mark.parametrize("rank", [6, 3, 32])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties_of_experts_is_pefts(
    density: float,
    rank: int,
    experts: list[Expert],
    tiny: TextBackbone,
    peft_merge: Callable[..., dict[str, Tensor]],
) -> None:
    found, error = merged(LORA, experts, LORA.start(tiny), lambda some: ties(some, density), rank)
    assert all(len(held["lora_A.weight"]) == rank for held in found.values())
    assert_same(updates(found), peft_merge((1, 1, 1), "ties_svd", svd_rank=rank, density=density))
    assert error == 0 if rank == 32 else 0.05 < error < 1


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_dare_ties_of_experts_is_pefts_of_the_same_luck(
    scale: float,
    experts: list[Expert],
    tiny: TextBackbone,
    peft_merge: Callable[..., dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PEFT draws from the one generator of the process, which is seeded when the first module's turn comes."""
    generator = torch.Generator().manual_seed(11)
    start = LORA.start(tiny)
    whole, _ = merged(LORA, experts, start, lambda some: dare_ties(some, 0.5, generator), 6)
    found = added_up(Bank(LORA, [whole]), start, [scale])
    turns: list[None] = []

    def seeded(*given: Any) -> Tensor:
        if not turns:
            torch.manual_seed(11)
        turns.append(None)
        return merge_utils.dare_ties(*given)

    monkeypatch.setattr(peft.tuners.lora.model, "dare_ties", seeded)
    assert_same(updates(found), peft_merge([scale] * 3, "dare_ties_svd", svd_rank=6, density=0.5))
    assert len(turns) == len(found)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_every_kind_merges_what_has_moved_from_the_start(kind: ExpertKind, tiny: TextBackbone) -> None:
    """Against numbers: a parameter is its start plus the elected mean of what moved; a LoRA's weight is."""
    start, experts = kind.start(tiny), [random_expert(kind, tiny, seed) for seed in range(3)]
    found, error = merged(kind, experts, start, lambda some: ties(some, 0.5), 32)
    assert error == 0
    for path, held in found.items():
        if isinstance(kind, Lora):
            moved = {"update": [updates(expert)[path] for expert in experts]}
            reached = {"update": updates({path: held})[path]}
        else:
            moved = {name: [expert[path][name] - at for expert in experts] for name, at in start[path].items()}
            reached = {name: held[name] - at for name, at in start[path].items()}
        for name, several in moved.items():
            rows = [plain_trimmed(vector.flatten().tolist(), 0.5) for vector in several]
            expected = torch.tensor(plain_elected(rows)).view(several[0].shape)
            torch.testing.assert_close(reached[name], expected, atol=1e-5, rtol=1e-4)
