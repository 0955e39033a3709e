"""Full fine-tuning as an expert, against a plain loop that trains the model's own weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tinymodel import MATCH, embed, make_rows, make_task, open_encoder, plain_embedding, random_expert, token_ids
from torch import Tensor, nn
from transformers import AutoModel

from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import KINDS, Bank, Whole
from pitune.experts.checkpoint import from_files, load, to_files
from pitune.training.engine import EngineSettings
from pitune.training.loop import Member, PackTraining
from pitune.training.recipe import Recipe

RECIPE = Recipe(steps=4, batch_size=4, learning_rate=0.002, schedule="linear")
TEXTS = ["w1 w2 w3", "w9 w4"]


def tuned_plainly(folder: Path) -> nn.Module:
    """Fine-tune the model text by text, unpadded; candidates are what the model as it was says of them."""
    encoder, task = open_encoder(folder), make_task("a", 3, 12)
    candidates = embed(encoder, task.label_texts)
    order = make_rows(encoder, task).order("a@full#0", RECIPE.steps, RECIPE.batch_size).tolist()
    model = encoder.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    def loss_of(row: int) -> Tensor:
        example = task.splits["train"][row]
        logits = 10.0 * candidates @ plain_embedding(model, token_ids(encoder, [example.text])[0])
        return nn.functional.cross_entropy(logits, torch.tensor(example.label))

    for step, rows in enumerate(order):
        optimizer.param_groups[0]["lr"] = RECIPE.rate(step)
        optimizer.zero_grad()
        torch.stack([loss_of(row) for row in rows]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def test_it_trains_as_the_models_own_weights_do_and_leaves_the_model_as_it_was(tiny_folder: Path) -> None:
    encoder, task = open_encoder(tiny_folder), make_task("a", 3, 12)
    before = {name: tensor.clone() for name, tensor in encoder.model.named_parameters()}
    rows, validation = make_rows(encoder, task), make_rows(encoder, task, "validation")
    member = Member("a@full#0", Whole().start(encoder), rows, validation)
    (found,) = PackTraining(encoder, Whole(), MATCH, [member], RECIPE, EngineSettings(weight_decay=0.0)).run()
    after = dict(tuned_plainly(tiny_folder).named_parameters())
    changes = {f"{site}.{name}": change for site, held in found.expert.items() for name, change in held.items()}
    assert changes.keys() == before.keys() == dict(encoder.model.named_parameters()).keys()
    assert sum(int((change != 0).any()) for change in changes.values()) > 40
    for name, tensor in before.items():
        assert torch.equal(dict(encoder.model.named_parameters())[name], tensor)
        if "key.bias" not in name:  # its gradient is rounding error, of which Adam makes a number
            torch.testing.assert_close(changes[name], after[name].detach() - tensor, atol=2e-5, rtol=1e-3)


def test_its_two_files_attach_to_a_plain_model(tiny: TextBackbone, tiny_folder: Path, tmp_path: Path) -> None:
    expert = random_expert(Whole(), tiny, 1, 0.02)
    files = to_files(Whole(), expert, "tiny")
    kind, read = from_files(files["adapter_config.json"], files["adapter_model.safetensors"], "here")
    assert isinstance(kind, Whole) and read.keys() == expert.keys()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    model, plain = AutoModel.from_pretrained(tiny_folder).eval(), AutoModel.from_pretrained(tiny_folder).eval()
    load(model, tmp_path)
    for site, held in expert.items():
        for name, change in held.items():
            plain.get_submodule(site)._parameters[name].data += change
    for ids in token_ids(tiny, TEXTS):
        torch.testing.assert_close(plain_embedding(model, ids), plain_embedding(plain, ids))
    inputs = tiny.inputs(tiny.encode_texts(TEXTS), {"text": 0})
    with Bank(kind, [read]).attached(tiny.model), torch.no_grad():
        found = tiny(inputs)
    expected = torch.stack([plain_embedding(plain, ids) for ids in token_ids(tiny, TEXTS)])
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-5)


def test_several_share_no_pass_and_the_model_is_whole_afterwards(tiny: TextBackbone) -> None:
    experts = [Whole().start(tiny)] * 2
    inputs = tiny.inputs(tiny.encode_texts(TEXTS), {"text": 0})
    before = tiny(inputs)
    bank = Bank(Whole(), experts)
    with pytest.raises(PituneError, match="whole: 2 experts in one pass"), bank.attached(tiny.model):
        tiny(inputs)
    assert torch.equal(tiny(inputs), before)
    assert Whole not in KINDS  # a study of them would have no expert axis
