"""Planning large studies from a store that has half of their artifacts: seconds, memory, growth.

    python benchmarks/plan.py
    python benchmarks/plan.py --sizes 200 1000 --rounds 1

A study of N slices has a full source for each of its tasks (100; 20 of the smallest study) and few-shot targets for the
rest, and eight methods of one trial each: six of pitune and two made up here. Tasks are tables of a few lines, the
backbone is a folder that nobody opens, and the store has every second artifact with a manifest as a run would write it.
What is measured is reading the configuration and listing the plan with the state of every artifact, as ``pitune plan``
does, each time in a process of its own, the sizes taking turns. Exits with 1 where a bound is missed. Takes about six
minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from madeup import made_up

SIZES = (200, 1_000, 3_000, 10_000)
BOUNDS = {200: 2.0, 10_000: 60.0}
"""Seconds that planning so many slices may take."""
MEMORY = 2.0
"""GiB that planning may take, the interpreter and all that is imported included."""
GROWTH = 1.5
"""How much more a slice of the largest study may cost than one of the second smallest."""
METHODS = ("zero_shot", "single", "uniform", "nearest", "second", "with_nearest", "pi", "full")
GRAPH = "graph.parquet"


# --- a study that is large, and half done --------------------------------------------------------------------------


def write_study(folder: Path, slices: int) -> Path:
    """Write the configuration of a study of so many slices, its tables and its backbone; return its path."""
    tasks = [f"task{number:03d}" for number in range(min(100, max(5, slices // 10)))]
    study = {
        **made_up(folder, {task: [f"{task} {row} words of a text" for row in range(150)] for task in tasks}),
        "sources": tasks,
        "methods": list(METHODS),
        "sweep": {"trials": 1},
        "targets": {"tasks": tasks, "shots": [4], "seeds": list(range(slices // len(tasks) - 1))},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def half_fill(config: Path) -> int:
    """Write the graph and every second artifact of a study's plan into its store; return how many artifacts it has."""
    plan = planned(config)
    graph = plan.nodes[GRAPH].job
    plan.store.commit(GRAPH, {"": graph_file(graph)}, graph.fingerprint, inputs=graph.inputs)
    jobs = [node.job for node in planned(config).nodes.values()]
    artifacts = [(artifact, job) for job in jobs for artifact in job.artifacts if artifact != GRAPH]
    for artifact, job in artifacts[::2]:
        write(Path(plan.store.root), artifact, job)
    return len(artifacts) + 1


def graph_file(job: Any) -> bytes:
    """Return a graph in which every target ranks the sources of other tasks by luck, by each similarity."""
    from pitune.store import table_bytes

    generator = np.random.default_rng(0)
    task = {name: name.split("@")[0] for name in {*job.slices, *job.sources}}
    names, tasks = np.array(job.sources), np.array([task[source] for source in job.sources])
    parts = []
    for target in job.slices:
        kept = names != target
        near, own = generator.random((len(job.columns), kept.sum())), (tasks == task[target])[kept]
        rank = np.zeros(kept.sum(), np.int64)
        rank[np.argsort(own - near[0])[: len(own) - own.sum()]] = np.arange(1, len(own) - own.sum() + 1)
        columns: dict[str, Any] = {"source": names[kept], "target": [target] * len(own), "similarity": near[0]}
        parts.append(pa.table(columns | {"rank": rank} | dict(zip(map(str, job.columns), near, strict=True))))
    return table_bytes(pa.concat_tables(parts))


def write(root: Path, artifact: str, job: Any) -> None:
    """Write an artifact of one small file and its manifest: what ``Store.commit`` does, without its safety."""
    from pitune.store.manifest import file_path, is_file, make_manifest, manifest_path

    files = {"" if is_file(artifact) else "adapter_model.safetensors": artifact.encode()}
    manifest = root / manifest_path(artifact)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / file_path(artifact, name)).write_bytes(data)
    manifest.write_bytes(make_manifest(artifact, files, job.fingerprint, {"inputs": job.inputs, "seconds": 1.0}))


# --- planning it ---------------------------------------------------------------------------------------------------


def planned(config: Path) -> Any:
    """Return the plan of the study that ``config`` describes, with eight methods."""
    from pitune.config import load_config
    from pitune.plan import Plan

    register()
    return Plan.of(load_config(config))


