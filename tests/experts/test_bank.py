"""The bank and its kinds against plain modules with explicit formulas, one expert after another."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from tinymodel import EVERY_KIND, KINDS, PlainExpert, flat, open_encoder, plain_embedding, random_expert, token_ids

from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import Adapter, Bank, BitFit, ExpertKind, Lora, Prefix
from pitune.experts.lora import A, B, truncate

TEXTS = [["w1 w2 w3 w4 w5", "w7"], ["w9 w3", "w11 w12 w13"], ["w5 w5 w5", "w20 w21 w22 w23 w24 w25"]]


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_each_group_meets_its_own_expert(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path) -> None:
    experts = [random_expert(kind, tiny, seed) for seed in range(3)]
    inputs = tiny.inputs(tiny.encode_texts([text for group in TEXTS for text in group]), {"text": 0})
    with Bank(kind, experts).attached(tiny.model):
        found = tiny(inputs).view(3, 2, -1)
    for expert, texts, rows in zip(experts, TEXTS, found, strict=True):
        model = open_encoder(tiny_folder).model
        PlainExpert(kind, expert).put_on(model)
        expected = torch.stack([plain_embedding(model, ids) for ids in token_ids(tiny, texts)])
        torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_gradients_equal_those_of_plain_modules(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path) -> None:
    experts = [random_expert(kind, tiny, seed) for seed in range(3)]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    bank = Bank(kind, experts)
    inputs = tiny.inputs(tiny.encode_texts([text for group in TEXTS for text in group]), {"text": 0})
    with bank.attached(tiny.model):
        (tiny(inputs) @ direction).sum().backward()  # type: ignore[no-untyped-call]
    for index, (expert, texts) in enumerate(zip(experts, TEXTS, strict=True)):
        model, plain = open_encoder(tiny_folder).model, PlainExpert(kind, expert)
        plain.put_on(model)
        torch.stack([plain_embedding(model, ids) @ direction for ids in token_ids(tiny, texts)]).sum().backward()  # type: ignore[no-untyped-call]
        for name, site in bank.named_sites():
            for key, tensor in site.tensors().items():
                assert tensor.grad is not None
                torch.testing.assert_close(tensor.grad[index], plain.sites[name][key].grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_the_start_changes_nothing_and_is_the_same_every_time(kind: ExpertKind, tiny: TextBackbone) -> None:
    start = kind.start(tiny)
    inputs = tiny.inputs(tiny.encode_texts(TEXTS[0]), {"text": 0})
    with Bank(kind, [start]).attached(tiny.model):
        assert torch.equal(tiny(inputs), tiny(inputs))
        inside = tiny(inputs)
    assert torch.equal(inside, tiny(inputs)) is kind.neutral
    assert torch.equal(flat(start), flat(kind.start(tiny)))
    other = kind.model_copy(update={"seed": 1}).start(tiny)
    assert torch.equal(flat(start), flat(other)) is isinstance(kind, BitFit)  # which starts at zero


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_some_experts_of_a_bank_act_alone(kind: ExpertKind, tiny: TextBackbone) -> None:
    experts = [random_expert(kind, tiny, seed) for seed in range(3)]
    inputs = tiny.inputs(tiny.encode_texts(TEXTS[0] + TEXTS[1]), {"text": 0})
    with Bank(kind, experts).only([2, 0]).attached(tiny.model):
        found = tiny(inputs)
    with Bank(kind, [experts[2], experts[0]]).attached(tiny.model):
        expected = tiny(inputs)
    assert torch.equal(found, expected)


def test_experts_sit_in_the_last_layers_only(tiny: TextBackbone) -> None:
    sites = Lora(layers=2).sites(tiny)
    assert {site.layer for site in sites} == {1, 2} and {site.tower for site in sites} == {"text"}
    assert {site.path.rsplit(".", 1)[1] for site in sites} == {"query", "value"}
    assert len(Adapter().sites(tiny)) == 6
    with pytest.raises(PituneError, match=r"^expert\.layers: found 4, the backbone has 3 layers"):
        Lora(layers=4).sites(tiny)
    with pytest.raises(PituneError, match=r"^expert\.targets: nothing .*; its layers have .*attention\.self\.query"):
        Lora(targets=("no_such",)).sites(tiny)
    with pytest.raises(PituneError, match=r"^expert\.towers: found 'image', the backbone has text$"):
        Lora(towers=("text", "image")).sites(tiny)
    assert [site.path for site in Prefix(layers=1).sites(tiny)] == ["encoder.layer.2.attention.self"]
    assert len(BitFit().sites(tiny)) == 3 * 7  # six linear modules but the keys' one, and two norms


def test_experts_of_unlike_sites_or_shapes_share_no_bank(tiny: TextBackbone) -> None:
    whole, upper = Adapter().start(tiny), Adapter(layers=1).start(tiny)
    with pytest.raises(PituneError, match=r"^adapter: one expert has encoder\.layer\.0\.attention.*another has not"):
        Bank(Adapter(), [upper, whole])
    with pytest.raises(
        PituneError, match=r"^adapter: .* has adapter_down\.weight \(32, 32\) in one .* and \(4, 32\) in"
    ):
        Bank(Adapter(), [whole, Adapter(width=4).start(tiny)])


def test_a_loras_task_vector_is_what_it_adds_to_the_weight(tiny: TextBackbone) -> None:
    kind = Lora(rank=2, alpha=6, layers=2)
    start = kind.start(tiny)
    for path, held in random_expert(kind, tiny, 0).items():
        vector = kind.vector(held, start[path])
        module = copy.deepcopy(tiny.model.get_submodule(path))
        x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
        acting = kind.apply({name: tensor[None] for name, tensor in held.items()}, x, module(x))
        module.weight.data += vector["delta"]
        torch.testing.assert_close(acting, module(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (48, 32), (32, 48)])
@pytest.mark.parametrize("rank", [1, 5, 32, 40])
def test_a_lora_of_a_rank_is_the_nearest_one(shape: tuple[int, int], rank: int) -> None:
    """Against torch's singular value decomposition; ranks beyond the width are there and do nothing."""
    generator = torch.Generator().manual_seed(0)
    kind = Lora(rank=2, alpha=6)
    delta = torch.randn(shape, generator=generator)
    start = kind.initial(torch.nn.Linear(shape[1], shape[0]), generator)
    found = kind.from_vector({"delta": delta}, start, rank)
    assert found[A].shape == (rank, shape[1]) and found[B].shape == (shape[0], rank)
    u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
    nearest = (u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]).float()
    torch.testing.assert_close(3.0 * found[B] @ found[A], nearest, atol=1e-5, rtol=1e-4)  # alpha / rank = 6 / 2


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_task_vectors_add_up_from_any_start(kind: ExpertKind, tiny: TextBackbone) -> None:
    """From a start that itself does something, with weights of any sum."""
    start, *experts = (random_expert(kind, tiny, seed) for seed in range(4))
    weights = torch.tensor([0.7, -0.4, 1.1])
    for path, at in start.items():
        stacked = {name: torch.stack([one[path][name] for one in experts]) for name in at}
        found = {name: tensor[0] for name, tensor in kind.summed(stacked, at, weights).items()}
        for name, moved in kind.vector(found, at).items():
            parts = [kind.vector(one[path], at)[name] for one in experts]
            expected = 0.7 * parts[0] - 0.4 * parts[1] + 1.1 * parts[2]
            torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_a_random_expert_has_the_norms_of_another_and_nothing_of_its_directions(
    kind: ExpertKind, tiny: TextBackbone
) -> None:
    start, expert = kind.start(tiny), random_expert(kind, tiny, 1)
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    ours, theirs = [], []
    for path, held in expert.items():
        found = kind.randomized(held, start[path], first)
        assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in held.items()}
        for name, moved in kind.vector(found, start[path]).items():
            other = kind.vector(held, start[path])[name]
            torch.testing.assert_close(moved.norm(), other.norm(), atol=1e-6, rtol=1e-4)
            ours.append(moved.flatten())
            theirs.append(other.flatten())
        for name in kind.parameter_names:
            if name != B:  # it is what gives a LoRA's update its size
                one, other = ((tensors[name] - start[path][name]).norm() for tensors in (found, held))
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        again = kind.randomized(dict(reversed(held.items())), start[path], second)  # files keep no order
        assert all(torch.equal(tensor, again[name]) for name, tensor in found.items())
    assert abs(torch.cosine_similarity(torch.cat(ours), torch.cat(theirs), dim=0)) < 0.2


