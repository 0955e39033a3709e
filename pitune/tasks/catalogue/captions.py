"""The tasks of pictures and their captions: which of all captions of the task is this picture's?

They are tasks of retrieval: every picture has a caption of its own, and all of a task's captions, those of test
pictures among them, are candidates. Of pictures whose captions differ by capitals at most the first is taken: text
encoders often see none, and then ``The letter a.`` and ``The letter A.`` are one. So no caption of a test picture is in
train; ``flags`` is another matter. Keys are those of the picture's task in :mod:`drawings`, where there is one.

**stamp_captions**: stamps of Tux Paint with the first line of what the program says of them.

**clipart_titles**: drawings of openclipart.org with the title in the drawing's svg file, without a number at its end.
Left out is what says nothing of the picture: titles with ``clipart`` in them, those that more than three drawings have
(a collection's), those without a word of three letters, and those with a number, a dot or an ``@`` inside (``Box
30x20``). Left out are also copies in black and white, whose titles say so; what is not in English, as far as letters
beyond ASCII or the author show it; and ``signs_and_symbols/flags``, of which **flags** has its own.

**emoji_names**: emoji with their Unicode names, in lower case, without flags; as in ``emoji``, pictures of test are in
another style than those of train and validation.

**flags**: flags of countries and territories, with the English name; without those that fly another one's, and those
that are no emoji. No name could be guessed from other flags, so each country is in train, by the plain drawing of
svg-country-flags; test has its emoji in the deep style, validation that in the flat one of a fifth of the countries.

The others' split comes from the key's hash: 50% train, 10% validation, 40% test (tests are small, and noise with them
large). A picture that is in one of these test splits is in the train split of none of its sister tasks (``stamps``,
``clipart``, ``emoji``, ``clipart_match``), nor the other way round: the same hash gives those 60%, 15% and 25%. Of clip
art and emoji the first fifth is missing in train, being set aside.

**clipart_aside**, **emoji_aside** and **icons** are for a bridge's projector (``pitune bridge``), and share no picture
with another task: clip art and emoji that are set aside (:mod:`drawings`), in the flat style, and openclipart's icons,
whose file names are their captions, but for those that lie among the clip art too. By a hash of their own 80% are
train, 10% validation, 10% test.

===================  =====  ==========  =====  ========
name                 train  validation  test   captions
===================  =====  ==========  =====  ========
``stamp_captions``   312    67          262    641
``clipart_titles``   326    108         447    881
``emoji_names``      487    161         618    1266
``flags``            236    55          236    236
``clipart_aside``    176    21          25     222
``emoji_aside``      262    31          25     318
``icons``            1068   135         119    1148
===================  =====  ==========  =====  ========
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pitune.assets import fetch
from pitune.errors import PituneError
from pitune.tasks.building import build_task, split_of
from pitune.tasks.catalogue import drawings
from pitune.tasks.catalogue.drawings import is_aside
from pitune.tasks.duplicates import NEAR
from pitune.tasks.readers import Row
from pitune.tasks.task import SPLITS, Task

SHARES = (0.5, 0.1, 0.4)
"""Of keys, which become train, validation and test; of clip art and emoji the first fifth is set aside."""
ASIDE_SHARES = (0.8, 0.1, 0.1)
"""The same of what is set aside, and of icons."""
FLAG_SHARES = (0.8, 0.2, 0.0)
"""Of countries: those of which validation has the flat drawing are the second."""
REGIONAL_A = 0x1F1E6
SVG = "deb:openclipart-svg#usr/share/openclipart/svg"
FLAGS = "npm:svg-country-flags@1.2.10#package"
TITLE = re.compile(r"<dc:title[^>]*>([^<]*)</dc:title>")
KEYWORDS = re.compile(r"<dc:subject[^>]*>(.*?)</dc:subject>", re.DOTALL)
KEYWORD = re.compile(r"<rdf:li[^>]*>([^<]*)</rdf:li>")
WORD = re.compile(r"[^\W\d_]{3}")
CREATOR = re.compile(r"<dc:creator[^>]*>\s*<cc:Agent[^>]*>\s*<dc:title[^>]*>([^<]*)</dc:title>")
NUMBER = re.compile(r"[\s#-]*\d+$")
NO_TITLE = re.compile(r"[^ -~]|[\d.@]|clipart|\b(?:b ?(?:and|&|/) ?w|bw)\b", re.IGNORECASE)
NO_ENGLISH = re.compile("balin|doucet|guillou|jacq|luiz ara|olivo|rollandin", re.IGNORECASE)
"""Authors who write Italian, French or Portuguese, mostly."""
TURNED = re.compile(r"(.+), (.* of(?: the)?|British|U\.S\.)")
"""What the list of countries turns round, to sort it by the main word: ``Korea, Republic of``."""
MOST_ALIKE = 3
"""Drawings that may have the same title: what more have names a collection."""
FLAGS_FOLDER = "signs_and_symbols/flags/"
NO_KEYWORDS = {"", "hash", "unsorted"}
SAME_FLAG = {"AN", "BQ", "BV", "GB-NIR", "GF", "GP", "HM", "MF", "MQ", "PM", "RE", "SH", "SJ", "UM"}
"""Territories that fly the flag of the country that they are a part of, and one that is no more."""


def _stamps(name: str) -> Task:
    said = ((row, Path(row.place).with_suffix(".txt")) for row in drawings.stamp_rows())
    rows = [replace(row, label=_tidy(_text(file).partition("\n")[0])) for row, file in said if file.exists()]
    return _retrieval(name, rows)


def _clipart(name: str) -> Task:
    return _retrieval(name, [row for row, _ in titled() if not is_aside(row.key)])


def _clipart_aside(name: str) -> Task:
    return _aside(name, [row for row, _ in titled() if is_aside(row.key)])


def _emoji(name: str) -> Task:
    flat, deep = _named_emoji()
    splits = _split([row for row in flat if not is_aside(row.key)])
    splits["test"] = [replace(deep[row.key], label=row.label) for row in splits["test"]]
    return build_task(name, "accuracy", None, splits)


def _emoji_aside(name: str) -> Task:
    return _aside(name, [row for row in _named_emoji()[0] if is_aside(row.key)])


def _named_emoji() -> tuple[list[Row], dict[str, Row]]:
    """Return the emoji but for flags in the flat style, with their names, and by their keys in the deep one."""
    names = _names(fetch(f"{drawings.TWITTER}/emoji.json").path)
    flat, deep = drawings.emoji_rows()
    return [replace(row, label=names[row.key]) for row in flat if row.label != "Flags"], deep


def _icons(name: str) -> Task:
    drawn = {row.picture.digest for row in drawings.clipart_rows() if row.picture}
    rows = [row for row in drawings.icon_rows() if row.picture and row.picture.digest not in drawn]  # some lie in both
    named = [replace(row, label=_tidy(Path(row.key).stem.replace("-", " "))) for row in rows]
    return _aside(name, [row for row in named if WORD.search(row.labels[0])])


def _flags(name: str) -> Task:
    folder = fetch(FLAGS).path
    file = folder / "countries.json"
    try:
        countries = {str(code): str(country) for code, country in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise PituneError(f"{file}: is no mapping of codes to countries") from error
    named = {_emoji_key(code): (code, TURNED.sub(r"\2 \1", country)) for code, country in countries.items()}
    flat, deep = drawings.emoji_rows()
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in flat:
        code, country = named.get(row.key, (None, ""))
        if code is None or code in SAME_FLAG:
            continue
        plain = folder / "png250px" / f"{code.lower()}.png"
        splits["train"].append(drawings.picture_row(code, country, plain))
        splits["test"].append(replace(deep[row.key], key=f"{code} deep", label=country))
        if split_of(code, FLAG_SHARES) == "validation":
            splits["validation"].append(replace(row, key=f"{code} flat", label=country))
    return build_task(name, "accuracy", None, splits)


def _emoji_key(code: str) -> str:
    """Return how the emoji of a country's flag is called: its code in regional indicators, ``1f1e9-1f1ea`` for DE."""
    return "-".join(f"{REGIONAL_A + ord(letter) - ord('A'):x}" for letter in code)


