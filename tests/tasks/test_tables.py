"""Tasks from tables of one's own: every format gives the same task, and every fault is one line."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from pitune.errors import PituneError
from pitune.tasks.building import SHARES, split_of
from pitune.tasks.tables import TableSource

LABELS = {"0": "something bad", "1": "something good"}
RECORDS = [{"text": f'text "{i}", with\tmore', "label": i % 2} for i in range(200)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))


def write(path: Path, records: list[dict[str, Any]]) -> str:
    """Write records in the format that the path's ending names."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for i, record in enumerate(records):
                for suffix, value in (("txt", record["text"]), ("cls", str(record["label"]))):
                    info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    info.size = len(value.encode())
                    archive.addfile(info, io.BytesIO(value.encode()))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        cells = [list(records[0])] + [[str(value) for value in record.values()] for record in records]
        quoted = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
        path.write_text("\n".join(quoted) + "\n")
    return str(path)


def refusal(source: TableSource) -> str:
    with pytest.raises(PituneError) as error:
        source.task("mine")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "tar"])
def test_every_format_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    columns = {"text": "txt", "label": "cls"} if kind == "tar" else {}
    uri = write(tmp_path / f"all.{kind}", RECORDS)
    task = TableSource(train=uri, labels=LABELS, **columns).task("mine")
    found = sorted((example.text, example.label) for examples in task.splits.values() for example in examples)
    assert found == sorted((record["text"], record["label"]) for record in RECORDS)
    assert task.labels == ("0", "1") and task.label_texts == ("something bad", "something good")
    for split, examples in task.splits.items():
        for example in examples:
            place = int(hashlib.sha256(example.key.encode()).hexdigest()[:16], 16) / 2**64
            assert split == ("train" if place < 0.6 else "validation" if place < 0.75 else "test")


