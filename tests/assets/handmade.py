"""Archives and packages made by hand, and what the tests of all kinds of assets ask."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile

import pytest

from pitune.assets import fetch
from pitune.errors import PituneError


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refusal(uri: str, digest: str | None = None) -> str:
    with pytest.raises(PituneError) as error:
        fetch(uri, digest)
    assert "\n" not in str(error.value)
    return str(error.value)


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(members: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in others:
            archive.addfile(info)
    return sink.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def ar(parts: dict[str, bytes]) -> bytes:
    made = b"!<arch>\n"
    for name, data in parts.items():
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return made


def deb(data: bytes, name: str = "data.tar.gz") -> bytes:
    return ar({"debian-binary": b"2.0\n", "control.tar.gz": tarred({"./postinst": b"#!/bin/sh\nexit 1\n"}), name: data})
