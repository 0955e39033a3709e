"""Tasks of pictures: every way to hold them gives the same task, and every fault is one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pitune.errors import PituneError
from pitune.tasks.tables import TableSource
from pitune.tasks.task import Example, Task

LABELS = {"cats": "a cat", "dogs": "a dog"}
COUNT = 150


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))


def content(number: int) -> bytes:
    """A small picture of its own."""
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 7, 7)).save(stream, "PNG")
    return stream.getvalue()


def label(number: int) -> str:
    return list(LABELS)[number % 2]


def held(folder: Path) -> list[str]:
    """Write the pictures below a folder and return their paths relative to it."""
    names = [f"pictures/{number:03d}.png" for number in range(COUNT)]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(content(number))
    return names


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def as_lines(path: Path) -> None:
    separator = "\t" if path.suffix == ".tsv" else ","
    rows = [(name, f"say {i}", label(i)) for i, name in enumerate(held(path.parent))]
    path.write_text("\n".join(separator.join(row) for row in [("image", "words", "label"), *rows]) + "\n")


def as_jsonl(path: Path) -> None:
    rows = [{"image": name, "words": f"say {i}", "label": label(i)} for i, name in enumerate(held(path.parent))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(path: Path, cell: Callable[[int], Any]) -> None:
    rows = [{"image": cell(i), "words": f"say {i}", "label": label(i)} for i in range(COUNT)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)


def as_links(path: Path) -> None:
    """Hugging Face's struct with some bytes and some paths."""
    names = held(path.parent)
    as_parquet(path, lambda i: {"bytes": content(i) if i % 7 == 0 else None, "path": names[i]})


