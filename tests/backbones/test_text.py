"""Text encoders: pooling, padding, trunk and top, several architectures, precision, bad folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tinymodel import (
    SHAPES,
    PlainExpert,
    embed,
    make_task,
    open_encoder,
    plain_embedding,
    random_expert,
    save_encoder,
    token_ids,
)

from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import Adapter, Bank, Lora
from pitune.experts.kind import ExpertKind

TEXTS = ["w1 w2 w3", "w4", "w9 w8 w7 w6 w5 w4 w3 w2 w1 w0", "w30 w31 unknown w5"]


def test_embeddings_equal_a_plain_computation_text_by_text(backbone: TextBackbone) -> None:
    texts = ["a fine film", "dull", "stock prices fell on Monday, and nobody knew why they did so"]
    found = embed(backbone, texts)
    expected = torch.stack([plain_embedding(backbone.model, backbone.tokenizer(text)["input_ids"]) for text in texts])
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_pooling_of_the_first_token(tiny_folder: Path) -> None:
    encoder = open_encoder(tiny_folder, pooling="first")
    states = encoder.model(input_ids=torch.tensor(token_ids(encoder, ["w1 w2"]))).last_hidden_state[0, 0]
    torch.testing.assert_close(embed(encoder, ["w1 w2", *TEXTS])[0], states / states.norm(), atol=1e-6, rtol=1e-5)


def test_padding_changes_nothing(tiny: TextBackbone) -> None:
    together = embed(tiny, TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(embed(tiny, [text])[0], row, atol=1e-6, rtol=1e-5)


def test_long_texts_are_cut_and_short_ones_are_not_padded(tiny: TextBackbone) -> None:
    rows = tiny.encode_texts(["w1 " * 100, "w1"])
    assert [row.cost for row in rows] == [len(row.content) for row in rows] == [24, 3]
    assert tiny.encode_texts([]) == []


@pytest.mark.parametrize("first", [1, 2])
def test_trunk_and_top_equal_the_whole(tiny: TextBackbone, first: int) -> None:
    rows = tiny.encode_texts(TEXTS)
    kept = tiny.inputs(rows, {"text": first})
    assert kept.hidden is not None
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(tiny.layers("text"))
    ]
    top = tiny(kept)
    for handle in handles:
        handle.remove()
    assert ran == list(range(first, 3))  # the trunk is not run again
    torch.testing.assert_close(top, embed(tiny, TEXTS), atol=1e-6, rtol=1e-5)


def test_the_backbone_never_trains(tiny: TextBackbone) -> None:
    assert not tiny.train().model.training
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_any_encoder_carries_experts_of_every_kind(family: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, family)
    encoder = open_encoder(folder)
    assert encoder.towers["text"].depth == 3
    torch.testing.assert_close(embed(encoder, TEXTS)[1], embed(encoder, TEXTS[1:2])[0], atol=1e-6, rtol=1e-5)
    inputs = encoder.inputs(encoder.encode_texts(TEXTS), {"text": 2})
    torch.testing.assert_close(encoder(inputs), embed(encoder, TEXTS), atol=1e-6, rtol=1e-5)
    kinds: list[ExpertKind] = [Lora(rank=2, layers=2), Adapter(width=4, layers=2)]
    for kind in kinds:
        expert = random_expert(kind, encoder, seed=1)
        modules_per_layer = 1 if family == "modernbert" and isinstance(kind, Lora) else 2  # one Wqkv for three
        assert len(expert) == 2 * modules_per_layer
        inputs = encoder.inputs(encoder.encode_texts(TEXTS), encoder.firsts(list(expert)))
        with torch.no_grad(), Bank(kind, [expert]).attached(encoder.model):
            found = encoder(inputs)
        plain = open_encoder(folder).model
        PlainExpert(kind, expert).put_on(plain)
        expected = torch.stack([plain_embedding(plain, ids) for ids in token_ids(encoder, TEXTS)])
        torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
        assert (found - encoder(inputs)).abs().max() > 1e-2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_casts_matrices_only(tiny_folder: Path, tiny: TextBackbone, precision: str) -> None:
    half = open_encoder(tiny_folder, precision)  # type: ignore[arg-type]
    types = {parameter.dim() > 1: parameter.dtype for parameter in half.model.parameters()}
    assert types == {True: {"bf16": torch.bfloat16, "fp16": torch.float16}[precision], False: torch.float32}
    found, expected = embed(half, TEXTS), embed(tiny, TEXTS)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def broken(folder: Path, tiny_folder: Path, what: str) -> Path:
    """Copy the tiny encoder and break it."""
    copy = folder / "copy"
    shutil.copytree(tiny_folder, copy)
    if what == "empty":
        shutil.rmtree(copy)
        copy.mkdir()
    elif what == "cut weights":
        (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    elif what == "no weights":
        (copy / "model.safetensors").unlink()
    elif what == "bad config":
        (copy / "config.json").write_text("{")
    elif what == "code":
        (copy / "own.py").write_text("raise SystemExit('the code of a model folder was run')")
        auto_map = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
        (copy / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    elif what == "unknown model":
        (copy / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    elif what == "other shapes":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 16}))
    return copy


@pytest.mark.parametrize(
    "what", ["empty", "cut weights", "no weights", "bad config", "unknown model", "other shapes", "code", "missing"]
)
def test_a_bad_folder_is_one_line(
    what: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked whether code may run says yes
    folder = broken(tmp_path, tiny_folder, what) if what != "missing" else tmp_path / "nothing"
    with pytest.raises(PituneError, match=r"^backbone\.uri: tiny is not a text encoder") as caught:
        open_encoder(folder)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_the_encoder_has_places_for_are_one_line(tiny_folder: Path) -> None:
    with pytest.raises(PituneError, match=r"^backbone\.uri: tiny does not embed texts of max_tokens = 65 tokens"):
        open_encoder(tiny_folder, max_tokens=65)
    assert embed(open_encoder(tiny_folder, max_tokens=64), ["w1 " * 100]).shape == (1, 32)


def test_a_tiny_task_can_be_told_apart() -> None:
    """The other tests' data have structure: words of a class are its own."""
    task = make_task("toy", 3, 12)
    words = [{word for e in task.splits["train"] if e.label == label for word in e.text.split()} for label in range(3)]
    assert all(words[i] - words[j] for i in range(3) for j in range(3) if i != j)
