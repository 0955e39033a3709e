"""What a dual encoder is made from: the configuration of ``pitune align``."""

from __future__ import annotations

from pydantic import Field

from pitune.config.tasks import Tasks
from pitune.settings import Settings
from pitune.training.settings import PairTraining


class AlignConfig(Settings):
    """Two models, the tasks whose pictures and captions they are brought together by, and how."""

    to: str = Field(min_length=1, description="the folder that the dual encoder goes to")
    vision: str = Field(description="where the vision model comes from: a path, hf:…, pypi:…, npm:… or deb:…")
    text: str = Field(description="where the text model's folder comes from: likewise")
    tasks: Tasks
    training: PairTraining = PairTraining()
