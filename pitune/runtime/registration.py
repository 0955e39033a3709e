"""What runs inside the actor that controls a gang; a module of its own, for that actor should import little."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback


class Registration(ControllerCallback):
    """Tells the queue which actor controls a gang; Ray Train itself offers no handle to stop a run by.

    Args:
        queue: the queue's actor.
        gang: the gang's name.
    """

    def __init__(self, queue: Any, gang: str) -> None:
        self._queue, self._gang = queue, gang
        self._controller: Any = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ray Train calls this in the controller."""
        self._controller = ray.get_runtime_context().current_actor
        self._tell()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Tell again whenever the gang's state changes: a queue that has started again has forgotten."""
        self._tell()

    def _tell(self) -> None:
        if self._controller is not None:
            self._queue.register.remote(self._gang, self._controller)
