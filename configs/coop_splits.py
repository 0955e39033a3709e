"""Write split files of CoOp's form for the two data sets of which CoOp has none: FGVCAircraft and ImageNet.

    python configs/coop_splits.py data

``data`` has ``fgvc_aircraft/``, with ``variants.txt`` and ``images_variant_{train,val,test}.txt``, and ``imagenet/``,
with ``classnames.txt`` and ``images/{train,val}/``, as CoOp's instructions lay them out; what is not there is left out.
ImageNet's ``val`` pictures are the test split, and its split file has no ``val``: pitune holds a part of ``train`` out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

Lists = dict[str, list[tuple[str, int, str]]]


def aircraft(folder: Path) -> Lists:
    """Return the splits that the lists of variants give; paths are relative to ``images``."""
    names = [line.strip() for line in (folder / "variants.txt").read_text().splitlines()]
    places = {name: label for label, name in enumerate(names)}
    splits: Lists = {}
    for split in ("train", "val", "test"):
        lines = (folder / f"images_variant_{split}.txt").read_text().splitlines()
        parts = [line.strip().partition(" ") for line in lines]
        splits[split] = [(f"{number}.jpg", places[name], name) for number, _, name in parts]
    return splits


def imagenet(folder: Path) -> Lists:
    """Return the splits that the folders of pictures give, one a class; paths are relative to ``images``."""
    lines = [line.strip().partition(" ") for line in (folder / "classnames.txt").read_text().splitlines()]
    names = {synset: name for synset, _, name in lines}
    splits: Lists = {}
    for split, place in (("train", "train"), ("test", "val")):
        top = folder / "images" / place
        found = sorted(path.name for path in top.iterdir() if path.is_dir())
        splits[split] = [
            (picture.relative_to(folder / "images").as_posix(), label, names[synset])
            for label, synset in enumerate(found)
            for picture in sorted((top / synset).iterdir())
            if picture.name[0] != "."
        ]
    return splits


MADE = {"fgvc_aircraft/split_zhou_FGVCAircraft.json": aircraft, "imagenet/split_zhou_ImageNet.json": imagenet}


def main(root: Path) -> None:
    """Write the split file of each of the two data sets that is there."""
    for name, read in MADE.items():
        path = root / name
        if path.parent.is_dir():
            path.write_text(json.dumps(read(path.parent)))
            print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
