"""No run where Ray would run code for whoever reaches it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pitune.errors import PituneError
from pitune.runtime import cluster
from pitune.runtime.cluster import connect


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Ray that is not there, and joins a cluster of these hosts with this dashboard."""
    said: dict[str, Any] = {"hosts": [], "dashboard": None, "left": 0}

    def leave() -> None:
        said["left"] += 1

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: SimpleNamespace(dashboard_url=said["dashboard"]))
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeManagerAddress": host, "Alive": True} for host in said["hosts"]])
    monkeypatch.setattr(ray, "shutdown", leave)
    monkeypatch.setattr(cluster, "_authenticate", lambda: None)
    return said


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[str]:
    """A dashboard that answers everybody in one way; none where that is 0."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            """Say nothing."""

    if not request.param:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            yield f"127.0.0.1:{free.getsockname()[1]}"
        return
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("mode", ["disabled", "Disabled", ""])
def test_a_local_ray_that_wants_no_token_is_not_started(
    mode: str, no_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with (
        pytest.raises(PituneError, match=rf"^local Ray: RAY_AUTH_MODE is '{mode}', but .*; unset the variable$"),
        connect(),
    ):
        pass


@pytest.mark.parametrize("dashboard", [200, 500], indirect=True)
def test_a_cluster_whose_jobs_are_open_to_all_is_not_used(
    dashboard: str, no_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    no_ray.update(hosts=["127.0.0.1", "10.0.0.7"], dashboard=dashboard)
    says = r"^Ray cluster auto: runs code for whoever reaches 10\.0\.0\.7, "
    with pytest.raises(PituneError, match=says) as caught, connect("auto"):
        pass
    assert "RAY_AUTH_MODE=token" in str(caught.value) and "\n" not in str(caught.value)
    assert no_ray["left"] == 1


def test_a_cluster_that_is_joined_without_a_token_is_not_used(
    no_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    no_ray.update(hosts=["fd00::7"])
    with pytest.raises(PituneError, match="whoever reaches fd00::7"), connect("auto"):
        pass
    no_ray.update(hosts=["127.0.0.1", "::1"])  # where nobody else reaches it, it is
    with connect("auto"):
        pass


@pytest.mark.parametrize("dashboard", [401, 403, 0], indirect=True)
def test_a_cluster_that_wants_a_token_is_used(
    dashboard: str, no_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    no_ray.update(hosts=["10.0.0.7"], dashboard=dashboard)
    with connect("auto"):
        pass
