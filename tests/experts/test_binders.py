"""The binders on each family of models: padded groups against one row at a time, with the formulas written out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from plainattention import PlainAttention
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViTConfig,
)

from pitune.errors import PituneError
from pitune.experts.binders import heads_of, is_attention, on_output, with_keys_values, with_tokens

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {"vocab_size": 70, "pad_token_id": 0, "max_position_embeddings": 64}
PICTURE = {"image_size": 12, "patch_size": 4}
OTHER = {
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48},
    # A window of 4 tokens on either side, so that the layers with one see less than all.
    "modernbert": {**SHAPE, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "local_attention": 8},
}
FAMILIES = [
    (family, way)
    for family in ("bert", "roberta", "distilbert", "modernbert", "vit", "clip_text", "clip_vision")
    for way in ("sdpa", "eager")
] + [("mpnet", "eager")]


def make(family: str, way: str) -> nn.Module:
    """Make a random model."""
    torch.manual_seed(0)
    if family == "vit":
        model = AutoModel.from_config(ViTConfig(**SHAPE, **PICTURE), attn_implementation=way)
    elif family == "clip_text":
        model = CLIPTextModel._from_config(CLIPTextConfig(**SHAPE, **TEXT, eos_token_id=2), attn_implementation=way)
    elif family == "clip_vision":
        model = CLIPVisionModel._from_config(CLIPVisionConfig(**SHAPE, **PICTURE), attn_implementation=way)
    else:
        config = AutoConfig.for_model(family, **TEXT, **OTHER.get(family, SHAPE))
        model = AutoModel.from_config(config, attn_implementation=way)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def attentions(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if is_attention(module)]


def stack(model: nn.Module) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 3)


def rows(family: str) -> list[dict[str, Tensor]]:
    """Return four rows, unpadded."""
    generator = torch.Generator().manual_seed(1)
    if family in ("vit", "clip_vision"):
        return [{"pixel_values": torch.randn(1, 3, 12, 12, generator=generator)} for _ in range(4)]
    return [{"input_ids": torch.randint(5, 60, (1, length), generator=generator)} for length in (9, 4, 12, 7)]


def padded(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if "pixel_values" in parts[0]:
        return {"pixel_values": torch.cat([part["pixel_values"] for part in parts])}
    ids = nn.utils.rnn.pad_sequence([part["input_ids"][0] for part in parts], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def compare(family: str, bound: nn.Module, plain: Callable[[int], nn.Module]) -> None:
    """Compare a padded batch of two groups of two with each row alone on the plain model of its group's expert."""
    parts = rows(family)
    found = bound(**padded(parts)).last_hidden_state
    bare = make(family, "eager")
    for index, part in enumerate(parts):
        expected = plain(index // 2)(**part).last_hidden_state[0]
        torch.testing.assert_close(found[index, : len(expected)], expected, atol=2e-5, rtol=1e-4)
        assert (expected - bare(**part).last_hidden_state[0]).abs().max() > 1e-2


@pytest.mark.parametrize(("family", "way"), FAMILIES)
def test_keys_and_values(family: str, way: str) -> None:
    model = make(family, way)
    generator = torch.Generator().manual_seed(2)
    held = {path: torch.randn(2, 2, 2, 3, 16, generator=generator) for path in attentions(model)[1:]}  # (k and v, E, …)
    assert len(held) == 2
    handles = []
    for path, tensor in held.items():
        handles += with_keys_values(model.get_submodule(path), lambda tensor=tensor: (tensor[0], tensor[1]))

    def plain(expert: int) -> nn.Module:
        other = make(family, "eager")
        for path, tensor in held.items():
            parent, _, name = path.rpartition(".")
            attention = PlainAttention(other.get_submodule(path), tensor[0, expert], tensor[1, expert])
            setattr(other.get_submodule(parent), name, attention)
        return other

    compare(family, model, plain)
    for handle in handles:
        handle.remove()
    batch = padded(rows(family))
    assert torch.equal(model(**batch).last_hidden_state, make(family, way)(**batch).last_hidden_state)


class PlainLayers(nn.Module):
    """Layers for one row that is not padded, whose input has tokens in it."""

    def __init__(self, family: str, layers: list[nn.Module], tokens: Tensor, place: int) -> None:
        super().__init__()
        self.family, self.layers, self.tokens, self.place = family, nn.ModuleList(layers), tokens, place

    def wide(self, tensor: Tensor, dim: int, value: float) -> Tensor:
        before, after = tensor.tensor_split([self.place], dim)
        shape = list(tensor.shape)
        shape[dim] = len(self.tokens)
        return torch.cat([before, torch.full(shape, value), after], dim)

    def forward(self, hidden_states: Tensor, *args: object, **named: object) -> object:
        place = self.place
        names = list(inspect.signature(self.layers[0].forward).parameters)[1:]
        named = {**dict(zip(names, args, strict=False)), **named}
        attention_mask = named.pop("attention_mask", None)
        x = torch.cat([hidden_states[:, :place], self.tokens[None], hidden_states[:, place:]], 1)
        if self.family == "clip_text":
            length = x.shape[1]
            attention_mask = torch.full((1, 1, length, length), -1e9).triu(1)
        elif isinstance(attention_mask, Tensor) and attention_mask.shape[-2] > 1:
            attention_mask = self.wide(self.wide(attention_mask, -1, 0.0), -2, 0.0)
        elif isinstance(attention_mask, Tensor):
            attention_mask = self.wide(attention_mask, -1, 0.0)
        if isinstance(named.get("position_bias"), Tensor):
            named["position_bias"] = self.wide(self.wide(named["position_bias"], -1, 0.0), -2, 0.0)
        if "position_embeddings" in named:
            cosine, sine = named["position_embeddings"]
            named["position_embeddings"] = (self.wide(cosine, -2, 1.0), self.wide(sine, -2, 0.0))
        output = x
        for layer in self.layers:
            state = output[0] if isinstance(output, tuple) else output
            output = layer(state, attention_mask=attention_mask, **named)
        own = output[0] if isinstance(output, tuple) else output
        own = torch.cat([own[:, :place], own[:, place + len(self.tokens) :]], 1)
        return (own,) if isinstance(output, tuple) else own


class Skipped(nn.Module):
    def __init__(self, layer: nn.Module, tuples: bool) -> None:
        super().__init__()
        self.tuples = tuples
        for name in ("attention_type",):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> object:
        return (hidden_states,) if self.tuples else hidden_states


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("family", "way"), FAMILIES)
def test_tokens(family: str, way: str, place: int) -> None:
    """Two tokens in layer 1 alone, other two from layer 1 to the last."""
    for last in (1, 2):
        model = make(family, way)
        if family == "modernbert" and last == 2:
            continue  # its layers have masks of their own, which the plain layers here do not
        tokens = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(2))  # (E, tokens, width)
        handles = with_tokens(list(stack(model))[1 : last + 1], lambda tokens=tokens: tokens, place)

        def plain(expert: int, last: int = last, tokens: Tensor = tokens) -> nn.Module:
            other = make(family, "eager")
            layers = stack(other)
            run = list(layers)[1 : last + 1]
            together = PlainLayers(family, run, tokens[expert], place)
            for name in ("attention_type",):
                if hasattr(run[0], name):
                    setattr(together, name, getattr(run[0], name))
            layers[1] = together
            if last == 2:
                layers[2] = Skipped(run[1], family == "mpnet")
            return other

        compare(family, model, plain)
        for handle in handles:
            handle.remove()
        batch = padded(rows(family))
        assert torch.equal(model(**batch).last_hidden_state, make(family, way)(**batch).last_hidden_state)


