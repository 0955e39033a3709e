"""The locks of a local study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pitune.errors import PituneError
from pitune.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "study")


def one_line(error: pytest.ExceptionInfo[PituneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_second_process_is_told_and_the_lock_ends_with_its_holder(store: Store) -> None:
    code = (
        "import sys; from pitune.store import Store\nwith Store(sys.argv[1]).lock(): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, store.root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert store.is_locked()
        with pytest.raises(PituneError) as error, store.lock():
            pass
        assert "another pitune process" in one_line(error)
        other.kill()
        other.wait()
    assert not store.is_locked()
    with store.lock():
        assert store.is_locked()
        store.commit("results.parquet", {"": b"x"}, "mark")


def test_a_root_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "study")
    with pytest.raises(PituneError) as error, store.lock():
        pass
    assert "cannot be written" in one_line(error) and "Not a directory" in one_line(error)


def test_an_error_in_the_work_is_not_called_one_of_the_lock(store: Store) -> None:
    with pytest.raises(FileNotFoundError), store.lock():
        raise FileNotFoundError
    assert not store.is_locked()
