"""Text encoders from Hugging Face: one tower that reads examples and candidates' texts alike.

Padding never changes a result: masked tokens are ignored in attention and in pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pitune.backbones.base import Backbone, BackboneSettings, Precision
from pitune.backbones.huggingface import LOCAL, largest_stack, open_model, padded, refused
from pitune.backbones.tower import Encoded, Inputs, Tower

if TYPE_CHECKING:
    from pitune.tasks.task import Example

TEXT = "text"
CHARACTERS = 5
"""A token's, about."""


class TextSettings(BackboneSettings):
    """A text encoder."""

    reads: ClassVar[tuple[str, ...]] = ("text",)
    kind: Literal["text"] = "text"
    uri: str = Field(description="where the model's folder comes from: a path, hf:…, pypi:…, npm:… or deb:…")
    pooling: Literal["mean", "first"] = "mean"
    max_tokens: int = Field(64, ge=4, le=8192, description="longer texts are cut")

    def open(self, folder: Path, precision: Precision = "fp32") -> TextBackbone:
        """Open the encoder in ``folder``."""
        return TextBackbone(folder, self, precision)

    def cost(self, example: Example) -> int:
        """Return about how many tokens a text has, up to what is cut off."""
        return min(len(example.text) // CHARACTERS + 1, self.max_tokens)


class TextBackbone(Backbone):
    """A frozen Hugging Face text encoder.

    Args:
        folder: a model folder in Hugging Face's layout (config, safetensors weights, tokenizer).
        settings: pooling and length.
        precision: of the frozen matrices.

    Raises:
        PituneError: the folder holds no encoder that transformers can read without running code from it.
    """

    def __init__(self, folder: Path, settings: TextSettings, precision: Precision = "fp32") -> None:
        from transformers import AutoTokenizer  # takes seconds, and few commands need it

        try:
            model = open_model(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
        except Exception as error:  # transformers and its tokenizers raise whatever they like
            raise refused(settings, "is not a text encoder that transformers reads", error) from error
        path, stack = largest_stack(model, settings.uri)
        super().__init__(model, [Tower(TEXT, path, len(stack), model.config.hidden_size)], TEXT, TEXT, precision)
        self.settings, self.tokenizer = settings, tokenizer
        self.try_tokens(settings.max_tokens, f"texts of max_tokens = {settings.max_tokens} tokens")

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return each example's token ids, cut to ``max_tokens``."""
        return self.encode_texts([example.text for example in examples])

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Return each text's token ids, cut to ``max_tokens``."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.settings.max_tokens)["input_ids"]
        return [Encoded.of_ids(TEXT, one) for one in ids]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad token ids to the longest: ``input_ids`` and ``attention_mask``, (rows, tokens)."""
        return padded(rows, self.tokenizer.pad_token_id)

    def embed(self, inputs: Inputs) -> Tensor:
        """Run the encoder and pool its last states."""
        states = self.states(inputs)
        if self.settings.pooling == "first":
            return states[:, 0]
        weights = inputs.tensors["attention_mask"].unsqueeze(-1).float()
        return (states.float() * weights).sum(1) / weights.sum(1)

    def states(self, inputs: Inputs) -> Tensor:
        """Run the encoder: its last states, (rows, tokens, width)."""
        found: Tensor = self.model(**inputs.tensors).last_hidden_state
        return found

    def try_tokens(self, count: int, what: str) -> None:
        """Run the encoder once on ``count`` tokens, ``what`` in words.

        Raises:
            PituneError: it has no places for so many.
        """
        token = 1 if self.tokenizer.pad_token_id != 1 else 2
        try:
            self.try_out(Encoded.of_ids(TEXT, [token] * count))
        except Exception as error:
            raise refused(self.settings, f"does not embed {what}", error) from error


__all__ = ["TEXT", "TextBackbone", "TextSettings"]
