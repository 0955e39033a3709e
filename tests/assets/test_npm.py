"""npm packages, from a made-up registry that npm's own settings lead to."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from handmade import refusal, tarred

from pitune.assets import fetch, npm, npmrc
from pitune.assets.npmrc import npm_settings

TOY = tarred({"package/a.json": b"[1]", "package/package.json": b'{"scripts": {"install": "exit 1"}}'})


def integrity(data: bytes, algorithm: str = "sha512") -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


class Registry:
    """A registry on this machine: pages by path, and what was asked with which proof of who asks."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.address = ""

    def add(self, name: str, version: str, data: bytes, under: str = "", **dist: Any) -> dict[str, Any]:
        page = json.loads(self.pages.get(f"{under}/{name}", b'{"versions": {}}'))
        file = f"{under}/{name}/-/{version}.tgz"
        page["versions"][version] = {"dist": {"tarball": self.address + file, "integrity": integrity(data)} | dist}
        self.pages |= {f"{under}/{name}": json.dumps(page).encode(), file: data}
        return page

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@pytest.fixture
def registry(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The registry that the user's ``.npmrc`` names."""
    made = Registry()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((unquote(self.path), self.headers["Authorization"]))
            page = made.pages.get(unquote(self.path))
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Length", str(len(page or b"")))
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *args: Any) -> None:
            pass

    for name in [name for name in os.environ if name.lower().startswith("npm_config_")]:
        monkeypatch.delenv(name)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    monkeypatch.setenv("NPM_CONFIG_GLOBALCONFIG", os.devnull)
    monkeypatch.setattr(npmrc, "_npm_default", lambda: npmrc.DEFAULT_REGISTRY)  # an npm takes a second to start
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        made.address = f"http://127.0.0.1:{running.server_address[1]}"
        (tmp_path / "npmrc").write_text(f"; mine\nregistry = {made.address}/ ; the mirror\n")
        yield made
        running.shutdown()


# --- what is inside ------------------------------------------------------------------------------------------------


def test_a_file_and_all_of_a_package(registry: Registry) -> None:
    registry.add("toy", "1.0.0", TOY)
    assert fetch("npm:toy@1.0.0#package/a.json").path.read_bytes() == b"[1]"
    folder = fetch("npm:toy@1.0.0").path
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.json")} == {
        "package/a.json",
        "package/package.json",
    }
    assert registry.paths() == ["/toy", "/toy/-/1.0.0.tgz"]


def test_archives_in_packages(registry: Registry) -> None:
    registry.add("toy", "1.0.0", tarred({"package/in.tgz": tarred({"x/y.txt": b"deep"})}))
    assert fetch("npm:toy@1.0.0#package/in.tgz#x/y.txt").path.read_bytes() == b"deep"
    assert "no 'package/in.tar' inside toy-1.0.0.tgz; there are package/in.tgz" in refusal(
        "npm:toy@1.0.0#package/in.tar"
    )


def test_a_member_that_escapes_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.add("toy", "1.0.0", tarred({"package/a": b"1", "package/../../evil.txt": b"2"}))
    assert "refused" in refusal("npm:toy@1.0.0#package/a")
    assert not list(tmp_path.rglob("evil.txt"))


# --- the cache -----------------------------------------------------------------------------------------------------


