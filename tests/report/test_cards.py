"""Examples on the page, against the store's tables; and what is not to be trusted in them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from synthetic import KEYS, TWENTY, commit, label_of, labels_of, picture, prediction, tiny
from test_page import Reader

from pitune.report import build_page, cards
from pitune.report.cards import Gallery, address, read_cards, read_galleries
from pitune.results import CARD
from pitune.store import Store, table_bytes

FAMILIES = ("tasks", "predictions", "results")
MIXED = {"amazon": "image", "movie": "image+text"}
"""Of the tiny study's tasks; nyt or news20, the third one, has texts."""


def galleries(store: Store) -> list[Gallery]:
    manifests = store.artifacts()
    return read_galleries(store, manifests, read_cards(manifests))


def test_cards_say_what_tasks_are(tmp_path: Path) -> None:
    found = read_cards(tiny(modalities=MIXED, families=FAMILIES).write(Store(tmp_path)).artifacts())
    assert {task: card.modality for task, card in found.items()} == {**MIXED, "news20": "text"}
    assert {card.labels for card in found.values()} == {2}
    assert found["movie"].examples == {"train": 1000, "validation": 200, "test": len(KEYS)}
    assert read_cards({"graph.parquet": {}, "tasks/older": {}}) == {}


def test_answers_are_those_of_the_predictions(tmp_path: Path) -> None:
    store = tiny(modalities=MIXED, families=FAMILIES).write(Store(tmp_path))
    scored = {(row["method"], row["slice"]): row["value"] for row in store.table("results.parquet").to_pylist()}
    found = galleries(store)
    assert [(gallery.card.task, gallery.slice) for gallery in found] == [
        (task, f"{task}@16#0") for task in ("amazon", "movie", "news20")
    ]
    for gallery in found:
        task, texts = gallery.card.task, labels_of(gallery.card.task)
        assert [title for title, _ in gallery.methods] == ["zero-shot", "single", "pi"]
        assert [value for _, value in gallery.methods] == [
            pytest.approx(scored[method, gallery.slice]) for method in ("zero_shot", "single", "pi")
        ]
        assert len(gallery.examples) == 8
        for place, method in enumerate(("zero_shot", "single", "pi")):
            said = {row["key"]: row for row in store.table(prediction(method, task, 16, 0)).to_pylist()}
            for key, example in zip(KEYS, gallery.examples, strict=False):
                answer = example.answers[place]
                assert answer is not None and answer.text == texts[said[key]["prediction"]]
                assert answer.is_right == (said[key]["prediction"] == said[key]["label"])
                assert example.right.text == texts[label_of(task, key)]
                assert bool(example.picture) == (task in MIXED) and not example.is_lost
                assert bool(example.text) == (task != "amazon")


def test_the_most_shots_are_shown_and_what_has_not_been_said_is_left_open(tmp_path: Path) -> None:
    store = tiny(shots=(4, 16), tasks=("amazon",), families=FAMILIES).write(Store(tmp_path))
    commit(store, "predictions/amazon@16#0/pi.parquet", {"": table_bytes([{"key": "other", "prediction": "0"}])})
    (found,) = galleries(store)
    assert found.slice == "amazon@16#0"
    assert [example.answers[2] for example in found.examples] == [None] * 8
    assert all(example.answers[1] is not None for example in found.examples)


def test_pictures_are_in_the_page_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    head, _, data = address(picture("a")).partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("WEBP", (96, 72))
    for other in (None, b"", b"<svg onload=alert(1)>", b"RIFF", b"RIFF\0\0\0\0WAVEfmt ", b"\x89PNG\r\n\x1a\n"):
        assert address(other) == ""
    store = tiny(modalities=MIXED, families=FAMILIES).write(Store(tmp_path))
    row = {"key": KEYS[0], "text": "", "label": "0", "picture": b"<script>alert(1)</script>"}
    damaged = {
        "labels.parquet": table_bytes([{"label": "0", "text": "zero"}]),
        "examples.parquet": table_bytes(pa.Table.from_pylist([row], pa.schema(CARD))),
    }
    commit(store, "tasks/amazon", damaged, modality="image", metric="accuracy", labels=1, examples={"test": 1})
    page = build_page(store)
    assert page.count("the picture cannot be shown") == 1
    sources = [attributes["src"] for tag, attributes in Reader(page).tags if tag == "img"]
    assert len(sources) == 8 and all(source and source.startswith(head) for source in sources)
    assert "<script" not in page


