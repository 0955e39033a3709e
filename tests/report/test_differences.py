"""The intervals against plain loops, and what the controls say."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import NormalDist, mean, stdev

import numpy as np
import pytest
from synthetic import tiny

from pitune.report import build_page, differences, markdown
from pitune.report.controls import judged
from pitune.report.differences import Difference, difference, interval
from pitune.report.scores import average, read_targets
from pitune.store import Store, table_bytes

SAMPLES = {
    "even": [0.01 * place - 0.04 for place in range(12)],
    "skewed": [0.001, 0.002, 0.002, 0.004, 0.004, 0.005, 0.008, 0.01, 0.03, 0.09],
    "three": [0.01, 0.03, 0.02],
}


def resampled(values: list[float], count: int = 20_000) -> list[float]:
    """Return the sorted means of samples with replacement, drawn one by one."""
    draw = random.Random(3)
    return sorted(mean(draw.choices(values, k=len(values))) for _ in range(count))


def accelerated(values: list[float]) -> tuple[float, float]:
    """Return the BCa interval as Efron and Tibshirani (1993, section 14.3) write it."""
    means, normal, whole = resampled(values), NormalDist(), mean(values)
    below = sum(one < whole for one in means) + 0.5 * sum(one == whole for one in means)
    bias = normal.inv_cdf(below / len(means))
    without = [mean(values[:place] + values[place + 1 :]) for place in range(len(values))]
    away = [mean(without) - one for one in without]
    skew = sum(one**3 for one in away) / (6 * sum(one**2 for one in away) ** 1.5)
    ends = []
    for part in (0.025, 0.975):
        at = bias + normal.inv_cdf(part)
        ends.append(means[round(normal.cdf(bias + at / (1 - skew * at)) * (len(means) - 1))])
    return ends[0], ends[1]


@pytest.mark.parametrize("name", SAMPLES)
def test_intervals_are_those_of_a_plain_loop(name: str) -> None:
    values = SAMPLES[name]
    low, high = interval(np.array(values))
    wanted = accelerated(values)
    near = 0.04 * (wanted[1] - wanted[0])  # what so many resamples leave to chance
    assert low == pytest.approx(wanted[0], abs=near)
    assert high == pytest.approx(wanted[1], abs=near)


def test_skewed_samples_are_told_from_even_ones() -> None:
    """An interval by percentiles would pass the test above with even samples alone."""
    means = resampled(SAMPLES["skewed"])
    plain = means[round(0.975 * (len(means) - 1))]
    assert accelerated(SAMPLES["skewed"])[1] - plain > 0.2 * stdev(means)
    assert interval(np.array(SAMPLES["skewed"]))[1] - plain > 0.2 * stdev(means)


def test_percentiles_where_the_other_way_degenerates() -> None:
    assert interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_slices_are_paired_by_name() -> None:
    a = {"movie@4#0": 0.9, "movie@4#1": 0.5, "nyt@4#0": 0.7, "nyt@4#1": 0.6, "only": 0.1}
    b = {"nyt@4#1": 0.6, "nyt@4#0": 0.8, "movie@4#1": 0.3, "movie@4#0": 0.6, "other": 0.9}
    found = difference(a, b)
    assert found is not None
    assert found.mean == pytest.approx((0.3 + 0.2 - 0.1 + 0.0) / 4)
    assert (found.slices, found.wins, found.losses) == (4, 2, 1)
    assert (found.low, found.high) == interval(np.array([0.9 - 0.6, 0.5 - 0.3, 0.7 - 0.8, 0.6 - 0.6]))
    assert found == difference(dict(reversed(a.items())), b)
    turned = difference(b, a)
    assert turned is not None
    assert (turned.mean, turned.wins, turned.losses) == (pytest.approx(-found.mean), 1, 2)
    assert found.turned().low == pytest.approx(turned.low, abs=0.02)
    assert difference({"a": 1.0}, {"b": 1.0}) is None


@pytest.mark.parametrize("count", [1, 2])
def test_few_slices_have_no_interval(count: int) -> None:
    found = difference({str(n): 1.0 for n in range(count)}, {str(n): 0.5 for n in range(count)})
    assert found is not None
    assert math.isnan(found.low) and math.isnan(found.high)
    assert not found.has_interval
    assert found.clear == 0


def test_nothing_is_clear_of_fewer_than_six_slices() -> None:
    for count in range(3, 8):
        found = difference({str(n): 0.5 + n / 100 for n in range(count)}, {str(n): 0.4 for n in range(count)})
        assert found is not None
        assert found.low > 0
        assert found.clear == (count >= 6)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = interval(np.linspace(-1, 2, 50))
    monkeypatch.setattr(differences, "BATCH", 5000)
    assert interval(np.linspace(-1, 2, 50)) == pytest.approx(whole, abs=0.05)


# --- controls ------------------------------------------------------------------------------------------------------


def made(low: float, middle: float, high: float, slices: int = 36) -> Difference:
    return Difference(middle, low, high, slices, slices, 0)


GAIN = made(0.02, 0.03, 0.04)
ABOVE, LEVEL, WIDE = made(0.01, 0.02, 0.03), made(-0.006, 0.0, 0.006), made(-0.01, 0.01, 0.03)


@pytest.mark.parametrize(
    ("farthest", "random_", "kind", "why", "control"),
    [
        (ABOVE, made(0.02, 0.03, 0.04), "transfer", "", "farthest"),
        (ABOVE, LEVEL, "regularisation", "", "random"),
        (LEVEL, ABOVE, "regularisation", "", "farthest"),
        (WIDE, LEVEL, "regularisation", "", "random"),
        (ABOVE, made(-0.03, -0.02, -0.01), "regularisation", "", "random"),
        (ABOVE, WIDE, "undecided", "overlap", "random"),
        (WIDE, WIDE, "undecided", "overlap", "farthest"),
    ],
)
def test_what_the_controls_say(farthest: Difference, random_: Difference, kind: str, why: str, control: str) -> None:
    found = judged(GAIN, {"farthest": farthest, "random": random_}, 2)
    assert (found.kind, found.why, found.control) == (kind, why, control)


def test_nothing_is_decided_by_too_little() -> None:
    both = {"farthest": ABOVE, "random": ABOVE}
    assert judged(made(-0.01, 0.01, 0.03), both, 2).why == "gain"
    assert judged(made(-0.04, -0.03, -0.02), both, 2).why == "gain"
    assert judged(GAIN, {"random": ABOVE}, 2).why == "controls"
    assert judged(GAIN, {"random": LEVEL}, 2).kind == "regularisation"
    for few in (made(0.02, 0.03, 0.04, 5), made(math.nan, 0.03, math.nan, 2)):
        assert judged(few, {"farthest": few, "random": few}, 2).why == "slices"
        assert judged(GAIN, {"farthest": ABOVE, "random": few}, 2).kind == "undecided"


def store_of(folder: Path, far: float, noise: float, slices: int = 12) -> Store:
    """Return a study of two shots whose controls lie ``far`` and 0.03 behind pi, which is 0.04 ahead of single."""
    draw, rows = random.Random(1), []
    scored = {"single": 0.6, "pi": 0.64, "pi_farthest": 0.64 - far, "pi_random": 0.61}
    for place in range(slices):
        for method, value in scored.items():
            row = {"method": method, "task": f"task{place % 3}", "shots": "4", "seed": place // 3, "metric": "accuracy"}
            rows.append(row | {"value": value + noise * draw.gauss(0, 1), "examples": 9, "seconds": 1.0})
    store = Store(folder)
    store.commit("results.parquet", {"": table_bytes(rows)}, "0")
    return store


@pytest.mark.parametrize(
    ("far", "noise", "slices", "said"),
    [
        (0.02, 0.003, 12, "The gain is transfer: pi is +4."),
        (0.01, 0.001, 12, "A part of the gain is transfer: pi is +4."),
        (0.0, 0.003, 12, "The gain is regularisation rather than transfer: pi farthest reaches "),
        (0.012, 0.03, 12, "Transfer or regularisation? Undecided, "),
        (0.02, 0.003, 3, "Transfer or regularisation? Undecided, fewer than 6 slices prove nothing: pi is +"),
    ],
)
def test_the_verdict_is_one_line(far: float, noise: float, slices: int, said: str, tmp_path: Path) -> None:
    store = store_of(tmp_path, far, noise, slices)
    page, text = build_page(store), markdown(store)
    line = page.split('<p class="verdict">')[1].split("</p>")[0]
    assert line.startswith(said)
    assert f"paired over {slices} slices of 3 tasks" in line
    assert text.splitlines()[-1] == line
    assert 'class="verdict"' not in build_page(tiny(methods=("single", "pi")).write(Store(tmp_path / "other")))


def test_controls_are_not_ranked(tmp_path: Path) -> None:
    store = store_of(tmp_path, far=-0.02, noise=0.001)
    total = average(read_targets(store))
    assert max(total.means, key=lambda name: total.means[name]) == "pi_farthest"
    assert total.best == ("pi",)
    page = build_page(store)
    assert "it is the best of those that see the same shots, 4." in page
    assert "Another method" not in page
