"""What a bridge's projector is made from: the configuration of ``pitune bridge``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pitune.backbones.bridge import BridgeSettings
from pitune.config.tasks import Tasks
from pitune.settings import Settings
from pitune.training.settings import BridgeTraining


class BridgeConfig(Settings):
    """Two encoders, the tasks whose pictures and captions they are brought together by, and how."""

    to: str = Field(min_length=1, description="the folder that the projector goes to")
    uri: str = Field(description="where the text encoder's folder comes from: a path, hf:…, pypi:…, npm:… or deb:…")
    vision: str = Field(description="where the vision encoder comes from: likewise")
    pooling: Literal["mean", "first"] = "mean"
    max_tokens: int = Field(64, ge=4, le=8192, description="longer texts are cut")
    tasks: Tasks
    training: BridgeTraining = BridgeTraining()

    @property
    def backbone(self) -> BridgeSettings:
        """The backbone of a study that uses the projector."""
        same = {name: getattr(self, name) for name in ("uri", "vision", "pooling", "max_tokens")}
        return BridgeSettings(**same, projector=f"{self.to}/projector/projector.safetensors")
