"""Giving an expert away: a folder of its own with a model card, and from there to the Hugging Face Hub.

Made for use: :func:`export`, from a study into a folder; :func:`push`, from the folder to a repository.
"""

from pitune.sharing.exporting import export
from pitune.sharing.pushing import push

__all__ = ["export", "push"]
