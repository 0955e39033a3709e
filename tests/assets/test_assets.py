"""Assets: real packages from the configured index, and hand-made ones that are wrong in every way."""

from __future__ import annotations

import http.server
import multiprocessing
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from handmade import link, refusal, sha, tarred, zipped

from pitune.assets import archives, content_hash, fetch, pip, pypi, registry
from pitune.assets.pip import pip_settings

VADER = "pypi:vaderSentiment==3.3.1#additional_resources/hutto_ICWSM_2014.tar.gz"


def fetched_path(uri: str) -> Path:
    return fetch(uri).path


class Index:
    """A package index in a folder, by file:// or over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, project: str, file: str, data: bytes, digest: str | None = None) -> None:
        place = self.folder / project
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(data)
        with (place / "index.html").open("a") as page:
            page.write(f'<a href="{file}#sha256={digest or sha(data)}">{file}</a>\n')

    @property
    def uri(self) -> str:
        return self.folder.as_uri()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Index:
    """The only index that pip is configured with; another one is missing, which must not matter."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    made = Index(tmp_path / "simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(pip, "_pip_config_list", str)  # the variables say it all, and pip takes a second to start
    monkeypatch.setenv("PIP_INDEX_URL", made.uri)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "not-there").as_uri())
    return made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str], dict[str, int]]]:
    """The index folder over HTTP: its address, the paths asked for, and how many bytes of a file to break off after."""
    asked: list[str] = []
    broken: dict[str, int] = {}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "simple"))

        def do_GET(self) -> None:
            asked.append(self.path)
            name = self.path.rsplit("/", 1)[-1]
            if name not in broken:
                return super().do_GET()
            data = (tmp_path / "simple" / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: broken[name]])
            return None

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked, broken
        running.shutdown()


# --- the real thing ------------------------------------------------------------------------------------------------


def test_a_nested_file_of_a_real_sdist(cache: Path) -> None:
    file = fetch(f"{VADER}#hutto_ICWSM_2014/tweets_GroundTruth.txt")
    data = file.path.read_bytes()
    assert file.sha256 == sha(data) and file.path.name == "tweets_GroundTruth.txt"
    assert data.count(b"\r\n") == 4200 - (not data.endswith(b"\n")) and data.startswith(b"1\t2.726315789\t")
    whole = fetch(VADER)
    with tarfile.open(whole.path) as archive:
        inner = archive.extractfile("hutto_ICWSM_2014/tweets_GroundTruth.txt")
        assert inner is not None and inner.read() == data
    assert fetch(f"{VADER}#hutto_ICWSM_2014/tweets_GroundTruth.txt", file.sha256) == file


def test_an_unknown_version_of_a_real_package_names_those_there_are(cache: Path) -> None:
    assert "no version 9.9 of vaderSentiment; there are" in refusal("pypi:vaderSentiment==9.9")


# --- what is inside ------------------------------------------------------------------------------------------------


def test_the_wheel_goes_first_then_the_sdist(index: Index) -> None:
    index.add("toy", "toy-1.0-py3-none-any.whl", zipped({"toy/a.txt": b"wheel", "toy/d/b.txt": b"b"}))
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/toy/a.txt": b"sdist", "toy-1.0/extra/c.txt": b"c"}))
    assert fetch("pypi:toy==1.0#toy/a.txt").path.read_bytes() == b"wheel"
    assert fetch("pypi:Toy==1#extra/c.txt").path.read_bytes() == b"c"
    folder = fetch("pypi:toy==1.0#toy")
    assert {p.relative_to(folder.path).as_posix() for p in folder.path.rglob("*.txt")} == {"a.txt", "d/b.txt"}
    listing = f"a.txt\0{sha(b'wheel')}\nd/b.txt\0{sha(b'b')}\n"
    assert folder.sha256 == sha(listing.encode()) == content_hash(folder.path)


def test_a_wheel_for_another_system_will_do_as_nothing_is_run(index: Index) -> None:
    index.add("toy", "toy-1.0-cp27-cp27m-win32.whl", zipped({"toy/a.txt": b"data"}))
    assert fetch("pypi:toy==1.0#toy/a.txt").path.read_bytes() == b"data"


