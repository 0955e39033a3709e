"""The transfer matrix as packs, and the same pairs one after another: training, and scoring on whole test splits.

    python benchmarks/transfer.py
    python benchmarks/transfer.py --targets reuters --rounds 1 --set training.precision=bf16

The pairs, recipes and test splits of ``configs/six_texts.yaml``, in fp32: six sources, whose experts are made up here,
and each of the targets at 16 shots. Three ways take turns in this process, on two threads, each
beginning with nothing kept:

- as packs: what a run does; the pairs of a target share rows and trunk, and one pass over the test split;
- one after another: the same stages with packs of one, each pair scored alone; the trunk of the shots is still kept
  from step to step and from pair to pair;
- with PEFT: its own model, every layer at every step, the same rows in the same order, one pair after another.

Prints seconds and CPU seconds of each and, last, the ratios; exits with 1 where packs are not twice as fast as one
after another. With 16 rows a step one expert alone keeps a processor's cores busy, and what is left to save is little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import THREADS, candidates, labels, peft_logits, trained_looking
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load
from torch import Tensor
from transformers import AutoModel

from pitune.backbones.cache import CACHE
from pitune.config import load_config
from pitune.experts.checkpoint import CONFIG as CONFIG_FILE
from pitune.experts.checkpoint import WEIGHTS, to_files
from pitune.interpolation.scoring import ScoringJob, score
from pitune.plan import Plan, materials_of
from pitune.results import PAIRS, TRANSFER
from pitune.runtime.tasks import calls
from pitune.store import Store
from pitune.training.loop import Alone
from pitune.training.pack import Pack, make_packs
from pitune.training.work import ExpertTraining

Steps = Sequence[Callable[[], Any]]
CONFIG = Path(__file__).parents[1] / "configs" / "six_texts.yaml"
GOAL = 2.0


class Seconds(NamedTuple):
    """What a way took: training and scoring by the clock, and CPU seconds of both."""

    training: float
    scoring: float
    cpu: float


class Matrix:
    """The pairs of a study's plan, and the ways to make them."""

    def __init__(self, folder: str, overrides: Sequence[str]) -> None:
        self.config = load_config(CONFIG, [f"study={folder}", "training.precision=fp32", *overrides])
        self.materials = materials_of(self.config, Store(folder))
        self.nodes = Plan(self.config, self.materials, TRANSFER).nodes
        self.pairs: list[Any] = [n.job for n in self.nodes.values() if n.stage == PAIRS and n.lane == "gang"]
        trained = {job.artifacts[0] for job in self.pairs}
        self.scores = [n for n in self.nodes.values() if isinstance(n.job, ScoringJob) and n.job.expert in trained]
        self.work = ExpertTraining(self.materials, self.config.training, checkpoint_every=None)
        self.work.open(Alone())
        self._make_sources_up()

    def _make_sources_up(self) -> None:
        kind, encoder = self.materials.kind, self.materials.backbone
        for seed, name in enumerate(dict.fromkeys(job.start for job in self.pairs)):
            files = to_files(kind, trained_looking(kind, encoder, seed), self.materials.settings.uri)
            self.materials.store.commit(name, files, self.nodes[name].job.fingerprint)

    # --- the ways: each returns how to train, and how to score ---------------------------------------------------

    def together(self) -> tuple[Steps, Steps]:
        """Make the pairs as a run does."""
        packs = make_packs(self.pairs, self.config.training)
        return self._stages([pack.jobs for pack in packs], [[n.job for n in some] for some in calls(self.scores, True)])

    def one_after_another(self) -> tuple[Steps, Steps]:
        """Make each pair alone, by the same stages."""
        return self._stages([(job,) for job in self.pairs], [[node.job] for node in self.scores])

    def _stages(self, packs: Sequence[Sequence[Any]], scores: Sequence[list[Any]]) -> tuple[Steps, Steps]:
        trained = [partial(self.work.train, Pack(f"pack-{n}", tuple(jobs)), Alone()) for n, jobs in enumerate(packs)]
        return trained, [partial(score, self.materials, some) for some in scores]

    def with_peft(self) -> tuple[Steps, Steps]:
        """Make each pair alone, as one would by hand; its model is scored right after it was trained."""
        config = json.loads(self.materials.store.read(self.pairs[0].start, CONFIG_FILE))
        model = get_peft_model(
            AutoModel.from_pretrained(self.materials.backbone_assets["uri"].path),
            LoraConfig(r=config["r"], lora_alpha=config["lora_alpha"], target_modules=config["target_modules"]),
        ).eval()
        trained: list[dict[str, Tensor]] = []
        train = [partial(self._peft_trains, model, job, trained) for job in self.pairs]
        return train, [partial(self._peft_scores, model, number, trained) for number in range(len(self.pairs))]

    def _peft_trains(self, model: Any, job: Any, trained: list[dict[str, Tensor]]) -> None:
        set_peft_model_state_dict(model, load(self.materials.store.read(job.start, WEIGHTS)))
        recipe, rows = job.recipe, self.materials.rows(job.data, "train")
        encoder = self.materials.backbone
        texts = candidates(encoder, self.materials.task(job.data[0][0].task))
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        for step, chosen in enumerate(rows.order(job.name, recipe.steps, recipe.batch_size).tolist()):
            optimizer.param_groups[0]["lr"] = recipe.rate(step)
            optimizer.zero_grad()
            taken = rows.take(chosen)
            logits = peft_logits(model, encoder, taken, texts)
            torch.nn.functional.cross_entropy(logits, labels(encoder, taken)).backward()
            optimizer.step()
        with torch.no_grad():
            validation = self.materials.rows(job.data, "validation")
            peft_logits(model, encoder, validation.take(range(len(validation))), texts)
        trained.append({key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()})

    @torch.no_grad()
    def _peft_scores(self, model: Any, number: int, trained: Sequence[dict[str, Tensor]]) -> None:
        set_peft_model_state_dict(model, trained[number])
        task = self.materials.task(self.pairs[number].data[0][0].task)
        encoder = self.materials.backbone
        rows, texts = self.materials.rows_of(task.name, task.splits["test"]), candidates(encoder, task)
        order = rows.by_cost()
        for start in range(0, len(order), encoder.rows_at_once):
            peft_logits(model, encoder, rows.take(order[start : start + encoder.rows_at_once]), texts)


