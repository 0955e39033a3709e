"""How a kind acts on a module: shared by all kinds, each call undone by the handles that it returns.

- :func:`on_output` changes what a module gives.
- :func:`on_parameters` lets a module compute with changed weights.
- :func:`with_tokens` puts tokens among the input of a layer, or of a run of layers, and takes them out again at the
  end; masks and positions follow.
- :func:`with_keys_values` lets the queries of an attention meet more keys and values.

Rows come as E equal groups; tensors have the expert axis in front, and each group's rows get their own expert's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pitune.backbones.attention import asks_for_its_function, attends_by, function_of, is_taken
from pitune.errors import PituneError


class Handle(Protocol):
    """Undoes what a binder did."""

    def remove(self) -> None:
        """Leave the module as it was."""


def on_output(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> list[Handle]:
    """Let ``module`` give ``change(x, y)`` in place of y.

    Args:
        module: any module; of one that gives several things, y is the first.
        change: gets the module's first input x and its output y, each (E · rows, …).
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        if isinstance(output, tuple):
            return (change(x, output[0]), *output[1:])
        return change(x, output)

    return [module.register_forward_hook(hook, with_kwargs=True)]


def on_parameters(module: nn.Module, changes: Callable[[], Mapping[str, Tensor]]) -> list[Handle]:
    """Let ``module`` compute with its own parameters plus ``changes``, of one expert: there is no expert axis.

    Args:
        module: any module; of its own parameters, not its children's.
        changes: gives them by name, each of its parameter's shape, when asked, once a pass.
    """
    held = module._parameters
    before: list[dict[str, nn.Parameter | None]] = []

    def enter(_: nn.Module, __: Any) -> None:
        before.append(dict(held))
        for name, change in changes().items():
            parameter = held[name]
            assert parameter is not None
            held[name] = parameter + change  # type: ignore[assignment]  # modules read whatever tensor is there

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        if before:  # not where `enter` has raised
            held.update(before.pop())

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


# --- tokens among a layer's input --------------------------------------------------------------------------------


def with_tokens(layers: Sequence[nn.Module], tokens: Callable[[], Tensor], place: int = 0) -> list[Handle]:
    """Put tokens into the input of the first of ``layers`` and take them out of the output of the last.

    One layer alone: a deep prompt, for that layer only. Layers up to the last of the stack: a shallow one. Where the
    attention is causal, what stands before the tokens does not see them. Tokens have no position: a rotation leaves
    them as they are, and a bias by distance is zero.

    Args:
        layers: one or more that follow each other, which take ``hidden_states`` first.
        tokens: gives (E, count, width) when asked, once a pass.
        place: how many of the input's own tokens stay in front (1: after a class token).
    """
    state = _Tokens(tokens, place)
    handles: list[Handle] = [layers[0].register_forward_pre_hook(state.enter, with_kwargs=True)]
    handles += [layer.register_forward_pre_hook(state.follow, with_kwargs=True) for layer in layers]
    return [*handles, layers[-1].register_forward_hook(state.leave)]


