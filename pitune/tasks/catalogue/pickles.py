"""Arrays of numbers out of a pickle, without unpickling anything else: nothing of numpy's or anyone's is called by it.

A pickle is a program, which may call whatever it names. Here the three names that numpy's arrays are written with stand
for inert notes of what an array is; any other name is refused before it is looked up. The array is then made from the
notes: its type is one of :data:`NUMBERS`, and its bytes must be as many as its shape says.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pitune.errors import PituneError, reason

NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
"""Which types an array may have."""
MOST_BYTES = 1 << 28
"""More than this is not unpacked."""


def read_pickled_array(file: Path) -> NDArray[Any]:
    """Return the one array of numbers that a gzipped pickle holds.

    Raises:
        PituneError: the file cannot be read, unpacks to more than :data:`MOST_BYTES`, or holds anything else.
    """
    try:
        with gzip.open(file) as stream:
            content = stream.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise PituneError(f"{file}: cannot be unpacked ({reason(error)})") from error
    if len(content) > MOST_BYTES:
        raise PituneError(f"{file}: refused, it unpacks to more than {MOST_BYTES >> 20} MiB")
    try:
        made = _Unpickler(io.BytesIO(content)).load()
        if not isinstance(made, _Array):
            raise pickle.UnpicklingError(f"it holds a {type(made).__name__}")
        return made.array()
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        raise PituneError(f"{file}: is no pickle of one array of numbers ({reason(error)})") from error


class _Unpickler(pickle.Unpickler):
    """Knows what arrays are written with, and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the note that stands for a name of numpy's."""
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Kind
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"
        raise pickle.UnpicklingError(f"refused, it names {module}.{name}")


class _Kind:
    """Stands for ``numpy.dtype``: the type of an array's numbers and the order of their bytes."""

    __slots__ = ("name", "order")

    def __init__(self, name: object, align: object, copy: object) -> None:
        if name not in NUMBERS:
            raise pickle.UnpicklingError(f"an array of {name!r}; {', '.join(NUMBERS)} are read")
        self.name, self.order = name, "|"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        version, order, *others = state
        if version != 3 or order not in ("<", ">", "|") or others[:3] != [None, None, None]:
            raise pickle.UnpicklingError(f"a type of numbers with {state!r:.60}")
        self.order = str(order)


class _Array:
    """Stands for an array under construction: its shape, the type of its numbers, its bytes."""

    __slots__ = ("state",)

    def __init__(self, kind: object, shape: object, code: object) -> None:
        if (kind, shape, code) != ("ndarray", (0,), b"b"):
            raise pickle.UnpicklingError("an array that begins as none of numpy's does")
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        """Return the array, made from what was noted."""
        version, shape, kind, is_fortran, content = self.state
        plain = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if version != 1 or not plain or not isinstance(kind, _Kind) or type(content) is not bytes:
            raise pickle.UnpicklingError("an array of other things than numbers")
        numbers = np.dtype(kind.order + kind.name)
        if math.prod(shape) * numbers.itemsize != len(content):
            raise pickle.UnpicklingError(f"{len(content)} bytes for an array of {numbers} {shape}")
        return np.frombuffer(content, numbers).reshape(shape, order="F" if is_fortran is True else "C")