def test_what_has_not_moved_is_at_the_start_when_randomized(tiny: TextBackbone) -> None:
    for kind in EVERY_KIND:
        for held in kind.start(tiny).values():
            found = kind.randomized(held, held, torch.Generator().manual_seed(0))
            assert all(torch.equal(found[name], tensor) for name, tensor in held.items())


def test_a_bank_gives_its_experts_back_and_leaves_no_hook(tiny: TextBackbone) -> None:
    kind = KINDS[0]
    experts = [random_expert(kind, tiny, seed) for seed in range(3)]
    bank = Bank(kind, experts)
    whole = {name: tensor.detach() for name, tensor in bank.named_parameters()}
    for index, expert in enumerate(experts):
        assert torch.equal(flat(bank.expert(index)), flat(expert))
        assert torch.equal(flat(bank.expert(index, whole)), flat(expert))
    with pytest.raises(RuntimeError, match="inside"), bank.attached(tiny.model):
        raise RuntimeError("inside")
    assert not any(module._forward_hooks for module in tiny.model.modules())


def test_what_cannot_be_bound_leaves_the_model_as_it_was(tiny: TextBackbone) -> None:
    kind = Prefix(tokens=3, layers=1)
    (held,) = kind.start(tiny).values()
    bank = Bank(kind, [{"encoder.layer.1.attention.self": held, "encoder.layer.2.output": held}])
    with pytest.raises(PituneError, match=r"^encoder\.layer\.2\.output: BertOutput is no attention") as caught:
        bank.attached(tiny.model).__enter__()
    assert "\n" not in str(caught.value)
    assert tiny.model.get_submodule("encoder.layer.1.attention.self").config is tiny.model.config