def register() -> None:
    """Add two methods to pitune's own."""
    from pitune import methods

    class Second(methods.Method):
        """Tuning from the second nearest source's expert."""

        name, title, note, sees = "second", "second", "started from the second nearest source's expert", "shots"

        def build(self, plan: Any, target: Any) -> Any:
            """Build an expert of the target's slice that starts from the second nearest source's."""
            return plan.expert(target, plan.neighbours(target, 2)[1].expert, f"baselines/{target}/second")

    class WithNearest(methods.Method):
        """One expert of the target's shots and the nearest source's examples."""

        name, title, sees = "with_nearest", "with nearest", "shots"
        note = "one expert of the shots and the nearest source"

        def build(self, plan: Any, target: Any) -> Any:
            """Build an expert of both."""
            from pitune.tasks.task import Slice

            nearest = Slice.parse(plan.neighbours(target, 1)[0].slice)
            return plan.expert(((target, 0.75), (nearest, 0.25)), None, f"baselines/{target}/with_nearest")

    methods.METHODS.update({method.name: method for method in (Second(), WithNearest())})


def measure(config: Path) -> dict[str, float]:
    """Plan the study and return what that took; in a process of its own."""
    import pitune.plan  # noqa: F401  and all that it imports, before the clock runs

    began, used = time.perf_counter(), time.process_time()
    states = Counter(item.state for item in planned(config).items())
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "cpu": cpu, "gib": gib, "artifacts": states.total(), "done": states["done"]}


# --- bounds --------------------------------------------------------------------------------------------------------


def missed(found: dict[int, dict[str, float]]) -> list[str]:
    """Return a line for each bound that is missed; ``found`` has the figures by the number of slices."""
    wrong = [
        f"{slices} slices take {found[slices]['seconds']:.1f} s, at most {bound:g} s are right"
        for slices, bound in BOUNDS.items()
        if slices in found and found[slices]["seconds"] > bound
    ]
    for slices, figures in found.items():
        if figures["gib"] > MEMORY:
            wrong.append(f"{slices} slices take {figures['gib']:.2f} GiB, at most {MEMORY:g} GiB are right")
        if abs(figures["done"] / figures["artifacts"] - 0.5) > 0.01:
            wrong.append(f"{slices} slices: {figures['done']:.0f} of {figures['artifacts']:.0f} artifacts are done")
    if len(found) > 2:
        small, large = sorted(found)[1], max(found)
        growth = found[large]["seconds"] / large / (found[small]["seconds"] / small)
        if growth > GROWTH:
            wrong.append(f"a slice costs {growth:.2f}x as much among {large} as among {small}; {GROWTH:g}x is right")
    return wrong


def main() -> int:
    """Measure all sizes and print the figures last; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.fill or chosen.measure:
        print(json.dumps(half_fill(chosen.fill) if chosen.fill else measure(chosen.measure)))
        return 0
    with tempfile.TemporaryDirectory(prefix="pitune-plan-") as folder:
        configs = {slices: write_study(Path(folder, str(slices)), slices) for slices in chosen.sizes}
        for slices, config in configs.items():
            began = time.perf_counter()
            artifacts = in_process("--fill", config)
            print(f"{slices} slices: wrote half of {artifacts} artifacts in {time.perf_counter() - began:.0f} s")
        rounds = [{n: in_process("--measure", config) for n, config in configs.items()} for _ in range(chosen.rounds)]
    found = {n: {key: statistics.median(one[n][key] for one in rounds) for key in rounds[0][n]} for n in configs}
    wrong = missed(found)
    for slices, figures in found.items():
        print(
            f"{slices} slices, {figures['artifacts']:.0f} artifacts, {figures['done']:.0f} of them done: "
            f"{figures['seconds']:.2f} s ({figures['cpu']:.2f} s of a processor), "
            f"{1000 * figures['seconds'] / slices:.2f} ms a slice, {figures['gib']:.2f} GiB"
        )
    for line in wrong:
        print(f"missed: {line}")
    print("missed" if wrong else "all bounds are met")
    return 1 if wrong else 0


def in_process(option: str, config: Path) -> Any:
    """Run this script with an option in a process of its own; return what it printed."""
    command = [sys.executable, __file__, option, str(config)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
