"""Manifests: where they lie, how they are written, and what makes one.

An artifact is a *single file* exactly when its name ends in one of :data:`ENDINGS`; its manifest lies beside it. Every
other artifact is a folder with its manifest inside, whatever dots its name has (``sweeps/trials/x/k3-t0.3-fresh``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import re
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
ENDINGS = (".parquet", ".json", ".html", ".yaml")
"""What the names of single-file artifacts end in, and no folder's."""
RECORDED = ("pitune", "torch", "transformers", "peft", "deepspeed", "ray")
"""Packages whose versions every manifest names."""

CHECKSUM = "checksum"
"""At a manifest's end the sha256 of its text without that; those of older studies have none."""
SEAL = f',\n "{CHECKSUM}": "'

Manifest = dict[str, Any]
"""A manifest as it was read: at least ``artifact``, its path, ``fingerprint``, and ``files``: the ``sha256`` and
``bytes`` of each by name."""


def is_file(artifact: str) -> bool:
    """Say whether ``artifact`` is a single file; otherwise it is a folder."""
    return artifact.endswith(ENDINGS)


def manifest_path(artifact: str) -> str:
    """Return where the manifest of ``artifact`` lies: inside a folder, beside a single file."""
    return f"{artifact}.{MANIFEST}" if is_file(artifact) else f"{artifact}/{MANIFEST}"


def artifact_of(path: str) -> str | None:
    """Return the artifact whose manifest lies at ``path``; None where no artifact's does."""
    artifact = path.removesuffix(MANIFEST)[:-1]
    return artifact if artifact and not path.startswith(".") and manifest_path(artifact) == path else None


def file_path(artifact: str, name: str) -> str:
    """Return where the file ``name`` of ``artifact`` lies; ``""`` is the artifact itself."""
    return f"{artifact}/{name}" if name else artifact


def make_manifest(artifact: str, files: Mapping[str, bytes], fingerprint: str, facts: Mapping[str, Any]) -> bytes:
    """Return the manifest of an artifact with these files as JSON.

    Raises:
        ValueError: a single file's name does not end like one, a folder's does, or a file has the manifest's name.
        TypeError: a fact is no JSON value.
    """
    single = is_file(artifact)
    if single != ("" in files) or (single and len(files) > 1) or MANIFEST in files:
        right = "the one name ''" if single else f"names, none of them '' or {MANIFEST}"
        raise ValueError(
            f"artifact {artifact}: found files named {sorted(files)}, right would be {right} "
            f"(single files, and no folders, end in {', '.join(ENDINGS)})"
        )
    manifest = {
        "artifact": artifact,
        "fingerprint": fingerprint,
        "files": {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in files.items()},
        "versions": _versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts,
    }
    return _sealed(json.dumps(manifest, indent=1).encode())


def parse_manifest(text: bytes, artifact: str) -> Manifest:
    """Return the manifest of an artifact from its JSON.

    Raises:
        ValueError: it is not JSON, no manifest, another artifact's, or not as it was written; the text says which.
    """
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not isinstance(manifest.get("fingerprint"), str):
        raise ValueError("is no manifest (no fingerprint and files)")
    if manifest.get("artifact") != artifact:
        raise ValueError(f"is the manifest of {manifest.get('artifact')!r:.100}")
    for name, file in files.items():
        if not _is_within(name) or is_file(artifact) != (name == "") or not _describes_file(file):
            raise ValueError(f"names {name!r:.100}, or what it holds, as no manifest does")
    if CHECKSUM in manifest and text != _sealed(text.rpartition(SEAL.encode())[0] + b"\n}"):
        raise ValueError("is not as it was written (its checksum is another)")
    return dict(manifest)


def _is_within(name: str) -> bool:
    """Say whether a file's name leads to no other artifact's, and not out of the study: what it names is deleted."""
    return name.isprintable() and not name.startswith("/") and ".." not in PurePosixPath(name).parts


def _describes_file(file: Any) -> bool:
    """Say whether this is what a manifest says of a file."""
    return (
        isinstance(file, dict)
        and isinstance(digest := file.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", digest) is not None
        and type(file.get("bytes")) is int
    )


def _sealed(text: bytes) -> bytes:
    """Return a manifest's JSON with its checksum at the end."""
    return text[:-2] + f'{SEAL}{sha256(text)}"\n}}\n'.encode()


def difference(data: bytes, expected: Mapping[str, Any]) -> str:
    """Say how a file differs from what its manifest says; nothing where it does not."""
    found = sha256(data)
    if found == expected["sha256"]:
        return ""
    return (
        f"sha256 {found[:12]}… of {len(data)} bytes, "
        f"its manifest says {expected['sha256'][:12]}… of {expected['bytes']}"
    )


def sha256(data: bytes) -> str:
    """Return the sha256 of ``data`` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions that a manifest names, of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in RECORDED:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
