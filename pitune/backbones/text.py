"""Text encoders from Hugging Face: what goes in, what comes out, and the part that no expert touches.

Notable:
- texts and candidate labels meet in the encoder's pooled, normalised space: cosine times a scale gives logits, so a
  task has no head of its own and zero-shot works;
- the *trunk*, the layers below the first expert, is frozen and sees no expert: it runs once per example, not once
  per step or per expert;
- padding never changes a result: masked tokens are ignored in attention and in pooling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pitune.errors import PituneError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TextBackboneSettings(BaseModel):
    """The frozen encoder of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    uri: str = Field(description="where the model's folder comes from: a path, hf:… or pypi:…")
    pooling: Literal["mean", "first"] = "mean"
    max_tokens: int = Field(64, ge=4, le=8192, description="longer texts are cut")
    scale: float = Field(20.0, gt=0, description="logits are the cosine times this")


@dataclass(frozen=True)
class Inputs:
    """A padded batch. ``ids`` and ``mask``: (rows, tokens); ``hidden``: the trunk's output (rows, tokens, width)."""

    ids: Tensor
    mask: Tensor
    hidden: Tensor | None = None

    def repeat(self, copies: int) -> Inputs:
        """Return the batch ``copies`` times over: (copies · rows, tokens)."""
        hidden = None if self.hidden is None else self.hidden.repeat(copies, 1, 1)
        return Inputs(self.ids.repeat(copies, 1), self.mask.repeat(copies, 1), hidden)


class _StandIn(nn.Module):
    """Takes the place of an encoder layer: hands on ``hidden`` where it has one, else what it was given."""

    def __init__(self, layer: nn.Module, returns_tuple: bool, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple: no submodule
        self.returns_tuple = returns_tuple
        self.hidden = hidden

    def __getattr__(self, name: str) -> Any:
        # Some models ask a layer what kind of attention it has before they call it.
        return getattr(self.layer[0], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        out = hidden_states if self.hidden is None else self.hidden
        return (out,) if self.returns_tuple else out


class TextBackbone(nn.Module):
    """A frozen Hugging Face text encoder.

    Args:
        folder: a model folder in Hugging Face's layout (config, safetensors weights, tokenizer).
        settings: pooling, length and scale.
        precision: the type of the frozen matrices, and that which the layers compute in; experts, pooling and logits
            are float32 always.

    Raises:
        PituneError: the folder holds no encoder that transformers can read without running code from it.
    """

    def __init__(self, folder: Path, settings: TextBackboneSettings, precision: Precision = "fp32") -> None:
        super().__init__()
        self.settings = settings
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            # use_safetensors: no pickle is ever read; trust_remote_code stays off: nothing in the folder is run.
            self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # transformers and its tokenizers raise whatever they like
            raise self._refused("is not a text encoder that transformers reads", error) from error
        self.model.requires_grad_(False).eval()
        self._dtype = DTYPES[precision]
        # Matrices only: norms and biases want float32 whatever the precision.
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(self._dtype if parameter.dim() > 1 else torch.float32)
        self.layers = _layers(self.model, settings.uri)
        self._returns_tuple = self._layer_returns_tuple()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def is_fp16(self) -> bool:
        """Whether the layers compute in fp16, in which small gradients are lost unless the loss is scaled."""
        return self._dtype is torch.float16

    @property
    def depth(self) -> int:
        """How many layers the encoder has."""
        return len(self.layers)

    def train(self, mode: bool = True) -> TextBackbone:
        """Stay in evaluation mode: the backbone is frozen, its dropout would only couple results to luck."""
        return super().train(False)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, cut to ``max_tokens``, not padded."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.settings.max_tokens)[
            "input_ids"
        ]
        return ids

    def collate(self, ids: Sequence[Sequence[int]], hidden: Sequence[Tensor] | None = None) -> Inputs:
        """Pad token ids (and, where given, trunk outputs of (tokens, width) each) to the longest."""
        longest = max(map(len, ids))
        padded = torch.full((len(ids), longest), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros((len(ids), longest), dtype=torch.long)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        states = None if hidden is None else nn.utils.rnn.pad_sequence(list(hidden), batch_first=True)
        place = self.device
        return Inputs(padded.to(place), mask.to(place), None if states is None else states.to(place))

    @torch.no_grad()
    def trunk(self, inputs: Inputs, first: int) -> Inputs:
        """Run the layers below ``first`` and return the inputs with their output as ``hidden``."""
        if first == 0:
            return inputs
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        handle = self.layers[first - 1].register_forward_hook(keep)
        try:
            with self._replaced(range(first, self.depth), None), self._autocast():
                self.model(input_ids=inputs.ids, attention_mask=inputs.mask)
        finally:
            handle.remove()
        return Inputs(inputs.ids, inputs.mask, found[0])

    def forward(self, inputs: Inputs, first: int = 0) -> Tensor:
        """Embed a batch: (rows, width), float32, of length 1.

        Where ``inputs.hidden`` is given, the layers below ``first`` are skipped and it takes their place.
        """
        skipped = range(first if inputs.hidden is not None else 0)
        with self._replaced(skipped, inputs.hidden), self._autocast():
            states = self.model(input_ids=inputs.ids, attention_mask=inputs.mask).last_hidden_state
        if self.settings.pooling == "first":
            pooled = states[:, 0].float()
        else:
            weights = inputs.mask.unsqueeze(-1).float()
            pooled = (states.float() * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(pooled, dim=-1)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], rows: int = 64) -> Tensor:
        """Embed texts without any expert: (texts, width), float32."""
        ids = self.tokenize(texts)
        parts = [self(self.collate(ids[start : start + rows])) for start in range(0, len(ids), rows)]
        return torch.cat(parts)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not torch.float32)

    @contextlib.contextmanager
    def _replaced(self, which: range, hidden: Tensor | None) -> Iterator[None]:
        """Let stand-ins take the place of some layers; the last of them hands on ``hidden``."""
        kept = {index: self.layers[index] for index in which}
        for index in which:
            last = index == which.stop - 1
            self.layers._modules[str(index)] = _StandIn(kept[index], self._returns_tuple, hidden if last else None)
        try:
            yield
        finally:
            for index, layer in kept.items():
                self.layers._modules[str(index)] = layer

    def _refused(self, why: str, error: Exception) -> PituneError:
        reason = " ".join(str(error).split())
        return PituneError(f"backbone.uri: {self.settings.uri} {why} ({reason[:300]})")

    @torch.no_grad()
    def _layer_returns_tuple(self) -> bool:
        """Try the model on the longest text there may be, and say what its layers return."""
        found: list[bool] = []
        handle = self.layers[0].register_forward_hook(lambda _, __, output: found.append(isinstance(output, tuple)))
        token = 1 if self.tokenizer.pad_token_id != 1 else 2
        inputs = self.collate([[token] * self.settings.max_tokens])
        try:
            with self._autocast():
                _ = self.model(input_ids=inputs.ids, attention_mask=inputs.mask).last_hidden_state
        except Exception as error:
            why = f"does not embed texts of max_tokens = {self.settings.max_tokens} tokens"
            raise self._refused(why, error) from error
        finally:
            handle.remove()
        return found[0]


def _layers(model: nn.Module, uri: str) -> nn.ModuleList:
    """Return the encoder's stack of layers: the list of modules that holds most parameters."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        raise PituneError(f"backbone.uri: {uri} has no stack of layers; name a transformer encoder")
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))
