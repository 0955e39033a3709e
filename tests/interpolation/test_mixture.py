"""Mixed, merged and written out by hand: the same."""

from __future__ import annotations

import pytest
import torch
from tinymodel import KINDS, MATCH, embed, flat, make_rows, make_task, random_expert
from torch import Tensor

from pitune.backbones.text import TextBackbone
from pitune.experts import Bank, Expert, ExpertKind, Lora
from pitune.experts.lora import A, B
from pitune.interpolation.mixture import Mixture, merge
from pitune.interpolation.scoring import answers
from pitune.interpolation.settings import Granularity

LORA, ADAPTER = KINDS
TEXTS = ["w1 w2 w3 w4", "w30 w7", "w50 w51 w52 w53 w54"]


def experts(kind: ExpertKind, encoder: TextBackbone) -> list[Expert]:
    return [random_expert(kind, encoder, seed) for seed in range(4)]


def mixture(kind: ExpertKind, encoder: TextBackbone, granularity: Granularity = "site") -> Mixture:
    """Return a mixture whose weights differ everywhere."""
    made = Mixture(encoder, kind, experts(kind, encoder), torch.zeros(4), granularity)
    with torch.no_grad():
        made.alpha.copy_(torch.randn(made.alpha.shape, generator=torch.Generator().manual_seed(5)))
    return made


def acted(encoder: TextBackbone, bank: Bank | Mixture) -> Tensor:
    with bank.attached(encoder.model):
        return embed(encoder, TEXTS)


@pytest.mark.parametrize("granularity", ["site", "layer", "global"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_merged_equals_mixed(kind: ExpertKind, granularity: Granularity, tiny: TextBackbone) -> None:
    mixed = mixture(kind, tiny, granularity)
    found = acted(tiny, Bank(kind, [mixed.merged()]))
    torch.testing.assert_close(found, acted(tiny, mixed), atol=1e-6, rtol=1e-5)
    assert (found - embed(tiny, TEXTS)).abs().max() > 1e-2


def test_a_mixed_lora_is_the_weighted_sum_of_the_updates(tiny: TextBackbone) -> None:
    """The reference adds Σ wᵢ · alpha / rank · Bᵢ Aᵢ to the frozen weights, and has no expert at all."""
    assert isinstance(LORA, Lora)
    mixed = mixture(LORA, tiny)
    found = acted(tiny, mixed)
    kept = {}
    for row, (site, _) in zip(mixed.alpha[mixed.rows], mixed.members.named_sites(), strict=True):
        weights = row.detach().exp() / row.detach().exp().sum()
        parts = [LORA.alpha / LORA.rank * one[site][B] @ one[site][A] for one in experts(LORA, tiny)]
        weight = tiny.model.get_submodule(site).weight
        kept[site] = weight.data
        weight.data = weight.data + sum(w * part for w, part in zip(weights, parts, strict=True))
    expected = embed(tiny, TEXTS)
    for site, data in kept.items():
        tiny.model.get_submodule(site).weight.data = data
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_mixed_adapter_has_the_weighted_parameters(tiny: TextBackbone) -> None:
    mixed = mixture(ADAPTER, tiny)
    merged = mixed.merged()
    for row, (site, _) in zip(mixed.alpha[mixed.rows], mixed.members.named_sites(), strict=True):
        weights = row.detach().exp() / row.detach().exp().sum()
        for key, tensor in merged[site].items():
            expected = sum(w * one[site][key] for w, one in zip(weights, experts(ADAPTER, tiny), strict=True))
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("granularity", "groups"), [("site", 8), ("layer", 2), ("global", 1)])
def test_sites_share_weights_by_granularity(granularity: Granularity, groups: int, tiny: TextBackbone) -> None:
    mixed = mixture(Lora(rank=2, targets=("query", "value", "output.dense"), layers=2), tiny, granularity)
    assert mixed.alpha.shape == (groups, 4)
    torch.testing.assert_close(mixed.weights().sum(1), torch.ones(8))
    by_layer: dict[str, set[tuple[float, ...]]] = {}
    for row, (site, _) in zip(mixed.weights().tolist(), mixed.members.named_sites(), strict=True):
        by_layer.setdefault(site.split(".")[2], set()).add(tuple(row))
    assert [len(rows) for rows in by_layer.values()] == ([4, 4] if granularity == "site" else [1, 1])
    assert len(set.union(*by_layer.values())) == groups


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_gradients_reach_the_weights_and_the_experts(kind: ExpertKind, tiny: TextBackbone) -> None:
    mixed = mixture(kind, tiny)
    inputs = tiny.inputs(tiny.encode_texts(TEXTS), {"text": 0})
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def score() -> Tensor:
        with mixed.attached(tiny.model):
            return (tiny(inputs) @ direction).sum()

    score().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.any()) for p in mixed.parameters())
    assert mixed.alpha.grad is not None
    with torch.no_grad():  # the derivative by each of the first site's four logits, measured
        for column in range(4):
            at = []
            for change in (1e-2, -1e-2):
                mixed.alpha[0, column] += change
                at.append(float(score()))
                mixed.alpha[0, column] -= change
            assert (at[0] - at[1]) / 2e-2 == pytest.approx(float(mixed.alpha.grad[0, column]), abs=2e-3, rel=0.02)


def test_a_single_expert_with_all_the_weight_is_itself(tiny: TextBackbone) -> None:
    for kind in KINDS:
        merged = merge(tiny, kind, experts(kind, tiny), [0.0, 0.0, 1.0, 0.0])
        found = acted(tiny, Bank(kind, [merged]))
        torch.testing.assert_close(found, acted(tiny, Bank(kind, [experts(kind, tiny)[2]])), atol=1e-6, rtol=1e-5)


def test_answers_of_several_experts_equal_each_ones_own(tiny: TextBackbone) -> None:
    rows = make_rows(tiny, make_task("toy", 3, 70), "test")
    said, scores = answers(tiny, LORA, MATCH, experts(LORA, tiny), rows)
    batch = MATCH.collate(tiny, {"text": 1}, [rows.rows] * 4)
    with torch.no_grad():
        together = MATCH.logits(tiny, Bank(LORA, experts(LORA, tiny)), batch).softmax(-1)
    assert together.shape == (4, 70, 3)
    assert [len(sure) for sure in scores] == [70] * 4
    candidates = embed(tiny, ["w40", "w41", "w42"])
    texts = [example.text for example in make_task("toy", 3, 70).splits["test"]]
    for index, expert in enumerate(experts(LORA, tiny)):
        with torch.no_grad(), Bank(LORA, [expert]).attached(tiny.model):
            expected = (10.0 * embed(tiny, texts) @ candidates.T).softmax(-1)
        torch.testing.assert_close(together[index], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(scores[index]), expected.amax(-1), atol=1e-5, rtol=1e-4)
        assert said[index] == expected.argmax(-1).tolist()


def test_a_mixture_leaves_no_hook_and_copies_its_experts(tiny: TextBackbone) -> None:
    given = experts(LORA, tiny)
    mixed = Mixture(tiny, LORA, given, torch.zeros(4))
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.add_(1.0)
    assert torch.equal(flat(given[0]), flat(experts(LORA, tiny)[0]))
    acted(tiny, mixed)
    assert not any(module._forward_hooks for module in tiny.model.modules())
