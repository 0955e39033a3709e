"""Backbones: one file per model family, saying what goes in and how candidates are scored."""
