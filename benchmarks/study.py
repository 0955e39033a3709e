"""Twenty experts as a study, against one process per expert with PEFT and the Hugging Face Trainer.

    python benchmarks/study.py

Six full and fourteen few-shot experts of real text tasks (LoRA in the last three layers), bf16 where the processor has
it. The study is ``pitune run``, from its start until the last expert is committed; what it begins of later stages in
the meantime it does besides. The others are processes of ``peft_expert.py``, as many at a time as there are cores,
with one thread each and long ones first. Both train on the same rows in the same order, with the same steps and rates,
on the same cores: the loss of each expert's first step, before any update, shows it. They take turns: study,
processes, study.

The others need PEFT and accelerate: the ``dev`` extra. Prints where the time goes, and the ratio last. Exits with 1
where the rows were not the same. Takes about 12 minutes on 2 quiet cores.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from common import BACKBONE

TASKS = ("movie", "amazon", "nyt", "tweets", "newsgroups", "reuters")
TARGETS = (*(f"{task}@{shots}#0" for task in TASKS for shots in (4, 16)), "movie@16#1", "nyt@16#1")
MAX_TOKENS, SCALE = 64, 20.0
BUCKETS = 8  # batches whose rows are sorted by length together: pitune's order of rows
SAME = {"fp32": 2e-3, "bf16": 5e-2}
"""How far the losses of a first step may be apart."""
POLL_SECONDS, STOP_SECONDS = 0.05, 120


def study_yaml(folder: Path, precision: str, full: int, few: int) -> str:
    """Return the study's configuration: beyond its experts, as little as a study can do."""
    common = {"learning_rate": 1e-3, "schedule": "linear"}
    settings = {
        "study": str(folder),
        "backbone": {"uri": BACKBONE, "max_tokens": MAX_TOKENS},
        "tasks": list(TASKS),
        "sources": list(TASKS),
        "targets": list(TARGETS),
        "methods": ["zero_shot", "single", "uniform", "nearest", "pi", "full"],
        "expert": {"kind": "lora", "rank": 8, "alpha": 8, "layers": 3},
        "training": {
            "precision": precision,
            "full": {"steps": full, "batch_size": 32, **common},
            "few": {"steps": few, "batch_size": 16, **common},
        },
        "embedding": {"examples": 1},
        "sweep": {"top_k": [1], "temperature": [1.0], "own": ["trained"]},
    }
    return yaml.safe_dump(settings, sort_keys=False)


def precision() -> str:
    """Return bf16 where the processor computes in it, else fp32."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "bf16" if any(flag in flags for flag in ("avx512_bf16", "amx_bf16")) else "fp32"


# --- the study -----------------------------------------------------------------------------------------------------


@dataclass
class Pack:
    """A pack of the study: when it was begun and its last expert committed (seconds of the clock)."""

    began: float = 0.0
    ended: float = 0.0


@dataclass
class StudyRun:
    """A run of the study: its folder, when it began, its packs in order."""

    folder: Path
    began: float
    packs: list[Pack]

    @property
    def seconds(self) -> float:
        """From the start of the command until the last expert was committed."""
        return max(pack.ended for pack in self.packs) - self.began

    def parts(self, cores: int) -> dict[str, float]:
        """Return where the time went, in seconds of the clock."""
        first, last = min(pack.began for pack in self.packs), max(pack.ended for pack in self.packs)
        busy = sum(pack.ended - pack.began for pack in self.packs)
        gangs = min(cores, most_at_once(self.packs))
        return {
            "start-up until the first pack": first - self.began,
            "packs (tokenizing, training, validating, committing)": busy / gangs,
            "between packs, and waiting for the last one": last - first - busy / gangs,
        }


def most_at_once(packs: Sequence[Pack]) -> int:
    """Return how many packs were in the making at the same time."""
    return max(sum(other.began <= pack.began < other.ended for other in packs) for pack in packs)


def run_study(folder: Path, settings: str) -> StudyRun:
    """Run the study until its experts are there, then stop it."""
    folder.mkdir(parents=True)
    config = folder / "study.yaml"
    config.write_text(settings)
    began = time.time()
    log = (folder / "log").open("w")
    command = [sys.executable, "-m", "pitune.cli", "run", str(config)]
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while len(list(folder.glob("study/experts/*/manifest.json"))) < len(TASKS) + len(TARGETS):
            if process.poll() is not None:
                raise SystemExit(f"the study ended with {process.returncode}: {(folder / 'log').read_text()[-500:]}")
            time.sleep(POLL_SECONDS)
        stop(process)
    return StudyRun(folder / "study", began, read_packs(folder / "study"))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a run as a batch system does; nothing that is committed is lost."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    if process.poll() is None:
        process.kill()


def read_packs(study: Path) -> list[Pack]:
    """Read from the experts' manifests what packs there were; each says the seconds of its part of its pack."""
    found: dict[str, Pack] = {}
    seconds: Counter[str] = Counter()
    for path in study.glob("experts/*/manifest.json"):
        manifest = json.loads(path.read_text())
        pack = found.setdefault(manifest["pack"], Pack())
        seconds[manifest["pack"]] += manifest["seconds"]
        pack.ended = max(pack.ended, path.stat().st_mtime)
        pack.began = min(pack.began or path.stat().st_mtime, path.stat().st_mtime)
    for name, pack in found.items():
        pack.began -= seconds[name]
    return sorted(found.values(), key=lambda pack: pack.began)