def test_the_second_fetch_needs_no_registry(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add("toy", "1.0.0", TOY)
    first = fetch("npm:toy@1.0.0#package/a.json")
    monkeypatch.setattr(npm, "npm_settings", lambda: pytest.fail("the registry was asked"))
    assert fetch("npm:toy@1.0.0#package/a.json") == first
    assert fetch("npm:toy@1.0.0#package/package.json").path.exists()


def test_spoilt_content_is_found_out_and_made_anew(registry: Registry, cache: Path) -> None:
    registry.add("toy", "1.0.0", TOY)
    path = fetch("npm:toy@1.0.0#package/a.json").path
    path.write_bytes(b"[666]")
    assert fetch("npm:toy@1.0.0#package/a.json").path.read_bytes() == b"[1]"
    assert len(registry.asked) == 2
    for file in [path, *cache.rglob("toy-1.0.0.tgz")]:
        file.write_bytes(b"spoilt")
    assert fetch("npm:toy@1.0.0#package/a.json").path.read_bytes() == b"[1]"
    assert registry.paths().count("/toy/-/1.0.0.tgz") == 2


# --- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dist", "text"),
    [
        ({"integrity": integrity(b"other")}, "has the sha512"),
        ({"integrity": f"{integrity(b'other')} {integrity(TOY, 'sha1')}"}, "has the sha512"),
        ({"integrity": None, "shasum": "0" * 40}, f"its index says {'0' * 40}; it was not kept"),
        ({"integrity": None}, "gives no integrity"),
        ({"integrity": "md5-abcd"}, "gives no integrity"),
        ({"integrity": "sha512-?"}, "gives no integrity"),
        ({"integrity": "sha512-*!*"}, "is not of the form sha512-"),
        ({"tarball": None}, "names no tarball for toy 1.0.0"),
        ({"tarball": "gopher://nowhere/toy.tgz"}, "download of toy-1.0.0.tgz failed"),
    ],
)
def test_a_wrong_integrity_keeps_nothing(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch, dist: dict[str, Any], text: str
) -> None:
    monkeypatch.setattr("pitune.assets.registry.time.sleep", lambda seconds: None)
    registry.add("toy", "1.0.0", TOY, **dist)
    assert text in refusal("npm:toy@1.0.0#package/a.json")
    assert not (cache / "content").exists() and not list((cache / "work").iterdir())


def test_any_of_the_strongest_hashes_will_do(registry: Registry) -> None:
    hashes = {"integrity": f"{integrity(b'other')} {integrity(TOY)}?opt {integrity(b'other', 'sha1')}"}
    registry.add("toy", "1.0.0", TOY, **hashes)
    registry.add("toy", "1.0.1", TOY, integrity=None, shasum=hashlib.sha1(TOY).hexdigest())
    assert fetch("npm:toy@1.0.0#package/a.json") != fetch("npm:toy@1.0.1#package/a.json")


def test_what_the_registry_does_not_have(registry: Registry) -> None:
    for version in ("1.10.0", "1.9.0"):
        registry.add("toy", version, TOY)
    assert "no version 2.0.0 of toy; there are 1.9.0, 1.10.0" in refusal("npm:toy@2.0.0")
    assert "no version latest of toy" in refusal("npm:toy@latest")
    assert "no package absent on the registry that npm is configured with" in refusal("npm:absent@1.0.0")
    for wrong in ("npm:toy", "npm:../toy@1.0.0", "npm:@toy@1.0.0", "npm:toy@1/../2"):
        assert "is not of the form npm:NAME@VERSION#path/inside" in refusal(wrong)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"versions": 3}'])
def test_an_answer_that_is_none(registry: Registry, answer: bytes) -> None:
    registry.pages["/toy"] = answer
    assert "answer about toy names no versions" in refusal("npm:toy@1.0.0")


