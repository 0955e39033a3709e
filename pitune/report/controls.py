"""Is the gain transfer? What the controls say, which know nothing that could be transferred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pitune.methods import METHODS
from pitune.report.differences import DECIDING, Difference
from pitune.report.scores import BASELINE, Average

Kind = Literal["transfer", "regularisation", "undecided"]
MOST = 0.5
"""A control that surely reaches more than this part of the gain explains it."""


@dataclass(frozen=True)
class Verdict:
    """What the controls say of the gain.

    Attributes:
        kind: ``transfer`` where the gain is above every control's; ``regularisation`` where a control explains it.
        why: where undecided, what is missing: ``controls``, ``slices``, ``gain`` (there is none to explain) or
            ``overlap`` (an interval is too wide to tell).
        control: the control that the verdict hangs on, the one nearest to ``OURS``.
        gain: ``OURS - BASELINE``.
        beyond: ``OURS`` less each control.
    """

    kind: Kind
    why: str
    control: str
    gain: Difference
    beyond: Mapping[str, Difference]


def controls() -> list[str]:
    """Return the methods that are controls."""
    return [name for name, method in METHODS.items() if method.control]


def verdict(total: Average) -> Verdict | None:
    """Return what the controls say; None where no control, or no gain, has been scored."""
    gain = total.leads.get(BASELINE)
    found = {name: total.leads.get(name) for name in controls()}
    beyond = {name: one for name, one in found.items() if one is not None}
    return judged(gain, beyond, len(found)) if gain is not None and beyond else None


def judged(gain: Difference, beyond: Mapping[str, Difference], wanted: int) -> Verdict:
    """Judge a gain by what is left of it beyond each control.

    Transfer: the gain is clear, and so is what goes beyond each of the ``wanted`` controls. Regularisation: the gain is
    clear, but not beyond some control, which reaches more than :data:`MOST` of it even at the far end of the interval.
    That an interval holds 0 proves neither: what is neither is undecided.
    """
    nearest = min(beyond, key=lambda name: beyond[name].mean)
    kind: Kind = "undecided"
    why = ""
    explains = [name for name, one in beyond.items() if one.clear <= 0 and one.high < MOST * gain.mean]
    if min(one.slices for one in (gain, *beyond.values())) < DECIDING:
        why = "slices"
    elif gain.clear <= 0:
        why = "gain"
    elif explains:
        kind, nearest = "regularisation", min(explains, key=lambda name: beyond[name].mean)
    elif len(beyond) < wanted:
        why = "controls"
    elif all(one.clear > 0 for one in beyond.values()):
        kind = "transfer"
    else:
        why = "overlap"
        nearest = min((name for name in beyond if beyond[name].clear <= 0), key=lambda name: beyond[name].mean)
    return Verdict(kind, why, nearest, gain, beyond)