def as_shard(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for i in range(COUNT):
            add(archive, f"{i:03d}.cls", label(i).encode())
            add(archive, f"{i:03d}.{'PNG' if i % 3 else 'jpg'}", content(i))
            add(archive, f"{i:03d}.json", json.dumps({"words": f"say {i}"}).encode())


KINDS: dict[str, Callable[[Path], None]] = {
    "a.csv": as_lines,
    "a.tsv": as_lines,
    "a.jsonl": as_jsonl,
    "paths.parquet": lambda path: as_parquet(path, held(path.parent).__getitem__),
    "bytes.parquet": lambda path: as_parquet(path, content),
    "structs.parquet": lambda path: as_parquet(path, lambda i: {"bytes": content(i), "path": "/elsewhere/a.png"}),
    "links.parquet": as_links,
    "a.tar": as_shard,
}


def source(path: Path, **fields: Any) -> TableSource:
    columns = {"image": "jpg; png", "label": "cls"} if path.suffix == ".tar" else {"image": "image"}
    return TableSource.model_validate({"train": str(path), "labels": LABELS, **columns, **fields})


def examples(task: Task) -> list[Example]:
    return sorted((one for split in task.splits.values() for one in split), key=lambda one: one.key)


def refusal(one: TableSource) -> str:
    with pytest.raises(PituneError) as error:
        one.task("mine")
    assert "\n" not in str(error.value)
    return str(error.value)


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", [None, "words"])
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str, text: str | None) -> None:
    path = tmp_path / name
    KINDS[name](path)
    task = source(path, text=text).task("mine")
    found = examples(task)
    assert task.modality == ("image" if text is None else "image+text") and len(found) == COUNT
    for number, one in enumerate(found):
        assert one.key == (f"{number:03d}" if path.suffix == ".tar" else f"train-{number:06d}")
        assert one.text == ("" if text is None else f"say {number}") and task.labels[one.label] == label(number)
        assert one.picture is not None and one.picture.read() == content(number)
        assert one.picture.digest == hashlib.sha256(content(number)).hexdigest()
        assert Path(one.picture.file).is_absolute()
    middle = found[COUNT // 2].picture
    assert middle is not None and middle.pixels().getpixel((1, 1)) == (COUNT // 2, 7, 7)


def test_the_place_does_not_matter_to_the_fingerprint(tmp_path: Path) -> None:
    marks = set()
    for name in ("a.csv", "a.jsonl", "bytes.parquet"):
        (tmp_path / name).mkdir()
        KINDS[name](tmp_path / name / name)
        marks.add(source(tmp_path / name / name).task("mine").fingerprint)
    assert len(marks) == 1
    (tmp_path / "a.csv" / "pictures" / "077.png").write_bytes(content(200))
    marks.add(source(tmp_path / "a.csv" / "a.csv").task("mine").fingerprint)
    marks.add(source(tmp_path / "a.jsonl" / "a.jsonl", text="words").task("mine").fingerprint)
    assert len(marks) == 3


def test_nothing_is_decoded_on_reading(tmp_path: Path) -> None:
    rows = [{"image": f"no picture {i}".encode(), "label": label(i)} for i in range(60)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    picture = examples(source(tmp_path / "a.parquet").task("mine"))[4].picture
    assert picture is not None
    with pytest.raises(PituneError, match=r"a\.parquet: row 5, column 'image': the picture cannot be decoded"):
        picture.pixels()


def test_a_folder_of_tables_and_one_of_shards(tmp_path: Path) -> None:
    for kind in ("parquet", "tar"):
        (tmp_path / kind).mkdir()
        for part in range(2):
            numbers = range(part * 40, part * 40 + 40)
            if kind == "parquet":
                table = pa.table({"image": [content(i) for i in numbers], "label": [label(i) for i in numbers]})
                parquet.write_table(table, tmp_path / kind / f"{part}.parquet")
                continue
            with tarfile.open(tmp_path / kind / f"{part}.tar", "w") as archive:
                for i in numbers:
                    add(archive, f"__meta__/{i}.png", b"not a sample")
                    add(archive, f"{i:03d}.jpg", content(i))
                    add(archive, f"{i:03d}.cls", label(i).encode())
        fields = {"image": "jpg", "label": "cls"} if kind == "tar" else {}
        found = examples(source(tmp_path / kind, **fields).task("mine"))
        assert [one.picture.read() for one in found if one.picture] == [content(i) for i in range(80)]


def test_a_key_column_and_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_jsonl(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    plain = source(Path("a.jsonl"), key="words")
    located = plain.located()
    mark = plain.task("mine").fingerprint
    monkeypatch.chdir("/")
    task = located.task("mine")
    assert task.fingerprint == mark and examples(task)[0].key == "say 0"


def test_compressed_shards_are_read_for_their_texts_only(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        for i in range(60):
            add(archive, f"{i}.txt", f"say {i}".encode())
            add(archive, f"{i}.cls", label(i).encode())
            add(archive, f"{i}.png", content(i))
    texts = source(tmp_path / "a.tar", image=None, text="txt")
    assert {one.text for one in examples(texts.task("mine"))} == {f"say {i}" for i in range(60)}
    said = refusal(source(tmp_path / "a.tar"))
    assert said == f"{tmp_path / 'a.tar'}: is compressed; its pictures are read from where they lie, so unpack it"


# --- folders of pictures -------------------------------------------------------------------------------------------


def tree(folder: Path, first: int = 0, count: int = 60) -> str:
    """Write a folder of pictures, numbered from 0, some deeper than others, among files of other kinds."""
    for i in range(count):
        path = folder / label(i) / ("deep/er" if i % 3 == 0 else ".") / f"{i:03d}.{'PNG' if i % 2 else 'jpeg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(first + i))
    (folder / "cats" / "notes.txt").write_text("notes")
    (folder / "cats" / "._000.png").write_bytes(b"a file system's own")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "000.png").write_bytes(b"thumbnail")
    return str(folder)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    task = TableSource(train=tree(tmp_path / "all"), labels=LABELS).task("mine")
    found = {one.key: one for one in examples(task)}
    assert len(found) == 60 and task.modality == "image" and {one.text for one in found.values()} == {""}
    for i in (0, 1, 2, 3, 59):
        deep = "deep/er/" if i % 3 == 0 else ""
        one = found[f"{label(i)}/{deep}{i:03d}.{'PNG' if i % 2 else 'jpeg'}"]
        assert one.picture is not None and one.picture.read() == content(i) and task.labels[one.label] == label(i)


def test_folders_of_several_splits_may_have_the_same_names(tmp_path: Path) -> None:
    train, test = tree(tmp_path / "train", 0), tree(tmp_path / "test", 60, 20)
    splits = TableSource(train=train, test=test, labels=LABELS).task("mine").splits
    assert sum(map(len, splits.values())) == 80
    assert {"test/dogs/019.PNG", "test/dogs/deep/er/015.PNG"} <= {one.key for one in splits["test"]}
    assert all(one.key.split("/")[0] in LABELS for one in splits["train"])


def test_linked_folders_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    tree(tmp_path / "kept")
    (tmp_path / "chosen").mkdir()
    for name in LABELS:
        (tmp_path / "chosen" / name).symlink_to(tmp_path / "kept" / name)
    (tmp_path / "kept" / "cats" / "up").symlink_to(tmp_path / "kept")
    (tmp_path / "kept" / "cats" / "here").symlink_to(".")
    assert len(examples(TableSource(train=str(tmp_path / "kept"), labels=LABELS).task("mine"))) == 60


def test_folders_that_cannot_be_right_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    train = tree(folder)
    for field in ("text", "image", "key"):
        said = refusal(TableSource.model_validate({"train": train, "labels": LABELS, field: "words"}))
        assert said == f"{train}: is a folder of pictures, which has no columns; leave {field} out"
    (folder / "birds").mkdir()
    (folder / "birds" / "a.webp").write_bytes(content(99))
    assert refusal(TableSource(train=train, labels=LABELS)) == (
        f"{folder / 'birds' / 'a.webp'}: label 'birds' is none of task mine's labels, cats, dogs"
    )
    (folder / "birds" / "a.webp").rename(folder / "a.webp")
    assert "a.webp: lies in no label's folder" in refusal(TableSource(train=train, labels=LABELS))
    (folder / "a.webp").rename(folder / "cats" / "bell\a.webp")
    assert "'cats/bell\\x07.webp' is no name in UTF-8" in refusal(TableSource(train=train, labels=LABELS))
    (folder / "cats" / "bell\a.webp").write_bytes(b"")
    (folder / "cats" / "bell\a.webp").rename(folder / "cats" / "a.webp")
    assert "a.webp: the file is empty" in refusal(TableSource(train=train, labels=LABELS))
    (tmp_path / "empty" / "cats").mkdir(parents=True)
    said = refusal(TableSource(train=str(tmp_path / "empty"), labels=LABELS))
    assert "or a folder with pictures in a sub-folder for each label; found nothing of that" in said


# --- rules and faults ----------------------------------------------------------------------------------------------


def written(path: Path, rows: list[tuple[bytes, str, int]]) -> str:
    """A table of pictures with texts."""
    columns = {"image": [row[0] for row in rows], "text": [row[1] for row in rows]}
    parquet.write_table(pa.table({**columns, "label": [label(row[2]) for row in rows]}), path)
    return str(path)


def test_what_is_the_same_in_picture_and_text_is_in_one_split(tmp_path: Path) -> None:
    a, b, c, d = map(content, range(4))
    test = written(tmp_path / "test.parquet", [(a, "x", 0), (a, "x", 1), (b, "x", 1)])
    validation = written(tmp_path / "validation.parquet", [(a, "x ", 0), (a, "y", 1), (c, "x", 0), (c, "x", 0)])
    train = written(tmp_path / "train.parquet", [(a, "y", 0), (b, "x", 1), (c, "y", 1), (d, "x", 0), (d, "x", 0)])
    uris = {"train": train, "validation": validation, "test": test, "labels": LABELS, "image": "image"}
    task = TableSource.model_validate({**uris, "text": "text"}).task("mine")
    assert {split: [one.key for one in found] for split, found in task.splits.items()} == {
        "train": ["train-000002", "train-000003"],
        "validation": ["validation-000001", "validation-000002"],
        "test": ["test-000000", "test-000001", "test-000002"],
    }
    # Without the texts the pictures alone tell: of train's only d is in no other split.
    without = [
        written(tmp_path / f"{split}.parquet", rows)
        for split, rows in (
            ("train", [(a, "", 0), (b, "", 1), (d, "", 0), (d, "", 0), (content(9), "", 1)]),
            ("validation", [(b, "", 0), (c, "", 0), (content(8), "", 1)]),
        )
    ]
    uris |= {"train": without[0], "validation": without[1]}
    task = TableSource.model_validate(uris).task("mine")
    assert [one.key for one in task.splits["train"]] == ["train-000002", "train-000004"]
    assert [one.key for one in task.splits["validation"]] == ["validation-000001", "validation-000002"]


def test_examples_of_two_kinds_are_refused(tmp_path: Path) -> None:
    rows = [(content(i), f"say {i}", i) for i in range(60)]
    table = written(tmp_path / "a.parquet", rows)
    mixed = TableSource(train=table, test=tree(tmp_path / "tree", 100, 10), labels=LABELS)
    assert refusal(mixed) == "task mine: some of its examples are text, some image; all must be alike"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("pictures/gone.png", "row 2: picture 'pictures/gone.png': there is no file {folder}/pictures/gone.png"),
        ("pictures", "row 2: picture 'pictures': there is no file {folder}/pictures"),
        ("../secret.png", "row 2: '../secret.png' leads outside its folder"),
        ("pictures/../../secret.png", "row 2: 'pictures/../../secret.png' leads outside its folder"),
        ("/etc/hostname", "row 2: '/etc/hostname' leads outside its folder"),
        ("pictures/empty.png", "row 2: picture 'pictures/empty.png': the file is empty"),
        ("a" * 300, "File name too long"),
        ("", "row 2: its 'image' is empty; remove the row or fill it in"),
    ],
)
def test_a_path_that_cannot_be_right_is_one_line(tmp_path: Path, kind: str, cell: str, said: str) -> None:
    folder = tmp_path / "data"
    held(folder)
    (tmp_path / "secret.png").write_bytes(content(1))
    (folder / "pictures" / "empty.png").write_bytes(b"")
    rows = [{"image": "pictures/000.png", "label": "cats"}, {"image": cell, "label": "dogs"}]
    path = folder / f"a.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(
            "".join(f"{image},{name}\n" for image, name in (("image", "label"), *(r.values() for r in rows)))
        )
    found = refusal(source(path))
    assert found.startswith(f"{path}: row 2: ") and said.format(folder=folder) in found


def test_paths_inside_may_wander(tmp_path: Path) -> None:
    held(tmp_path)
    rows = [f"pictures/../pictures/./{i:03d}.png,{label(i)}\n" for i in range(60)]
    (tmp_path / "a.csv").write_text("".join(["image,label\n", *rows]))
    assert len(examples(source(tmp_path / "a.csv").task("mine"))) == 60


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (None, "row 2: has no 'image'"),
        (b"", "row 2: its 'image' is empty; remove the row or fill it in"),
        ({"bytes": None, "path": None}, "row 2: has no 'image'"),
        ({"bytes": b"", "path": "a.png"}, "row 2: its 'image' is empty"),
        ({"bytes": None, "path": "../a.png"}, "row 2: '../a.png' leads outside its folder"),
        (7, "row 2: its 'image' is 7, neither the path of a picture nor its bytes"),
    ],
)
def test_a_cell_of_parquet_that_cannot_be_right_is_one_line(tmp_path: Path, cell: Any, said: str) -> None:
    first = {"bytes": content(0), "path": "a.png"} if isinstance(cell, dict) else content(0)
    rows = [{"image": 7 if cell == 7 else first, "label": "cats"}, {"image": cell, "label": "dogs"}]
    if cell == 7:
        said = said.replace("row 2", "row 1")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert said in refusal(source(tmp_path / "a.parquet"))


