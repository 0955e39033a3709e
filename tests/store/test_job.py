"""Fingerprints."""

from __future__ import annotations

import hashlib

import pytest

from pitune.store import Job, fingerprint_of


def test_fingerprint_is_of_the_values_not_of_their_order() -> None:
    assert fingerprint_of({"a": 1, "b": [2, 3]}) == fingerprint_of({"b": [2, 3], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
    with pytest.raises(ValueError):
        fingerprint_of({"a": float("nan")})


def test_fingerprints_stay_what_they_are() -> None:
    expected = hashlib.sha256(b'{"a":[1,null],"format":1}').hexdigest()
    assert fingerprint_of({"a": (1, None)}) == Job(("x",), {"a": [1, None]}).fingerprint == expected
