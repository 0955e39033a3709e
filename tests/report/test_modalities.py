"""What crosses modalities, against numbers worked out by hand and plain loops; and a page of twenty tasks."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from itertools import product
from statistics import mean, stdev

import pytest
from synthetic import SIX, TWENTY, tiny, twenty
from test_page import Reader

from pitune.report import build_page
from pitune.report.contents import split_slice
from pitune.report.modalities import HARMS, HELPS, OPEN, Crossing, Edge, crossing, fits, ordered
from pitune.report.prediction import Estimate, judge
from pitune.report.similarities import GraphEdge, read_edges
from pitune.report.transfer import Pair, read_pairs
from pitune.report.words import crossed
from pitune.store import Store

OF = {"a": "text", "b": "text", "c": "image"}
GAINS = {
    ("b", "a"): (0.02, 0.02, 0.05),  # within
    ("c", "a"): (0.019, 0.02, 0.021),  # across, helps
    ("a", "b"): (-0.01, 0.0, 0.01),  # within
    ("c", "b"): (-0.021, -0.02, -0.019),  # across, harms
    ("a", "c"): (0.10, -0.10, 0.03),  # across, undecided
    ("a", "a"): (0.5, 0.5, 0.5),  # no method may use it
    ("d", "a"): (0.4, 0.4, 0.4),  # a task that has no card
}
"""Of source and target, seed by seed."""
NEAR = {("b", "a"): 0.7, ("c", "a"): 0.5, ("a", "b"): 0.6, ("c", "b"): 0.65, ("a", "c"): 0.4, ("b", "c"): 0.3}
T = 4.302652729911275
"""Student's t, two-sided 95 %, 2 degrees of freedom: from a table."""


def pairs(seeds: int = 3) -> list[Pair]:
    return [
        Pair(source, (target, "16"), f"{target}@16#{seed}", 0.6 + gain, 0.6)
        for (source, target), gains in GAINS.items()
        for seed, gain in enumerate(gains[:seeds])
    ]


def edges() -> list[GraphEdge]:
    few = [GraphEdge(source, (target, "16"), value) for (source, target), value in NEAR.items()]
    return [*few, GraphEdge("a", ("b", "full"), 0.9), GraphEdge("a", ("a", "16"), 1.0)]


@pytest.fixture
def found() -> Crossing:
    made = crossing(OF, edges(), pairs(), 0.0005, {})
    assert made is not None
    return made


def test_pairs_are_counted_on_their_side(found: Crossing) -> None:
    assert found.within is not None and found.across is not None and found.apart is not None
    assert (found.within.pairs, found.within.better) == (6, 4)  # all of b to a, the last of a to b
    assert (found.across.pairs, found.across.better) == (9, 5)  # all of c to a, two of a to c
    assert found.within.mean.mean == pytest.approx((0.09 + 0.0) / 6) and found.within.mean.slices == 6
    assert found.across.mean.mean == pytest.approx((0.06 - 0.06 + 0.03) / 9) and found.across.mean.slices == 9
    assert found.apart.slices == 6  # those of a and b: c has no source of its own modality
    assert found.apart.mean == pytest.approx((0.06 - 0.09 - 0.06 - 0.0) / 6)


def test_blocks_are_of_source_and_target(found: Crossing) -> None:
    counts = {kinds: part and (part.pairs, part.better) for kinds, part in found.blocks.items()}
    assert found.modalities == ["text", "image"]
    assert counts == {
        ("text", "text"): (6, 4),
        ("image", "text"): (6, 3),
        ("text", "image"): (3, 2),
        ("image", "image"): None,
    }


def test_an_edge_helps_where_its_interval_says_so(found: Crossing) -> None:
    verdicts = {(edge.source, edge.target[0]): edge.verdict for edge in found.edges}
    assert verdicts == {("c", "a"): HELPS, ("c", "b"): HARMS, ("a", "c"): OPEN, ("b", "c"): ""}
    gain = next(edge.gain for edge in found.edges if (edge.source, edge.target[0]) == ("c", "a"))
    reach = T * stdev((0.019, 0.02, 0.021)) / math.sqrt(3)
    assert gain is not None and gain.low is not None and gain.high is not None
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.02, 0.02 - reach, 0.02 + reach))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.03, HELPS), (-0.03, -0.01, HARMS), (-0.01, 0.01, OPEN), (0.0, 0.01, OPEN), (None, None, OPEN)],
)
def test_verdicts(low: float | None, high: float | None, verdict: str) -> None:
    assert Edge("a", "text", ("c", "16"), 0.5, Estimate(0.01, low, high, {})).verdict == verdict


def test_the_nearest_are_named_for_each_target(found: Crossing) -> None:
    rows = {row.name: (row.within and row.within.source, [edge.source for edge in row.across]) for row in found.near}
    assert rows == {"a@16": ("b", ["c"]), "b@16": ("a", ["c"]), "c@16": (None, ["a", "b"])}


def test_sentences_have_both_sides(found: Crossing) -> None:
    said = " ".join(crossed(found))
    assert "Across modalities 5 of 9 pairs gain; their mean is +0.3 points" in said
    assert "Within a modality 4 of 6 pairs gain; their mean is +1.5 points" in said
    assert "sources of another modality bring 1.5 points less" in said
    assert "1 of the 3 edges across modalities help, 1 harm, and the rest are undecided" in said
    assert "Those that help most: c (image) → a@16 (+2.0)." in said
    assert "Those that harm most: c (image) → b@16 (−2.0)." in said