HOSTILE = '</td><script>alert(1)</script><img src=x onerror=alert(1)>" onmouseover="alert(1) {{ 7 * 7 }} '


def test_texts_and_captions_are_text(tmp_path: Path) -> None:
    page = build_page(tiny(texts=HOSTILE, families=FAMILIES).write(Store(tmp_path)))
    tags = Reader(page).tags
    assert not {tag for tag, _ in tags} & {"script", "img"}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "alert(1)" in page and "{{ 7 * 7 }}" in page
    titles = [str(attributes["title"]) for tag, attributes in tags if tag == "td" and "title" in attributes]
    assert any(title.startswith(HOSTILE) for title in titles)


def test_right_and_wrong_are_told_by_more_than_colour(tmp_path: Path) -> None:
    store = tiny(families=FAMILIES).write(Store(tmp_path))
    page, answers = (
        build_page(store),
        [
            answer
            for gallery in galleries(store)
            for example in gallery.examples
            for answer in example.answers
            if answer
        ],
    )
    right = sum(answer.is_right for answer in answers)
    assert 0 < right < len(answers)
    assert page.count(">✓</b>") == page.count(">right: </span>") == right
    assert page.count(">✗</b>") == page.count(">wrong: </span>") == len(answers) - right


def test_one_task_of_each_modality_is_open_and_the_others_are_folded(tmp_path: Path) -> None:
    many = tiny(tasks=tuple(TWENTY)[5:10], modalities=TWENTY, seeds=(0,), families=FAMILIES)
    page = build_page(many.write(Store(tmp_path)))
    section = page[page.index('<section id="examples"') : page.index('<section id="tasks"')]
    opened, _, folded = section.partition("<details>")
    assert [name for name in many.tasks if f"<h3>{name}</h3>" in opened] == ["emoji", "amazon"]
    assert [name for name in many.tasks if f"<h3>{name}</h3>" in folded] == ["solar", "movie", "news20"]
    assert "Examples of the other 3 tasks" in folded


def test_many_tasks_show_fewer_examples_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiny(families=FAMILIES).write(Store(tmp_path))
    monkeypatch.setattr(cards, "MOST", 10)
    assert [len(gallery.examples) for gallery in galleries(store)] == [3, 3, 3]
    monkeypatch.setattr(cards, "MOST", 2)
    assert galleries(store) == []


def test_studies_without_cards_or_results_have_no_examples(tmp_path: Path) -> None:
    for number, families in enumerate((("predictions", "results"), ("tasks", "predictions"))):
        page = build_page(tiny(families=families).write(Store(tmp_path / str(number))))
        assert 'id="examples"' not in page and 'href="#examples"' not in page


def test_a_card_says_whether_other_tasks_help(tmp_path: Path) -> None:
    store = tiny(modalities=MIXED, families=FAMILIES, seeds=(0, 1, 2)).write(Store(tmp_path))
    assert {gallery.help for gallery in galleries(store)} == {""}
    for task, seeds in {"movie": (False,) * 3, "amazon": (True, False, True), "news20": (True,) * 3}.items():
        for seed, helps in enumerate(seeds):
            for shots, said in ((16, helps), (4, not helps)):
                name = f"{task}@{shots}#{seed}"
                commit(store, f"baselines/{name}/crossfit", {"made_up.json": b"{}"}, slice=name, helps=said)
    amazon, movie, news = (gallery.help for gallery in galleries(store))
    assert movie.startswith("Nothing here clearly helps this task") and movie in build_page(store)
    assert "clearly better than its own, on 2 of 3 seeds." in amazon and "Nothing" not in amazon
    assert news == amazon.replace(", on 2 of 3 seeds", "")
