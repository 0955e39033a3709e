"""The overview of the methods, against plain loops over the rows that it comes from."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
from synthetic import COST, FAMILIES, RIVALS, SCORED, Study, tiny

from pitune.methods import METHODS
from pitune.report import build_page, markdown
from pitune.report.overview import CONTROLS, OTHERS, RANKED, Overview, overview, read_costs
from pitune.report.scores import average, read_targets
from pitune.report.words import overlapping
from pitune.store import Store

CONTROLLED = {"pi_farthest", "pi_random"}


def made(study: Study, folder: Path) -> tuple[Store, Overview]:
    store = study.write(Store(folder))
    return store, overview(average(read_targets(store)), read_costs(store))


def score(study: Study, method: str, shots: int | None = None) -> dict[str, float]:
    return {
        row["slice"]: row["value"]
        for row in study.rows
        if row["method"] == method and row["shots"] in (str(shots), row["shots"] if shots is None else "")
    }


def test_rows_have_the_numbers_of_their_methods(tmp_path: Path) -> None:
    study = Study(methods=RIVALS, families=("results",))
    store, found = made(study, tmp_path)
    assert found.columns == ["mean", "4 shots", "16 shots"]
    rows = {row.method.name: row for _, some in found.groups for row in some}
    assert set(rows) == set(RIVALS)
    ours = score(study, "pi")
    for name, row in rows.items():
        values = score(study, name)
        parts = [values, score(study, name, 4), score(study, name, 16)]
        assert [cell.text for cell in row.means] == [f"{100 * mean(part.values()):.1f}" for part in parts]
        if name in ("pi", "zero_shot", "full"):
            assert row.lead is None
            continue
        apart = [ours[slice_] - values[slice_] for slice_ in values]
        assert row.lead is not None
        assert row.lead.mean == pytest.approx(mean(apart))
        assert row.lead.low < mean(apart) < row.lead.high
        assert (row.lead.slices, row.lead.wins) == (36, sum(one > 0 for one in apart))
        assert row.lead.losses == 36 - row.lead.wins
    for text in (build_page(store), markdown(store)):
        for row in found.rivals:
            assert row.lead is not None
            assert f"{100 * row.lead.low:.1f} to {100 * row.lead.high:.1f}".replace("-", "−") in text


def test_methods_are_grouped_and_only_rivals_are_ranked(tmp_path: Path) -> None:
    _, found = made(Study(methods=RIVALS, families=("results",)), tmp_path)
    groups = {title: [row.method.name for row in rows] for title, rows in found.groups}
    assert list(groups) == [RANKED, CONTROLS, OTHERS]
    assert set(groups[CONTROLS]) == CONTROLLED
    assert groups[OTHERS] == ["full", "zero_shot"]
    ranked = [float(row.means[0].text) for title, rows in found.groups if title == RANKED for row in rows]
    assert ranked == sorted(ranked, reverse=True)
    assert groups[RANKED][0] == "pi"


def test_what_a_method_cost_is_the_mean_of_its_slices(tmp_path: Path) -> None:
    study = tiny(methods=RIVALS, families=("results",))
    store, found = made(study, tmp_path)
    for row in (row for _, some in found.groups for row in some):
        trials, steps, seconds = COST.get(row.method.name, (8, 320, 48.5))
        assert (row.cost.trials, row.cost.steps, row.cost.seconds) == (trials, steps, pytest.approx(seconds))
    assert found.has_budget
    lorahub = METHODS["lorahub"].title
    line = next(line for line in markdown(store).splitlines() if line.startswith(f"| {lorahub} "))
    assert line.endswith("| 1 | 320 | 9.5 s |")
    assert "<td>1</td><td>320</td>\n<td>9.5 s</td></tr>" in build_page(store)


def test_older_studies_have_no_trials_and_steps(tmp_path: Path) -> None:
    families = [family for family in FAMILIES if family != "transfer"]
    store, found = made(tiny(old=True, families=families), tmp_path)
    assert not found.has_budget
    page = build_page(store)
    assert ">trials<" not in page
    assert ">time<" in page
    assert 'id="transfer"' not in page
    assert "#transfer" not in page
    assert "How often each source is among the 3 nearest" in page
    assert "| trials |" not in markdown(store)


def test_no_intervals_of_two_slices(tmp_path: Path) -> None:
    study = tiny(tasks=("movie",), families=("results",))
    store, found = made(study, tmp_path)
    assert all(row.lead is not None and not row.lead.has_interval for row in found.rivals)
    page = build_page(store)
    assert "(no interval: 2 slices)" in page
    assert "<td>–</td><td>2 / 0</td>" in page


def test_the_same_study_gives_the_same_page(tmp_path: Path) -> None:
    """Whatever order sets have in a process."""
    tiny(methods=SCORED).write(Store(tmp_path))
    code = "from pitune.report import build_page\nfrom pitune.store import Store\n"
    code += f"print(build_page(Store({str(tmp_path)!r})))"
    pages = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        pages.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(pages) == 1


def test_controls_that_took_the_interpolations_own_sources_are_told() -> None:
    def control(shared: int, randomized: bool = False) -> dict[str, object]:
        return {"shared": [f"s{n}" for n in range(shared)], "top_k": 3, "randomized": randomized}

    found = {f"controls/a@16#{n}/farthest": control(shared) for n, shared in enumerate((0, 1, 3))}
    random = {"controls/a@16#0/random": control(3, randomized=True)}
    (said,) = overlapping({**found, **random})
    assert said.startswith("Sources are few: on 2 of 3 slices") and "all of them on 1;" in said
    assert overlapping({"controls/a@16#0/farthest": control(0), **random, "experts/a@16#0": {}}) == []
