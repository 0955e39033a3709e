"""A Hugging Face Hub on loopback that keeps what is uploaded."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """A Hub with the calls that an upload makes; it keeps repositories as files by name.

    Attributes:
        repositories: by name; the files of each.
        private: those that are private.
        tokens: who may create and write.
        asked: each request's method and path.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.tokens = {"hf_good"}
        self.asked: list[str] = []
        self.large: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does, of large files by the LFS protocol."""

    server: Hub

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: Any = None) -> None:
        text = json.dumps(body or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def body(self) -> bytes:
        self.server.asked.append(f"{self.command} {self.path}")
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        self.body()
        name = self.path.removeprefix("/api/models/")
        if name not in self.server.repositories:
            return self.answer(404, {"error": "Repository not found"})
        return self.answer(200, {"id": name, "private": name in self.server.private, "sha": "0" * 40})

    def do_PUT(self) -> None:
        data = self.body()
        self.server.large[hashlib.sha256(data).hexdigest()] = data
        self.answer(200)

    def do_POST(self) -> None:
        data = self.body()
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.server.tokens:
            return self.answer(403, {"error": "You don't have the rights\nto do this"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            return self.create(json.loads(data))
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.answer(200, {"transfer": "basic", "objects": [*map(self.place, json.loads(data)["objects"])]})
        name, _, call = self.path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
        if call == "preupload":
            return self.answer(200, {"files": [*map(how, json.loads(data)["files"])]})
        assert call == "commit", self.path
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "file":
                self.server.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            if line["key"] == "lfsFile":
                self.server.repositories[name][line["value"]["path"]] = self.server.large[line["value"]["oid"]]
        url = f"{self.server.url}/{name}/commit/{'1' * 40}"
        return self.answer(200, {"commitUrl": url, "commitOid": "1" * 40})

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization'] or 'somebody'}/{wanted['name']}"
        exists = name in self.server.repositories
        if not exists:
            self.server.repositories[name] = {}
            if wanted.get("visibility") == "private":
                self.server.private.add(name)
        self.answer(409 if exists else 200, {"url": f"{self.server.url}/{name}"})

    def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.server.url}/large/{wanted['oid']}"}}}


def how(file: dict[str, Any]) -> dict[str, Any]:
    """Return how a file is to be uploaded: weights as a large one."""
    mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