def titled() -> list[tuple[Row, frozenset[str]]]:
    """Return the drawings of openclipart.org that have a title of use, which is their label, and their keywords.

    Each title is there once: no drawing that is set aside has that of another.
    """
    folder = fetch(SVG).path
    first: dict[str, Row] = {}
    for row in drawings.clipart_rows():  # before any title is looked at: a picture has the key that it has in clipart
        assert row.picture is not None
        first.setdefault(row.picture.digest, row)
    rows, keywords = [], {}
    for row in first.values():
        file = (folder / row.key).with_suffix(".svg")
        if not row.key.startswith(FLAGS_FOLDER) and file.exists():
            title, keywords[row.key] = _said(_text(file))
            rows.append(replace(row, label=title))
    counts = Counter(row.labels[0].casefold() for row in rows)
    of_use = (row for row in rows if WORD.search(row.labels[0]) and counts[row.labels[0].casefold()] <= MOST_ALIKE)
    return [(row, keywords[row.key]) for row in once(of_use)]


def _said(svg: str) -> tuple[str, frozenset[str]]:
    """Return an svg file's title, ``""`` for one of no use, and its keywords."""
    found, held, creator = TITLE.search(svg), KEYWORDS.search(svg), CREATOR.search(svg)
    title = NUMBER.sub("", _tidy(found[1])) if found else ""
    foreign = creator is not None and NO_ENGLISH.search(creator[1])
    words = {_tidy(word).lower() for word in KEYWORD.findall(held[1])} if held else set()
    return "" if foreign or NO_TITLE.search(title) else title, frozenset(words - NO_KEYWORDS)


def _tidy(text: str) -> str:
    """Return text in words: without entities, underscores and runs of white space."""
    return " ".join(html.unescape(text).replace("_", " ").split())


def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "replace")


def _names(file: Path) -> dict[str, str]:
    """Return each emoji's name by its file's."""
    try:
        return {Path(one["image"]).stem: str(one["name"]).lower() for one in json.loads(file.read_bytes())}
    except (ValueError, LookupError, TypeError) as error:
        raise PituneError(f"{file}: is no list of emoji with an image and a name each") from error


def _retrieval(name: str, rows: list[Row], near: int | None = NEAR) -> Task:
    splits = _split([row for row in drawings.distinct(iter(rows)) if row.label])
    return build_task(name, "accuracy", None, splits, near)


def _aside(name: str, rows: list[Row]) -> Task:
    """Build a task for bridges, split by a hash of its own."""
    parts: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in drawings.distinct(iter(rows)):
        parts[split_of(f"aside {row.key}", ASIDE_SHARES)].append(row)
    return build_task(name, "accuracy", None, parts)


def once(rows: Iterable[Row]) -> list[Row]:
    """Return the first row of each caption, whatever its capitals."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.labels[0].casefold(), row)
    return list(found.values())


def _split(rows: list[Row]) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in once(rows):
        parts[split_of(row.key, SHARES)].append(row)
    return parts


TASKS: Mapping[str, Callable[[str], Task]] = {
    "stamp_captions": _stamps,
    "clipart_titles": _clipart,
    "emoji_names": _emoji,
    "flags": _flags,
    "clipart_aside": _clipart_aside,
    "emoji_aside": _emoji_aside,
    "icons": _icons,
}
"""What makes each of them, given its name."""
