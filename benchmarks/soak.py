"""Train hundreds of small packs on a cluster of three nodes while workers, gangs and nodes are killed at random.

    python benchmarks/soak.py
    python benchmarks/soak.py --minutes 2 --packs 20 --seed 1

The study is a real one, of a tiny BERT: one expert a pack, through the plan, the queue, the gangs and the store. Every
few seconds, but not before something has been committed since the last time, a worker of a gang is killed, or a whole
gang by its controller, or a node with all that runs there; nodes come again. Where that ends a run, the same study is
run again, as a user would. Prints a line a kill and a summary; exits with 1 where the time was not enough, an artifact
is lost or damaged, or something was trained again after its commit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from ray.cluster_utils import Cluster

from pitune.config import load_config
from pitune.errors import PituneError
from pitune.runtime.cluster import connect
from pitune.study import Study

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tinystudy import make_study

KINDS = ("worker", "gang", "node")
WEIGHTS = (5, 3, 2)
PAUSE = (2.0, 6.0)
"""Seconds between two kills, at least."""
AWAY = 5.0
"""Seconds that a killed node is away."""
STARTS = 4
"""How often a node is started that does not come up."""
TITLES = {"worker": "ray::RayTrainWorker", "gang": "ray::TrainController"}
"""What the processes are called that are killed, a gang being killed by its controller."""


def write_study(folder: Path, packs: int) -> Path:
    """Write the study: ``packs`` experts, each in a pack of its own, all else as little as a study can have."""
    targets = [f"{('alpha', 'beta')[seed % 2]}@2#{seed // 2}" for seed in range(packs - 3)]
    training = {
        "full": {"steps": 12, "batch_size": 8, "learning_rate": 0.01},
        "few": {"steps": 12, "batch_size": 4, "learning_rate": 0.01},
        "validation_examples": 20,
        "pack_size": 1,
    }
    return make_study(folder, targets=targets, methods=["zero_shot", "single"], training=training)


@dataclass
class Record:
    """When each expert's manifest was written, every time it was, as far as looks half a second apart can tell.

    Attributes:
        study: the study's folder.
        commits: the times at which a manifest was written, by artifact.
    """

    study: Path
    commits: dict[str, set[float]] = field(default_factory=dict)

    def look(self) -> int:
        """Look, and return how many experts there are."""
        for manifest in self.study.glob("experts/*/manifest.json"):
            try:
                written = manifest.stat().st_mtime
            except FileNotFoundError:  # it is just replaced
                continue
            self.commits.setdefault(f"experts/{manifest.parent.name}", set()).add(written)
        return len(self.commits)

    def again(self) -> list[str]:
        """Return what was committed twice, or begun again after its commit, by the packs' logs."""
        found = [artifact for artifact, times in self.commits.items() if len(times) > 1]
        for log in self.study.glob("logs/*.jsonl"):
            for line in map(json.loads, log.read_text().splitlines()):
                if line["rows_per_second"] is None:  # the first of an attempt
                    begun = datetime.fromisoformat(line["time"]).timestamp()
                    found += [one for one in line["losses"] if begun > min(self.commits.get(one, {begun})) + 1]
        return sorted(set(found))


@dataclass
class Nodes:
    """The cluster: its head, which the driver is beside and nobody kills, and two nodes that come and go."""

    cluster: Cluster = field(default_factory=Cluster)
    others: list[Any] = field(default_factory=list)

    def start(self) -> Any:
        """Start a node, the first one as the head; Ray gives one half a minute, which is little on a busy machine."""
        for attempt in range(STARTS):
            try:
                # Ray sets a signal's handler here, which only the main thread may.
                with mock.patch("ray._private.utils.set_sigterm_handler"):
                    return self.cluster.add_node(num_cpus=1, include_dashboard=False)
            except Exception:  # Ray raises just that
                if attempt == STARTS - 1:
                    raise

    def add(self) -> None:
        """Add a node."""
        self.others.append(self.start())

    def kill(self, kind: str, dice: random.Random) -> str | None:
        """Kill something of this kind; return what it was, or None where there is none."""
        if kind == "node":
            node = self.others.pop(dice.randrange(len(self.others)))
            self.cluster.remove_node(node, allow_graceful=False)
            return f"node {node.node_id[:8]}"
        nodes = [self.cluster.head_node, *self.others]
        found = [process for node in nodes for process in workers_of(node) if TITLES[kind] in title(process)]
        if not found:
            return None
        victim = dice.choice(found)
        victim.kill()
        return f"{kind} {victim.pid}"


