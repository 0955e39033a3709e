"""Zero-shot transfer, few shots and full data in one report, against plain sums over the rows."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from pitune.report import build_page, markdown
from pitune.report.differences import difference
from pitune.report.scores import average, read_targets
from pitune.report.words import zero_shot
from pitune.store import Store, table_bytes

TASKS = tuple(f"t{number}" for number in range(7))
SHOTS = ("4", "16", "full")
ALONE = {task: 0.5 + place / 50 for place, task in enumerate(TASKS)}
LENT = {task: ALONE[task] + (0.04, -0.01, 0.03, 0.02, 0.05, 0.01, 0.06)[place] for place, task in enumerate(TASKS)}
AT = {"4": 0.7, "16": 0.8, "full": 0.9}
GAIN = {"4": 0.06, "16": 0.02, "full": 0.01}


def rows() -> list[dict[str, Any]]:
    """Return a study's results: every task at every number of shots with two seeds, the full expert scoring 0.9."""
    found = []
    for task in TASKS:
        for shots in SHOTS:
            for seed in (0, 1):
                single = AT[shots] + seed / 100 if shots != "full" else AT[shots]
                scores = {"zero_shot": ALONE[task], "zero_shot_uniform": LENT[task], "single": single}
                scores |= {"pi": single + GAIN[shots], "full": 0.9}
                of = {"task": task, "shots": shots, "seed": seed, "slice": f"{task}@{shots}#{seed}"}
                more = {"metric": "accuracy", "examples": 100, "seconds": 1.0, "trials": 1, "steps": 4}
                for method, value in scores.items():
                    place = {"prediction": f"predictions/{task}@{shots}#{seed}/{method}.parquet"}
                    found.append({"method": method, **of, **more, **place, "value": value})
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("regimes"))
    made.commit("results.parquet", {"": table_bytes(rows())}, "made up")
    return made


def test_experts_of_other_tasks_are_held_against_the_backbone_task_by_task(store: Store) -> None:
    """Every task counts once: its six slices have one score, which would make an interval of 42 too narrow."""
    expected = difference(LENT, ALONE)
    assert expected is not None and expected.slices == 7
    (said,) = zero_shot(average(read_targets(store)))
    assert said == (
        "With no data of the target, experts of other tasks against zero-shot, paired over 7 tasks: zero-shot uniform "
        f"+{100 * mean(LENT[t] - ALONE[t] for t in TASKS):.1f} points (95\u00a0% interval {100 * expected.low:.1f} to "
        f"{100 * expected.high:.1f})."
    )
    for text in (markdown(store), build_page(store)):
        assert "experts of other tasks against zero-shot, paired over 7 tasks" in text


def test_few_tasks_are_called_tasks(tmp_path: Path) -> None:
    for count, said in ((2, "no interval: 2 tasks"), (4, ", of only 4 tasks")):
        store = Store(tmp_path / str(count))
        few = [row for row in rows() if row["task"] in TASKS[:count]]
        store.commit("results.parquet", {"": table_bytes(few)}, "made up")
        assert said in zero_shot(average(read_targets(store)))[0]
        assert not zero_shot(average([]))


def test_the_gap_to_full_data_is_of_targets_that_are_short_of_it(store: Store) -> None:
    targets = read_targets(store)
    total = average(targets)
    gains = [GAIN[shots] for shots in ("4", "16")]
    gaps = [0.9 - AT[shots] - 0.005 for shots in ("4", "16")]
    assert total.gap_closed == pytest.approx(sum(gains) / sum(gaps))
    assert total.gap_closed_seeds is not None
    assert total.gap_closed_seeds.values[1] == pytest.approx(sum(gains) / (0.2 - 0.01 + 0.1 - 0.01))
    assert [target.gap_closed is None for target in targets] == [target.shots == "full" for target in targets]
    assert total.gain == pytest.approx(mean(GAIN.values())) and total.left_out == 0
    full = average([target for target in targets if target.shots == "full"])
    assert full.gap_closed is None and full.gap_closed_seeds is None and full.gain == pytest.approx(0.01)


def test_tables_say_full(store: Store) -> None:
    text = markdown(store)
    assert re.search(r"\| t0 \| full \| 50\.0 .* \| \+1\.0 \| – \|", text)
    assert "| mean | pi ahead | 95 % interval | better / worse | 4 shots | 16 shots | full data |" in text
    assert "of the means of targets that have not all their data." in text
    page = build_page(store)
    assert "full data" in page and "4 shots per class" in page and "None" not in page


def test_a_study_of_full_targets_alone_has_no_gap_to_tell_of(tmp_path: Path) -> None:
    store = Store(tmp_path)
    full = [row for row in rows() if row["shots"] == "full"]
    store.commit("results.parquet", {"": table_bytes(full)}, "made up")
    text, page = markdown(store), build_page(store)
    assert text.count("| +1.0 | – |") == len(TASKS) + 1 and "of the gap to" not in page
    assert "None" not in page and "nan" not in text