def test_archives_in_archives(index: Index) -> None:
    inner = tarred({"x/y.txt": b"deep"}, link("x/also.txt", "y.txt"))
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/mid.zip": zipped({"in/inner.tgz": inner})}))
    assert fetch("pypi:toy==1.0#mid.zip#in/inner.tgz#x/y.txt").path.read_bytes() == b"deep"
    also = fetch("pypi:toy==1.0#mid.zip#in/inner.tgz#x/also.txt").path
    assert also.read_bytes() == b"deep" and not also.is_symlink()
    assert "is no archive (zip, tar, deb)" in refusal("pypi:toy==1.0#mid.zip#in/inner.tgz#x/y.txt#z")


def test_no_such_path_names_near_ones(index: Index) -> None:
    index.add("toy", "toy-1.0-py3-none-any.whl", zipped({"toy/model/config.json": b"{}", "toy/other.txt": b""}))
    text = refusal("pypi:toy==1.0#model/confg.json")
    assert "no 'model/confg.json' inside toy 1.0; there are toy/model/config.json" in text


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "C:\\evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_member_that_escapes_is_refused(index: Index, tmp_path: Path, name: str, pack: Any) -> None:
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/bad.archive": pack({"good.txt": b"1", name: b"2"})}))
    assert "refused" in refusal("pypi:toy==1.0#bad.archive#good.txt")
    assert not list(tmp_path.rglob("evil.txt")) and not list(tmp_path.rglob("good.txt"))


@pytest.mark.parametrize(
    "member",
    [
        link("out", "../../out"),
        link("out", "/etc/passwd"),
        link("out", "../../../etc/passwd", tarfile.LNKTYPE),
        link("out", "", tarfile.FIFOTYPE),
    ],
)
def test_links_out_and_devices_are_refused(index: Index, member: tarfile.TarInfo) -> None:
    index.add("toy", "toy-1.0.tar.gz", tarred({"good.txt": b"1"}, member))
    assert "refused, its member 'out'" in refusal("pypi:toy==1.0")


def test_a_link_in_a_zip_is_refused(tmp_path: Path, cache: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("out")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert "is a link" in refusal(f"{tmp_path}/a.zip#out")


@pytest.mark.parametrize("keep", [10, 150])
def test_a_damaged_archive_is_one_line(tmp_path: Path, cache: Path, keep: int) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tarred({"x": os.urandom(1000)})[:keep])
    (tmp_path / "a.zip").write_bytes(zipped({"x": os.urandom(1000)})[:keep])
    refusal(f"{tmp_path}/a.tar.gz#x")
    assert "damaged" in refusal(f"{tmp_path}/a.zip#x")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_bomb_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, pack: Any) -> None:
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    monkeypatch.setattr(archives, "MOST_GROWTH", 0)
    (tmp_path / "bomb").write_bytes(pack({"zeros": bytes(3 << 20)}))
    assert "refused, bomb unpacks to more than" in refusal(f"{tmp_path}/bomb#zeros")
    assert not (cache / "content").exists() and not list((cache / "work").iterdir())


# --- indexes -------------------------------------------------------------------------------------------------------


def test_what_the_index_does_not_have(index: Index) -> None:
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/a": b"1"}))
    index.add("toy", "toy-1.10-py3-none-any.whl", zipped({"a": b"1"}))
    assert "no version 9.9 of toy; there are 1.0, 1.10" in refusal("pypi:toy==9.9")
    assert "no package absent on the indexes" in refusal("pypi:absent==1.0")
    assert "is not a version" in refusal("pypi:toy==latest!")
    assert "pypi:NAME==VERSION" in refusal("pypi:toy")


def test_a_wrong_checksum_of_the_index_keeps_nothing(index: Index, cache: Path) -> None:
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/a": b"1"}), digest="0" * 64)
    assert f"its index says {'0' * 64}" in refusal("pypi:toy==1.0#a")
    assert not (cache / "content").exists() and not list((cache / "work").iterdir())


