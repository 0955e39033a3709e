"""Python packages: wheels and source distributions, from the index pip is configured with, never built or run."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from pitune.assets.archives import descend, inside, nothing_inside
from pitune.assets.cache import cached, record_path, recorded
from pitune.assets.pip import pip_settings
from pitune.assets.registry import Offer, certificates, download, no_version, parts_of
from pitune.errors import PituneError, reason

if TYPE_CHECKING:
    import httpx2
    from unearth import Link, PackageFinder
    from unearth.fetchers import Fetcher, PyPIClient

PYPI = re.compile(r"pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^#\s]+)")
DEFAULT_INDEX = "https://pypi.org/simple"


def from_pypi(uri: str, work: Path) -> Path:
    """Unpack what a ``pypi:`` URI names below ``work``: from the wheel, or else from the source distribution."""
    match, inner = parts_of(uri, PYPI, "pypi:NAME==VERSION")
    name, version = match["name"], _version(match["version"], uri)
    registry = Registry(uri)
    first, *nested = inner or ["."]
    names: list[str] = []
    for kind in ("wheel", "sdist"):
        archive = _distribution(registry, name, version, kind)
        if archive is None:
            continue
        found = inside(archive, first, work / kind, uri, below_top=kind == "sdist")
        if isinstance(found, Path):
            return descend(found, nested, work / "nested", uri) if nested else found
        names += found
    raise nothing_inside(uri, first, f"{name} {version}", names)


def _distribution(registry: Registry, name: str, version: Version, kind: str) -> Path | None:
    """Return the downloaded wheel or sdist of a package, or None where the version has none of that kind."""
    wheel, sdist = (f"pypi:{canonicalize_name(name)}=={version}:{each}" for each in ("wheel", "sdist"))
    key = wheel if kind == "wheel" else sdist
    found = recorded(key, key)
    if found is not None:
        return found.path
    if kind == "wheel" and not record_path(wheel).exists() and recorded(sdist, sdist) is not None:
        return None  # wheels are always tried first: this version had none when its sdist was fetched
    link = registry.find(name, version, kind)
    return None if link is None else cached(key, key, functools.partial(registry.download, link)).path


def _version(text: str, uri: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise PituneError(f"{uri}: {text!r} is not a version; write one like 1.2.3") from error


class Registry:
    """The package indexes and folders that pip is configured with; nothing is read before it is needed."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @functools.cached_property
    def settings(self) -> dict[str, str]:
        """What pip is configured with."""
        return pip_settings()

    @functools.cached_property
    def session(self) -> PyPIClient:
        """The client that talks to the indexes, set up as pip's own is."""
        import httpx2  # here, as a fetch out of the cache needs none of it
        from unearth.auth import MultiDomainBasicAuth
        from unearth.fetchers import PyPIClient

        logging.getLogger("unearth").addHandler(logging.NullHandler())
        try:
            read_seconds = float(self.settings.get("default-timeout") or self.settings.get("timeout") or 15)
        except ValueError as error:
            raise PituneError(f"{self.uri}: pip's timeout is not a number of seconds ({error})") from error
        session = PyPIClient(
            trusted_hosts=self.settings.get("trusted-host", "").split(),
            verify=certificates(self.settings.get("cert")),
            proxy=self.settings.get("proxy") or None,
            timeout=httpx2.Timeout(read_seconds, connect=10.0),
            follow_redirects=True,
            event_hooks={"response": [_refuse_broken_index]},
        )
        session.auth = MultiDomainBasicAuth(prompting=False, index_urls=self._indexes())
        return session

    def find(self, name: str, version: Version, kind: str) -> Link | None:
        """Return the link to one distribution, or None where the version is there but has none of that kind.

        Raises:
            PituneError: no index has the package or the version, or none could be reached.
        """
        offered: set[Version] = set()
        failures: list[str] = []
        for label, finder in self._finders():
            try:
                packages = list(finder.find_all_packages(name, allow_yanked=True))
            except (self._errors(), OSError, ValueError) as error:
                failures.append(f"{label}: {reason(error)}")
                continue
            offered |= {Version(package.version) for package in packages if package.version}
            for package in packages:
                is_wanted = package.version is not None and Version(package.version) == version
                if is_wanted and package.link.is_wheel == (kind == "wheel"):
                    return package.link
        if version in offered:
            return None
        raise self._not_found(name, version, offered, failures)

    def download(self, link: Link, work: Path) -> Path:
        """Download a distribution into ``work`` and check it against the index's own hash.

        Raises:
            PituneError: the connection broke, the index refused, or the checksum is wrong.
        """
        return download(self.session, Offer(link.filename, link.normalized, link.hash_option or {}), work, self.uri)

    def _finders(self) -> Iterator[tuple[str, PackageFinder]]:
        """Give one finder per folder and index, so that one that fails does not hide the others."""
        from unearth import Link, PackageFinder

        session = cast("Fetcher", self.session)  # unearth's own protocol, which mypy finds its client too wide for
        for place in self.settings.get("find-links", "").split():
            if "://" in place or Path(place).exists():
                label = Link(place).redacted if "://" in place else place
                yield label, PackageFinder(session, find_links=[place], ignore_compatibility=True)
        for index in self._indexes():
            yield Link(index).redacted, PackageFinder(session, index_urls=[index], ignore_compatibility=True)

    def _indexes(self) -> list[str]:
        if self.settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            return []
        main = self.settings.get("index-url") or DEFAULT_INDEX
        return [main, *self.settings.get("extra-index-url", "").split()]

    def _not_found(self, name: str, version: Version, offered: set[Version], failures: list[str]) -> PituneError:
        also = f" (not reached: {'; '.join(failures)})" if failures else ""
        if offered:
            return no_version(self.uri, name, version, sorted(offered), also)
        if failures:
            return PituneError(f"{self.uri}: the package index cannot be reached ({'; '.join(failures)})")
        return PituneError(f"{self.uri}: no package {name} on the indexes that pip is configured with")

    @staticmethod
    def _errors() -> type[Exception]:
        import httpx2

        return httpx2.HTTPError


def _refuse_broken_index(response: httpx2.Response) -> None:
    # unearth takes every refusal for an empty page; a server's failure must not read as "no such package".
    if response.status_code == 403 or response.status_code >= 500:
        response.raise_for_status()
