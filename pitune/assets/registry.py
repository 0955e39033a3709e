"""What the registries share: how a URI is read, and how a file is downloaded, checked and kept."""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pitune.assets.cache import CHUNK, cached
from pitune.errors import PituneError, reason

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 3
"""How often a download is begun again after the connection broke."""


@dataclass(frozen=True)
class Offer:
    """A file that a registry offers.

    Attributes:
        name: what the file is called.
        url: where it lies.
        hashes: for each algorithm the hexadecimal digests of which the file must have one.
        headers: what must be sent to get it.
    """

    name: str
    url: str
    hashes: Mapping[str, Sequence[str]]
    headers: Mapping[str, str] = field(default_factory=dict)


def parts_of(uri: str, pattern: re.Pattern[str], form: str) -> tuple[re.Match[str], list[str]]:
    """Return what ``pattern`` finds in a URI before its first ``#``, and the parts after it.

    Raises:
        PituneError: the URI is not of that ``form``.
    """
    spec, *inner = uri.split("#")
    match = pattern.fullmatch(spec)
    if match is None:
        raise PituneError(f"{uri}: is not of the form {form}#path/inside")
    return match, inner


def package_of(match: re.Match[str], uri: str, make: Callable[[Path], Path]) -> Path:
    """Return the package that a URI names, as its registry packs it: from the cache, or else made by ``make``."""
    return cached(f"{match[0]}\0package", uri, make).path


def download(client: httpx2.Client, offer: Offer, work: Path, uri: str) -> Path:
    """Download a file into ``work`` and check it against the registry's own hashes.

    Raises:
        PituneError: the connection broke, the registry refused, or the checksum is wrong.
    """
    import httpx2  # here, as a fetch out of the cache needs none of it

    target = work / offer.name
    for attempt in range(ATTEMPTS):
        try:
            _stream(client, offer, target)
            break
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            if attempt + 1 == ATTEMPTS or getattr(error, "errno", None) or hasattr(error, "response"):
                raise PituneError(f"{uri}: download of {offer.name} failed ({reason(error)})") from error
            time.sleep(0.5 * 2**attempt)
    check(target, offer.hashes, uri)
    return target


def _stream(client: httpx2.Client, offer: Offer, target: Path) -> None:
    with client.stream("GET", offer.url, headers=offer.headers) as response, target.open("wb") as file:
        response.raise_for_status()
        total = int(response.headers.get("Content-Length") or 0)
        with _progress(offer.name, total) as advance:
            for chunk in response.iter_bytes(CHUNK):
                file.write(chunk)
                advance(len(chunk))


def check(file: Path, hashes: Mapping[str, Sequence[str]], uri: str) -> None:
    """Check a file against the hashes that its registry gives.

    Raises:
        PituneError: one of them is another.
    """
    for algorithm, allowed in hashes.items():
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, algorithm).hexdigest()
        if found not in allowed:
            raise PituneError(
                f"{uri}: {file.name} has the {algorithm} {found}, its index says {allowed[0]}; it was not kept"
            )


def no_version(uri: str, name: str, version: object, known: Sequence[Any], also: str = "") -> PituneError:
    """Return the error for a version that is not there, with the last ones of those that are."""
    listed = ("… " if len(known) > 10 else "") + ", ".join(map(str, known[-10:]))
    return PituneError(f"{uri}: no version {version} of {name}; there are {listed}{also}")


def certificates(bundle: str | None) -> ssl.SSLContext | bool:
    """Return what a client checks its servers with: a file or folder of certificates, or else what the system has."""
    if not bundle:
        return True
    if Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a download's progress on a terminal; elsewhere, or if it is small, nothing."""
    if total < CHUNK or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
