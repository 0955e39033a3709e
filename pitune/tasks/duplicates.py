"""Near-duplicates: pictures of train and validation that are almost one of a later split, found and dropped.

Files differ where a drawing was saved anew, recoloured or changed in a detail, but a score on the copy is as much a
matter of memory. So pictures are compared by a **perceptual hash**: pHash (Zauner, 2010) as the library ``imagehash``
computes it, one bit for each of the 8 x 8 lowest frequencies of the greys, 1 where it is above their median. Two
pictures are near each other if few bits differ. Test is kept whole; what is near a test picture is in neither of the
others, what is near a validation picture is not in train. Within a split near ones stay. With texts both must hold: the
same text, and pictures that are near each other.

**Two things keep unlike pictures apart.** White margins are cut off first: of small drawings on large sheets the hash
would see a spot in the middle. And a hash that has not 32 bits set has several frequencies at the median itself: the
picture is plain, stripes or one colour, and its hash says next to nothing. Such a picture (1% of ``stamps``, 2% of
``clipart``, 5% of ``emoji``, 32% of flags) is near none. Colours count only as greys.

**How far is near.** Pairs across splits in four sets of drawings (``stamps``, ``clipart``, ``emoji`` and 256 flags of
npm svg-country-flags), judged by eye, so that another person's counts may differ by a few; and how many of
``clipart``'s have the same label (by chance: 13%). Such hashes differ by even numbers of bits:

=========  =====  ========================================  ==========
bits       pairs  the same drawing, or it but for a detail  same label
=========  =====  ========================================  ==========
0, 2, 4    173    172                                       97%
6          100    94                                        99%
8          99     85                                        97%
10         108    about 75 (``stamps`` and ``clipart``)     90%
12         .      not counted                               73%
=========  =====  ========================================  ==========

:data:`NEAR` is 6, the farthest at which more than nine of ten pairs are. It is for drawings and pictures off the web.
**Where all pictures are alike no distance is right**: within 6 bits of a test picture is 18% of ``solar``'s train
split, 39% of ``mnist5k``'s and, of the first 3,000 pictures of each split, 30% of ``silhouettes``' and 22% of
``fashion_mnist``'s, and of those pairs 20%, 6%, 6% and 14% differ in their label. So nothing is dropped unless a task
asks.

Hashing decodes every picture (6 ms each in ``clipart``, of one processor); a file in the cache of
:mod:`pitune.assets` keeps the hashes of each set of pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from pitune.assets import derived
from pitune.errors import PituneError
from pitune.tasks.pictures import Picture
from pitune.tasks.task import SPLITS, Example

NEAR = 6
"""By how many of 64 bits the hashes of near-duplicates among drawings differ at most."""
SET_BITS = 32
"""How many bits a hash has set unless several frequencies are the median."""
KIND = "pHash without white margins"
"""What the hashes in the cache are; whoever changes how they are made changes this."""
BLOCK = 1024
"""How many pictures are compared with all others at a time: with 10,000 that takes 90 MB."""


def without_near_duplicates(
    task: str, splits: Mapping[str, tuple[Example, ...]], most: int
) -> dict[str, tuple[Example, ...]]:
    """Return the splits without the near-duplicates in validation and train (see above).

    Args:
        task: the task's name, for errors.
        splits: the examples of each split.
        most: how many bits two hashes may differ by to be near each other.

    Raises:
        PituneError: an example has no picture, or one that cannot be read or decoded.
    """
    pictures = [example.picture for split in reversed(SPLITS) for example in splits[split]]
    if None in pictures:
        raise PituneError(f"task {task}: has examples without pictures; near_duplicates compares those, leave it out")
    hashes = perceptual_hashes(picture for picture in pictures if picture is not None)
    kept = {"test": splits["test"]}
    later = list(splits["test"])
    for split in ("validation", "train"):
        near = _near(splits[split], later, hashes, most)
        kept[split] = tuple(example for place, example in enumerate(splits[split]) if place not in near)
        later += kept[split]
    return {split: kept[split] for split in SPLITS}


def perceptual_hashes(pictures: Iterable[Picture]) -> dict[str, int]:
    """Return each picture's hash by its digest: computed the first time, from the cache when the same ones come again.

    Raises:
        PituneError: a picture cannot be read or decoded, or the cache cannot be written.
    """
    distinct = {picture.digest: picture for picture in pictures}

    def write(folder: Path) -> Path:
        # In the order in which they came, which is nearly that in which they lie; sorted only when they are written.
        found = {digest: perceptual_hash(picture.pixels()) for digest, picture in distinct.items()}
        file = folder / "hashes.tsv"
        file.write_text("".join(f"{digest}\t{found[digest]:016x}\n" for digest in sorted(found)))
        return file

    mark = hashlib.sha256("\n".join(sorted(distinct)).encode()).hexdigest()
    lines = derived(f"{KIND} of {len(distinct)} pictures {mark}", [], write).path.read_text().splitlines()
    return {digest: int(value, 16) for digest, _, value in (line.partition("\t") for line in lines)}


def perceptual_hash(image: Image.Image) -> int:
    """Return the hash, of 64 bits, of an RGB image without the white around what it shows."""
    import imagehash

    return int(str(imagehash.phash(image.crop(ImageChops.invert(image).getbbox()))), 16)


def _near(examples: Sequence[Example], others: Sequence[Example], hashes: Mapping[str, int], most: int) -> set[int]:
    """Return the places of the examples near which, with the same text, there is one of the others."""
    place_of = _by_text(others)
    found: set[int] = set()
    for text, places in _by_text(examples).items():
        mine = _hashes_at(examples, places, hashes)
        theirs = _hashes_at(others, place_of.get(text, []), hashes)
        theirs = theirs[np.bitwise_count(theirs) == SET_BITS]
        for start in range(0, len(mine), BLOCK):
            block = mine[start : start + BLOCK]
            near = (np.bitwise_count(block[:, None] ^ theirs) <= most).any(axis=1)
            near &= np.bitwise_count(block) == SET_BITS
            found.update(places[start + number] for number in np.flatnonzero(near))
    return found


def _by_text(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Return the places of the examples that have each text."""
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(example.text, []).append(place)
    return places


def _hashes_at(examples: Sequence[Example], places: Sequence[int], hashes: Mapping[str, int]) -> NDArray[np.uint64]:
    """Return the hashes (places,) of the examples' pictures."""
    pictures = (examples[place].picture for place in places)
    return np.array([hashes[picture.digest] for picture in pictures if picture is not None], np.uint64)