def test_shards_with_json_members_and_a_folder_of_them(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as archive:
            for i in range(40):
                data = json.dumps({"body": f"{shard} {i}", "good": i % 2}).encode()
                info = tarfile.TarInfo(f"{shard}-{i}.json")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    source = TableSource(train=str(tmp_path / "shards"), text="body", label="good", labels=LABELS)
    splits = source.task("mine").splits
    texts = {example.key: (example.text, example.label) for examples in splits.values() for example in examples}
    assert len(texts) == 80 and texts["1-3"] == ("1 3", 1)


def test_own_splits_are_kept_and_missing_ones_are_cut_from_train(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", RECORDS)
    other = write(tmp_path / "other.csv", [{"text": f"other {i}", "label": i % 2} for i in range(10)])
    sizes = {}
    for given in ((), ("validation",), ("test",), ("validation", "test")):
        source = TableSource.model_validate({"train": train, "labels": LABELS, **dict.fromkeys(given[:1], other)})
        if len(given) == 2:
            more = write(tmp_path / "more.csv", [{"text": f"more {i}", "label": i % 2} for i in range(4)])
            source = TableSource(train=train, validation=other, test=more, labels=LABELS)
        sizes[given] = {split: len(examples) for split, examples in source.task("mine").splits.items()}
    assert sum(sizes[()].values()) == 200 and all(sizes[()].values())
    assert sizes[("validation",)]["validation"] == 10 and 120 < sizes[("validation",)]["train"] < 180
    assert sizes[("test",)]["test"] == 10 and 165 < sizes[("test",)]["train"] < 195
    assert sizes[("validation", "test")] == {"train": 200, "validation": 10, "test": 4}


def test_shares_are_fractions_of_all_keys() -> None:
    for shares in SHARES.values():
        assert sum(shares) == pytest.approx(1.0)
        drawn = [split_of(f"key-{i}", shares) for i in range(4000)]
        for split, share in zip(("train", "validation", "test"), shares, strict=True):
            assert drawn.count(split) / 4000 == pytest.approx(share, abs=0.03)


def test_a_text_is_in_one_split_and_test_is_whole(tmp_path: Path) -> None:
    train = [{"text": text, "label": i % 2} for i, text in enumerate(["a", "b", " t1 ", "a", "v1", "c", "d"])]
    validation = [{"text": text, "label": i % 2} for i, text in enumerate(["v1", "v2", "t2", "v1"])]
    test = [{"text": text, "label": i % 2} for i, text in enumerate(["t1", "t2", "t1", "t3"])]
    uris = {
        name: write(tmp_path / f"{name}.csv", records)
        for name, records in (("train", train), ("validation", validation), ("test", test))
    }
    splits = TableSource.model_validate({**uris, "labels": LABELS}).task("mine").splits
    texts = {split: [example.text for example in examples] for split, examples in splits.items()}
    assert texts == {"train": ["a", "b", "c", "d"], "validation": ["v1", "v2"], "test": ["t1", "t2", "t1", "t3"]}


def test_the_fingerprint_is_of_everything(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.csv", RECORDS)
    source = TableSource(train=uri, labels=LABELS)
    same = write(tmp_path / "b.csv", RECORDS)
    changed = write(tmp_path / "c.csv", [{**RECORDS[0], "text": "changed"}, *RECORDS[1:]])
    mark = source.task("mine").fingerprint
    assert source.model_copy(update={"train": same}).task("mine").fingerprint == mark
    others = [
        source.model_copy(update=update).task("mine").fingerprint
        for update in (
            {"train": changed},
            {"metric": "macro_f1"},
            {"labels": {**LABELS, "1": "something nice"}},
            {"labels": dict(reversed(LABELS.items()))},
            {"templates": ("this is {}",)},
        )
    ]
    assert len({mark, source.task("yours").fingerprint, *others}) == 7


def test_the_fingerprint_of_texts_is_what_it_was_before_there_were_pictures(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.jsonl", [{"text": f" text {i % 90} é", "label": i % 2} for i in range(100)])
    task = TableSource(train=uri, labels=LABELS).task("mine")
    assert task.modality == "text"
    assert task.fingerprint == "c438da0a40cd0d704369921b7717ed2aeb3f53f34aa03d2ecf156c1fb09550f7"


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"texts": "a", "label": 0}], "has no column 'text'; it has texts, label"),
        (
            [{"text": "a", "label": 0}, {"text": "b", "label": 7}],
            "row 2: label '7' is none of task mine's labels, 0, 1",
        ),
        ([{"text": "a", "label": 0}, {"text": "  ", "label": 1}], "row 2: the text is empty"),
        ([{"text": "a", "label": 0}, {"text": "b", "label": 0}], "its test split has no example of class '1'"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_wrong_content_is_one_line(tmp_path: Path, records: list[dict[str, Any]], said: str, kind: str) -> None:
    good = write(tmp_path / f"good.{kind}", RECORDS)
    bad = write(tmp_path / f"bad.{kind}", records)
    assert said in refusal(TableSource(train=good, test=bad, labels=LABELS))


def test_other_faults_are_one_line_too(tmp_path: Path) -> None:
    twice = write(tmp_path / "twice.csv", [{"text": f"t{i}", "label": i % 2, "id": i // 2} for i in range(40)])
    assert "two examples have the key '0'" in refusal(TableSource(train=twice, key="id", labels=LABELS))
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    assert "cannot be read as parquet" in refusal(TableSource(train=str(tmp_path / "bad.parquet"), labels=LABELS))
    (tmp_path / "bad.tar").write_bytes(b"not tar" * 200)
    assert "webdataset shard" in refusal(TableSource(train=str(tmp_path / "bad.tar"), labels=LABELS))
    (tmp_path / "a.xlsx").write_bytes(b"")
    assert "found .xlsx" in refusal(TableSource(train=str(tmp_path / "a.xlsx"), labels=LABELS))
    (tmp_path / "empty.csv").write_text("text,label\n")
    assert "has no rows" in refusal(TableSource(train=str(tmp_path / "empty.csv"), labels=LABELS))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"0": "only"}},
        {"labels": {"0": "same", "1": "same"}},
        {"labels": {"0": " ", "1": "b"}},
        {"metric": "acuracy"},
        {"colour": "red"},
        {"labels": None},
        {"caption": "title"},
        {"labels": None, "caption": "title", "label": "kind"},
        {"templates": ["a photo"]},
        {"templates": ["{} or {}"]},
        {"templates": ["a {}", "a {}"]},
        {"templates": []},
    ],
)
def test_a_source_that_cannot_be_right_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TableSource.model_validate({"train": "a.csv", "labels": LABELS, **change})


def test_a_column_of_captions_makes_a_retrieval_task(tmp_path: Path) -> None:
    records = [{"text": f"text {i}", "title": f" title {max(i, 3)} "} for i in range(200)]
    task = TableSource(train=write(tmp_path / "a.jsonl", records), caption="title").task("mine")
    assert task.family == "retrieval" and task.labels == task.label_texts
    assert task.labels == tuple(sorted(f"title {i}" for i in range(3, 200)))
    for examples in task.splits.values():
        for example in examples:
            number = int(example.text.split()[1])
            assert task.labels[example.label] == f"title {max(number, 3)}"
    titles = {record["title"].strip(): record["title"].strip() for record in records}
    same = write(tmp_path / "b.jsonl", [{**record, "label": record["title"].strip()} for record in records])
    with pytest.raises(PituneError, match="split has no example of class"):
        TableSource(train=same, labels=titles).task("mine")


def test_faults_of_retrieval_are_one_line(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "title": f"title {i}"} for i in range(60)]
    good = write(tmp_path / "good.jsonl", rows)
    bad = write(tmp_path / "bad.jsonl", [*rows, {"text": "more", "title": " "}])
    few = write(tmp_path / "few.jsonl", rows[:1])
    assert "row 61: the caption is empty" in refusal(TableSource(train=bad, caption="title"))
    assert "has no column 'caption'; it has text, title" in refusal(TableSource(train=good, caption="caption"))
    assert "split has no example; it needs one or more" in refusal(TableSource(train=few, caption="title"))
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "1.png").write_bytes(b"some")
    assert "has no columns; leave caption out" in refusal(TableSource(train=str(tmp_path / "tree"), caption="title"))