def test_a_wrong_checksum_of_the_content(index: Index) -> None:
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/a": b"1"}))
    assert fetch("pypi:toy==1.0#a", sha(b"1").upper()).sha256 == sha(b"1")
    assert f"its sha256 is {sha(b'1')}, expected {sha(b'2')}" in refusal("pypi:toy==1.0#a", sha(b"2"))


def test_find_links_without_an_index(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "toy-2.0-py3-none-any.whl").write_bytes(zipped({"a.txt": b"found"}))
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'wheels'} {tmp_path / 'gone'}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch("pypi:toy==2.0#a.txt").path.read_bytes() == b"found"
    assert "there are 2.0" in refusal("pypi:toy==1.0")


def test_the_environment_goes_before_pip_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = file:///g\ntrusted-host =\n  one\n  two\n[install]\ncert = /i\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    settings = pip_settings()
    assert settings["index-url"] == "file:///g" and settings["cert"] == "/i"
    assert settings["trusted-host"].split() == ["one", "two"]
    monkeypatch.setenv("PIP_INDEX_URL", "file:///e")
    assert pip_settings()["index-url"] == "file:///e"


def test_who_asks_is_not_said(tmp_path: Path, cache: Path) -> None:
    text = refusal("s3://me:secret@bucket/a.csv")
    assert text.startswith("s3://bucket/a.csv: no such file or folder")


