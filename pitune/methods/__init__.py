"""The methods: a file for each row of the result table."""

from pitune.methods.base import Method
from pitune.methods.full import Full
from pitune.methods.nearest import Nearest
from pitune.methods.pi import Pi
from pitune.methods.single import Single
from pitune.methods.uniform import Uniform
from pitune.methods.zero_shot import ZeroShot

METHODS: dict[str, Method] = {
    method.name: method for method in (ZeroShot(), Single(), Uniform(), Nearest(), Pi(), Full())
}
"""Every method by name, in the order of the result table."""

__all__ = ["METHODS", "Method"]
