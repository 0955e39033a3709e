"""Start a local Ray, or join a cluster, for as long as a ``with`` block lasts.

What is notable about the local one:

- It wants a token that only this process and its children know: Ray listens beyond loopback whatever it is told, and
  without a token whoever reaches it may run code. Nor is a cluster joined that wants none and is reached from beyond.
- It ends when this process ends, however that ends. Ray leaves two agents behind for a minute if its driver is killed;
  a watchdog waits for this process's end, kills whatever still has a file open in the temporary folder, and removes it.
- The object store is bounded: packs and progress go through Ray, weights and data do not.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from pitune import signals
from pitune.assets import cache_folder
from pitune.errors import PituneError

NAMESPACE = "pitune"
OBJECT_STORE_BYTES = 256 * 2**20
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # seconds until a gang's end, or death, is noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # until one without room gives its pack back, and asks again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker that asked for no GPU sees none
    "RAY_DEDUP_LOGS": "0",
}
"""Set before Ray starts, where the user has not set them."""

WATCHDOG = """
import os, shutil, signal, sys, time
folder, driver = sys.argv[1], int(sys.argv[2])
def users():
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit() and int(name) not in (os.getpid(), driver):
            try:
                links = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
            except OSError:
                continue
            if any(link.startswith(folder + "/") for link in links):
                yield int(name)
orderly = sys.stdin.read() == "orderly"
for attempt in range(40):
    left = list(users())
    if not left:
        break
    if attempt >= 8 and not orderly:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
    time.sleep(0.25)
shutil.rmtree(folder, ignore_errors=True)
"""
"""Waits until its standard input ends, which the driver's death brings about too; kills only where nobody said goodbye.

Arguments: Ray's temporary folder, the driver's process id.
"""


@contextlib.contextmanager
def connect(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Start a local Ray, or join the cluster at ``address``; at the end of the block, stop what was started.

    Args:
        address: ``host:port``, ``auto``, or None for a local Ray. Joining ships no working folder and no packages:
            the cluster's machines have pitune installed. ``RAY_AUTH_MODE`` is ``token`` unless the environment says
            otherwise.
        cpus: of the local Ray; None: all that this process may use.

    Where this process is connected to a Ray already, that one is used, and left as it is.

    Raises:
        PituneError: the cluster cannot be reached, or the local Ray does not start; or either would run code for
            whoever reaches it.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.ExitStack() as stack:
        with signals.kept():
            if address is None:
                _start(stack, cpus)
            else:
                _join(stack, address)
        yield


def _join(stack: contextlib.ExitStack, address: str) -> None:
    """Connect to a cluster, and disconnect when ``stack`` ends."""
    _authenticate()
    try:
        joined = ray.init(
            address=address,
            namespace=NAMESPACE,
            runtime_env={"env_vars": {name: os.environ[name] for name in ENVIRONMENT}},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PituneError(
            f"Ray cluster {address}: cannot be joined ({reason}); are the address and RAY_AUTH_TOKEN right?"
        ) from error
    stack.callback(ray.shutdown)
    hosts = [str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    beyond = [host for host in hosts if not _is_loopback(host)]
    if beyond and not (_wants_token() and _is_closed(joined.dashboard_url)):
        raise PituneError(
            f"Ray cluster {address}: runs code for whoever reaches {beyond[0]}, for it wants no token; start all of it "
            "with RAY_AUTH_MODE=token (ray get-auth-token --generate makes a token)"
        )


def _start(stack: contextlib.ExitStack, cpus: int | None) -> None:
    """Start a local Ray, and stop it when ``stack`` ends."""
    if not _wants_token():
        raise PituneError(
            f"local Ray: RAY_AUTH_MODE is {os.environ['RAY_AUTH_MODE']!r}, but Ray listens beyond loopback and would "
            "run code for whoever reaches it; unset the variable"
        )
    _set(stack, "RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32)))
    _authenticate()
    # The workers have working folders of their own. They import what this process does: pitune from a checkout, a
    # test's own module.
    _set(stack, "PITUNE_CACHE", str(cache_folder()))
    entries = [str(Path(entry).absolute()) for entry in sys.path if not entry.startswith((sys.prefix, sys.base_prefix))]
    _set(stack, "PYTHONPATH", os.pathsep.join(dict.fromkeys(entries)))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine is not taken away
    folder = tempfile.mkdtemp(prefix="pitune-", dir="/tmp" if Path("/tmp").is_dir() else None)  # sockets need it short
    _watch(stack, Path(folder))
    stack.callback(ray.shutdown)
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
    except Exception as error:  # Ray raises just that where it does not come up in time
        raise PituneError(f"local Ray: does not start ({' '.join(str(error).split())[:300]})") from error


def _authenticate() -> None:
    """Use tokens unless the environment says otherwise; Ray read the environment when it was imported."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _wants_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):  # a name
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _is_closed(dashboard: str | None) -> bool:
    """Say whether a cluster's job API, if it has one, refuses those who have no token."""
    import httpx2  # here, as most runs join no cluster

    if not dashboard:
        return True
    try:
        return httpx2.get(f"http://{dashboard}/api/jobs/", timeout=10).status_code in (401, 403)
    except httpx2.HTTPError:  # it cannot be reached from here
        return True


def _set(stack: contextlib.ExitStack, name: str, value: str) -> None:
    """Set an environment variable until ``stack`` ends."""
    before = os.environ.get(name)
    os.environ[name] = value

    def restore() -> None:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before

    stack.callback(restore)


def _watch(stack: contextlib.ExitStack, folder: Path) -> None:
    """Start the watchdog over ``folder``; it acts when ``stack`` ends or this process does."""
    watchdog = subprocess.Popen(
        [sys.executable, "-S", "-c", WATCHDOG, str(folder.resolve()), str(os.getpid())],
        stdin=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is not meant for it
    )

    def release() -> None:
        assert watchdog.stdin is not None
        watchdog.stdin.write("orderly")
        watchdog.stdin.close()
        watchdog.wait()

    stack.callback(release)