# --- the same experts, one process each ----------------------------------------------------------------------------


def specifications(study: Path, folder: Path, bf16: bool) -> Iterator[Path]:
    """Write down what each expert of a study was trained on, the long ones first; yield the files' paths."""
    from transformers import AutoTokenizer

    from pitune.assets import fetch
    from pitune.tasks.catalogue import load_task
    from pitune.training.recipe import Recipe

    model = fetch(BACKBONE).path
    tokenizer, tasks = AutoTokenizer.from_pretrained(model), {name: load_task(name) for name in TASKS}
    folder.mkdir(parents=True)
    for name in (*(f"{task}@full#0" for task in TASKS), *TARGETS):
        task = tasks[name.split("@")[0]]
        recipe = Recipe(**json.loads((study / f"experts/{name}/manifest.json").read_text())["recipe"])
        drawn = pq.read_table(study / f"slices/{name}.parquet").to_pylist()
        examples = {example.key: example for split in task.splits.values() for example in split}
        chosen = {
            role: [examples[row["key"]] for row in drawn if row["role"] == role] for role in ("train", "validation")
        }
        ids = tokenizer([e.text for e in chosen["train"]], truncation=True, max_length=MAX_TOKENS)["input_ids"]
        told: dict[str, Any] = {
            "model": str(model),
            "adapter": str(study / "experts" / name),
            "label_texts": list(task.label_texts),
            **{role: ([e.text for e in held], [e.label for e in held]) for role, held in chosen.items()},
            "order": order(name, [len(one) for one in ids], recipe.steps, recipe.batch_size),
            "rates": [recipe.rate(step) for step in range(recipe.steps)],
            "batch_size": recipe.batch_size,
            "max_tokens": MAX_TOKENS,
            "scale": SCALE,
            "bf16": bf16,
            "out": str(folder / name),
        }
        path = folder / f"{name}.json"
        path.write_text(json.dumps(told))
        yield path