class _Tokens:
    """The three hooks of tokens that stand among a layer's input."""

    def __init__(self, tokens: Callable[[], Tensor], place: int) -> None:
        self.tokens, self.place, self.count = tokens, place, 0

    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Put the tokens in."""
        given = named_arguments(layer, args, kwargs)
        first = next(iter(given))
        hidden = given[first]  # (E · rows, tokens, width)
        tokens = per_row(self.tokens(), len(hidden)).to(hidden.dtype)
        self.count = tokens.shape[1]
        return (), {**given, first: _inserted(hidden, 1, self.place, tokens)}

    def follow(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Widen the mask and what else goes by place."""
        given = named_arguments(layer, args, kwargs)
        mask, bias, angles = (given.get(name) for name in ("attention_mask", "position_bias", "position_embeddings"))
        if isinstance(mask, Tensor):
            given["attention_mask"] = self._mask(mask, bool(given.get("is_causal")))
        if isinstance(bias, Tensor):
            given["position_bias"] = self._filled(self._filled(bias, -1, 0), -2, 0)
        if isinstance(angles, tuple):  # cosines and sines, (rows or 1, tokens, width)
            given["position_embeddings"] = (self._filled(angles[0], -2, 1), self._filled(angles[1], -2, 0))
        return (), given

    def leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Take the tokens out."""
        whole = output[0] if isinstance(output, tuple) else output
        own = torch.cat([whole[:, : self.place], whole[:, self.place + self.count :]], 1)
        return (own, *output[1:]) if isinstance(output, tuple) else own

    def _filled(self, tensor: Tensor, dim: int, value: float) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = self.count
        return _inserted(tensor, dim, self.place, tensor.new_full(shape, value))

    def _mask(self, mask: Tensor, causal: bool) -> Tensor:
        """Widen a mask, (rows, keys) or (rows, heads or 1, queries or 1, keys), bool or added to the scores."""
        shown, hidden = _shown_and_hidden(mask)
        wide = self._filled(mask, -1, shown)
        if mask.dim() == 2 or mask.shape[-2] == 1:
            return wide
        if not causal:  # the tokens see whatever any other sees
            seen = wide.amax(-2, keepdim=True) if wide.dtype != torch.bool else wide.any(-2, keepdim=True)
            return _inserted(wide, -2, self.place, seen.expand(*wide.shape[:-2], self.count, wide.shape[-1]))
        own = slice(self.place, self.place + self.count)
        wide[..., : self.place, own] = hidden
        rows = wide.new_full((*wide.shape[:-2], self.count, wide.shape[-1]), hidden)
        if self.place:
            rows[...] = wide[..., self.place - 1 : self.place, :]
        earlier = torch.ones(self.count, self.count, dtype=torch.bool, device=mask.device).tril()
        rows[..., own] = torch.where(earlier, shown, hidden).to(mask.dtype)
        return _inserted(wide, -2, self.place, rows)


# --- keys and values ---------------------------------------------------------------------------------------------

WRITTEN_OUT = ("MPNetSelfAttention",)  # attentions that call no such function, and whose formula we know
KEYS, VALUES = ("key", "k", "k_proj", "k_lin"), ("value", "v", "v_proj", "v_lin")
FUSED = ("Wqkv",)
HEAD_WIDTHS = ("attention_head_size", "head_dim", "key_value_proj_dim")


def is_attention(module: nn.Module) -> bool:
    """Say whether :func:`with_keys_values` can act on ``module``."""
    if not (asks_for_its_function(module) or type(module).__name__ in WRITTEN_OUT):
        return False
    return _heads(module) is not None


def heads_of(attention: nn.Module) -> tuple[int, int]:
    """Return how many heads the keys of ``attention`` have, and a head's width.

    Raises:
        PituneError: it is no attention to which keys can be added.
    """
    found = _heads(attention)
    if found is None or not is_attention(attention):
        raise PituneError(f"{type(attention).__name__} is no attention that keys and values can be added to")
    return found


def with_keys_values(attention: nn.Module, keys_values: Callable[[], tuple[Tensor, Tensor]]) -> list[Handle]:
    """Let every query of ``attention`` meet more keys and values, before its own; none of them is masked or turned.

    Works on any attention of transformers that looks up its function (eager or sdpa), and on MPNet's.

    Args:
        attention: the module that makes queries, keys and values and lets them meet.
        keys_values: gives keys and values, each (E, heads, count, head width), when asked.

    Raises:
        PituneError: it is no such attention, or keys were added already.
    """
    heads_of(attention)
    if type(attention).__name__ in WRITTEN_OUT:
        return _with_projected(attention, keys_values)
    if is_taken(attention):
        raise PituneError(f"{type(attention).__name__} has added keys and values already")
    config: Any = attention.config
    name = config._attn_implementation or "eager"
    if name not in ("eager", "sdpa"):
        raise PituneError(
            f"{type(attention).__name__} attends by {name}, to which no keys can be added; "
            "open the model with attn_implementation sdpa or eager"
        )
    return [attends_by(attention, functools.partial(_attend, name, keys_values))]


def _attend(
    name: str,
    keys_values: Callable[[], tuple[Tensor, Tensor]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **named: Any,
) -> Any:
    """Attend as ``module`` otherwise does, with the added keys and values in front; (rows, heads, tokens, width)."""
    keys, values = (per_row(tensor, len(key)).to(key.dtype) for tensor in keys_values())
    count = keys.shape[2]
    causal = named.get("is_causal") if named.get("is_causal") is not None else getattr(module, "is_causal", True)
    if attention_mask is None and name == "sdpa" and causal and query.shape[2] > 1:
        square = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
        attention_mask = square.tril()[None, None]  # sdpa would make its own, without the added keys
    if attention_mask is not None:
        attention_mask = _in_front(attention_mask, -1, count)
    if isinstance(named.get("position_bias"), Tensor):
        named["position_bias"] = nn.functional.pad(named["position_bias"], (count, 0))
    attend = function_of(module, name)
    return attend(module, query, torch.cat([keys, key], 2), torch.cat([values, value], 2), attention_mask, **named)


def _with_projected(attention: nn.Module, keys_values: Callable[[], tuple[Tensor, Tensor]]) -> list[Handle]:
    """Let an attention with its formula written out run with more tokens, whose keys and values are the added ones."""
    held: list[Tensor] = []  # this pass's keys and values, (rows, count, heads · head width)

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = named_arguments(attention, args, kwargs)
        hidden = given["hidden_states"]
        held[:] = [per_row(tensor, len(hidden)).transpose(1, 2).flatten(2) for tensor in keys_values()]
        count = held[0].shape[1]
        given["hidden_states"] = nn.functional.pad(hidden, (0, 0, count, 0))
        for name in ("attention_mask", "position_bias"):
            if isinstance(given.get(name), Tensor):
                wide = _in_front(given[name], -1, count)
                given[name] = wide if wide.shape[-2] == 1 else _in_front(wide, -2, count)
        return (), given

    def projected(index: int) -> Callable[..., Tensor]:
        return lambda _, __, y: torch.cat([held[index].to(y.dtype), y[:, held[index].shape[1] :]], 1)

    def leave(_: nn.Module, __: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        return (output[0][:, held[0].shape[1] :], *output[1:])

    keys, values = (_projection(attention, names) for names in (KEYS, VALUES))
    assert keys is not None and values is not None
    return [
        attention.register_forward_pre_hook(enter, with_kwargs=True),
        keys.register_forward_hook(projected(0)),
        values.register_forward_hook(projected(1)),
        attention.register_forward_hook(leave),
    ]


# --- what they share ---------------------------------------------------------------------------------------------


def per_row(tensor: Tensor, rows: int) -> Tensor:
    """Give each of ``rows`` rows its group's part: (E, …) becomes (rows, …)."""
    return tensor.repeat_interleave(rows // len(tensor), 0) if rows != len(tensor) else tensor


def _projection(attention: nn.Module, names: Sequence[str]) -> nn.Linear | None:
    found = (getattr(attention, name, None) for name in names)
    return next((linear for linear in found if isinstance(linear, nn.Linear)), None)


def _heads(attention: nn.Module) -> tuple[int, int] | None:
    """Return how many heads the keys have and a head's width, or None where this cannot be seen."""
    width = next((getattr(attention, name) for name in HEAD_WIDTHS if hasattr(attention, name)), None)
    keys, fused = _projection(attention, KEYS), _projection(attention, FUSED)
    if width is None or (keys is None and fused is None):
        return None
    return (keys.out_features if keys is not None else fused.out_features // 3) // width, width  # type: ignore[union-attr]


def named_arguments(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name, in the order of the module's signature."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def _shown_and_hidden(mask: Tensor) -> tuple[float, float]:
    """Return the two values of a mask: bool, 1 and 0, or added to the scores."""
    return (0.0, torch.finfo(mask.dtype).min) if mask.is_floating_point() else (1, 0)


def _in_front(tensor: Tensor, dim: int, count: int) -> Tensor:
    """Put ``count`` that are seen in front of a mask's keys or queries."""
    shape = list(tensor.shape)
    shape[dim] = count
    return torch.cat([tensor.new_full(shape, _shown_and_hidden(tensor)[0]), tensor], dim)


def _inserted(tensor: Tensor, dim: int, place: int, block: Tensor) -> Tensor:
    dim %= tensor.dim()
    before, after = tensor.narrow(dim, 0, place), tensor.narrow(dim, place, tensor.shape[dim] - place)
    return torch.cat([before, block, after], dim)
