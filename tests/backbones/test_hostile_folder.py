"""Model folders made to harm: nothing is run or opened elsewhere, no memory filled; one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tinymodel import open_encoder

from pitune.errors import PituneError


class Harm:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def with_settings(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def pickled_weights(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Harm(mark)}, folder / "pytorch_model.bin")


def an_adapter(folder: Path, mark: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder.parent), "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.save({"a": Harm(mark)}, folder / "adapter_model.bin")


def weights_elsewhere(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "theirs.safetensors")
    names = dict.fromkeys(load_file(folder.parent / "theirs.safetensors"), "../theirs.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def a_layer_missing(folder: Path, mark: Path) -> None:
    held = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in held.items() if ".layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def a_long_header(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def a_tensor_beyond_the_file(folder: Path, mark: Path) -> None:
    head = json.dumps({"a": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 2**63]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)


def deep_tokenizer(folder: Path, mark: Path) -> None:
    (folder / "tokenizer.json").write_text("[" * 100_000)


def code_for_the_tokenizer(folder: Path, mark: Path) -> None:
    (folder / "own.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    (folder / "vocab.pkl").write_bytes(pickle.dumps(Harm(mark)))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def code_for_the_model(folder: Path, mark: Path) -> None:
    (folder / "own.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    with_settings(folder, auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})


REFUSED: dict[str, Callable[[Path, Path], None]] = {
    "pickled weights": pickled_weights,
    "an adapter": an_adapter,
    "weights elsewhere": weights_elsewhere,
    "a layer missing": a_layer_missing,
    "a long header": a_long_header,
    "a tensor beyond the file": a_tensor_beyond_the_file,
    "a deep tokenizer": deep_tokenizer,
    "a deep configuration": lambda folder, _: (folder / "config.json").write_text('{"a": ' * 100_000) and None,
    "a billion layers": lambda folder, _: with_settings(folder, num_hidden_layers=10**9),
    "a billion words": lambda folder, _: with_settings(folder, vocab_size=10**12),
    "code of the Hub's": lambda folder, _: with_settings(folder, attn_implementation="their/kernel"),
    "a quantizer": lambda folder, _: with_settings(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
}
HARMLESS = {"code for the tokenizer": code_for_the_tokenizer, "code for the model": code_for_the_model}
"""What transformers passes over: it knows the model's type itself."""


@pytest.mark.parametrize("what", [*REFUSED, *HARMLESS])
def test_a_model_folder_made_to_harm(
    what: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked whether code may run says yes
    folder, mark = shutil.copytree(tiny_folder, tmp_path / "copy"), tmp_path / "harm"
    (REFUSED | HARMLESS)[what](folder, mark)
    if what in REFUSED:
        with pytest.raises(PituneError, match=r"^backbone\.uri: tiny is not a text encoder") as caught:
            open_encoder(folder)
        assert "\n" not in str(caught.value)
    else:
        open_encoder(folder)
    assert not mark.exists()
