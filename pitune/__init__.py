"""pitune: transfer-learning studies with interpolated parameter-efficient experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pitune.errors import PituneError

if TYPE_CHECKING:
    from pitune.experts.checkpoint import load

__version__ = "0.1.0"
__all__ = ["PituneError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import :func:`load` when it is asked for: it needs torch, which takes seconds."""
    if name == "load":
        from pitune.experts.checkpoint import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