def test_no_network_is_one_line(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    text = refusal("pypi:toy==1.0")
    assert "the package index cannot be reached" in text and "secret" not in text


def test_an_interrupted_download_is_not_kept_and_can_be_repeated(
    index: Index,
    server: tuple[str, list[str], dict[str, int]],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, asked, broken = server
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/a": os.urandom(5000)}))
    monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setattr("pitune.assets.registry.time.sleep", lambda seconds: None)
    broken["toy-1.0.tar.gz"] = 1000
    assert "download of toy-1.0.tar.gz failed" in refusal("pypi:toy==1.0#a")
    assert asked.count("/toy/toy-1.0.tar.gz") == registry.ATTEMPTS
    assert not (cache / "content").exists() and not list((cache / "records").glob("*"))
    broken.clear()
    assert fetch("pypi:toy==1.0#a").path.stat().st_size == 5000


# --- the cache -----------------------------------------------------------------------------------------------------


def test_the_second_fetch_needs_no_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/a": b"1", "toy-1.0/b": b"2"}))
    first = fetch("pypi:toy==1.0#a")
    monkeypatch.setattr(pypi, "pip_settings", lambda: pytest.fail("the index was asked"))
    assert fetch("pypi:toy==1.0#a") == first
    assert fetch("pypi:toy==1.0#b").path.read_bytes() == b"2"


def test_spoilt_content_is_found_out_and_made_anew(index: Index) -> None:
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/a": b"good"}))
    path = fetch("pypi:toy==1.0#a").path
    path.write_bytes(b"evil")
    assert fetch("pypi:toy==1.0#a").path.read_bytes() == b"good"
    path.unlink()
    assert fetch("pypi:toy==1.0#a").path.read_bytes() == b"good"


def test_many_processes_at_once_download_once(
    index: Index, server: tuple[str, list[str], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked, _ = server
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/a": b"1", "toy-1.0/b": b"2"}))
    monkeypatch.setenv("PIP_INDEX_URL", address)
    # Forked, as a new process would spend its time on imports.
    with multiprocessing.get_context("fork").Pool(3) as pool:
        paths = pool.map(fetched_path, ["pypi:toy==1.0#a", "pypi:toy==1.0#a", "pypi:toy==1.0#b"], chunksize=1)
    assert paths[0] == paths[1] != paths[2]
    assert asked.count("/toy/toy-1.0.tar.gz") == 1


def test_a_cache_that_cannot_be_made_is_one_line(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("toy", "toy-1.0.tar.gz", tarred({"toy-1.0/a": b"1"}))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be fetched" in refusal("pypi:toy==1.0#a")


# --- local paths ---------------------------------------------------------------------------------------------------


def test_local_paths(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "movie@16#0").mkdir()
    (tmp_path / "movie@16#0" / "x.txt").write_text("x")
    (tmp_path / "a.zip").write_bytes(zipped({"in/x.txt": b"zipped"}))
    monkeypatch.chdir(tmp_path)
    assert fetch("movie@16#0/x.txt").path == tmp_path / "movie@16#0" / "x.txt"
    assert fetch(str(tmp_path / "movie@16#0")).sha256 == sha(f"x.txt\0{sha(b'x')}\n".encode())
    assert fetch("a.zip#in/x.txt").path.read_bytes() == b"zipped"
    (tmp_path / "a.zip").write_bytes(zipped({"in/x.txt": b"changed"}))
    assert fetch("a.zip#in/x.txt").path.read_bytes() == b"changed"
    assert "no such file or folder" in refusal("absent.csv")
    assert "no such file or folder" in refusal("https://somewhere/x.csv")


def test_a_local_file_that_changes_changes_its_hash_at_once(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "x.txt"
    for text in (b"one", b"two"):
        file.write_bytes(text)
        assert fetch(str(file)).sha256 == sha(text)


# --- the Hub -------------------------------------------------------------------------------------------------------


def snapshot(folder: Path, asked: list[Any]) -> Any:
    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(folder)

    return download


def test_a_model_repository_without_its_pickles(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "hub" / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "code.py", "1_Pooling/config.json"):
        (tmp_path / "hub" / name).write_text(name)
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot(tmp_path / "hub", asked))
    model = fetch("hf:me/model@v1")
    found = {p.relative_to(model.path).as_posix() for p in model.path.rglob("*") if p.is_file()}
    assert found == {"config.json", "model.safetensors", "1_Pooling/config.json"}
    assert asked[0][0] == "me/model" and asked[0][1]["repo_type"] == "model" and asked[0][1]["revision"] == "v1"
    assert not any(pattern in ("*.bin", "*.pt", "*.pkl", "*") for pattern in asked[0][1]["allow_patterns"])
    fetch("hf:me/model@v1")
    assert len(asked) == 1
    assert fetch("hf:me/model@v1#1_Pooling/config.json").path.read_text() == "1_Pooling/config.json"
    assert "is of a kind that is not read" in refusal("hf:me/model#pytorch_model.bin")


def test_a_file_of_a_data_set_repository(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.csv").write_text("text,label\n")
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot(tmp_path / "hub", asked))
    assert fetch("hf:datasets/me/data#train.csv").path.read_text() == "text,label\n"
    assert asked[0][1]["repo_type"] == "dataset" and asked[0][1]["revision"] is None


def test_pictures_of_a_data_set_repository(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from pitune.assets.hub import PICTURE_ENDINGS

    (tmp_path / "hub" / "cats").mkdir(parents=True)
    pictures = {
        f"{name}{ending}" for ending in PICTURE_ENDINGS for name, ending in (("a", ending), ("B", ending.upper()))
    }
    for name in (*pictures, "code.py", "weights.bin", "c.svg"):
        (tmp_path / "hub" / "cats" / name).write_text(name)
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot(tmp_path / "hub", asked))
    data = fetch("hf:datasets/me/data")
    assert {path.name for path in (data.path / "cats").iterdir()} == pictures
    assert all(any(Path(name).match(pattern) for pattern in asked[0][1]["allow_patterns"]) for name in pictures)
    assert fetch("hf:datasets/me/data#cats/B.JPG").path.read_text() == "B.JPG"
    assert "is of a kind that is not read" in refusal("hf:datasets/me/data#cats/c.svg")
    assert "is of a kind that is not read" in refusal("hf:me/model#a.png")


def test_the_hub_out_of_reach_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment |= {"PITUNE_CACHE": str(tmp_path / "cache")}
    code = "from pitune.errors import PituneError\nfrom pitune.assets import fetch\n"
    code += "try:\n    fetch('hf:me/model')\nexcept PituneError as error:\n    print(error)\n"
    run = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment, timeout=30
    )
    assert run.stdout == "hf:me/model: is not in the cache and the Hugging Face Hub cannot be reached\n", run.stderr
    assert run.stderr == ""
