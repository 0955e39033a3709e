"""Places: URIs with their options, and files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from pitune.errors import PituneError
from pitune.store import Store
from pitune.store.places import Place

OPTIONS = "region=eu-west-1&endpoint_override=localhost%3A1"


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("mock://b/study", "mock://b/study/.ray/train"),
        ("mock://b/study/", "mock://b/study/.ray/train"),
        (f"s3://b/study?{OPTIONS}", f"s3://b/study/.ray/train?{OPTIONS}"),
        (f"s3://b/study/?{OPTIONS}", f"s3://b/study/.ray/train?{OPTIONS}"),
    ],
)
def test_a_uris_options_stay_at_its_end(root: str, expected: str) -> None:
    with pytest.raises(KeyError), Store(root).scratch("train") as place:  # an error: nothing is asked of the bucket
        raise KeyError
    assert place == expected
    if place.startswith("s3"):
        assert fs.FileSystem.from_uri(place)[1] == "b/study/.ray/train"


def test_scratch_by_uri_is_inside_the_study(tmp_path: Path) -> None:
    with Store(f"file://{tmp_path}/study?a=b").scratch("train") as place:
        system, path = fs.FileSystem.from_uri(place)
        system.create_dir(path, recursive=True)
        assert Path(path) == tmp_path / "study" / ".ray" / "train" and Path(path).is_dir()
    assert not Path(path).exists()


def test_a_local_folder_may_have_a_question_mark(tmp_path: Path) -> None:
    store = Store(tmp_path / "really?yes")
    store.commit("x", {"a": b"1"}, "mark")
    assert store.where("x/a") == str(tmp_path / "really?yes" / "x" / "a") and Path(store.where("x/a")).is_file()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_looking_at_a_study_makes_nothing(tmp_path: Path, scheme: str) -> None:
    store = Store(f"{scheme}{tmp_path}/studies/new")
    assert not store.artifacts() and not store.is_locked() and not list(store.problems())
    assert store.manifest("experts/x") is None and not store.is_current("experts/x", "mark")
    with pytest.raises(PituneError, match="is not there or not finished"):
        store.read("experts/x", "a")
    store.discard("experts/x")
    store.remove("sweeps")
    assert not list(tmp_path.iterdir())
    store.commit("results.parquet", {"": b"x"}, "mark")
    assert Store(tmp_path / "studies" / "new").read("results.parquet") == b"x"


def test_a_uri_that_cannot_be_opened_is_one_line() -> None:
    with pytest.raises(PituneError, match=r"^study folder nothing://x: cannot be written .*name one that can$"):
        Store("nothing://x")


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/x", "s3://bucket/x?region=eu&secret_key=secret"])
def test_credentials_in_a_uri_are_refused_and_not_said(uri: str) -> None:
    with pytest.raises(PituneError) as caught:
        Store(uri)
    assert "=secret" not in str(caught.value) and "secret@" not in str(caught.value)


def test_a_local_folder_may_look_like_credentials(tmp_path: Path) -> None:
    assert Store(f"{tmp_path}//movie@16#0").name == "movie@16#0"


def test_s3_is_opened_as_the_uri_and_the_environment_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    for options, found in {"region=eu-west-1": "http://localhost:1", OPTIONS: "localhost:1"}.items():
        place = Place(f"s3://b/study?{options}")
        state = place.fs.base_fs.__reduce__()[1][0]
        assert (state["endpoint_override"], state["region"], state["access_key"]) == (found, "eu-west-1", None)
        assert state["allow_delayed_open"] and place.name == "study"


def test_no_two_writers_have_the_same_temporary_name(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.staged({"x/a": b"1"}) as ours, place.staged({"x/a": b"2"}) as theirs:
        assert ours["x/a"] != theirs["x/a"]
        assert all(name.startswith("x/a.") and name.endswith(".partial") for name in (ours["x/a"], theirs["x/a"]))
        place.move(ours["x/a"], "x/a")
        place.move(theirs["x/a"], "x/a")
    assert place.read("x/a") == b"2" and [path.name for path in (tmp_path / "x").iterdir()] == ["a"]


@pytest.mark.parametrize("root", ["mock://study", "folder"])
def test_a_place_reads_lists_and_deletes(tmp_path: Path, root: str) -> None:
    place = Place(root if "://" in root else tmp_path / root)
    assert place.listing() == {} and place.read_if_there("x/y/a") is None
    place.write("x/y/a", b"12")
    place.write("b", b"1")
    assert place.listing() == {"x/y/a": 2, "b": 1} and place.sizes(["b", "c", "x/y/a"]) == [1, None, 2]
    place.write("b", b"123")
    assert place.read("b") == b"123" and place.read_if_there("b/manifest.json") is None
    place.delete("b")
    place.delete("b")
    place.delete_folder("x")
    place.delete_folder("x")
    assert place.listing() == {}


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_log_grows_at_its_end(tmp_path: Path, scheme: str) -> None:
    store = Store(f"{scheme}{tmp_path}/study")
    for line in ("one\n", "two\n"):
        store.append("logs/pack.jsonl", line.encode())
    assert store.text("logs/pack.jsonl") == "one\ntwo\n" and not store.artifacts()
