"""What a bridge's projector is made from: the configuration of ``pitune bridge``."""

from __future__ import annotations

from pydantic import Field

from pitune.backbones.bridge import BridgeSettings, Encoders
from pitune.config.tasks import Tasks
from pitune.training.settings import BridgeTraining


class BridgeConfig(Encoders):
    """Two encoders, the tasks whose pictures and captions they are brought together by, and how."""

    to: str = Field(min_length=1, description="the folder that the projector goes to")
    tasks: Tasks
    training: BridgeTraining = BridgeTraining()

    @property
    def backbone(self) -> BridgeSettings:
        """The backbone of a study that uses the projector."""
        encoders = self.model_dump(include=set(Encoders.model_fields))
        return BridgeSettings(**encoders, projector=f"{self.to}/projector/projector.safetensors")
