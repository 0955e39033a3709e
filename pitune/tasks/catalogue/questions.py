"""The tasks of a picture and a text: questions about pictures, and whether a title is a picture's.

**easy_vqa**: questions about a shape and its colour (``what is the blue shape?``), with 13 answers (Victor Zhou's
easy-VQA). The package's own splits; of its train pictures 10% by the key's hash are validation, with all their
questions. Keys are ``train/12#3``: the picture's number, and the question's among all of the split.

**clipart_match**: is this title this drawing's? Each drawing of ``clipart_titles`` stands there twice, with its own
title and with another one's: of a drawing in the same split, under another top folder, with no keyword and no word of
the title in common. Titles are dealt by a hash, so that each is once right and once wrong: neither the text nor the
picture alone tells anything. A drawing is in the split that ``clipart`` has it in, by the key's hash 60% train (the
first fifth of it is set aside), 15% validation and 25% test.

=================  =====  ==========  =====  =======
name               train  validation  test   classes
=================  =====  ==========  =====  =======
``easy_vqa``       34445  4130        9673   13
``clipart_match``  870    318         572    2
=================  =====  ==========  =====  =======
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pitune.assets import fetch
from pitune.errors import PituneError
from pitune.tasks.building import SHARES, build_task, split_of
from pitune.tasks.catalogue import captions
from pitune.tasks.catalogue.drawings import is_aside, picture_row
from pitune.tasks.duplicates import NEAR, without_near_duplicates
from pitune.tasks.readers import Row
from pitune.tasks.task import SPLITS, Example, Task

EASY = "pypi:easy-vqa==1.0#easy_vqa/data"
WORDS = re.compile(r"[^\W\d_]{3,}")
MATCH_LABELS = {"yes": "yes, the picture shows this", "no": "no, the picture shows something else"}


def _easy(name: str) -> Task:
    folder = fetch(EASY).path
    answers = (folder / "answers.txt").read_text(encoding="utf-8").split()
    train = _asked(folder / "train")
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": _asked(folder / "test")}
    for row in train:
        parts[split_of(row.key.partition("#")[0], SHARES[("validation",)])].append(row)
    return build_task(name, "accuracy", {answer: f"the answer is {answer}" for answer in answers}, parts)


def _asked(folder: Path) -> list[Row]:
    """Return the questions of a split, each with its picture."""
    file = folder / "questions.json"
    try:
        found = [(str(text), str(answer), int(image)) for text, answer, image in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise PituneError(f"{file}: is no list of a question, an answer and a picture's number each") from error
    pictures = {image: picture_row("", "", folder / "images" / f"{image}.png").picture for _, _, image in found}
    return [
        Row(f"{folder.name}/{image}#{number}", text, answer, f"{file}: question {number}", pictures[image])
        for number, (text, answer, image) in enumerate(found)
    ]


def _match(name: str) -> Task:
    parts: dict[str, list[Drawing]] = {split: [] for split in SPLITS}
    for row, keywords in captions.titled():
        if is_aside(row.key):
            continue
        drawing = Drawing(row, keywords, row.key.partition("/")[0], frozenset(WORDS.findall(row.labels[0].lower())))
        parts[split_of(row.key, SHARES[("validation", "test")])].append(drawing)
    rows = {split: pairs(found) for split, found in _apart(name, parts).items()}
    return build_task(name, "accuracy", MATCH_LABELS, rows)


def _apart(name: str, parts: Mapping[str, list[Drawing]]) -> dict[str, list[Drawing]]:
    """Return the drawings without those that are near one of a later split, whatever title either meets."""
    plain = {split: tuple(Example(one.row.key, "", 0, one.row.picture) for one in parts[split]) for split in SPLITS}
    kept = {example.key for held in without_near_duplicates(name, plain, NEAR).values() for example in held}
    return {split: [one for one in parts[split] if one.row.key in kept] for split in SPLITS}


class Drawing(NamedTuple):
    """A drawing with its keywords, its top folder and the words of its title."""

    row: Row
    keywords: frozenset[str]
    top: str
    words: frozenset[str]

    def is_akin(self, other: Drawing) -> bool:
        """Say whether the other one's title might be this one's."""
        return self.top == other.top or bool(self.keywords & other.keywords or self.words & other.words)


def pairs(drawings: list[Drawing]) -> list[Row]:
    """Return each drawing with its own title and with a stranger's, each title once in either place.

    Raises:
        PituneError: a drawing is akin to all others.
    """
    ones = sorted(drawings, key=lambda one: hashlib.sha256(f"pair {one.row.key}".encode()).digest())
    rows = []
    for one, other in zip(ones, _strangers(ones), strict=True):
        row = one.row
        for label, title in (("yes", row.labels[0]), ("no", other.row.labels[0])):
            rows.append(Row(f"{row.key}#{label}", title, label, row.place, row.picture))
    return rows


def _strangers(ones: list[Drawing]) -> list[Drawing]:
    """Return the drawings in another order, in which none is akin to the one in its place."""
    given = [*ones[1:], *ones[:1]]
    for i, one in enumerate(ones):
        if one.is_akin(given[i]):
            swaps = (j for j, two in enumerate(ones) if not (one.is_akin(given[j]) or two.is_akin(given[i])))
            j = next(swaps, None)
            if j is None:
                raise PituneError(f"{one.row.place}: no drawing of its split has a title that is surely wrong for it")
            given[i], given[j] = given[j], given[i]
    return given


TASKS: Mapping[str, Callable[[str], Task]] = {"easy_vqa": _easy, "clipart_match": _match}
"""What makes each of them, given its name."""
