"""Backbones: frozen towers, one file for each family."""

from pitune.backbones.base import (
    Backbone,
    BackboneSettings,
    Encoded,
    Inputs,
    Precision,
    Site,
    Tower,
)
from pitune.backbones.bridge import BridgeSettings
from pitune.backbones.dual import DualSettings
from pitune.backbones.text import TextSettings

BACKBONES: tuple[type[BackboneSettings], ...] = (TextSettings, DualSettings, BridgeSettings)
"""Every family of backbones, by its settings; a new one is added here, and nowhere else. The first is the default."""

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneSettings",
    "BridgeSettings",
    "DualSettings",
    "Encoded",
    "Inputs",
    "Precision",
    "Site",
    "TextSettings",
    "Tower",
]
