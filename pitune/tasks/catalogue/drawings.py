"""The tasks of drawings: pictures sorted into folders by what they show, and the same emoji drawn in two styles.

**stamps**: what Tux Paint has to be put into a picture, photos and drawings. Labels are the top folders with 20 or more
in train. Mirrored copies (``…_mirror.png``) and svg files are left out.

**clipart**: drawings of openclipart.org, by their top folder. Left out are folders with fewer than 20 in train; what
does not say what a picture shows (``unsorted``, ``special``); and what is the same thing a hundred times:
``shapes/stars``, ``computer/icons`` and ``computer/games``, playing cards.

Of both, pictures of less than 8 pixels in height or width, or of more than 16 million in all, are left out: the ones
show nothing, one of the others is 29,700 pixels high to show a stop sign. Each picture is taken once, by the first of
its names in alphabetic order, and one that lies in several of the labels' folders not at all. Keys are the paths below
the package's folder; the split comes from the key's hash: 60% train, 15% validation, 25% test.

**emoji**: the group of an emoji that both styles have, matched by its code points, which are its key. By the key's hash
60% are train and 15% validation, in Twitter's flat style; 25% are test, in Microsoft's style with depth and light. So
no emoji and no style of test is in train. Skin tones are left out, as is the group ``Component``.

**Set aside** are clip art and emoji in the first fifth of the key's hash: no task of a study has them, so that a
bridge's projector can learn from them, and a study's shots are as new to it as its tests (``clipart_aside`` and
``emoji_aside`` in :mod:`captions`). Otherwise it would know the shots by heart, and validation would say nothing.

Of stamps and clip art the same drawing often comes in several colours, or with another detail: near-duplicates are
dropped too (:mod:`pitune.tasks.duplicates`). Emoji keep theirs: test is in a style of its own and has none, though 17
of train are almost one of validation.

The labels are of unequal size, so that the metric is ``macro_f1``. What is left after dropping duplicates by the rule
of :mod:`pitune.tasks.building` and near-duplicates, and how many pictures that drops from train and validation; of
Debian's packages these are the counts of versions 2022.06.04-1 and 1:0.18+dfsg-19:

===========  =====  ==========  =====  =======  ================================
name         train  validation  test   dropped  the largest label's part of test
===========  =====  ==========  =====  =======  ================================
``stamps``   396    97          173    3        34%
``clipart``  1100   446         771    117      27%
``emoji``    759    294         425    10       21%
===========  =====  ==========  =====  =======  ================================
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pitune.assets import fetch
from pitune.errors import PituneError
from pitune.tasks.building import build_task, split_of, split_rows
from pitune.tasks.duplicates import NEAR
from pitune.tasks.readers import Row, whole_file
from pitune.tasks.task import Task

STAMPS = "deb:tuxpaint-stamps-default#usr/share/tuxpaint/stamps"
CLIPART = "deb:openclipart-png#usr/share/openclipart/png"
TWITTER = "npm:emoji-datasource-twitter@16.0.0#package"
FLUENT = "npm:@lobehub/fluent-emoji-3d@1.1.0#package/assets"

STAMP_LABELS = {
    "animals": "a picture of an animal",
    "food": "a picture of food",
    "plants": "a picture of a plant",
    "seasonal": "a picture for a holiday",
    "symbols": "a letter, a number, a coin or a symbol",
    "town": "a picture of a building, a flag or a road sign",
    "vehicles": "a picture of a vehicle",
}
CLIPART_LABELS = {
    "animals": "a drawing of an animal",
    "buildings": "a drawing of a building or furniture",
    "computer": "a drawing of a computer, a part of it or a button on its screen",
    "food": "a drawing of food or a drink",
    "geography": "a map or a planet",
    "office": "a drawing of something in an office",
    "people": "a drawing of a person",
    "plants": "a drawing of a plant",
    "recreation": "a drawing of a pastime: sports, music, a game, a party",
    "shapes": "a plain shape or an arrow",
    "signs_and_symbols": "a sign, a symbol or a flag",
    "tools": "a drawing of a tool or a weapon",
    "transportation": "a drawing of a vehicle or a road sign",
}
ASIDE = 0.2
"""The share of clip art and of emoji that is set aside."""
LEAST_SIDE, MOST_PIXELS = 8, 1 << 24
"""Which sizes of pictures are taken."""
PNG = b"\x89PNG\r\n\x1a\n"
ICONS = "computer/icons"
CLIPART_WITHOUT = ("computer/games/", f"{ICONS}/", "recreation/games/cards/", "shapes/stars/")
EMOJI_LABELS = {
    "Smileys & Emotion": "an emoji of a face or a feeling",
    "People & Body": "an emoji of a person or a part of the body",
    "Animals & Nature": "an emoji of an animal or a plant",
    "Food & Drink": "an emoji of food or a drink",
    "Travel & Places": "an emoji of a vehicle, a building, a place or the weather",
    "Activities": "an emoji of a sport, a game or a celebration",
    "Objects": "an emoji of an object",
    "Symbols": "an emoji of a sign or a symbol",
    "Flags": "an emoji of a flag",
}


def _stamps(name: str) -> Task:
    rows = list(distinct(stamp_rows(STAMP_LABELS)))
    return build_task(name, "macro_f1", STAMP_LABELS, split_rows(rows, ("validation", "test")), NEAR)


def _clipart(name: str) -> Task:
    rows = [row for row in distinct(clipart_rows()) if not is_aside(row.key)]
    return build_task(name, "macro_f1", CLIPART_LABELS, split_rows(rows, ("validation", "test")), NEAR)


def is_aside(key: str) -> bool:
    """Say whether a picture is set aside for bridges."""
    return split_of(key, (ASIDE, 1 - ASIDE, 0.0)) == "train"


def stamp_rows(folders: Iterable[str] | None = None) -> Iterator[Row]:
    """Give the stamps in some top folders, or in all; their labels are the folders."""
    place = fetch(STAMPS).path
    found = folders or [one.name for one in place.iterdir() if one.is_dir()]
    return _pngs(place, found, lambda path: path.endswith("_mirror.png"))


def clipart_rows() -> Iterator[Row]:
    """Give the drawings of openclipart.org; their labels are their top folders."""
    return _pngs(fetch(CLIPART).path, CLIPART_LABELS, lambda path: path.startswith(CLIPART_WITHOUT))


def icon_rows() -> Iterator[Row]:
    """Give the icons of openclipart.org, which are no part of its drawings; the label says nothing."""
    return _pngs(fetch(CLIPART).path, [ICONS], lambda path: False)


def _pngs(folder: Path, labels: Iterable[str], unwanted: Callable[[str], bool]) -> Iterator[Row]:
    for label in sorted(labels):
        for file in sorted((folder / label).rglob("*.png")):
            key = file.relative_to(folder).as_posix()
            if not unwanted(key) and _is_of_use(file):
                yield picture_row(key, label, file)


def _is_of_use(file: Path) -> bool:
    """Say whether a png file's picture is neither too small nor too large, by what its first bytes say."""
    with file.open("rb") as stream:
        start = stream.read(24)
    if len(start) < 24 or not start.startswith(PNG):
        raise PituneError(f"{file}: is no png file, or damaged")
    width, height = struct.unpack(">II", start[16:])
    return bool(min(width, height) >= LEAST_SIDE and width * height <= MOST_PIXELS)