def workers_of(node: Any) -> list[psutil.Process]:
    """Return the processes that a node's raylet has started."""
    try:
        return [
            child
            for raylet in node.all_processes["raylet"]
            for child in psutil.Process(raylet.process.pid).children(recursive=True)
        ]
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    """Return what a process calls itself."""
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


class Killer(threading.Thread):
    """Kills until it is told to stop."""

    def __init__(self, nodes: Nodes, record: Record, seed: int) -> None:
        super().__init__(name="killer", daemon=True)
        self.nodes, self.record, self.dice = nodes, record, random.Random(seed)
        self.ended, self.kills, self.began = threading.Event(), Counter[str](), time.monotonic()

    def run(self) -> None:
        """Kill, let something be committed, and kill again."""
        before = 0
        while self._wait(self.dice.uniform(*PAUSE)):
            done = self.record.look()
            if done == before:
                continue
            before = done
            kind = self.dice.choices(KINDS, WEIGHTS)[0]
            what = self.nodes.kill(kind, self.dice)
            if what is None:
                continue
            self.kills[kind] += 1
            minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
            print(f"{minutes:>3}:{seconds:02} kill {sum(self.kills.values()):>3}: {what}, {done} experts", flush=True)
            if kind == "node":
                self._wait(AWAY)
                self.nodes.add()

    def stop(self) -> None:
        """Stop, and wait for it."""
        self.ended.set()
        self.join()

    def _wait(self, seconds: float) -> bool:
        """Look at the commits for some seconds; say whether to go on."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended.wait(0.5):
            self.record.look()
        return not self.ended.is_set()


class Quiet:
    """Is told how far a study is, says nothing, and ends it when the time is over."""

    def __init__(self, until: float) -> None:
        self.until = until

    def show(self, stages: object) -> None:
        """Say nothing."""
        if time.monotonic() > self.until:
            raise TimeoutError


@contextmanager
def three_nodes() -> Iterator[Nodes]:
    """Start a cluster of three nodes, and join it."""
    nodes = Nodes()
    try:
        nodes.start()
        for _ in range(2):
            nodes.add()
        with connect(nodes.cluster.address):
            yield nodes
    finally:
        nodes.cluster.shutdown()


def soak(folder: Path, packs: int, minutes: float, seed: int) -> bool:
    """Run the study under kills; print what came of it, and return whether all is well."""
    config = load_config(write_study(folder, packs))
    record, began = Record(folder / "study"), time.monotonic()
    quiet, runs, ends = Quiet(began + 60 * minutes), 0, []
    with three_nodes() as nodes:
        killer = Killer(nodes, record, seed)
        killer.start()
        try:
            while not runs or ends[-1] not in ("finished", "out of time"):
                runs += 1
                ends.append(run_once(config, quiet))
                print(f"run {runs}: {ends[-1]}", flush=True)
        finally:
            killer.stop()
    found = record.look()
    problems, again = list(Study(config).store.problems()), record.again()
    kills = ", ".join(f"{killer.kills[kind]} of {kind}s" for kind in KINDS)
    print(f"{sum(killer.kills.values())} kills ({kills}) in {(time.monotonic() - began) / 60:.1f} minutes, {runs} runs")
    print(f"{found} of {packs} experts, {packs - found} lost; {len(problems)} problems found by verify")
    print(f"{len(again)} committed or begun again after a commit{': ' if again else ''}{', '.join(again)}")
    for problem in problems:
        print(problem)
    return ends[-1] == "finished" and found == packs and not problems and not again


def run_once(config: Any, quiet: Quiet) -> str:
    """Run the study; return how that ended."""
    try:
        Study(config).run(quiet)
    except PituneError as error:
        return str(error)
    except TimeoutError:
        return "out of time"
    return "finished"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--packs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if "RAY_AUTH_TOKEN" not in os.environ:  # Ray reads it when it is imported: begin anew
        new = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.execve(sys.executable, [sys.executable, *sys.argv], new)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not soak(Path(folder), given.packs, given.minutes, given.seed))


if __name__ == "__main__":
    main()