def test_loras_of_unlike_rank_share_a_bank(tiny: TextBackbone) -> None:
    small, large = Lora(rank=2, alpha=2), Lora(rank=5, alpha=5)  # the same scaling
    experts = [random_expert(kind, tiny, 1) for kind in (small, large)]
    inputs = tiny.inputs(tiny.encode_texts(TEXTS[0]), {"text": 0})
    with Bank(small, experts).attached(tiny.model):
        found = tiny(tiny.inputs(tiny.encode_texts(TEXTS[0] * 2), {"text": 0})).view(2, 2, -1)
    for kind, expert, rows in zip((small, large), experts, found, strict=True):
        with Bank(kind, [expert]).attached(tiny.model):
            torch.testing.assert_close(rows, tiny(inputs), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 5, 6])
def test_truncation_is_the_best_there_is(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    expert = {
        site: {A: torch.randn(6, 20, generator=generator), B: torch.randn(12, 6, generator=generator)} for site in "st"
    }
    small, error = truncate(expert, rank)
    lost = whole = 0.0
    for site, held in expert.items():
        u, s, v = torch.linalg.svd((held[B] @ held[A]).double())
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert small[site][A].shape == (rank, 20) and small[site][B].shape == (12, rank)
        torch.testing.assert_close((small[site][B] @ small[site][A]).double(), best, atol=1e-4, rtol=1e-4)
        lost += float(((held[B] @ held[A]).double() - best).square().sum())
        whole += float((held[B] @ held[A]).double().square().sum())
    assert error == pytest.approx((lost / whole) ** 0.5, abs=1e-6)
    assert truncate({"s": {A: torch.zeros(2, 4), B: torch.zeros(3, 2)}}, 1)[1] == 0.0


def test_every_layer_has_its_own_start(tiny: TextBackbone) -> None:
    starts = [held[A] for held in Lora(rank=2).start(tiny).values()]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(starts, 2))
