"""Tiny random encoders, tasks and experts, which many tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from plainattention import PlainAttention
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertTokenizerFast

from pitune.backbones import Backbone, Precision
from pitune.backbones.text import TextBackbone, TextSettings
from pitune.experts import Adapter, BitFit, Expert, ExpertKind, Lora, Prefix
from pitune.interpolation.tune import Setting
from pitune.objectives import Match, Rows
from pitune.tasks.task import Example, Task

WORDS = [f"w{number}" for number in range(60)]
SHAPES: dict[str, dict[str, object]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48},
    "mpnet": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48},
    "modernbert": {
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48},
        **{"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    },
}
MATCH = Match(scale=10.0)
KINDS: tuple[ExpertKind, ...] = (Lora(rank=2, alpha=6, layers=2), Adapter(width=4, layers=2))
EVERY_KIND: tuple[ExpertKind, ...] = (*KINDS, Prefix(tokens=3, layers=2), BitFit(layers=2))


def save_encoder(folder: Path, family: str) -> Path:
    """Write a random encoder of three layers, 32 wide, with a tokenizer of whole words, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    settings = {"vocab_size": len(vocabulary), "pad_token_id": 0, "max_position_embeddings": 64}
    model = AutoModel.from_config(AutoConfig.for_model(family, **settings, **SHAPES[family]))
    for parameter in model.parameters():  # wider than the usual 0.02, so that texts differ
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def open_encoder(folder: Path, precision: Precision = "fp32", **settings: object) -> TextBackbone:
    """Open it."""
    chosen = {"uri": "tiny", "max_tokens": 24, **settings}
    return TextBackbone(folder, TextSettings.model_validate(chosen), precision)


def embed(encoder: Backbone, texts: Sequence[str]) -> Tensor:
    """Embed texts with whatever is attached to the encoder, from its lowest layer on: (texts, width)."""
    tower = encoder.texts_tower
    with torch.no_grad():
        return encoder(encoder.inputs(encoder.encode_texts(texts), {tower: 0}))


def token_ids(encoder: TextBackbone, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's token ids."""
    return [list(row.content) for row in encoder.encode_texts(texts)]


def make_task(name: str, classes: int, examples: int, longest: int = 12) -> Task:
    """Make a task whose texts of a class share words; train, validation and test have ``examples`` texts each."""
    generator = np.random.default_rng([classes, examples, longest, *name.encode()])
    splits = {}
    for split in ("train", "validation", "test"):
        held = []
        for number in range(examples):
            label = number % classes
            length = int(generator.integers(3, longest + 1))
            words = [WORDS[label * 5 + int(word)] for word in generator.integers(0, 8, size=length)]
            held.append(Example(f"{split}-{number}", " ".join(words), label))
        splits[split] = tuple(held)
    labels = tuple(f"label{number}" for number in range(classes))
    texts = tuple(f"w{40 + number}" for number in range(classes))
    return Task(name, "text", "accuracy", labels, texts, splits, f"{name}-{classes}-{examples}")


def with_several(task: Task) -> Task:
    """Return a multilabel task of the same texts, each with none of the labels, one, two and so on, in turn."""
    count = len(task.labels)

    def changed(number: int, example: Example) -> Example:
        has = [(example.labels[0] + further) % count for further in range(number % (count + 1))]
        return replace(example, label=tuple(sorted(has)))

    splits = {split: tuple(map(changed, range(len(held)), held)) for split, held in task.splits.items()}
    return replace(task, splits=splits, family="multilabel", metric="mean_average_precision")


def make_rows(encoder: Backbone, task: Task, split: str = "train", again: bool = True) -> Rows:
    """Make the rows of a split."""
    return Rows(encoder, MATCH, [(task, task.splits[split], 1.0)], again)


def setting(encoder: Backbone, kind: ExpertKind) -> Setting:
    """Return what a mixture of this kind acts on."""
    return Setting(encoder, kind, MATCH, encoder.firsts(list(kind.start(encoder))))


def random_expert(kind: ExpertKind, encoder: Backbone, seed: int, size: float = 0.1) -> Expert:
    """Return an expert with no zero parameters, as after training."""
    generator = torch.Generator().manual_seed(seed)
    return {
        site: {key: tensor + size * torch.randn(tensor.shape, generator=generator) for key, tensor in held.items()}
        for site, held in kind.start(encoder).items()
    }


def flat(expert: Expert) -> Tensor:
    """Return all of an expert's numbers."""
    return torch.cat([tensor.flatten() for site in sorted(expert) for _, tensor in sorted(expert[site].items())])


class PlainExpert(nn.Module):
    """One expert on a model, written out with explicit formulas: what pitune's bank is compared with.

    It replaces each site by a module of its own, and so shares no code with :mod:`pitune.experts`.
    """

    def __init__(self, kind: ExpertKind, expert: Expert) -> None:
        super().__init__()
        self.kind = kind
        self.sites = {site: {k: nn.Parameter(t.clone()) for k, t in held.items()} for site, held in expert.items()}
        self.everything = nn.ParameterList([t for held in self.sites.values() for t in held.values()])

    def expert(self) -> Expert:
        """Return its present values."""
        return {site: {k: t.detach().clone() for k, t in held.items()} for site, held in self.sites.items()}

    def put_on(self, model: nn.Module) -> None:
        """Replace the sites in ``model``."""
        for site, held in self.sites.items():
            parent, _, name = site.rpartition(".")
            module = model.get_submodule(site)
            if isinstance(self.kind, Prefix):
                plain: nn.Module = PlainAttention(module, held["prefix_keys"], held["prefix_values"])
            else:
                plain = _PlainSite(self.kind, module, held)
            setattr(model.get_submodule(parent), name, plain)


class _PlainSite(nn.Module):
    def __init__(self, kind: ExpertKind, module: nn.Module, held: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.kind, self.module = kind, module
        self.held = dict(held)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x)
        held = self.held
        if isinstance(self.kind, BitFit):
            return y + held["bias_delta"]
        if isinstance(self.kind, Lora):
            a, b = held["lora_A.weight"], held["lora_B.weight"]
            return y + (self.kind.alpha / self.kind.rank) * nn.functional.linear(nn.functional.linear(x, a), b)
        down = nn.functional.linear(y, held["adapter_down.weight"], held["adapter_down.bias"])
        return y + nn.functional.linear(nn.functional.gelu(down), held["adapter_up.weight"], held["adapter_up.bias"])


def plain_embedding(model: nn.Module, ids: list[int]) -> Tensor:
    """Embed one text, alone and unpadded: the mean of its tokens' states, of length 1."""
    states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return nn.functional.normalize(states.mean(0), dim=0)
