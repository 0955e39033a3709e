"""The methods: a file for each row of the result table."""

from collections.abc import Sequence

from pitune.errors import PituneError
from pitune.methods.average_all import AverageAll
from pitune.methods.base import Method
from pitune.methods.crossfit import Crossfit
from pitune.methods.dare_ties import DareTies
from pitune.methods.fine_tuning import FineTuning
from pitune.methods.full import Full
from pitune.methods.fusion import Fusion
from pitune.methods.joint import Joint
from pitune.methods.linear_probe import LinearProbe
from pitune.methods.lorahub import LoraHub
from pitune.methods.multitask import Multitask
from pitune.methods.nearest import Nearest
from pitune.methods.pi import Pi
from pitune.methods.pi_farthest import PiFarthest
from pitune.methods.pi_random import PiRandom
from pitune.methods.similarity import Similarity
from pitune.methods.single import Single
from pitune.methods.stacked import Stacked
from pitune.methods.task_arithmetic import TaskArithmetic
from pitune.methods.ties import Ties
from pitune.methods.uniform import Uniform
from pitune.methods.zero_shot import ZeroShot
from pitune.methods.zero_shot_nearest import ZeroShotNearest
from pitune.methods.zero_shot_similarity import ZeroShotSimilarity
from pitune.methods.zero_shot_uniform import ZeroShotUniform
from pitune.settings import shown

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ZeroShot(),
        ZeroShotNearest(),
        ZeroShotUniform(),
        ZeroShotSimilarity(),
        LinearProbe(),
        Single(),
        Joint(),
        Multitask(),
        Uniform(),
        AverageAll(),
        Similarity(),
        TaskArithmetic(),
        Ties(),
        DareTies(),
        LoraHub(),
        Fusion(),
        Nearest(),
        Pi(),
        Stacked(),
        Crossfit(),
        PiFarthest(),
        PiRandom(),
        FineTuning(),
        Full(),
    )
}
"""Every method by name, in the order of the result table."""


def named(names: Sequence[str] | None) -> dict[str, Method]:
    """Return the methods of these names, or all (None), in the order of the result table.

    Raises:
        PituneError: there is no method of a name.
    """
    for name in names or ():
        if name not in METHODS:
            raise PituneError(f"methods: found {shown(name)}; there are {', '.join(METHODS)}")
    return {name: method for name, method in METHODS.items() if names is None or name in names}


__all__ = ["METHODS", "Method", "named"]
