"""Debian packages: downloaded by apt, as it is configured and with all that it checks; never installed, never run."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

from pitune.assets.archives import descend
from pitune.assets.registry import check, no_version, package_of, parts_of
from pitune.errors import PituneError

DEB = re.compile(r"deb:(?P<name>[a-z0-9][a-z0-9+.-]+)(==(?P<version>[0-9A-Za-z][0-9A-Za-z.+:~-]*))?")
OFFER = re.compile(r"'[^']+' (?P<file>[^\s/]+) \d+ (?P<algorithm>SHA256|SHA512):(?P<digest>[0-9a-f]+)")
"""What apt says that it would download: the address, the file's name, its size and its hash."""


def from_debian(uri: str, work: Path) -> Path:
    """Unpack what a ``deb:`` URI names below ``work``; paths inside are those on a system that has the package.

    Links are followed inside the package; what links to a folder, or to what another package has, is left out.
    """
    match, inner = parts_of(uri, DEB, "deb:NAME or deb:NAME==VERSION")
    make = functools.partial(_package, match["name"], match["version"], uri)
    return descend(package_of(match, uri, make), inner or ["."], work, uri)


def _package(name: str, version: str | None, uri: str, work: Path) -> Path:
    """Let apt download a package into ``work``, and check it against the hash of apt's lists."""
    wanted = f"{name}={version}" if version else name
    said = _apt(["apt-get", "--print-uris", "download", wanted], work, uri)
    offer = OFFER.search(said.stdout)
    if offer is None or not offer["file"].startswith(f"{name}_"):  # apt takes an unknown name for a pattern
        raise _refusal(name, version, _complaint(said), work, uri)
    done = _apt(["apt-get", "--quiet", "download", wanted], work, uri)
    target = work / offer["file"]
    if done.returncode or not target.exists():
        raise PituneError(f"{uri}: download of {target.name} failed ({_complaint(done)}); `apt-get update` may mend it")
    check(target, {offer["algorithm"].lower(): [offer["digest"]]}, uri)
    return target


def _apt(command: list[str], work: Path, uri: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise PituneError(
            f"{uri}: {command[0]} is not on this machine; Debian packages come through apt, of Debian or Ubuntu"
        ) from error


def _complaint(said: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("E: ").strip() for line in said.stderr.splitlines() if line.startswith("E: ")]
    return " ".join(lines[0].split())[:300] if lines else "it gave no file with a sha256"


def _refusal(name: str, version: str | None, complaint: str, work: Path, uri: str) -> PituneError:
    """Return the error for what apt does not offer, from what its lists have."""
    lists = _apt(["apt-get", "indextargets", "--format", "$(FILENAME)", "Created-By: Packages"], work, uri)
    if lists.returncode == 0 and not lists.stdout.strip():
        return PituneError(f"{uri}: apt has no lists of packages here; run `apt-get update` first")
    known = [line.split("|") for line in _apt(["apt-cache", "madison", name], work, uri).stdout.splitlines()]
    versions = list(dict.fromkeys(row[1].strip() for row in reversed(known) if row[0].strip() == name))
    if version and versions and version not in versions:
        return no_version(uri, name, version, versions)
    if not versions:
        return PituneError(f"{uri}: no package {name} in apt's lists; `apt-get update` brings them up to date")
    return PituneError(f"{uri}: apt failed ({complaint})")
