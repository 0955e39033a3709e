"""What runs inside the actor that controls a gang; a module of its own, for that actor should import little.

Workers are started after their controller, whose own start is thus part of every gang's.
"""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.exceptions import PreemptionError
from ray.util.placement_group import get_placement_group, placement_group, placement_group_table, remove_placement_group

ANSWER_SECONDS = 2.0


class Registration(ControllerCallback, WorkerGroupCallback):
    """Tells the queue which actor controls a gang, a handle to stop it by, which Ray Train itself does not offer.

    It tells as well whether the gang died with a machine, and has its pack given to others while there is no room for
    the gang.

    Args:
        queue: the queue's actor.
        gang: the gang's name.
        rooms: what the names of its rooms begin with; see :func:`free_rooms`.
    """

    def __init__(self, queue: Any, gang: str, rooms: str) -> None:
        self._queue, self._gang, self._rooms = queue, gang, rooms
        self._controller: Any = None
        self._machines: set[str] = set()  # that its workers are, or were last, on
        self._warned = False

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ray Train calls this in the controller."""
        self._controller = ray.get_runtime_context().current_actor
        Workers.rooms = self._rooms
        TrainController.worker_group_cls = Workers
        self._tell()

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Ray Train calls this in the controller, for every group of workers that it starts, before they begin.

        What the group before died of is looked for now: its survivors saw closed connections first.
        """
        self._tell_of_preemption()
        self._machines = {worker.metadata.node_id for worker in worker_group.get_workers()}

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Tell again whenever the gang's state changes: a queue that has started again has forgotten."""
        self._warned |= isinstance(getattr(current_state, "training_failed_error", None), PreemptionError)
        if isinstance(current_state, ReschedulingState):  # its workers do not start
            self._tell_of_preemption()
            self._queue.lost.remote(self._gang)
        self._tell()

    def _tell_of_preemption(self) -> None:
        """Tell the queue, once, where a machine of the last workers is gone, or is going as Ray had warned."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        there = {node["NodeID"] for node in nodes if node["NodeID"] in self._machines and _is_there(node)}
        if self._warned or self._machines - there:
            ray.get(self._queue.preempted.remote(self._gang))
        self._machines, self._warned = set(), False

    def _tell(self) -> None:
        if self._controller is not None:
            self._queue.register.remote(self._gang, self._controller)


def _is_there(node: Mapping[str, Any]) -> bool:
    """Say whether a machine lives and its raylet answers: Ray counts one as alive for a while after its end."""
    if not node["Alive"]:
        return False
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


class Workers(WorkerGroup):
    """A gang's workers, whose room, the placement group, has a name from before it is there."""

    rooms: ClassVar[str] = ""

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
        context = worker_group_context
        bundles = [context.resources_per_worker] * context.num_workers
        name = self.rooms + uuid.uuid4().hex
        return DefaultPlacementGroupHandle(placement_group(bundles, context.placement_strategy, name))


def free_rooms(rooms: str) -> None:
    """Free the rooms whose names begin so: Ray keeps those of a dead controller for as long as the driver lives."""
    for room in placement_group_table().values():
        if room["name"].startswith(rooms) and room["state"] != "REMOVED":
            with contextlib.suppress(ValueError):  # it has gone just now
                remove_placement_group(get_placement_group(room["name"]))


class FixedSize(FixedScalingPolicy):
    """A gang has as many workers as it has; their placement group is all that a cluster needs to know of them.

    Ray Train's own policy asks for the same through an actor of Ray Data's, and waits for that actor to start.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        pass
