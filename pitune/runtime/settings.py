"""What a gang, a task and a trial take of the cluster: the section ``runtime`` of a study."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pitune.settings import Settings

SHARE = 0.6
"""What a gang's worker takes of ``cpus_per_worker`` and ``gpus_per_worker``: tasks and trials fit beside it, another
gang's worker does not."""


class RuntimeSettings(Settings):
    """What a gang, a task and a trial take of the cluster."""

    workers: int = Field(1, ge=1, description="Ray Train workers of a gang")
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: Literal[0, 1] = 0
    gangs: int | None = Field(None, ge=1, description="null: as many as the cluster has room for")
