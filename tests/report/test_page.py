"""The page: self-contained, safe, complete, and made of whatever there is."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import FAMILIES, SCORED, SIX, Study, tiny

from pitune.errors import PituneError
from pitune.methods import METHODS, Method
from pitune.report import build_page, contents, figures, markdown, write_report
from pitune.report.contents import OWN, Layer, Trial, mean_weights, read_trials, read_weights, split_slice
from pitune.report.scores import average, read_targets
from pitune.report.similarities import chain_order, read_edges, similarity
from pitune.store import Store, table_bytes

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags and checks that they close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def dots(trials: list[Trial]) -> list[tuple[str, str]]:
    """Return where the one panel of these trials has its dots, rings and legend left out."""
    found = re.findall(
        r'<use [^>]*x="([-\d.]+)" y="([-\d.]+)"([^>]*)', figures.sweeps(trials).split("temperature</")[0]
    )
    return [(x, y) for x, y, rest in found if "accent" in rest]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Study().write(Store(tmp_path_factory.mktemp("studies") / "six_texts"))


@pytest.fixture(scope="module")
def page(store: Store) -> str:
    write_report(store)
    return store.read("report.html").decode()


def test_nothing_comes_from_outside(page: str) -> None:
    for tag, attributes in Reader(page).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value is not None
                assert value.startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_small_and_the_same_again(page: str, store: Store) -> None:
    assert len(page.encode()) < 3_000_000
    assert build_page(store) == page


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(page: str) -> None:
    tags = Reader(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = [a.get("href") or a.get("xlink:href") for tag, a in tags if tag in ("a", "use")]
    assert {str(link).removeprefix("#") for link in wanted} <= set(ids)


def test_the_numbers_are_there(page: str, store: Store) -> None:
    targets = read_targets(store)
    total = average(targets)
    for target in targets:
        for score in target.scores.values():
            assert f">{100 * score.mean:.1f}" in page
            for value in score.values.values():
                assert f"<td>{100 * value:.1f}</td>" in page
    assert total.gap_closed is not None
    assert f"<dt>{100 * total.gap_closed:.0f}\u00a0%</dt>" in page
    assert "mean ± standard deviation over 3 seeds" in page


def test_the_figure_of_all_methods_has_their_gains(page: str, store: Store) -> None:
    means = average(read_targets(store)).means
    drawing = next(one for one in page.split("<svg")[1:] if "What every method gains" in one)
    for method in set(SCORED) - {"single"}:
        gain = f"{100 * (means[method] - means['single']):+.1f}".replace("-", "−")
        assert f">← {gain}</text>" in drawing if method == "zero_shot" else f">{gain}</text>" in drawing


def test_figures_tell_what_they_are(page: str) -> None:
    drawings = [attributes for tag, attributes in Reader(page).tags if tag == "svg"]
    assert len(drawings) == 13
    assert all(one["role"] == "img" and one["aria-label"] and one["viewbox"] for one in drawings)
    assert "'DejaVu Sans'" not in page
    assert "#010203" not in page


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", "$\\frac{", "a&amp;b]]>", "--><script>alert(1)<", "_x' \"y"]
)
def test_hostile_names_are_text(name: str, tmp_path: Path) -> None:
    page = build_page(tiny(tasks=(name, "movie", "nyt")).write(Store(tmp_path)))
    assert not {tag for tag, _ in Reader(page).tags} & {"script", "img"}
    assert "<img src" not in page
    assert "<script" not in page


@pytest.mark.parametrize("count", range(len(FAMILIES)))
def test_studies_that_have_come_part_of_the_way(count: int, tmp_path: Path) -> None:
    page = build_page(tiny(families=FAMILIES[:count]).write(Store(tmp_path)))
    Reader(page)
    assert "No results yet" in page


@pytest.mark.parametrize("left_out", ["sweeps", "graph", "interpolations", "experts"])
def test_studies_without_a_stage(left_out: str, tmp_path: Path) -> None:
    families = [family for family in FAMILIES if family != left_out]
    page = build_page(tiny(families=families).write(Store(tmp_path)))
    Reader(page)
    assert "No results yet" not in page


@pytest.mark.parametrize("methods", [("single",), ("single", "pi"), ("zero_shot", "uniform"), ("pi", "full")])
def test_studies_without_some_methods(methods: tuple[str, ...], tmp_path: Path) -> None:
    page = build_page(tiny(methods=methods, families=("results",)).write(Store(tmp_path)))
    Reader(page)
    assert ("points over the single expert" in page) == (methods == ("single", "pi"))


def test_one_seed_says_so(tmp_path: Path) -> None:
    page = build_page(tiny(seeds=(0,)).write(Store(tmp_path)))
    assert "1 seed" in page
    assert "One seed only" in page
    assert 'class="pm">±' not in page


def test_an_empty_study(tmp_path: Path) -> None:
    store = Store(tmp_path)
    Reader(build_page(store))
    write_report(store)
    assert store.manifest("report.html") is not None
    assert list(store.problems()) == []


def test_a_sweep_that_still_runs_does_no_harm(tmp_path: Path) -> None:
    store = tiny().write(Store(tmp_path))
    store.commit("sweeps/trials/movie@16#0/k3-t0.2.json", {"": b"[]"}, "0")
    Reader(build_page(store))


def test_trials_that_differ_in_their_own_expert_alone_do_not_hide_each_other(tmp_path: Path) -> None:
    trials = read_trials(store := tiny(seeds=(0,)).write(Store(tmp_path)), store.artifacts())
    one = [trial for trial in trials if trial.group == ("movie", "16")]
    assert {(trial.top_k, trial.temperature, trial.own) for trial in one} == set(
        itertools.product((3, 5), (0.3, 1.0), ("trained", "fresh"))
    )
    places = dots(one)
    assert len(places) == len(set(places)) == 8
    assert len({x for x, _ in places}) == 2
    page = build_page(store)
    assert "own: fresh" in page
    assert "diamonds" in page
    chosen = [trial.own for trial in trials if trial.chosen]
    for own in ("trained", "fresh"):
        assert page.count(f"<td>{own}</td>") == chosen.count(own)
        assert f"{own} in {chosen.count(own)}" in page


def test_many_temperatures_do_not_hide_own_experts_either(tmp_path: Path) -> None:
    trials = read_trials(store := tiny().write(Store(tmp_path)), store.artifacts())
    one = [trial for trial in trials if trial.group == ("movie", "16")]
    spread = [replace(trial, temperature=trial.temperature * 1.1**power) for trial in one for power in range(9)]
    places = dots(spread)
    assert len(places) == len(set(places)) == 2 * 8 * 9


def test_learning_rates_do_not_hide_each_other_either(tmp_path: Path) -> None:
    trials = read_trials(store := tiny().write(Store(tmp_path)), store.artifacts())
    one = [trial for trial in trials if trial.group == ("movie", "16")]
    places = dots([replace(trial, rate=rate) for trial in one for rate in (1.0, 2.0)])
    assert len(places) == len(set(places)) == 2 * 2 * 8
    assert "higher ones" not in build_page(store)


def test_sweeps_without_the_column_began_with_the_trained_expert(tmp_path: Path) -> None:
    store = tiny(own=()).write(Store(tmp_path))
    assert {trial.own for trial in read_trials(store, store.artifacts())} == {"trained"}
    page = build_page(store)
    Reader(page)
    assert "diamonds" not in page
    assert "own: trained" not in page


def test_similarities_are_means_over_seeds(store: Store) -> None:
    edges = read_edges(store.table("graph.parquet").to_pylist())
    found = similarity(edges, [("movie", "16"), ("nyt", "4")], chain_order(edges))
    rows = store.table("graph.parquet").to_pylist()
    for column, (task, shots) in enumerate(found.columns):
        for row, source in enumerate(found.sources):
            wanted = [
                one["similarity"]
                for one in rows
                if split_slice(one["source"])[0] == source and split_slice(one["target"])[:2] == (task, shots)
            ]
            assert len(wanted) == 3
            assert found.values[row, column] == pytest.approx(sum(wanted) / 3)
            assert found.same[row, column] == (source == task)
    assert sorted(found.sources) == sorted(SIX)


def test_two_sources_of_one_task_count_together() -> None:
    rows = [
        {"tower": "text", "layer": layer, "site": f"layer.{layer}.query", "member": member, "weight": weight}
        for layer, own in ((0, 0.4), (1, 0.6))
        for member, weight in (("movie@full#0", 0.3), ("movie@full#1", 0.7 - own), ("nyt@4#0", own))
    ]
    found = contents._by_layer(rows, "nyt@4#0")
    assert found[Layer("text", 0)] == pytest.approx({"movie": 0.6, contents.OWN: 0.4})
    assert found[Layer("text", 1)] == pytest.approx({"movie": 0.4, contents.OWN: 0.6})


def test_layers_of_two_towers_are_not_tied(tmp_path: Path) -> None:
    store = tiny(towers={"vision": 3, "text": 2}).write(Store(tmp_path))
    found = read_weights(store, store.artifacts())["movie", "16"]
    assert list(found) == [Layer("text", 0), Layer("text", 1), *(Layer("vision", number) for number in range(3))]
    for layer, members in found.items():
        own = []
        for name in ("movie@16#0", "movie@16#1"):
            for row in store.table(f"interpolations/{name}", "weights.parquet").to_pylist():
                if (row["tower"], row["layer"], row["member"]) == (*layer, name):
                    own.append(row["weight"])
        assert len(own) == 4
        assert members[OWN] == pytest.approx(sum(own) / 4)
    page = build_page(store)
    assert ">vision</text>" in page
    assert ">text</text>" in page


def test_one_tower_is_not_named(page: str) -> None:
    assert ">text</text>" not in page


def test_weights_of_older_studies_count_as_one_layer() -> None:
    rows = [{"site": f"layer.{n}.query", "member": "nyt@4#0", "weight": 1.0} for n in range(2)]
    assert list(contents._by_layer(rows, "nyt@4#0").values()) == [{OWN: 1.0}]


class Seventh(Method):
    """A seventh method, made up."""

    name = "seventh"
    title = "all together"
    note = "one expert trained on <every> target's shots at once"
    sees = "shots"

    def build(self, plan: object, target: object) -> None:
        """Nothing: the report only tells of it."""


def test_a_seventh_method_is_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny(methods=(*SCORED, "seventh"))
    store = study.write(Store(tmp_path))
    assert "all together" not in build_page(store)
    monkeypatch.setitem(METHODS, "seventh", Seventh())
    page = build_page(store)
    assert re.search(r'<th scope="col" class="same" title="[^"]*at once"><span>all together</span></th>', page)
    assert "single, uniform, nearest, pi and all together, which see the same shots" in page
    assert "<dt>all together</dt><dd>one expert trained on &lt;every&gt; target&#39;s shots at once</dd>" in page
    values = [row["value"] for row in study.rows if row["method"] == "seventh" and row["task"] == "movie"]
    assert f">{100 * sum(values) / 2:.1f}" in page
    drawing = next(one for one in page.split("<svg")[1:] if "What every method gains" in one)
    assert ">all together</text>" in drawing
    assert "| pi | full data | all together |" in markdown(store)


def test_the_best_may_be_a_seventh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "seventh", Seventh())
    study = tiny(methods=("single", "pi", "seventh"), families=())
    store = study.write(Store(tmp_path))
    rows = [
        {"method": m, "task": "movie", "shots": "4", "seed": 0, "metric": "accuracy", "value": value, "examples": 9}
        for m, value in (("single", 0.5), ("pi", 0.6), ("seventh", 0.75))
    ]
    store.commit("results.parquet", {"": table_bytes(rows)}, "0")
    page = build_page(store)
    assert "On average all together, which sees the same shots, is better by 15.0 (no interval: 1 slice)." in page
    said = "is better on movie@4 (all together by 15.0; no interval: 1 slice)."
    assert f"Another method that sees the same shots {said}" in page


def test_what_left_the_settings_is_left_out() -> None:
    is_wanted = contents.wanted("sources: ['movie@full#0', 'nyt@4#1']\ntargets: ['amazon@4#0']\n")
    kept = ["experts/movie@full#0", "experts/nyt@4#1", "experts/amazon@full#0", "embeddings/amazon@4#0.parquet"]
    kept += ["predictions/amazon@4#0/pi.parquet", "interpolations/amazon@4#0", "graph.parquet", "results.parquet"]
    kept += ["predictions/amazon/zero_shot.parquet", "predictions/amazon@full#0/full.parquet"]
    gone = [
        "predictions/nyt/zero_shot.parquet",
        "predictions/nyt@full#0/full.parquet",
        "predictions/nyt@4#1/pi.parquet",
    ]
    gone += ["experts/nyt@16#0", "interpolations/amazon@16#0", "sweeps/nyt@4#1.parquet", "experts/tweets@full#0"]
    assert all(map(is_wanted, kept)) and not any(map(is_wanted, gone))
    assert contents.wanted("")("experts/nyt@16#0")


def test_pairs_belong_to_their_target_and_their_source() -> None:
    study = "sources: ['movie@full#0', 'nyt@4#1']\ntargets: ['amazon@4#0']\n"
    matrix = study + "transfer: {sources: ['movie@full#0'], targets: ['tweets@4#0', 'amazon@4#0']}\n"
    pairs = ["transfer/amazon@4#0/nyt@4#1", "predictions/amazon@4#0/transfer/nyt@4#1.parquet"]  # the nearest, perhaps
    measured = ["transfer/tweets@4#0/movie@full#0", "predictions/tweets@4#0/transfer/movie@full#0.parquet"]
    measured += ["transfer.parquet", "experts/tweets@4#0", "embeddings/tweets@4#0.parquet"]
    measured += ["predictions/tweets@4#0/transfer/common.parquet", "slices/tweets@4#0.parquet"]
    gone = ["transfer/amazon@4#0/news20@full#0", "predictions/amazon@4#0/transfer/news20@full#0.parquet"]
    gone += ["predictions/tweets@4#0/single.parquet", "transfer/nyt@4#1/movie@full#0"]
    gone += ["interpolations/tweets@4#0", "baselines/tweets@4#0/uniform"]
    for settings, kept in ((study, pairs), (matrix, pairs + measured)):
        is_wanted = contents.wanted(settings)
        assert {one for one in pairs + measured + gone if is_wanted(one)} == set(kept)


def test_weights_are_means_over_sites_and_seeds(store: Store) -> None:
    shares = mean_weights(read_weights(store, store.artifacts())["movie", "16"])
    sums: dict[str, float] = {}
    for seed in range(3):
        name = f"movie@16#{seed}"
        rows = store.table(f"interpolations/{name}", "weights.parquet").to_pylist()
        sites = len({row["site"] for row in rows})
        for row in rows:
            member = OWN if row["member"] == name else row["member"].partition("@")[0]
            sums[member] = sums.get(member, 0.0) + row["weight"] / sites / 3
    assert shares == pytest.approx(sums)
    assert sum(shares.values()) == pytest.approx(1)


def test_text_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PituneError, match=r"study\.yaml: cannot be read"):
        Store(tmp_path).text("study.yaml")