def test_no_network_is_one_line(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://user:secret@127.0.0.1:9/")
    text = refusal("npm:toy@1.0.0")
    assert "the npm registry cannot be reached" in text and "secret" not in text
    monkeypatch.setenv("NPM_CONFIG_FETCH_TIMEOUT", "soon")
    assert "npm's proxy or fetch-timeout cannot be used" in refusal("npm:toy@1.0.0")


# --- npm's settings ------------------------------------------------------------------------------------------------


def test_a_scope_has_its_own_registry_and_proof(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add("@me/toy", "1.0.0", TOY, under="/private")
    registry.add("toy", "1.0.0", TOY)
    host = registry.address.removeprefix("http:")
    (tmp_path / "project" / ".npmrc").write_text(
        f"@me:registry={registry.address}/private/\n# a comment = no option\n{host}/private/:_authToken=${{TOKEN}}\n"
    )
    monkeypatch.setenv("TOKEN", "hush==")
    assert fetch("npm:@me/toy@1.0.0#package/a.json").path.read_bytes() == b"[1]"
    assert fetch("npm:toy@1.0.0#package/a.json").path.read_bytes() == b"[1]"
    proofs = dict(registry.asked)
    assert proofs["/private/@me/toy"] == proofs["/private/@me/toy/-/1.0.0.tgz"] == "Bearer hush=="
    assert proofs["/toy"] is proofs["/toy/-/1.0.0.tgz"] is None


def test_the_environment_goes_before_the_files(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "global").write_text('cafile = "/g"\nregistry=http://global/\nproxy=http://g\n')
    monkeypatch.setenv("NPM_CONFIG_GLOBALCONFIG", str(tmp_path / "global"))
    assert npm_settings().registry("toy") == f"{registry.address}/" and npm_settings().get("cafile") == "/g"
    (tmp_path / "project" / ".npmrc").write_text("registry=http://project/\nproxy=null\n")
    assert npm_settings().registry("toy") == "http://project/" and npm_settings().get("proxy") is None
    monkeypatch.setenv("npm_config_registry", "http://variable/")
    monkeypatch.setenv("npm_config_@me:registry", "http://scope/")
    assert npm_settings().registry("toy") == "http://variable/"
    assert npm_settings().registry("@me/toy") == "http://scope/"
    assert npm_settings().registry("@you/toy") == "http://variable/"


def test_what_proves_who_asks(registry: Registry, tmp_path: Path) -> None:
    password = base64.b64encode(b"word").decode()
    (tmp_path / "npmrc").write_text(
        f"//a.test/:_auth=abc=\n//a.test/deep/:username=me\n//a.test/deep/:_password={password}\n//b.test:81/:_authToken=t\n"
    )
    headers = npm_settings().headers
    assert headers("https://a.test/toy") == {"Authorization": "Basic abc="}
    assert headers("https://a.test/deep/toy") == {"Authorization": f"Basic {base64.b64encode(b'me:word').decode()}"}
    assert headers("https://u:p@b.test:81/x/y.tgz") == {"Authorization": "Bearer t"}
    assert headers("https://b.test/x") == headers("https://c.test/a.test/") == {}


def test_a_mirror_that_passes_on_the_addresses_of_another_host(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = registry.add("toy", "1.0.0", TOY, under="/mirror")
    page["versions"]["1.0.0"]["dist"]["tarball"] = "https://registry.npmjs.example/toy/-/1.0.0.tgz"
    registry.pages["/mirror/toy"] = json.dumps(page).encode()
    monkeypatch.setenv("npm_config_registry", f"{registry.address}/mirror")
    assert fetch("npm:toy@1.0.0#package/a.json").path.read_bytes() == b"[1]"
    monkeypatch.setenv("npm_config_replace_registry_host", "never")
    settings = npm_settings()
    assert npm._mirrored("https://npmjs.example/a", "http://m/", settings) == "https://npmjs.example/a"
    monkeypatch.setenv("npm_config_replace_registry_host", "always")
    assert npm._mirrored("https://any.example/m/a", "http://m:1/m/", npm_settings()) == "http://m:1/m/a"


def test_npm_says_its_own_registry_where_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert npmrc._npm_default() == npmrc.DEFAULT_REGISTRY
    (tmp_path / "npm").write_text("#!/bin/sh\necho https://npm.example/\n")
    (tmp_path / "npm").chmod(0o755)
    assert npmrc._npm_default() == "https://npm.example/"
    assert npmrc.NpmSettings({}).registry("@me/toy") == "https://npm.example/"