def test_other_faults_are_one_line_too(tmp_path: Path) -> None:
    as_lines(tmp_path / "a.csv")
    assert "has no column 'picture'; it has image, words, label" in refusal(source(tmp_path / "a.csv", image="picture"))
    assert "has no column 'text'; it has" in refusal(source(tmp_path / "a.csv", text="text"))
    as_parquet(tmp_path / "a.parquet", content)
    assert "has no column 'picture'; it has" in refusal(source(tmp_path / "a.parquet", image="picture"))
    rows = [{"image": content(0), "words": "", "label": "cats"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert "row 1: the text is empty" in refusal(source(tmp_path / "b.parquet", text="words"))
    for extra, said in (((), "row 1: has no 'jpg; png'"), ((b"",), "row 1: its 'jpg; png' is empty")):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            add(archive, "0.cls", b"cats")
            for data in extra:
                add(archive, "0.png", data)
        assert said in refusal(source(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        add(archive, "0.json", b"[1]")
        add(archive, "0.png", content(0))
    assert "cannot be read as a webdataset shard (0.json has no fields)" in refusal(source(tmp_path / "b.tar"))
    os.truncate(tmp_path / "b.tar", 1100)
    assert "cannot be read as a webdataset shard (" in refusal(source(tmp_path / "b.tar"))