def test_fewer_than_three_seeds_decide_no_edge() -> None:
    made = crossing(OF, edges(), pairs(2), 0.0005, {})
    assert made is not None and {edge.verdict for edge in made.edges if edge.gain} == {OPEN}
    assert "Taken one by one" not in " ".join(crossed(made))


def test_without_a_matrix_the_graph_alone_is_told() -> None:
    made = crossing(OF, edges(), [], 0.0005, {})
    assert made is not None and made.across is None and crossed(made) == []
    assert [row.name for row in made.near] == ["a@16", "b@16", "c@16"]


def test_one_modality_has_nothing_to_cross() -> None:
    assert crossing(dict.fromkeys(OF, "text"), edges(), pairs(), 0.0, {}) is None
    assert crossing({}, edges(), pairs(), 0.0, {}) is None
    assert crossing(OF, [], [], 0.0, {}) is None


def test_modalities_have_an_order() -> None:
    assert ordered(["sound", "image+text", "text", "image", "text"]) == ["text", "image", "image+text", "sound"]


MIXED = {"amazon": "image", "news20": "image", "nyt": "image+text"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    few = tiny(tasks=SIX, seeds=(0, 1, 2), modalities=MIXED, families=("tasks", "graph", "transfer", "results"))
    return few.write(Store(tmp_path_factory.mktemp("study")))


def test_a_study_against_plain_loops(store: Store) -> None:
    of = {task: MIXED.get(task, "text") for task in SIX}
    rows = store.table("transfer.parquet").to_pylist()
    made = crossing(of, read_edges(store.table("graph.parquet").to_pylist()), read_pairs(rows), 0.0005, {})
    assert made is not None and made.across is not None and made.within is not None
    sides: dict[bool, list[float]] = defaultdict(list)
    for row in rows:
        source = split_slice(row["source"])[0]
        if source != row["target"]:
            sides[of[source] == of[row["target"]]].append(row["gain"])
    assert (made.across.pairs, made.within.pairs) == (len(sides[False]), len(sides[True])) == (22 * 3, 8 * 3)
    assert made.across.better == sum(gain > 0.0005 for gain in sides[False])
    assert made.within.better == sum(gain > 0.0005 for gain in sides[True])
    assert len(made.edges) == 22
    for edge in made.edges:
        gains = [
            row["gain"]
            for row in rows
            if (split_slice(row["source"])[0], row["target"]) == (edge.source, *edge.target[:1])
        ]
        assert edge.gain is not None and edge.gain.mean == pytest.approx(mean(gains))
        assert (edge.verdict == HELPS) == (mean(gains) - T * stdev(gains) / math.sqrt(3) > 0)


def test_similarities_are_judged_on_either_side(store: Store) -> None:
    of = {task: MIXED.get(task, "text") for task in SIX}
    measured, graph = store.table("transfer.parquet").to_pylist(), store.table("graph.parquet").to_pylist()
    rows = fits(of, measured, graph)
    judged = judge(measured, graph)
    assert [row["cells"][0][0] for row in rows] == [
        f"{one.values['spearman'].mean:.2f}".replace("-", "−") for one in judged
    ]
    across = [row for row in measured if of[split_slice(row["source"])[0]] != of[row["target"]]]
    assert [row["cells"][2][0] for row in rows] == [
        f"{one.values['spearman'].mean:.2f}".replace("-", "−") for one in judge(across, graph)
    ]
    assert sum(row["used"] for row in rows) == 1


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    families = ("tasks", "graph", "predictions", "transfer", "results")
    return build_page(twenty(families=families).write(Store(tmp_path_factory.mktemp("studies") / "twenty")))


def test_twenty_tasks_fit_in_one_small_file(page: str) -> None:
    assert len(page.encode()) < 3_000_000  # 10 MB is what must hold; real pictures are twice as large as drawn ones
    tags = Reader(page).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 8 * sum("image" in modality for modality in TWENTY.values())
    assert all(str(one["src"]).startswith("data:image/webp;base64,") and one["alt"] for one in images)
    others = [attributes for tag, attributes in tags if tag != "img"]
    for attributes, name in product(others, ("src", "href", "xlink:href", "action", "data")):
        assert name not in attributes or str(attributes[name]).startswith("#")
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"url\((?!#)", page) and "@import" not in page


def test_the_graph_tells_modalities_by_colour_and_shape(page: str) -> None:
    drawing = next(one for one in page.split("<svg")[1:] if "Graph of the tasks" in one)
    for words in ("text", "image", "image+text", "within a modality", "across modalities"):
        assert f">{words}</text>" in drawing
    assert all(re.search(rf">{task}  [+−]?\d", drawing) for task in TWENTY)


def test_every_target_has_its_row_of_edges(page: str) -> None:
    section = page[page.index('<section id="modalities"') : page.index('<section id="transfer"')]
    table = section[section.index('class="edges"') : section.index("</table>", section.index('class="edges"'))]
    rows = table.split("<tr>")[2:]
    assert [re.findall(r'row">(\w+)@16<', row) for row in rows] == [[task] for task in sorted(TWENTY)]
    for row in rows:
        assert row.count("<td>") == 4
        assert len(re.findall(r">[+−]?\d+\.\d (helps|harms|undecided)<", row)) == 4
