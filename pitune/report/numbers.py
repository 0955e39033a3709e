"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pitune.report.differences import Difference
from pitune.report.scores import Score


def percent(value: float | None) -> str:
    """Return a fraction as ``84.2``."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Return a difference in points with its sign: ``+5.1``."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def share(value: float | None) -> str:
    """Return a fraction as ``41 %``."""
    return "–" if value is None else f"{round(100 * value):d}\u00a0%".replace("-", "−")


def spread(score: Score | None, digits: int = 1) -> str:
    """Return a score's standard deviation in points: ``0.6``; empty where there is one seed."""
    return "" if score is None or math.isnan(score.std) else f"{100 * score.std:.{digits}f}"


def between(found: Difference) -> str:
    """Return a difference's interval in points: ``0.4 to 2.9``; a dash where there is none."""
    return ends(found.low, found.high) if found.has_interval else "–"


def ends(low: float, high: float) -> str:
    """Return an interval's ends in points: ``−0.4 to 2.9``."""
    low_text, high_text = (f"{round(100 * end, 1) + 0.0:.1f}".replace("-", "−") for end in (low, high))
    return f"{low_text} to {high_text}"


def plural(count: int, word: str) -> str:
    """Return ``1 seed``, ``3 seeds``."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def span(counts: Sequence[int], word: str) -> str:
    """Return ``3 seeds``, or ``1 to 3 seeds`` where ``counts``, the least first, are several."""
    return plural(counts[0], word) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} {word}s"


def duration(seconds: float) -> str:
    """Return ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float | None) -> str:
    """Return a mean of counts: ``8``, ``7.5``, ``1,280``; a dash where it is not known."""
    return "–" if value is None else f"{value:,.1f}".removesuffix(".0")


def size(count: int) -> str:
    """Return a number of bytes as ``3.2 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
