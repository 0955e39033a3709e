"""The task of technical photos: solar cells that shine under current, where a defect stays dark.

**solar** (Buerhop-Lutz et al., 2018; Deitsch et al., 2019): electroluminescence images of cells of 44 solar modules,
300 x 300 greys. Labels are what an expert said of the cell, and whether the expert was sure. The licence is
CC BY-NC-SA 4.0: **not for commercial use**. Keys are the files' names; the split comes from the key's hash: 60% train,
15% validation, 25% test. The source does not say which cells are of one module, so that cells of the same one may be in
train and test. 59% of test are functional, so that the metric is ``macro_f1``.

There are 1557 examples in train, 404 in validation and 663 in test; no two are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pitune.assets import fetch
from pitune.errors import PituneError
from pitune.tasks.building import build_task, split_rows
from pitune.tasks.readers import Row, whole_file
from pitune.tasks.task import Task

CELLS = "pypi:elpv-dataset==1.0.0.post1#elpv_dataset/data"
LEVELS = {0: "functional", 1: "probably functional", 2: "probably defective", 3: "defective"}
"""What the file's probability of a defect says, in thirds."""
SOLAR = {
    "functional": "an electroluminescence image of a solar cell without a defect",
    "probably functional": "an electroluminescence image of a solar cell with a mark that is probably no defect",
    "probably defective": "an electroluminescence image of a solar cell that probably has a defect",
    "defective": "an electroluminescence image of a solar cell with a defect",
}


def _solar(name: str) -> Task:
    rows = _cells(fetch(CELLS).path)
    return build_task(name, "macro_f1", SOLAR, split_rows(rows, ("validation", "test")))


def _cells(folder: Path) -> list[Row]:
    """Read the list of cells: lines file, probability of a defect, kind of module, separated by spaces."""
    table = folder / "labels.csv"
    rows = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{table}: line {number}"
        try:
            name, probability, _ = line.split()
            label = LEVELS[round(3 * float(probability))]
        except (ValueError, LookupError) as error:
            raise PituneError(f"{place}: {line!r:.60} is no file, probability and kind of module") from error
        file = folder / name
        rows.append(Row(file.stem, None, label, place, whole_file(file, place)))
    return rows


TASKS: dict[str, Callable[[str], Task]] = {"solar": _solar}
"""What makes it, given its name."""
