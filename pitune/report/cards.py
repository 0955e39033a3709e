"""What the study tells of its tasks: their modality and sizes, and a few test examples with what was said to them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pitune.methods import METHODS
from pitune.report.contents import Group, Manifests, shots_order, split_slice
from pitune.report.numbers import plural
from pitune.report.scores import BASELINE, OURS
from pitune.results import RESULTS
from pitune.store import Store

MOST = 240
"""So many examples are on a page, at most: of more than thirty tasks each shows fewer than its card has."""
ANSWER = 60
"""Characters of a label's text in the page; the whole of it is in the hover text."""
NONE = "none of them"
"""What stands for the labels of an example that has none, of those of a multilabel task."""


@dataclass(frozen=True)
class Card:
    """A task as its card has it.

    Attributes:
        task: its name.
        modality: ``text``, ``image`` or ``image+text``.
        labels: how many candidate labels.
        examples: how many of each split.
    """

    task: str
    modality: str
    labels: int
    examples: dict[str, int]


@dataclass(frozen=True)
class Answer:
    """What a method said to an example: the label's text (or all labels'), whole and cut, and whether it is right."""

    text: str
    short: str
    is_right: bool


@dataclass(frozen=True)
class Shown:
    """A test example.

    Attributes:
        text: one line, or empty.
        picture: a ``data:`` address of what it looks like, or empty.
        is_lost: whether there is a picture that cannot be shown.
        right: the right label's text.
        answers: of each method of the gallery; None where it has not said anything.
    """

    text: str
    picture: str
    is_lost: bool
    right: Answer
    answers: list[Answer | None]


@dataclass(frozen=True)
class Gallery:
    """A task's examples, what methods said to them on one slice, and what those scored on the whole test split.

    ``help`` says whether other tasks help it, by cross-fitting; empty where nobody has asked.
    """

    card: Card
    slice: str
    methods: list[tuple[str, float]]
    examples: list[Shown]
    help: str


def read_cards(manifests: Manifests) -> dict[str, Card]:
    """Return the cards of a study's tasks by name; empty for older studies."""
    found = {}
    for artifact, manifest in sorted(manifests.items()):
        family, _, task = artifact.partition("/")
        if family == "tasks" and "modality" in manifest:
            found[task] = Card(task, str(manifest["modality"]), int(manifest["labels"]), dict(manifest["examples"]))
    return found


def shown_methods() -> list[str]:
    """Return whose answers are shown: the first method that sees nothing, the baseline, the interpolated expert."""
    nothing = [name for name, method in METHODS.items() if method.sees == "nothing"][:1]
    return [*nothing, BASELINE, OURS]


def read_galleries(store: Store, manifests: Manifests, cards: dict[str, Card]) -> list[Gallery]:
    """Return the galleries of the tasks that have been scored, by name: of each the most shots' first seed."""
    if RESULTS not in manifests:
        return []
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in store.table(RESULTS).to_pylist():
        if row["task"] in cards and row["method"] in shown_methods() and row.get("prediction") in manifests:
            rows.setdefault(row["task"], []).append(row)
    each, asked = MOST // max(1, len(rows)), read_helped(manifests)
    return [_gallery(store, cards[task], some, each, asked) for task, some in sorted(rows.items()) if each]


def read_helped(manifests: Manifests) -> dict[Group, list[bool]]:
    """Return whether other tasks help, as cross-fitting found: by task and shots, for each seed."""
    found: dict[Group, list[bool]] = {}
    for manifest in manifests.values():
        if "helps" in manifest:
            task, shots, _ = split_slice(manifest["slice"])
            found.setdefault((task, shots), []).append(manifest["helps"])
    return found


def help_said(seeds: Sequence[bool]) -> str:
    """Return one sentence on whether other tasks help a task, by what each seed says; empty where there is none."""
    if not seeds:
        return ""
    if not any(seeds):
        return (
            "Nothing here clearly helps this task: on held-out shots, what is tuned from other experts is not better "
            "than its own by more than chance may do."
        )
    some = "" if all(seeds) else f", on {sum(seeds)} of {plural(len(seeds), 'seed')}"
    return f"On held-out shots, what is tuned from others' experts is clearly better than its own{some}."


def _gallery(
    store: Store, card: Card, rows: list[dict[str, Any]], most: int, asked: Mapping[Group, Sequence[bool]]
) -> Gallery:
    last = max(rows, key=lambda row: (shots_order(str(row["shots"])), -int(row["seed"])))["slice"]
    of = {row["method"]: row for row in rows if row["slice"] == last}
    chosen = [name for name in shown_methods() if name in of]
    artifact = f"tasks/{card.task}"
    examples = store.table(artifact, "examples.parquet").to_pylist()[:most]
    texts = {row["label"]: row["text"] for row in store.table(artifact, "labels.parquet").to_pylist()}
    said = [_said(store, of[name]["prediction"], {one["key"] for one in examples}) for name in chosen]
    return Gallery(
        card,
        str(last),
        [(METHODS[name].title, float(of[name]["value"])) for name in chosen],
        [_shown(one, texts, [answers.get(one["key"]) for answers in said]) for one in examples],
        help_said(asked.get(split_slice(last)[:2], ())),
    )


def _said(store: Store, artifact: str, keys: set[str]) -> dict[str, str | list[str]]:
    """Return the label, or the labels, that predictions have for each of ``keys``."""
    table = store.table(artifact, columns=["key", "prediction"]).to_pydict()
    return {key: said for key, said in zip(table["key"], table["prediction"], strict=True) if key in keys}


def _shown(example: dict[str, Any], texts: dict[str, str], said: list[str | list[str] | None]) -> Shown:
    label, picture = example["label"], address(example["picture"])
    answers = [None if one is None else _answer(one, texts, one == label) for one in said]
    is_lost = bool(example["picture"] is not None and not picture)
    return Shown(example["text"], picture, is_lost, _answer(label, texts, True), answers)


def _answer(said: str | list[str], texts: dict[str, str], is_right: bool) -> Answer:
    labels = [said] if isinstance(said, str) else said
    text = ", ".join(texts.get(label, label) for label in labels) or NONE
    return Answer(text, text if len(text) <= ANSWER else text[: ANSWER - 1] + "…", is_right)


def address(picture: bytes | None) -> str:
    """Return a webp picture as a ``data:`` address; empty for what is no webp."""
    if picture is None or picture[:4] != b"RIFF" or picture[8:12] != b"WEBP":
        return ""
    return "data:image/webp;base64," + base64.b64encode(picture).decode()
