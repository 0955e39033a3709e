"""npm packages: their tarballs, from the registry npm is configured with; none of their scripts is ever run."""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from pitune.assets.archives import descend
from pitune.assets.npmrc import NpmSettings, npm_settings
from pitune.assets.registry import Offer, certificates, download, no_version, package_of, parts_of
from pitune.errors import PituneError, reason

if TYPE_CHECKING:
    import httpx2

NAME = r"(@[A-Za-z0-9~-][A-Za-z0-9._~-]*/)?[A-Za-z0-9~-][A-Za-z0-9._~-]*"
NPM = re.compile(rf"npm:(?P<name>{NAME})@(?P<version>[^#\s/:@]+)")
ABBREVIATED = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8"
"""The answer that npm itself asks for: the versions and their tarballs, without their readme files."""
ALGORITHMS = ("sha512", "sha384", "sha256", "sha1")
"""What a tarball's integrity may be given by, the strongest first."""


def from_npm(uri: str, work: Path) -> Path:
    """Unpack what an ``npm:`` URI names below ``work``; paths inside begin as in the tarball, with ``package/``."""
    match, inner = parts_of(uri, NPM, "npm:NAME@VERSION")
    make = functools.partial(_tarball, match["name"], match["version"], uri)
    return descend(package_of(match, uri, make), inner or ["."], work, uri)


def _tarball(name: str, version: str, uri: str, work: Path) -> Path:
    """Download the tarball of a package's version into ``work``."""
    settings = npm_settings()
    registry = settings.registry(name)
    with _client(settings, uri) as client:
        page = registry.rstrip("/") + "/" + quote(name, safe="@")
        versions = _versions(client, settings, page, name, uri)
        if version not in versions:
            raise no_version(uri, name, version, sorted(versions, key=_numbers))
        dist = _dist(versions[version])
        if not isinstance(dist.get("tarball"), str):
            raise PituneError(f"{uri}: the npm registry names no tarball for {name} {version}")
        url = _mirrored(urljoin(page, dist["tarball"]), registry, settings)
        file = f"{name.rpartition('/')[2]}-{version}.tgz"
        return download(client, Offer(file, url, _hashes(dist, uri), settings.headers(url)), work, uri)


def _client(settings: NpmSettings, uri: str) -> httpx2.Client:
    import httpx2  # here, as a fetch out of the cache needs none of it

    verify = settings.options.get("strict-ssl") != "false" and certificates(settings.get("cafile"))
    proxy = settings.get("https-proxy") or settings.get("proxy")
    try:
        timeout = httpx2.Timeout(float(settings.get("fetch-timeout") or 300_000) / 1000, connect=10.0)
        return httpx2.Client(verify=verify, proxy=proxy, timeout=timeout, follow_redirects=True)
    except (ValueError, httpx2.InvalidURL) as error:
        raise PituneError(f"{uri}: npm's proxy or fetch-timeout cannot be used ({reason(error)})") from error


def _versions(client: httpx2.Client, settings: NpmSettings, page: str, name: str, uri: str) -> dict[str, Any]:
    """Return what the registry says of each version of a package."""
    import httpx2

    try:
        response = client.get(page, headers={"Accept": ABBREVIATED, **settings.headers(page)})
        if response.status_code == 404:
            raise PituneError(f"{uri}: no package {name} on the registry that npm is configured with")
        response.raise_for_status()
        versions = response.json()["versions"]
    except httpx2.HTTPStatusError as error:
        raise PituneError(f"{uri}: the npm registry refused ({reason(error)})") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise PituneError(f"{uri}: the npm registry cannot be reached ({reason(error)})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PituneError(f"{uri}: the npm registry's answer about {name} names no versions") from error
    if not isinstance(versions, dict):
        raise PituneError(f"{uri}: the npm registry's answer about {name} names no versions")
    return versions


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _dist(about: object) -> Mapping[str, Any]:
    dist = about.get("dist") if isinstance(about, dict) else None
    return dist if isinstance(dist, dict) else {}


def _hashes(dist: Mapping[str, Any], uri: str) -> dict[str, list[str]]:
    """Return the strongest hashes that the registry gives for a tarball, as hexadecimal digests.

    Raises:
        PituneError: it gives none, so that nothing could be checked.
    """
    found: dict[str, list[str]] = {}
    for one in str(dist.get("integrity") or "").split():
        algorithm, _, digest = one.partition("?")[0].partition("-")
        if algorithm not in ALGORITHMS or not digest:
            continue
        try:
            found.setdefault(algorithm, []).append(base64.b64decode(digest, validate=True).hex())
        except binascii.Error as error:
            raise PituneError(f"{uri}: the npm registry's integrity {one!r} is not of the form sha512-…") from error
    if dist.get("shasum"):
        found.setdefault("sha1", []).append(str(dist["shasum"]).lower())
    for algorithm in ALGORITHMS:
        if algorithm in found:
            return {algorithm: found[algorithm]}
    raise PituneError(f"{uri}: the npm registry gives no integrity, so that the tarball could not be checked")


def _mirrored(url: str, registry: str, settings: NpmSettings) -> str:
    """Return where a tarball lies on the registry in use: a mirror may pass on the addresses of what it mirrors.

    As npm does it, by the option ``replace-registry-host``: ``never``, ``always``, a host, or ``npmjs`` (the default).
    """
    which = settings.options.get("replace-registry-host") or "npmjs"
    parts, mirror = urlsplit(url), urlsplit(registry)
    host = parts.hostname or ""
    if which not in ("always", host) and not (which == "npmjs" and which in host.split(".")):
        return url
    above = mirror.path.rstrip("/")
    path = parts.path if parts.path.startswith(above + "/") else above + parts.path
    return urlunsplit(parts._replace(scheme=mirror.scheme, netloc=mirror.netloc, path=path))
