"""Pushing: what is uploaded is what was exported; and one line where the Hub will not have it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakehub import Hub
from madestudy import TARGET
from tinymodel import open_encoder

import pitune
from pitune.errors import PituneError
from pitune.sharing import export, push
from pitune.store import Store


@pytest.fixture
def folder(study: Store, tmp_path: Path) -> Path:
    export(study, [TARGET], TARGET, "pi", tmp_path / "out", "other")
    return tmp_path / "out"


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")


def refusal(folder: Path, repository: str = "owner/name", private: bool = False) -> str:
    with pytest.raises(PituneError) as caught:
        push(folder, repository, private)
    assert "\n" not in str(caught.value) and "hf_" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("token")
def test_what_is_uploaded_is_what_was_exported(folder: Path, hub: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "notes.txt").write_text("for nobody else")
    assert push(folder, "owner/name") == f"{hub.url}/owner/name"
    assert hub.repositories == {"owner/name": wanted} and hub.large and not hub.private
    again = tmp_path / "again"
    again.mkdir()
    for name, data in hub.repositories["owner/name"].items():
        (again / name).write_bytes(data)
    assert hasattr(pitune.load(open_encoder(tiny_folder).model, again), "expert")
    assert push(folder, "owner/name") == f"{hub.url}/owner/name"  # once more changes nothing
    assert hub.repositories == {"owner/name": wanted}


@pytest.mark.usefixtures("token")
def test_private_is_private_or_nothing_is_uploaded(folder: Path, hub: Hub) -> None:
    push(folder, "owner/secret", private=True)
    assert hub.private == {"owner/secret"} and len(hub.repositories["owner/secret"]) == 3
    push(folder, "owner/secret", private=True)
    hub.repositories["owner/open"] = {}
    assert "owner/open: is there already, and public; name another" in refusal(folder, "owner/open", private=True)
    assert hub.repositories["owner/open"] == {}


def test_without_a_token_nothing_is_asked(folder: Path, hub: Hub) -> None:
    line = f"{hub.url}: there is no token for it; set HF_TOKEN, or log in by hf auth login"
    assert refusal(folder) == line and not hub.asked


def test_a_token_that_may_not_write_is_one_line(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert refusal(folder) == (
        f"{hub.url}: refused owner/name (403: You don't have the rights to do this; the token may not write there)"
    )
    hub.repositories["owner/name"] = {}  # it is there, but another's
    assert "refused owner/name (403" in refusal(folder) and hub.repositories["owner/name"] == {}


@pytest.mark.usefixtures("token")
def test_other_mistakes_are_one_line(folder: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(folder, "a/b/c") == "'a/b/c' is no name of a repository; write OWNER/NAME"
    assert "is not an expert's folder (No such file or directory" in refusal(tmp_path / "nothing")
    (folder / "README.md").unlink()
    assert refusal(folder).endswith("has no README.md, the model card; pitune export writes one") and not hub.asked
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert refusal(folder).startswith("http://127.0.0.1:9: owner/name cannot be uploaded (")
