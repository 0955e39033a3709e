"""The texts of the catalogue against plain reading of the same files."""

from __future__ import annotations

import hashlib
import html
import time
from collections import Counter

import pytest

from pitune.assets import fetch
from pitune.tasks.catalogue import load_task
from pitune.tasks.catalogue.texts import ORANGE, TASKS, VADER

SIZES = {
    "movie": (6145, 1480, 2417),
    "amazon": (1749, 438, 750),
    "nyt": (1615, 398, 740),
    "tweets": (2082, 510, 770),
    "newsgroups": (10178, 1088, 7528),
    "reuters": (4904, 515, 2189),
    "bbc": (1268, 345, 518),
}
FINGERPRINTS = {
    "movie": "f0396fccd81b1d77b81ecca6ab3f6f95585de9a7cdb1c6d4f73b83c639517c9e",
    "amazon": "a38efaba55d9a01b9f6edb8e5e7a4622cdd1eb2edbdb10f20ee1805a424b4682",
    "nyt": "1e7ea5ab7e9a21ec9286a9cbb30898f9e28328f7dc6f7b5a6c6fee19680ae9aa",
    "tweets": "1ce6f93e4863081ffbcff212bef5b2d1e48b758bbe6ba2182528cb70d497c2b8",
    "newsgroups": "84d247394c02217e9fd57bef61c7c6266dd5564e54e65b8ef65afebc62422acb",
    "reuters": "c9d968b6fb259430f44a0a2d188e023a397e22b8209f92eb18b4c30cfb8bd199",
    "bbc": "e44c87c59b04d4a850e8205a7469117e4ae523eec0dee0d9b421473125e91b06",
}
"""What the results on disk were made from: another fingerprint would make every study anew."""
FILES = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
}


def fraction(key: str) -> float:
    return int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64


@pytest.mark.parametrize("name", TASKS)
def test_sizes_are_those_documented_and_no_text_is_in_two_splits(name: str) -> None:
    task = load_task(name)
    assert tuple(len(task.splits[split]) for split in ("train", "validation", "test")) == SIZES[name]
    texts = {split: [example.text for example in examples] for split, examples in task.splits.items()}
    assert not set(texts["train"]) & set(texts["validation"]) and not set(texts["test"]) & set(texts["validation"])
    assert not set(texts["train"]) & set(texts["test"]) and len(set(texts["train"])) == len(texts["train"])
    keys = [example.key for examples in task.splits.values() for example in examples]
    assert len(set(keys)) == len(keys) and task.metric == "accuracy"
    assert load_task(name).fingerprint == task.fingerprint == FINGERPRINTS[name]


@pytest.mark.parametrize("name", FILES)
def test_sentiment_against_plain_reading(name: str) -> None:
    task = load_task(name)
    with fetch(f"{VADER}/{FILES[name]}_GroundTruth.txt").path.open(encoding="utf-8", newline="\r\n") as file:
        rows = {line.split("\t")[0]: line.rstrip("\r\n").split("\t")[1:] for line in file}
    found = {example.key: (split, example) for split, examples in task.splits.items() for example in examples}
    for key, (split, example) in found.items():
        rating, text = rows[key]
        assert abs(float(rating)) > 0.5 and task.labels[example.label] == ("negative", "positive")[float(rating) > 0]
        assert example.text == html.unescape(text).strip()
        assert split == ("train" if fraction(key) < 0.6 else "validation" if fraction(key) < 0.75 else "test")
    kept_texts = {example.text for _, example in found.values()}
    for key, (rating, text) in rows.items():
        if abs(float(rating)) > 0.5 and key not in found:
            assert html.unescape(text).strip() in kept_texts, "only a duplicate may be dropped"
            assert fraction(key) < 0.75, "nothing is dropped from test"


@pytest.mark.parametrize(("name", "prefix"), [("newsgroups", "20newsgroups"), ("reuters", "reuters-r8")])
def test_topics_against_plain_reading(name: str, prefix: str) -> None:
    task = load_task(name)
    for official in ("train", "test"):
        content = fetch(f"{ORANGE}/{prefix}-{official}.tab").path.read_text(encoding="utf-8").split("\n")
        rows = [line.partition("\t") for line in content[3:] if line]
        splits = ("train", "validation") if official == "train" else ("test",)
        for split in splits:
            for example in task.splits[split]:
                origin, _, number = example.key.partition("-")
                label, _, text = rows[int(number)]
                assert (origin, task.labels[example.label], example.text) == (official, label, text.strip())
                if official == "train":
                    assert (split == "validation") == (fraction(example.key) >= 0.9)
        if official == "test":
            counts = Counter(task.labels[example.label] for example in task.splits["test"])
            assert counts == Counter(label for label, _, _ in rows)


def test_newsgroups_are_read_fast() -> None:
    load_task("newsgroups")
    start = time.process_time()
    load_task("newsgroups")
    assert time.process_time() - start < 2.0
