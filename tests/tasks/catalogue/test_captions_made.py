"""The catalogue's captions and questions from packages made up here, with no network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tinypictures import picture, place

from pitune.errors import PituneError
from pitune.tasks.building import SHARES, split_of
from pitune.tasks.catalogue import captions, drawings, load_task, questions
from pitune.tasks.readers import Row
from pitune.tasks.task import Task

Serve = Callable[[str, Path], None]


def said(task: Task) -> dict[str, str]:
    """The caption of each key."""
    return {one.key: task.label_texts[one.label] for split in task.splits.values() for one in split}


def check_shares(task: Task) -> None:
    for split, examples in task.splits.items():
        assert examples and {split_of(example.key, captions.SHARES) for example in examples} == {split}


def check_aside(aside: Task, task: Task, wanted: dict[str, str]) -> None:
    """Both together have all that is wanted; the first fifth by the hash is set aside, in splits of its own."""
    assert said(aside) == {key: caption for key, caption in wanted.items() if place(key) < 0.2}
    assert said(task) == {key: caption for key, caption in wanted.items() if place(key) >= 0.2}
    for split, examples in aside.splits.items():
        bounds = {"train": (0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1)}[split]
        assert examples and all(bounds[0] <= place(f"aside {example.key}") < bounds[1] for example in examples)


def test_stamps_have_the_first_line_of_what_is_said_of_them(tmp_path: Path, serve: Serve) -> None:
    for number in range(60):
        file = picture(tmp_path / "stamps" / "animals" / f"{number}.png")
        file.with_suffix(".txt").write_text(f"Animal  {number}.\nfr.utf8=Un animal.\n")
        picture(tmp_path / "stamps" / "animals" / f"{number}_mirror.png")
    picture(tmp_path / "stamps" / "animals" / "silent.png")
    picture(tmp_path / "stamps" / "hobbies" / "empty.png").with_suffix(".txt").write_text("\n")
    twin = tmp_path / "stamps" / "hobbies" / "twin.png"
    twin.write_bytes((tmp_path / "stamps" / "animals" / "7.png").read_bytes())
    twin.with_suffix(".txt").write_text("Something else.")
    picture(tmp_path / "stamps" / "hobbies" / "again.png").with_suffix(".txt").write_text("ANIMAL 8.")
    serve(drawings.STAMPS, tmp_path / "stamps")
    task = load_task("stamp_captions")
    assert (task.family, task.modality, task.metric) == ("retrieval", "image", "accuracy")
    assert said(task) == {f"animals/{number}.png": f"Animal {number}." for number in range(60) if number != 7}
    check_shares(task)


def svg(title: str, *keywords: str, author: str = "Jo") -> str:
    words = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    creator = f'<dc:creator>\n<cc:Agent rdf:about=""><dc:title>{author}</dc:title></cc:Agent></dc:creator>'
    return f"<svg><dc:title>{title}</dc:title><dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject>{creator}</svg>"


def clipart(folder: Path) -> dict[str, str]:
    """Write drawings in four folders, in which titles share no word; return those with a title of use."""
    wanted = {}
    for top in ("animals", "food", "people", "tools"):
        for number in range(40):
            key = f"{top}/{number}.png"
            picture(folder / "png" / key)
            letters = chr(97 + number // 26) * 3 + chr(97 + number % 26) * 3
            title = f"{top}_{letters} &amp; more{top} 0{number}"
            (folder / "svg" / top).mkdir(parents=True, exist_ok=True)
            (folder / "svg" / top / f"{number}.svg").write_text(svg(title, top, "hash", ""))
            wanted[key] = f"{top} {letters} & more{top}"
    for name, title in (
        ("a", "Clipart by Somebody - 7"),
        ("b", "12 34"),
        ("c", ""),
        ("e", "Switch 37 ports"),
        ("f", "Pie (B and W)"),
        ("g", "caf\u00e9"),
        ("h", "somebody@some"),
        ("i", "FOOD aaaaaa &amp; morefood"),
        *((f"d{i}", ("All", "all", "ALL 7", "All-8")[i]) for i in range(4)),
    ):
        picture(folder / "png" / "food" / f"{name}.png")
        (folder / "svg" / "food" / f"{name}.svg").write_text(svg(title))
    picture(folder / "png" / "food" / "pane.png")
    (folder / "svg" / "food" / "pane.svg").write_text(svg("Pane", author="Architetto Francesco Rollandin"))
    picture(folder / "png" / "food" / "no_svg.png")
    twin = folder / "png" / "tools" / "twin.png"
    twin.write_bytes((folder / "png" / "animals" / "7.png").read_bytes())
    (folder / "svg" / "tools" / "twin.svg").write_text(svg("A twin"))
    picture(folder / "png" / "signs_and_symbols" / "flags" / "chad.png")
    (folder / "svg" / "signs_and_symbols" / "flags").mkdir(parents=True)
    (folder / "svg" / "signs_and_symbols" / "flags" / "chad.svg").write_text(svg("chad"))
    return wanted


def test_drawings_have_titles_that_say_something(tmp_path: Path, serve: Serve) -> None:
    wanted = clipart(tmp_path)
    serve(drawings.CLIPART, tmp_path / "png")
    serve(captions.SVG, tmp_path / "svg")
    task = load_task("clipart_titles")
    check_aside(load_task("clipart_aside"), task, wanted)
    check_shares(task)


def test_a_drawing_meets_its_title_and_a_strangers(tmp_path: Path, serve: Serve) -> None:
    wanted = clipart(tmp_path)
    serve(drawings.CLIPART, tmp_path / "png")
    serve(captions.SVG, tmp_path / "svg")
    task = load_task("clipart_match")
    assert (task.family, task.modality, task.labels) == ("classification", "image+text", ("yes", "no"))
    for examples in task.splits.values():
        right, wrong = (Counter(one.text for one in examples if one.label == label) for label in (0, 1))
        assert right == wrong and set(right.values()) == {1}
    found: Counter[str] = Counter()
    splits = {}
    for split, examples in task.splits.items():
        titles = {wanted[example.key.partition("#")[0]] for example in examples}
        for example in examples:
            key, _, label = example.key.partition("#")
            assert task.labels[example.label] == label and splits.setdefault(key, split) == split
            assert split == split_of(key, SHARES[("validation", "test")])
            if label == "yes":
                assert example.text == wanted[key]
            else:
                assert example.text in titles and set(example.text.split()) & set(wanted[key].split()) == {"&"}
            found[key] += 1
    assert found == dict.fromkeys([key for key in wanted if place(key) >= 0.2], 2)


def test_drawings_that_cannot_be_paired_are_one_line() -> None:
    rows = [Row(f"animals/{name}.png", None, name, name) for name in ("cat", "dog", "owl")]
    with pytest.raises(PituneError, match=r"^owl: no drawing of its split has a title that is surely wrong for it$"):
        questions.pairs([questions.Drawing(row, frozenset(), "animals", frozenset([row.label])) for row in rows])


def test_emoji_have_names_and_flags_are_none_of_them(tmp_path: Path, serve: Serve) -> None:
    listed = []
    for number in range(160):
        code, group = f"{number:04x}", "Flags" if number % 4 == 3 else "Objects"
        listed.append({"image": f"{code}.png", "category": group, "name": f"THING {number}"})
        picture(tmp_path / "twitter/img/twitter/64" / f"{code}.png")
        picture(tmp_path / "fluent" / f"{code}.webp")
    (tmp_path / "twitter/emoji.json").write_text(json.dumps(listed))
    serve(drawings.TWITTER, tmp_path / "twitter")
    serve(drawings.FLUENT, tmp_path / "fluent")
    task = load_task("emoji_names")
    wanted = {f"{number:04x}": f"thing {number}" for number in range(160) if number % 4 != 3}
    aside = load_task("emoji_aside")
    check_aside(aside, task, wanted)
    check_shares(task)
    assert all(example.picture and example.picture.file.endswith(".png") for example in aside.splits["test"])
    for split, examples in task.splits.items():
        endings = {Path(example.picture.file).suffix for example in examples if example.picture}
        assert endings == {".webp" if split == "test" else ".png"}


def test_icons_have_the_names_of_their_files(tmp_path: Path, serve: Serve) -> None:
    for number in range(60):
        picture(tmp_path / "computer/icons" / "theme" / f"mail_for-ward{number}.png")
    picture(tmp_path / "computer/icons" / "70a1.png")
    mouse = picture(tmp_path / "computer" / "mouse.png")
    (tmp_path / "computer/icons" / "the-mouse.png").write_bytes(mouse.read_bytes())
    serve(drawings.CLIPART, tmp_path)
    found = said(load_task("icons"))
    assert found == {f"computer/icons/theme/mail_for-ward{n}.png": f"mail for ward{n}" for n in range(60)}


def test_flags_are_learnt_in_one_drawing_and_tested_in_another(tmp_path: Path, serve: Serve) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    countries = {f"X{letter}": f"Land {letter}" for letter in letters}
    countries |= {"KR": "Korea, Republic of", "CD": "Congo, the Democratic Republic of the"}
    listed = [{"image": "1f600.png", "category": "Smileys & Emotion"}, {"image": "1f3c1.png", "category": "Flags"}]
    for code in [*countries, "UM", "ZZ"]:  # UM flies another one's, ZZ is no country
        stem = "-".join(f"1f1{0xE6 + letters.index(letter):02x}" for letter in code)
        listed.append({"image": f"{stem}.png", "category": "Flags"})
    for one in listed:
        picture(tmp_path / "twitter/img/twitter/64" / one["image"])
        picture(tmp_path / "fluent" / one["image"].replace("png", "webp"))
    (tmp_path / "twitter/emoji.json").write_text(json.dumps(listed))
    countries["EU"] = "no emoji"
    for code in [*countries, "UM"]:
        picture(tmp_path / "flags/png250px" / f"{code.lower()}.png")
    file = tmp_path / "flags/countries.json"
    file.write_text(json.dumps({**countries, "UM": "US Minor Outlying Islands"}))
    serve(drawings.TWITTER, tmp_path / "twitter")
    serve(drawings.FLUENT, tmp_path / "fluent")
    serve(captions.FLAGS, tmp_path / "flags")
    task = load_task("flags")
    del countries["EU"]
    named = countries | {"KR": "Republic of Korea", "CD": "the Democratic Republic of the Congo"}
    second = {f"{code} flat": name for code, name in named.items() if place(code) >= 0.8}
    assert said(task) == named | second | {f"{code} deep": name for code, name in named.items()}
    assert {one.key for one in task.splits["validation"]} == set(second) and second
    folders = {"train": "flags/png250px", "validation": "twitter/img/twitter/64", "test": "fluent"}
    for split, examples in task.splits.items():
        assert {Path(one.picture.file).parent for one in examples if one.picture} == {tmp_path / folders[split]}
        assert all(one.key.split()[0] in named for one in examples)
    stems = {one.key: Path(one.picture.file).stem for one in task.splits["test"] if one.picture}
    assert stems["KR deep"] == "1f1f0-1f1f7"
    file.write_text("[]")
    with pytest.raises(PituneError, match=r"countries\.json: is no mapping of codes to countries"):
        load_task("flags")


def test_questions_keep_to_the_splits_of_their_pictures(tmp_path: Path, serve: Serve) -> None:
    for split, count in (("train", 60), ("test", 8)):
        asked = []
        for image in range(count):
            picture(tmp_path / split / "images" / f"{image}.png")
            asked += [[f"what is in {image}?", "circle", image], [f"is it {image}?", "no", image]]
        (tmp_path / split / "questions.json").write_text(json.dumps(asked))
    (tmp_path / "answers.txt").write_text("circle\nno\n")
    serve(questions.EASY, tmp_path)
    task = load_task("easy_vqa")
    assert (task.modality, task.label_texts) == ("image+text", ("the answer is circle", "the answer is no"))
    assert [example.key for example in task.splits["test"]] == [f"test/{n // 2}#{n}" for n in range(16)]
    shown = {split: {example.key.partition("#")[0] for example in task.splits[split]} for split in task.splits}
    assert shown["train"] | shown["validation"] == {f"train/{image}" for image in range(60)}
    assert not shown["train"] & shown["validation"] and shown["validation"]
    for example in task.splits["train"]:
        image = int(example.key.partition("#")[0].partition("/")[2])
        assert example.picture is not None and example.picture.file.endswith(f"train/images/{image}.png")
        assert str(image) in example.text and task.labels[example.label] == (
            "no" if "is it" in example.text else "circle"
        )
    (tmp_path / "test" / "questions.json").write_text('[["what?", "circle"]]')
    with pytest.raises(PituneError, match=r"questions\.json: is no list of a question"):
        load_task("easy_vqa")
