"""What prompts on a dual encoder cost: with what no expert touches kept, packed, and cut to the texts' length.

    python benchmarks/prompts.py

A CLIP of random weights in the shapes of ViT-B/16 (arXiv 2103.00020, table 19), a task of ten classes with names of one
to three tokens, two threads. Ways take turns in this process:

- **a step of a text prompt**, 32 pictures, forward, back and update: with the pictures' features kept, as in a study,
  and with both towers at every step, as CoOp's code has it;
- **a step of a visual prompt in the last layer**, the same 32 pictures: with the class token alone, as in a study, and
  with the whole layer on what enters it, which is kept too;
- **a target's column of the transfer matrix**, 19 experts that start from other tasks', 16 rows a step: as one pack,
  and one pair after another, both with the features kept;
- **class features of a text prompt**, forward and back: the texts cut to the longest, and filled up to 77 tokens.

Prints the median seconds of each, and the ratios. Takes some five minutes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import THREADS, side_by_side, trained_looking
from PIL import Image
from transformers import BertTokenizerFast, CLIPConfig, CLIPModel

from pitune.backbones import Encoded
from pitune.backbones.cache import CACHE
from pitune.backbones.dual import IMAGE, TEXT, DualBackbone, DualSettings
from pitune.experts import Bank, Expert, ExpertKind, TextPrompt, VisualPrompt
from pitune.objectives import Match, Rows
from pitune.tasks.pictures import Picture
from pitune.tasks.task import Example, Task
from pitune.training.engine import EngineSettings
from pitune.training.loop import Member, PackTraining
from pitune.training.recipe import Recipe

CLASSES, PICTURES, BATCH, SHOT_BATCH, SOURCES, STEPS = 10, 64, 32, 16, 19, 3
WORDS = [f"word{number}" for number in range(100)]
TEXT_SHAPE = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
IMAGE_SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
OBJECTIVE = Match(scale=100.0)


def clip(folder: Path) -> DualBackbone:
    """Make the model, with a tokenizer of whole words, and open it."""
    vocabulary = ["[PAD]", "[CLS]", "[UNK]", "[MASK]", *WORDS, "[SEP]"]
    text: dict[str, Any] = {**TEXT_SHAPE, "vocab_size": len(vocabulary), "pad_token_id": 0, "bos_token_id": 1}
    text["eos_token_id"] = len(vocabulary) - 1
    config = CLIPConfig(text_config=text, vision_config={**IMAGE_SHAPE, "patch_size": 16}, projection_dim=512)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    return DualBackbone(folder, DualSettings(uri="a random ViT-B/16"))


def task(folder: Path) -> Task:
    """Make a task of noise."""
    generator = np.random.default_rng(0)
    examples = []
    for number in range(PICTURES):
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(path)
        examples.append(
            Example(path.name, "", number % CLASSES, Picture(str(path), hashlib.sha256(path.read_bytes()).hexdigest()))
        )
    names = tuple(" ".join(WORDS[number * 3 : number * 3 + 1 + number % 3]) for number in range(CLASSES))
    splits = {split: tuple(examples) for split in ("train", "validation", "test")}
    return Task("noise", "image", "accuracy", names, names, splits, "noise")


def step(
    backbone: DualBackbone, kind: ExpertKind, rows: Rows, firsts: dict[str, int] | None = None
) -> Callable[[], None]:
    """Return a step of training one expert; ``firsts`` in place of what the kind's sites say."""
    bank = Bank(kind, [kind.start(backbone)])
    optimizer = torch.optim.SGD(bank.parameters(), lr=1e-3)
    found = firsts or backbone.firsts([path for path, _ in bank.named_sites()])

    def once() -> None:
        batch = OBJECTIVE.collate(backbone, found, [rows.take(range(BATCH))])
        optimizer.zero_grad()
        OBJECTIVE.losses(backbone, bank, batch).mean().backward()
        optimizer.step()

    return once


def text_steps(backbone: DualBackbone, rows: Rows) -> dict[str, Callable[[], None]]:
    """Return a step of training with features kept, and one with both towers."""
    kept = step(backbone, TextPrompt(), rows)

    def both() -> None:
        CACHE.clear()
        kept()

    return {"both towers": both, "features kept": kept}


def visual_steps(backbone: DualBackbone, rows: Rows) -> dict[str, Callable[[], None]]:
    """Return a step of training tokens in the last layer with all of that layer, and with its class token alone."""
    kind = VisualPrompt(layers=1)
    whole = {IMAGE: backbone.towers[IMAGE].depth - 1}
    return {"the whole layer": step(backbone, kind, rows, whole), "the class token": step(backbone, kind, rows)}


def column(backbone: DualBackbone, rows: Rows) -> dict[str, Callable[[], None]]:
    """Return training a target's pairs as one pack, and one after another."""
    kind = TextPrompt()
    starts: list[Expert] = [trained_looking(kind, backbone, seed) for seed in range(SOURCES)]
    recipe = Recipe(steps=STEPS, batch_size=SHOT_BATCH, learning_rate=1e-3)
    members = [Member("target", start, rows, rows) for start in starts]

    def together() -> None:
        PackTraining(backbone, kind, OBJECTIVE, members, recipe, EngineSettings(zero_stage=1)).run()

    def alone() -> None:
        for member in members:
            PackTraining(backbone, kind, OBJECTIVE, [member], recipe, EngineSettings(zero_stage=1)).run()

    return {"one after another": alone, "a pack": together}


def lengths(backbone: DualBackbone, source: Task) -> dict[str, Callable[[], None]]:
    """Return class features with their gradients, of texts filled up to CLIP's 77 tokens and cut to the longest."""
    kind = TextPrompt()
    bank = Bank(kind, [kind.start(backbone)])
    texts = backbone.encode_texts(source.label_texts)
    # An end of a text is where its first end token is; what follows, no place before it sees.
    full = [Encoded.of_ids(TEXT, (*one.content, *[0] * (77 - kind.tokens - one.cost))) for one in texts]

    def read(rows: list[Encoded]) -> Callable[[], None]:
        def once() -> None:
            with bank.attached(backbone.model):
                backbone(backbone.inputs(rows, {TEXT: 0})).sum().backward()

        return once

    return {"77 tokens": read(full), "cut": read(texts)}


def main() -> None:
    """Measure all four."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        backbone, source = clip(place), task(place)
        rows = Rows(backbone, OBJECTIVE, [(source, source.splits["train"], 1.0)])
        for what, ways, repeats in (
            (f"a step of a text prompt, {BATCH} pictures", text_steps(backbone, rows), 3),
            (f"a step of a visual prompt, {BATCH} pictures", visual_steps(backbone, rows), 5),
            (f"a column of {SOURCES} pairs, {STEPS} steps", column(backbone, rows), 1),
            (f"class features of {CLASSES} names", lengths(backbone, source), 5),
        ):
            seconds = side_by_side(ways, repeats)
            (slow, longer), (fast, shorter) = seconds.items()
            print(f"{what}: {slow} {longer:.2f} s, {fast} {shorter:.3f} s, {longer / shorter:.1f}x", flush=True)


if __name__ == "__main__":
    main()