def timed(train: Steps, scores: Steps) -> Seconds:
    """Do all steps, with nothing kept before."""
    CACHE.clear()
    began, cpu = time.perf_counter(), time.process_time()
    for step in train:
        step()
    trained = time.perf_counter()
    for step in scores:
        step()
    return Seconds(trained - began, time.perf_counter() - trained, time.process_time() - cpu)


def main() -> int:
    """Measure, and say whether the goal is met."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["nyt", "tweets"], metavar="TASK")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="take this setting of the study")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, list[Seconds]] = {}
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"tasks": ",".join(options.targets), "shots": "16", "seeds": "0"}
        matrix = Matrix(
            folder, [*(f"transfer.targets.{name}=[{value}]" for name, value in chosen.items()), *options.set]
        )
        ways = {"packs": matrix.together, "one after another": matrix.one_after_another, "peft": matrix.with_peft}
        print(
            f"{len(matrix.pairs)} pairs of {len(options.targets)} targets; medians of {options.rounds} rounds",
            flush=True,
        )
        for _ in range(options.rounds):
            for name, way in ways.items():
                found.setdefault(name, []).append(timed(*way()))
    middle = {name: Seconds(*map(statistics.median, zip(*held, strict=True))) for name, held in found.items()}
    for name, (training, scoring, cpu) in middle.items():
        print(f"{name}: training {training:.1f} s, scoring {scoring:.1f} s; CPU {cpu:.1f} s")
    ratios = {}
    for name in ("peft", "one after another"):
        ratios[name], of_cpu = (_ratio(middle[name], middle["packs"], by) for by in ("clock", "cpu"))
        print(f"{name} / packs: {ratios[name]:.2f} (CPU: {of_cpu:.2f})")
    print(f"goal: one after another takes at least {GOAL:g} times as long as packs")
    return int(ratios["one after another"] < GOAL)


def _ratio(one: Seconds, other: Seconds, by: str) -> float:
    return one.cpu / other.cpu if by == "cpu" else (one.training + one.scoring) / (other.training + other.scoring)


if __name__ == "__main__":
    sys.exit(main())
