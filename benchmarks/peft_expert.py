"""Train one expert with PEFT and the Hugging Face Trainer: what ``study.py`` compares a study with.

    python benchmarks/peft_expert.py SPECIFICATION.json

Written as one would by hand, without anything of pitune's: a LoRA on a text encoder, the mean of the tokens' states,
the cosine with the frozen embeddings of the label texts times a scale, cross-entropy. The specification names the
model's folder, the adapter's configuration, the texts, the order of the rows and the learning rate of every step.
Prints, as JSON, the seconds of each part and the loss of the first step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.utils import logging

Inputs = dict[str, Any]


class Matcher(nn.Module):
    """An encoder whose embeddings are matched with those of label texts.

    Args:
        encoder: the encoder with its LoRA.
        candidates: (labels, width), of length 1.
        scale: logits are the cosine times this.
    """

    def __init__(self, encoder: nn.Module, candidates: Tensor, scale: float) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale
        self.register_buffer("candidates", candidates)
        self.first_loss: float | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss and the logits, (rows, labels), of a batch."""
        logits = self.scale * embedded(self.encoder, input_ids, attention_mask) @ self.candidates.T
        loss = nn.functional.cross_entropy(logits, labels)
        if self.first_loss is None:
            self.first_loss = loss.item()
        return {"loss": loss, "logits": logits}


def embedded(encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Embed a batch by the mean of its tokens' states: (rows, width), of length 1."""
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    weights = mask.unsqueeze(-1).float()
    return nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def rows(tokenizer: Any, texts: list[str], labels: list[int], longest: int) -> list[Inputs]:
    """Tokenize texts; padding comes with the batch."""
    found = tokenizer(texts, truncation=True, max_length=longest)
    columns = zip(found["input_ids"], found["attention_mask"], labels, strict=True)
    return [{"input_ids": ids, "attention_mask": mask, "labels": label} for ids, mask, label in columns]


def arguments(told: Inputs) -> TrainingArguments:
    """Return the Trainer's settings: a processor, no logs, no clipping, rows in the order given."""
    return TrainingArguments(
        output_dir=told["out"],
        per_device_train_batch_size=told["batch_size"],
        per_device_eval_batch_size=64,
        max_steps=len(told["rates"]),
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
        bf16=told["bf16"],
        use_cpu=True,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        dataloader_pin_memory=False,
    )


def main() -> None:
    """Train the expert that the specification describes, validate it and save it."""
    clock = [("start-up", time.time())]
    told = json.loads(Path(sys.argv[1]).read_text())
    began = float(sys.argv[2]) if len(sys.argv) > 2 else clock[0][1]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(told["model"])
    # No dropout: the Trainer turns it on, pitune has none.
    encoder = AutoModel.from_pretrained(told["model"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.no_grad():
        encoder.eval()
        texts = tokenizer(told["label_texts"], padding=True, return_tensors="pt")
        candidates = embedded(encoder, texts["input_ids"], texts["attention_mask"])
    settings = LoraConfig.from_pretrained(told["adapter"])
    settings.inference_mode = False
    model = Matcher(get_peft_model(encoder, settings), candidates, told["scale"])
    clock.append(("model", time.time()))
    examples, held_out = (rows(tokenizer, *told[split], told["max_tokens"]) for split in ("train", "validation"))
    clock.append(("tokenizing", time.time()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1.0, weight_decay=0.0)
    trainer = Trainer(
        model=model,
        args=arguments(told),
        train_dataset=[examples[row] for row in told["order"]],
        eval_dataset=sorted(held_out, key=lambda row: len(row["input_ids"])),
        data_collator=DataCollatorWithPadding(tokenizer),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [*told["rates"], 0.0][step])),
    )
    trainer.train()
    clock.append(("training", time.time()))
    trainer.evaluate()
    clock.append(("validating", time.time()))
    model.encoder.save_pretrained(told["out"])
    clock.append(("saving", time.time()))
    befores = [began, *(when for _, when in clock)]
    seconds = {name: when - before for (name, when), before in zip(clock, befores, strict=False)}
    print(json.dumps({"seconds": seconds, "first_loss": model.first_loss}))


if __name__ == "__main__":
    main()