def distinct(rows: Iterator[Row]) -> Iterator[Row]:
    """Give each picture once, in its first row; one that has several labels not at all, since none of them is right."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        assert row.picture is not None
        found.setdefault(row.picture.digest, []).append(row)
    for same in found.values():
        if len({row.label for row in same}) == 1:
            yield same[0]


def _emoji(name: str) -> Task:
    flat, deep = emoji_rows()
    splits = split_rows([row for row in flat if not is_aside(row.key)], ("validation", "test"))
    splits["test"] = [deep[row.key] for row in splits["test"]]
    return build_task(name, "macro_f1", EMOJI_LABELS, splits)


def emoji_rows() -> tuple[list[Row], dict[str, Row]]:
    """Return the emoji that both styles have, in the flat one, and by their keys in the deep one; labels are groups."""
    twitter = fetch(f"{TWITTER}/img/twitter/64").path
    fluent = fetch(FLUENT).path
    flat, deep = [], {}
    for file, label in _groups(fetch(f"{TWITTER}/emoji.json").path):
        here, there = twitter / file, fluent / Path(file).with_suffix(".webp")
        if label in EMOJI_LABELS and here.exists() and there.exists():
            flat.append(picture_row(here.stem, label, here))
            deep[here.stem] = picture_row(here.stem, label, there)
    return flat, deep


def _groups(file: Path) -> list[tuple[str, str]]:
    """Return each emoji's file name and group."""
    try:
        found: list[dict[str, Any]] = json.loads(file.read_bytes())
        return [(str(one["image"]), str(one["category"])) for one in found]
    except (ValueError, LookupError, TypeError) as error:
        raise PituneError(f"{file}: is no list of emoji with an image and a category each") from error


def picture_row(key: str, label: str, file: Path) -> Row:
    """Return the row of a picture's file."""
    return Row(key, None, label, str(file), whole_file(file, str(file)))


TASKS: dict[str, Callable[[str], Task]] = {"stamps": _stamps, "clipart": _clipart, "emoji": _emoji}
"""What makes each of them, given its name."""