def test_an_output_may_be_the_first_of_several() -> None:
    model = make("bert", "sdpa")
    batch = padded(rows("bert"))
    seen: list[tuple[int, ...]] = []

    def change(x: Tensor, y: Tensor) -> Tensor:
        seen.append((*x.shape, *y.shape))
        return y * 0

    (handle,) = on_output(model.get_submodule("encoder.layer.0.attention"), change)
    model(**batch)
    assert seen == [(4, 12, 32, 4, 12, 32)]
    handle.remove()
    assert torch.equal(model(**batch).last_hidden_state, make("bert", "sdpa")(**batch).last_hidden_state)


def test_what_is_no_attention_is_refused() -> None:
    model = make("bert", "sdpa")
    with pytest.raises(PituneError, match=r"^BertAttention is no attention that keys and values can be added to$"):
        with_keys_values(model.get_submodule("encoder.layer.0.attention"), lambda: (torch.zeros(1), torch.zeros(1)))
    disentangled = AutoModel.from_config(AutoConfig.for_model("deberta-v2", **TEXT, **SHAPE))
    assert not attentions(disentangled)
    attention = model.get_submodule("encoder.layer.0.attention.self")
    assert heads_of(attention) == (2, 16)
    (handle,) = with_keys_values(attention, lambda: (torch.zeros(1), torch.zeros(1)))
    with pytest.raises(PituneError, match=r"^BertSelfAttention has added keys and values already$"):
        with_keys_values(attention, lambda: (torch.zeros(1), torch.zeros(1)))
    copy.deepcopy(model)
    handle.remove()
    attention.config._attn_implementation = "flex_attention"
    with pytest.raises(PituneError, match=r"^BertSelfAttention attends by flex_attention, .* sdpa or eager$"):
        with_keys_values(attention, lambda: (torch.zeros(1), torch.zeros(1)))
