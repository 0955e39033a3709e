"""Backbones: frozen towers, one file for each family."""

from pitune.backbones.base import (
    Backbone,
    BackboneSettings,
    Precision,
)
from pitune.backbones.bridge import BridgeSettings
from pitune.backbones.dual import DualSettings
from pitune.backbones.text import TextSettings
from pitune.backbones.tower import Encoded, Inputs, Site, Tower

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
