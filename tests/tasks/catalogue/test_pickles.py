"""Arrays out of pickles: numpy's own come out equal; whatever else a pickle would do is refused and not done."""

from __future__ import annotations

import builtins
import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pitune.errors import PituneError
from pitune.tasks.catalogue.pickles import read_pickled_array


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.call = function, values

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def written(folder: Path, content: bytes) -> Path:
    (folder / "a.gz").write_bytes(gzip.compress(content))
    return folder / "a.gz"


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", ["u1", "<i8", ">i4", "f8"])
def test_numbers_come_out_as_they_are(tmp_path: Path, kind: str, protocol: int) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(kind)
    for array in (values, np.asfortranarray(values)):
        if protocol > 2:  # the oldest ones write bytes as a call
            found = read_pickled_array(written(tmp_path, pickle.dumps(array, protocol)))
            assert found.dtype == array.dtype and (found == array).all()
        else:
            with pytest.raises(PituneError, match=r"refused, it names _codecs\.encode"):
                read_pickled_array(written(tmp_path, pickle.dumps(array, protocol)))


def test_a_malicious_pickle_does_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for evil in (
        Calls(os.system, f"touch {mark}"),
        Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
        Calls(builtins.getattr, "text", "upper"),
        Calls(np.load, str(mark)),
        Calls(np.fromfile, str(mark)),
        [np.zeros(3, np.uint8), Calls(os.system, f"touch {mark}")],
        np.array([Calls(os.system, f"touch {mark}")], object),
    ):
        content = pickle.dumps(evil)
        with pytest.raises(PituneError, match=r"a\.gz: is no pickle of one array of numbers \([^\n]*\)$"):
            read_pickled_array(written(tmp_path, content))
        assert not mark.exists()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(Calls(np.fromfile, str(mark))))  # without the guard it is called


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([1, 2]),
        pickle.dumps(np.array(["a", "b"])),
        pickle.dumps(np.array([1 + 2j])),
        pickle.dumps(np.zeros(3, [("a", "u1")])),
        pickle.dumps(np.arange(5))[:-9],
        pickle.dumps(np.dtype("u1")),
        pickle.dumps(np.zeros(3, np.uint8)).replace(b"K\x03\x85", b"K\x04\x85"),  # more items than bytes
        b"cnumpy\ndtype\n(Vos\nI0\nI1\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n.",
        b"cnumpy.core.multiarray\n_reconstruct\n}Vstate\nI1\nsb.",  # sets what belongs to the note's class
        b"cnumpy\nndarray.__class__\n.",
        b"",
        b"\x80",
    ],
)
def test_other_things_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PituneError, match=r"^[^\n]*a\.gz: is no pickle of one array of numbers[^\n]*$"):
        read_pickled_array(written(tmp_path, content))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pitune.tasks.catalogue.pickles.MOST_BYTES", 1000)
    with pytest.raises(PituneError, match="refused, it unpacks to more than"):
        read_pickled_array(written(tmp_path, bytes(2000)))
