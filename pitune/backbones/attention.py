"""Attentions of transformers that attend by a function of ours, in place of the one that their model would look up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

FUNCTION = "pitune"
"""Our name among transformers' attention functions."""

Attend = Callable[..., Any]
"""Called as transformers calls them: with the module, query, key and value, each (rows, heads, tokens, head width), the
mask, and more by name (``scaling``); returns what the queries met, (rows, tokens, heads, head width), and None."""


def asks_for_its_function(module: nn.Module) -> bool:
    """Say whether a module is an attention that looks up by what function it attends."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in forward.__code__.co_names and hasattr(module, "config")


def is_taken(attention: nn.Module) -> bool:
    """Say whether an attention attends by a function of ours already."""
    return isinstance(attention.config, _Config)


def function_of(attention: nn.Module, name: str) -> Attend:
    """Return the function by which an attention attends where its configuration says ``name``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = inspect.unwrap(type(attention).forward).__globals__["eager_attention_forward"]
    found: Attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, own)
    return found


def attends_by(attention: nn.Module, attend: Attend) -> Exchanged:
    """Let an attention that :func:`asks_for_its_function` attend by ``attend``, until what is returned is removed."""
    return Exchanged(attention, "config", _Config(attention.config, attend))


class Exchanged:
    """An attribute that another took the place of."""

    def __init__(self, module: nn.Module, name: str, value: object) -> None:
        self.module, self.name, self.kept = module, name, getattr(module, name)
        setattr(module, name, value)

    def remove(self) -> None:
        """Put back what was there."""
        setattr(self.module, self.name, self.kept)


class _Config:
    """A model's configuration as one attention sees it: it names our function, the rest is the model's."""

    _attn_implementation = FUNCTION

    def __init__(self, config: Any, attend: Attend) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(FUNCTION, _attend)
        self.config, self.attend = config, attend

    def __getattr__(self, name: str) -> Any:
        if "config" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return getattr(self.config, name)


def _attend(module: nn.Module, *args: Any, **named: Any) -> Any:
    config: Any = module.config
    return config.attend(module, *args, **named)