def order(name: str, lengths: Sequence[int], steps: int, batch_size: int) -> list[int]:
    """Return the rows of all steps, one step after another, as pitune takes those of a slice.

    Rows are shuffled epoch after epoch, by the slice's name; within a run of a few batches long ones come first.
    """
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    epochs = -(-steps * batch_size // len(lengths))
    stream = np.concatenate([generator.permutation(len(lengths)) for _ in range(epochs)])[: steps * batch_size]
    for start in range(0, len(stream), BUCKETS * batch_size):
        run = stream[start : start + BUCKETS * batch_size]
        run[:] = run[np.argsort(-np.array(lengths)[run], kind="stable")]
    return [int(row) for row in stream]


def run_processes(paths: Sequence[Path], at_once: int) -> tuple[float, dict[str, Any]]:
    """Train each expert in a process of its own, some at a time; return the seconds and what each one told."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

    def train(path: Path) -> Any:
        command = [sys.executable, str(Path(__file__).with_name("peft_expert.py")), str(path), str(time.time())]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{path.stem} ended with {done.returncode}: {done.stderr[-500:]}")
        return json.loads(done.stdout.splitlines()[-1])

    began = time.time()
    with ThreadPoolExecutor(at_once) as pool:
        told = list(pool.map(train, paths))
    return time.time() - began, {path.stem: one for path, one in zip(paths, told, strict=True)}


def apart(study: Path, told: dict[str, Any]) -> float:
    """Return how far the losses of first steps are apart, of the study's experts and of the processes'."""
    curves = {name: pq.read_table(study / f"experts/{name}/curve.parquet")["loss"][0].as_py() for name in told}
    return max(abs(curves[name] - one["first_loss"]) for name, one in told.items())


# --- turns ---------------------------------------------------------------------------------------------------------


def main() -> int:
    """Let both take turns, print where the time goes and the ratio last; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs=2, default=(100, 40), help="of full and of few-shot experts")
    parser.add_argument("--rounds", type=int, default=1, help="how often the processes take their turn")
    parser.add_argument("--at-once", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    chosen = parser.parse_args()
    if importlib.util.find_spec("peft") is None or importlib.util.find_spec("accelerate") is None:
        parser.error("peft or accelerate is missing; pip install -c constraints.txt -e '.[dev]'")
    cores, form = len(os.sched_getaffinity(0)), precision()
    studies, processes, worst = [], [], 0.0
    with tempfile.TemporaryDirectory(prefix="pitune-study-") as folder:
        for turn in range(chosen.rounds + 1):
            place = Path(folder, f"study{turn}")
            studies.append(run_study(place, study_yaml(place / "study", form, *chosen.steps)))
            print(f"study: {studies[-1].seconds:.0f} s", flush=True)
            if turn < chosen.rounds:
                paths = list(specifications(studies[-1].folder, Path(folder, f"processes{turn}"), form == "bf16"))
                processes.append(run_processes(paths, chosen.at_once))
                worst = max(worst, apart(studies[-1].folder, processes[-1][1]))
                print(f"processes: {processes[-1][0]:.0f} s", flush=True)
    return tell(studies, processes, worst, (cores, chosen.at_once, form))


def tell(
    studies: Sequence[StudyRun],
    processes: Sequence[tuple[float, dict[str, Any]]],
    worst: float,
    where: tuple[int, int, str],
) -> int:
    """Print the figures; return the exit code."""
    cores, at_once, form = where
    parts = [run.parts(cores) for run in studies]
    study, alone = statistics.mean(run.seconds for run in studies), statistics.mean(wall for wall, _ in processes)
    print(f"\n{len(TASKS)} full and {len(TARGETS)} few-shot experts, {form}, {cores} cores")
    print(f"the study: {study:.0f} s ({', '.join(f'{run.seconds:.0f}' for run in studies)})")
    for name in parts[0]:
        print(f"  {name}: {statistics.mean(one[name] for one in parts):.1f} s")
    print(f"one process per expert, {at_once} at a time: {alone:.0f} s; each, divided by {at_once}:")
    told = [one["seconds"] for _, found in processes for one in found.values()]
    for name in told[0]:
        print(f"  {name}: {sum(one[name] for one in told) / len(processes) / at_once:.1f} s")
    print(f"losses of first steps differ by at most {worst:.1e}")
    if worst > SAME[form]:
        print(f"missed: rows that are the same differ by at most {SAME[form]:g}")
    print(f"the study is {alone / study:.2f}x as fast as one process per expert")
    return 1 if worst > SAME[form] else 0


if __name__ == "__main__":
    sys.exit(main())
