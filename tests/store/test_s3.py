"""The store over HTTP: on S3 as moto plays it, which at times does not answer, or by 503, or by half."""

from __future__ import annotations

import contextlib
import json
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3server
from fakelanes import Opener
from pyarrow import fs
from s3server import Proxy
from test_lease import refused
from test_writers import commit_both, content
from tinystudy import make_study

from pitune import study as study_module
from pitune.config import load_config
from pitune.errors import PituneError
from pitune.store import Store, lease
from pitune.study import Study
from pitune.watching import holder

SECRET = "hush-hush-hush"
FILES = {"a.txt": b"first", "b/c.bin": bytes(range(256)) * 40}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3server.moto() as port:
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    made = Proxy(server)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the environment have credentials, and nothing else have any."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setattr(lease, "SETTLE", 0.05)


@pytest.fixture
def uri(proxy: Proxy, request: pytest.FixtureRequest) -> str:
    """A study in a bucket of the test's own."""
    where = f"127.0.0.1:{proxy.port}"
    bucket = f"bucket-{abs(hash(request.node.name))}"
    options = {"endpoint_override": where, "scheme": "http", "region": "us-east-1"}
    fs.S3FileSystem(**options, allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/studies/one?endpoint_override={where}&scheme=http&region=us-east-1"


def test_what_is_committed_is_read_listed_verified_and_discarded(uri: str) -> None:
    store = Store(uri)
    assert not store.artifacts() and not store.is_locked() and store.manifest("experts/x") is None
    store.commit("experts/x", {"a.txt": b"before", "old.txt": b""}, "before")
    store.commit("experts/x", FILES, "mark", seconds=1.5)
    store.commit("results.parquet", {"": b"table"}, "mark")
    store.write("study.yaml", b"study: one")
    again = pickle.loads(pickle.dumps(Store(uri)))
    assert {name: again.read("experts/x", name) for name in FILES} == FILES
    assert again.read("results.parquet") == b"table"
    assert again.is_current("experts/x", "mark") and again.catalogue()["experts/x"]["seconds"] == 1.5
    assert list(again.artifacts()) == ["experts/x", "results.parquet"] and not list(again.problems())
    assert again.text("study.yaml") == "study: one" and again.name == "one"
    again.discard("experts/x")
    assert store._place.listing().keys() == {"results.parquet", "results.parquet.manifest.json", "study.yaml"}
    with store.scratch("train") as place:
        system, path = fs.FileSystem.from_uri(place)
        with system.open_output_stream(f"{path}/shard") as stream:
            stream.write(b"1")
        assert ".ray/train/shard" in store._place.listing()
    assert ".ray/train/shard" not in store._place.listing()


def test_damaged_and_lost_objects_are_found(uri: str) -> None:
    store = Store(uri)
    for name in ("cut", "changed", "lost", "good"):
        store.commit(f"experts/{name}", FILES, "mark")
    store._place.write("experts/cut/a.txt", b"fir")
    store._place.write("experts/changed/a.txt", b"FIRST")
    store._place.delete("experts/lost/a.txt")
    problems = list(store.problems())
    assert len(problems) == 3 and "experts/lost/a.txt: missing" in problems
    assert not store.is_current("experts/cut", "mark") and not store.is_current("experts/lost", "mark")
    with pytest.raises(PituneError, match=r"changed/a\.txt\?\S*: sha256 .* its manifest says .*; delete it"):
        store.read("experts/changed", "a.txt")


def test_the_second_writer_waits_for_the_first_ones_lease_to_end(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 2.0)
    first, second = Store(uri), Store(uri)
    with first.lock():
        began = json.loads(first.text(".lease"))
        time.sleep(3.0)
        assert json.loads(first.text(".lease"))["time"] > began["time"] and second.is_locked()
        assert "another pitune process is working on it" in refused(second)
        first.commit("experts/x", FILES, "mark")
    assert not second.is_locked()
    worker = pickle.loads(pickle.dumps(first))
    with second.lock():
        second.commit("experts/y", FILES, "mark")
        taken = pickle.loads(pickle.dumps(second))
    with pytest.raises(PituneError, match="took it over, or its run has ended"):
        taken.commit("experts/y", FILES, "late")
    worker.commit("experts/z", FILES, "mark")  # of nobody's run


def test_two_writers_leave_one_whole_artifact(uri: str) -> None:
    store = Store(uri)
    for number in range(3):
        assert commit_both(lambda: Store(uri), f"x/{number}") == []
    assert not list(store.problems()) and len(store.artifacts()) == 3
    for artifact, manifest in store.artifacts().items():
        assert {name: store.read(artifact, name) for name in manifest["files"]} == content(manifest["fingerprint"])


def test_an_endpoint_that_is_away_for_a_while_is_waited_for(uri: str, proxy: Proxy, server: int) -> None:
    store = Store(uri)
    store.commit("experts/x", FILES, "mark")
    proxy.close()
    back: list[Proxy] = []
    timer = threading.Timer(1.5, lambda: back.append(Proxy(server, proxy.port)))
    timer.start()
    store.commit("experts/y", FILES, "mark")
    assert back and store.read("experts/y", "a.txt") == b"first" and not list(store.problems())
    timer.join()
    back[0].close()


@pytest.mark.parametrize("fault", ["refused", "lost"])
def test_answers_that_fail_now_and_then_change_nothing(uri: str, proxy: Proxy, fault: str) -> None:
    store = Store(uri)
    setattr(proxy, fault, 5)
    with store.lock():
        for number in range(3):
            store.commit(f"experts/{number}", FILES, "mark")
        store.commit("experts/0", {"a.txt": b"second"}, "again")
        store.discard("experts/1")
        assert list(store.artifacts()) == ["experts/0", "experts/2"] and not list(store.problems())
        assert store.read("experts/0", "a.txt") == b"second" and store.read("experts/2", "b/c.bin") == FILES["b/c.bin"]
    assert not store.is_locked() and not [path for path in store._place.listing() if path.endswith(".partial")]


def test_what_is_wrong_with_a_bucket_is_one_line(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Store(uri.replace("s3://bucket", "s3://no-bucket"))
    assert "cannot be written (there is no such bucket); name one that can" in refused(nowhere)
    with pytest.raises(PituneError, match=r"cannot be written \(there is no such bucket\)"):
        nowhere.commit("experts/x", FILES, "mark")
    Store(uri).commit("experts/x", FILES, "mark")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(
        PituneError, match=r"cannot be read \(access is denied; credentials come from AWS_ACCESS"
    ) as caught:
        Store(uri).catalogue()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_study_in_a_bucket_is_made_and_holds_no_credentials(
    uri: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pitune.report.write_report", lambda store: None)
    monkeypatch.setattr(study_module, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(study_module, "LOOK_SECONDS", 0.0)
    proxy.refused = 20
    path = make_study(tmp_path, study=uri, methods=["zero_shot", "single"], targets=["alpha@2#0"])
    opener = Opener()
    Study(load_config(path), opener).run(Quiet())
    store = Store(uri)
    assert store.manifest("results.parquet") and not list(store.problems()) and not store.is_locked()
    assert holder(store).endswith("UTC: finished")
    held = {name: store._place.read(name) for name in store._place.listing()}
    assert len(held) > 20 and not any(SECRET.encode() in data for data in held.values())
    Study(load_config(path), again := Opener()).run(Quiet())
    assert opener.log and not again.log


class Quiet:
    """Is told how far a study is, and says nothing."""

    def show(self, stages: object) -> None:
        """Say nothing."""
