"""pitune: transfer-learning studies with interpolated parameter-efficient experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pitune.errors import PituneError

if TYPE_CHECKING:
    from pitune.experts.checkpoint import load
    from pitune.runtime.tuned import replay, tune_results

__version__ = "0.1.0"
__all__ = ["PituneError", "__version__", "load", "replay", "tune_results"]


def __getattr__(name: str) -> Any:
    """Import a function when it is asked for: torch and Ray take seconds."""
    if name == "load":
        from pitune.experts.checkpoint import load

        return load
    if name in ("replay", "tune_results"):
        from pitune.runtime import tuned

        return getattr(tuned, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
