"""A cluster of three nodes on this machine, a small study on it, and one blow while a stage is under way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from pitune.config import load_config
from pitune.methods.transfer import wrong_pairs
from pitune.progress import Stage
from pitune.results import RESULTS, TRANSFER, wrong_scores
from pitune.runtime import cluster as connecting
from pitune.store import Store
from pitune.study import Study

WORKER, CONTROLLER, QUEUE = "RayTrainWorker", "TrainController", "Queue"
"""Ray's names of a gang's actors and of the packs' queue."""
TABLES = (RESULTS, TRANSFER)


class Nodes:
    """A head without processors, where the driver is, and beside it nodes with one processor each."""

    def __init__(self, folder: str, count: int = 2) -> None:
        head = {"num_cpus": 0, "temp_dir": folder, "include_dashboard": False, "no_monitor": True}
        with mock.patch("ray._private.utils.write_ray_address"):  # no other process is to find it as "auto"
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self.fill(count)

    def fill(self, count: int = 2) -> None:
        """See that there are so many beside the head."""
        while len(self._cluster.worker_nodes) < count:
            self._cluster.add_node(num_cpus=1)

    def by_id(self) -> dict[str, Any]:
        """Return the nodes beside the head by Ray's ids; Ray itself takes a while to notice that one is gone."""
        sockets = {one["ObjectStoreSocketName"]: str(one["NodeID"]) for one in ray.nodes()}
        return {sockets[node.plasma_store_socket_name]: node for node in self._cluster.worker_nodes}

    def with_any(self, *classes: str) -> str:
        """Return the id of a node beside the head where an actor of these classes lives, or of any."""
        able = self.by_id()
        found = sorted(str(actor["Address"]["NodeID"]) for actor in actors(*classes))
        return next((node for node in found if node in able), min(able))

    def remove(self, node_id: str) -> None:
        """Take a node away without a word: all its processes are killed."""
        self._cluster.remove_node(self.by_id()[node_id], allow_graceful=False)

    def close(self) -> None:
        """End all of them."""
        self._cluster.shutdown()


@contextmanager
def nodes(folder: str) -> Iterator[Nodes]:
    """Start the cluster and connect to it, as ``pitune run --address`` does."""
    connecting._authenticate()
    made = Nodes(folder)
    try:
        with connecting.connect(made.address):
            yield made
    finally:
        made.close()


def actors(*classes: str) -> list[dict[str, Any]]:
    """Return what Ray knows of the living actors of these classes."""
    return [
        actor
        for actor in ray._private.state.actors().values()
        if actor["State"] == "ALIVE" and actor["ActorClassName"].rpartition(".")[2] in classes
    ]


def kill(found: Sequence[dict[str, Any]]) -> None:
    """Kill the processes of actors."""
    assert found
    for actor in found:
        os.kill(int(actor["Pid"]), signal.SIGKILL)


@dataclass
class Blow:
    """Strikes once, from the driver's loop, as soon as a stage is under way.

    Args:
        stage: the stage.
        strike: what it does.
        made: so many of the stage's nodes are to be there first.
    """

    stage: str
    strike: Callable[[], None]
    made: float = 0.0
    under_way: list[str] = field(default_factory=list)

    def show(self, stages: Sequence[Stage]) -> None:
        """Look whether it is time."""
        for stage in stages:
            far = stage.name == self.stage and stage.running and stage.done - stage.there >= self.made
            if far and not self.under_way:
                self.under_way = list(stage.running)
                self.strike()


class Quiet:
    """Is told how far a study is, and does nothing."""

    def show(self, stages: Sequence[Stage]) -> None:
        """Do nothing."""


@dataclass
class Made:
    """A study that was made: its store, the seconds that it took, how many packs were begun more than once."""

    store: Store
    seconds: float
    again: int


def make(config: Path, study: str, progress: Any = None) -> Made:
    """Run the study as it is configured, but in its own place, in this process."""
    began = time.monotonic()
    made = Study(load_config(config, [f"study={study}"]))
    made.run(progress or Quiet())
    return Made(made.store, time.monotonic() - began, begun_again(made.store))


def begun_again(store: Store) -> int:
    """Return how often a pack was begun beyond once: the first line of each begin has no rows per second."""
    logs = [path for path in store._place.listing() if path.startswith("logs/")]
    lines = [json.loads(line) for path in logs for line in store.text(path).splitlines()]
    return sum(line["rows_per_second"] is None for line in lines) - len(logs)


def assert_equal(made: Store, reference: Store) -> None:
    """To the last bit; and every file is as its manifest says, every table as what it was made from says."""
    for table in TABLES:
        ours, theirs = (store.table(table) for store in (made, reference))
        if table == RESULTS:
            ours, theirs = ours.drop_columns("seconds"), theirs.drop_columns("seconds")
        assert ours.equals(theirs), table
    assert made.artifacts().keys() == reference.artifacts().keys()
    assert not list(made.problems()) and not wrong_pairs(made) and not wrong_scores(made)
