"""Prefix tuning (arXiv 2101.00190) with the expert axis: keys and values that every query meets besides its own.

Where all layers of a tower have a prefix, the files and the forward pass are PEFT's: there the prefix takes the first
positions, and what is read moves up by as many, in models that know positions of a past (BERT, RoBERTa and their like).
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.backbones import Backbone, Site
from pitune.errors import PituneError
from pitune.experts.binders import Handle, heads_of, is_attention, with_keys_values
from pitune.experts.kind import Expert, ExpertKind, Files, Tensors

KEYS, VALUES = "prefix_keys", "prefix_values"  # (E, heads, tokens, head width)
EMBEDDINGS = "prompt_embeddings"  # PEFT's one tensor: (tokens, layers · 2 · width)
SPREAD = 0.02  # of the start
UNREAD = {"num_transformer_submodules": 1, "modules_to_save": None}  # what PEFT's files must say to be read


class Prefix(ExpertKind):
    """Keys and values in front of the attention's own."""

    kind: Literal["prefix"] = "prefix"
    tokens: int = Field(10, ge=1, description="keys and values that each layer gets")
    peft_type: ClassVar[str] = "PREFIX_TUNING"
    other_peft_types: ClassVar[tuple[str, ...]] = ("LAYER_PREFIX",)
    parameter_names: ClassVar[tuple[str, ...]] = (KEYS, VALUES)
    neutral: ClassVar[bool] = False

    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module`` is an attention."""
        return is_attention(module)

    def sites(self, backbone: Backbone) -> list[Site]:
        """Return the first attention of each layer: that of the layer's own tokens, not that of an encoder's."""
        found: dict[tuple[str, int], Site] = {}
        for site in super().sites(backbone):
            found.setdefault((site.tower, site.layer), site)
        return list(found.values())

    def initial(self, module: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw from a normal distribution so narrow that a prefix first of all takes some of the attention away."""
        heads, width = heads_of(module)
        return {name: SPREAD * torch.randn(heads, self.tokens, width, generator=generator) for name in (KEYS, VALUES)}

    def bind(self, module: nn.Module, tensors: Callable[[], Tensors]) -> list[Handle]:
        """Add the keys and values."""

        def keys_values() -> tuple[Tensor, Tensor]:
            held = tensors()
            return held[KEYS], held[VALUES]

        return with_keys_values(module, keys_values)

    def bind_model(self, model: nn.Module, sites: Mapping[str, Callable[[], Tensors]]) -> list[Handle]:
        """Move what is read behind the prefix, where all layers of a stack have one and the model knows of a past."""
        handles: list[Handle] = []
        for (before, _), paths in _stacks(list(sites)).items():
            if len(model.get_submodule(before)) != len(paths):  # type: ignore[arg-type]
                continue
            for path, module in model.named_modules():
                inside = f".{before}.".startswith(f".{path.rpartition('.')[0]}".rstrip(".") + ".")
                if inside and "past_key_values_length" in _parameters(module):
                    hook = functools.partial(_after_a_past, sites[paths[0]])
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    def peft_config(self, expert: Expert) -> dict[str, Any]:
        """Return PEFT's PrefixTuningConfig where all layers of one tower have a prefix, else one of our own."""
        heads, tokens, width = next(iter(expert.values()))[KEYS].shape
        if not _is_whole(expert):
            return {"peft_type": self.other_peft_types[0], "num_virtual_tokens": tokens}
        return {
            "peft_type": self.peft_type,
            "task_type": "FEATURE_EXTRACTION",
            "num_virtual_tokens": tokens,
            "num_layers": len(expert),
            "num_attention_heads": heads,
            "token_dim": heads * width,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": heads * width,
            "prefix_projection": False,
        }

    @classmethod
    def from_peft_config(cls, config: Mapping[str, Any]) -> Prefix:
        """Return the kind of a saved prefix; PEFT saves one that it projects as its projection.

        Raises:
            ValueError: it is a variant that pitune does not compute.
        """
        for name, right in UNREAD.items():
            if config.get(name, right) != right:
                raise ValueError(f"{name} is {json.dumps(config[name])}; pitune reads {json.dumps(right)}")
        return cls(tokens=config["num_virtual_tokens"])

    def to_tensors(self, expert: Expert) -> dict[str, Tensor]:
        """Return PEFT's one tensor, or one for each of a site's."""
        if not _is_whole(expert):
            return super().to_tensors(expert)
        parts = [expert[path][name].transpose(0, 1) for path in _ordered(expert) for name in (KEYS, VALUES)]
        return {EMBEDDINGS: torch.stack(parts, 1).flatten(1)}  # (tokens, layers · 2, heads, width), flat

    def notes(self, expert: Expert) -> dict[str, str]:
        """Note the sites, which PEFT's one tensor does not name."""
        return {"sites": json.dumps(_ordered(expert))} if _is_whole(expert) else super().notes(expert)

    def from_tensors(self, files: Files) -> Expert:
        """Take PEFT's tensor apart; sites of a file that PEFT wrote are their layers' numbers."""
        if files.config["peft_type"] != self.peft_type:
            return super().from_tensors(files)
        if set(files.tensors) != {EMBEDDINGS}:
            raise PituneError(f"{files.where}: has no tensor {EMBEDDINGS} alone; the file is not whole")
        layers, heads = files.config["num_layers"], files.config["num_attention_heads"]
        shape = (files.config["num_virtual_tokens"], layers * 2 * files.config["token_dim"])
        found = files.tensors[EMBEDDINGS]
        if found.shape != shape:
            raise PituneError(f"{files.where}: {EMBEDDINGS} is {tuple(found.shape)}, its configuration says {shape}")
        parts = found.view(self.tokens, layers * 2, heads, -1).permute(1, 2, 0, 3)  # (layers · 2, heads, tokens, width)
        paths = json.loads(files.notes.get("sites", "null")) or [str(layer) for layer in range(layers)]
        pairs = zip(paths, parts[0::2], parts[1::2], strict=True)
        return {path: {KEYS: keys.contiguous(), VALUES: values.contiguous()} for path, keys, values in pairs}

    def placed(self, expert: Expert, model: nn.Module) -> Expert:
        """Find the attentions of a prefix that PEFT wrote: the one stack that has as many."""
        if not all(path.isdigit() for path in expert):
            return expert
        stacks = _stacks([path for path, module in model.named_modules() if is_attention(module)])
        found = [paths for paths in stacks.values() if len(paths) == len(expert)]
        if len(found) != 1:
            raise PituneError(f"made for another backbone, this model has no stack of {len(expert)} attentions")
        return dict(zip(found[0], expert.values(), strict=True))


