"""The figures against plain loops over the rows that they come from."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev

import pytest
from synthetic import Study, tiny

from pitune.methods import METHODS
from pitune.report import markdown
from pitune.report.scores import average, best_methods, read_targets, same_shots
from pitune.report.tables import costs
from pitune.store import Store


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(families=("results",))


@pytest.fixture(scope="module")
def store(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return study.write(Store(tmp_path_factory.mktemp("study")))


def values(study: Study, method: str, task: str, shots: str) -> list[float]:
    """Return a method's values on a target, by seed, by going through the rows."""
    found = {}
    for row in study.rows:
        if row["method"] == method and row["task"] == task and row["shots"] == shots:
            found[row["seed"]] = row["value"]
    return [found[seed] for seed in sorted(found)]


def test_a_target_has_mean_spread_gain_and_gap_of_its_rows(study: Study, store: Store) -> None:
    targets = read_targets(store)
    assert {(t.task, t.shots) for t in targets} == {(task, str(shots)) for task in study.tasks for shots in study.shots}
    for target in targets:
        for method in study.methods:
            rows = values(study, method, target.task, target.shots)
            assert target.scores[method].mean == pytest.approx(mean(rows))
            assert target.scores[method].std == pytest.approx(stdev(rows))
        single, pi, full = (values(study, m, target.task, target.shots) for m in ("single", "pi", "full"))
        assert target.gain is not None
        assert target.gain.mean == pytest.approx(mean(pi) - mean(single))
        assert target.gain.std == pytest.approx(stdev(a - b for a, b in zip(pi, single, strict=True)))
        assert target.gap_closed == pytest.approx((mean(pi) - mean(single)) / (mean(full) - mean(single)))
        ranked = [method for method in study.methods if method in same_shots()]
        best = max(ranked, key=lambda m: mean(values(study, m, target.task, target.shots)))
        assert target.best[0] == best


def test_the_overall_gap_is_the_ratio_of_mean_gaps(study: Study, store: Store) -> None:
    total = average(read_targets(store))
    gains, gaps, ratios, differences = [], [], [], []
    for task in study.tasks:
        for shots in study.shots:
            single, pi, full = (mean(values(study, m, task, str(shots))) for m in ("single", "pi", "full"))
            gains.append(pi - single)
            gaps.append(full - single)
            ratios.append((pi - single) / (full - single))
            differences.append((pi - single, task, str(shots)))
    assert total.gap_closed == pytest.approx(sum(gains) / sum(gaps))
    assert sorted(total.ratios) == pytest.approx(sorted(ratios))
    assert total.gain == pytest.approx(mean(gains))
    assert total.worst is not None
    target, least = total.worst
    assert (target.task, target.shots) == min(differences)[1:]
    assert least == pytest.approx(min(differences)[0])
    assert total.best == ("pi",)


def test_all_that_are_level_are_best() -> None:
    assert best_methods({"single": 0.90, "nearest": 0.9004, "pi": 0.8994, "full": 1.0}) == ("single", "nearest")
    assert best_methods({"pi": 0.9, "full": 1.0}) == ()


def test_the_spread_of_an_average_is_that_of_the_averages_per_seed(study: Study, store: Store) -> None:
    total = average(read_targets(store))
    for method in study.methods:
        per_seed = [
            mean(r["value"] for r in study.rows if r["method"] == method and r["seed"] == s) for s in study.seeds
        ]
        assert total.scores[method].std == pytest.approx(stdev(per_seed))
        assert total.means[method] == pytest.approx(mean(per_seed))


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    store = tiny(seeds=(0,)).write(Store(tmp_path))
    assert all(math.isnan(score.std) for target in read_targets(store) for score in target.scores.values())
    assert average(read_targets(store)).gap_closed is not None
    assert "1 seed;" in markdown(store)
    assert "± " not in markdown(store).replace("mean ± standard", "")


def test_targets_that_lack_a_method_are_left_out_of_averages(tmp_path: Path) -> None:
    whole = tiny(families=("results",)).write(Store(tmp_path))
    targets = read_targets(whole)
    del targets[0].scores["pi"]
    total = average(targets)
    assert (len(total.targets), total.left_out) == (2, 1)
    assert total.means["single"] == pytest.approx(mean(t.scores["single"].mean for t in targets[1:]))


def test_no_gap_where_full_data_is_not_better(tmp_path: Path) -> None:
    target = read_targets(tiny(families=("results",)).write(Store(tmp_path)))[0]
    target.scores["full"] = target.scores["single"]
    assert target.gap_closed is None
    assert average([target]).gap_closed is None


def test_cost_adds_up_the_manifests_by_family(tmp_path: Path) -> None:
    store = tiny().write(Store(tmp_path))
    store.commit("rivals/movie@16#0/tadapter.json", {"": b"123"}, "0", seconds=2.0)
    store.commit("baselines/movie@16#0/chosen", {"a": b"1"}, "0", seconds=90.0, chosen="trials/movie@16#0/3")  # a copy
    made_of = {"rivals/movie@16#0/tadapter.json": 0.5, "gone": 0.1}  # of the first the two seconds count there
    store.commit("averages/movie@16#0", {"a": b"1"}, "0", seconds=7.0, tried=made_of)
    families = {family.name: family for family in costs(store.artifacts())}
    seconds = {name: family.seconds for name, family in families.items()}
    assert seconds == {
        "experts": pytest.approx(3 * 20 + 6 * 6),
        "baselines": pytest.approx(6 * 3.7),
        "embeddings": pytest.approx(9 * 1.25),
        "interpolations": pytest.approx(6 * 48.5),
        "predictions": pytest.approx((4 * 6 + 2 * 3) * 0.75),
        "rivals": 2.0,
        "averages": 5.0,
        "graph": 0.1,
        "transfer": pytest.approx(6 * 3 * 1.5 + 0.1),
        "tasks": None,
        "sweeps": None,
        "results": None,
    }
    assert list(families)[:3] == ["interpolations", "experts", "transfer"]
    assert families["predictions"].artifacts == 30
    assert families["rivals"].bytes == 3


def test_the_ceiling_is_what_sees_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = read_targets(tiny(families=("results",)).write(Store(tmp_path)))
    monkeypatch.delitem(METHODS, "full")
    assert average(targets).gain is not None
    assert average(targets).gap_closed is None
    assert [target.gap_closed for target in targets] == [None] * len(targets)


def test_markdown_has_a_row_per_target_and_the_averages(study: Study, store: Store) -> None:
    lines = markdown(store).splitlines()
    between = lines.index("")
    methods, rows = lines[:between], [line for line in lines[between:] if line.startswith("|")]
    assert len(methods) == 2 + len(study.methods)
    assert len({line.count("|") for line in methods}) == 1
    assert methods[2].startswith(
        f"| pi | **{100 * mean(r['value'] for r in study.rows if r['method'] == 'pi'):.1f}** ±"
    )
    assert len(rows) == 2 + 12 + 3
    assert len({line.count("|") for line in rows}) == 1
    amazon = next(line for line in rows if line.startswith("| amazon | 4 "))
    assert f"{100 * mean(values(study, 'single', 'amazon', '4')):.1f}" in amazon
    assert rows[-1].startswith("| *mean of 12* | all ")


def test_markdown_of_nothing(tmp_path: Path) -> None:
    assert markdown(Store(tmp_path)) == "No results yet.\n"