def test_numbers_in_yaml_name_labels() -> None:
    assert TableSource.model_validate({"train": "a.csv", "labels": {0: "bad", 1: "good"}}).labels.keys() == {"0", "1"}


# --- several labels ------------------------------------------------------------------------------------------------

THINGS = {"a": "an apple", "b": "a ball", "c": "a cat"}
SETS: list[list[str]] = [[name for place, name in enumerate("abc") if number >> place & 1] for number in range(8)]
SEVERAL: dict[str, Any] = {"labels": THINGS, "metric": "mean_average_precision"}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "tar"])
@pytest.mark.parametrize("separator", [None, "|", " / "])
def test_several_labels_come_in_lists_or_with_a_separator(tmp_path: Path, kind: str, separator: str | None) -> None:
    """All sets of three labels, the empty one among them, in any order and one named twice."""
    if separator is None and kind in ("csv", "tsv", "tar"):
        pytest.skip("has no lists")
    given = [has[::-1] + has[:1] for has in SETS]
    records = [
        {"text": f"w{i}", "label": given[i % 8] if separator is None else separator.join(given[i % 8])}
        for i in range(200)
    ]
    columns = {"text": "txt", "label": "cls"} if kind == "tar" else {}
    source = TableSource(train=write(tmp_path / f"all.{kind}", records), separator=separator, **SEVERAL, **columns)
    task = source.task("mine")
    assert task.family == "multilabel" and task.labels == ("a", "b", "c")
    found = {example.text: example.label for examples in task.splits.values() for example in examples}
    assert found == {f"w{i}": tuple("abc".index(name) for name in SETS[i % 8]) for i in range(200)}


def test_shards_have_lists_in_json(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for i in range(200):
            value = json.dumps({"text": f"w{i}", "label": SETS[i % 8]}).encode()
            info = tarfile.TarInfo(f"{i:04d}.json")
            info.size = len(value)
            archive.addfile(info, io.BytesIO(value))
    task = TableSource(train=str(tmp_path / "all.tar"), **SEVERAL).task("mine")
    found = {example.text: example.label for examples in task.splits.values() for example in examples}
    assert found == {f"w{i}": tuple("abc".index(name) for name in SETS[i % 8]) for i in range(200)}


@pytest.mark.parametrize(
    ("record", "changes", "said"),
    [
        ({"label": ["a", "d"]}, {}, "row 1: label 'd' is none of task mine's labels, a, b, c"),
        ({"label": "a||b"}, {"separator": "|"}, "row 1: label '' is none of task mine's labels, a, b, c"),
        (
            {"label": "a|b"},
            {},
            "task mine: mean_average_precision is a metric of examples with several labels, its have one",
        ),
        (
            {"label": ["a"]},
            {"metric": "accuracy"},
            "task mine: its examples have several labels, accuracy is of one each",
        ),
        ({"label": None}, {}, "row 1: has no 'label'"),
        ({"label": ["a"], "text": ["b"]}, {}, "row 1: its 'text' is a list; only labels come in lists"),
        ({"label": ["a"]}, {"classes": "new"}, "task mine: its examples have several labels, of both halves"),
        ({"label": []}, {}, "task mine: its train split has no example of class 'a'; it needs one or more"),
    ],
)
def test_what_is_wrong_with_several_labels_is_one_line(
    tmp_path: Path, record: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    uri = write(tmp_path / "all.jsonl", [{"text": f"w{number}", **record} for number in range(40)])
    assert said in refusal(TableSource.model_validate({"train": uri, **SEVERAL, **changes}))


def test_a_caption_has_no_separator() -> None:
    with pytest.raises(ValidationError, match="has a caption and a separator of labels; leave one out"):
        TableSource(train="a.csv", caption="title", separator="|")