def _split(path: str) -> tuple[str, int, str]:
    """Return what comes before a path's layer, the layer, and what comes after."""
    parts = path.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return path, -1, ""
    return ".".join(parts[:number]), int(parts[number]), ".".join(parts[number + 1 :])


def _stacks(paths: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Group paths that differ in their layer only, the lowest first."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(paths, key=lambda path: _split(path)[1]):
        before, _, after = _split(path)
        found.setdefault((before, after), []).append(path)
    return found


def _ordered(expert: Expert) -> list[str]:
    return sorted(expert, key=lambda path: _split(path)[1])


def _is_whole(expert: Expert) -> bool:
    """Say whether the sites are all layers of one tower: from the lowest on, for a kind takes the last so many."""
    alike = len({held[KEYS].shape for held in expert.values()}) == 1
    return alike and len(_stacks(list(expert))) == 1 and _split(_ordered(expert)[0])[1] == 0


def _parameters(module: nn.Module) -> Sequence[str]:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code.co_varnames[: code.co_argcount] if code is not None and next(module.children(), None) else ()


def _after_a_past(
    tensors: Callable[[], Tensors], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tell a model's embeddings how many positions are taken."""
    count = tensors()[KEYS].shape[2]
    ids = args[0] if args else kwargs.get("input_ids")
    most = getattr(getattr(module, "position_embeddings", None), "num_embeddings", None)
    if ids is not None and most is not None:
        room = most - (module.padding_idx + 1 if getattr(module, "padding_idx", None) is not None else 0)  # type: ignore[operator]
        if ids.shape[1] + count > room:
            raise PituneError(
                f"expert.tokens: {count} and {ids.shape[1]} of a text are more than the backbone's {room} positions"
            )
    return args, {**kwargs, "past_key_values_length": count}
