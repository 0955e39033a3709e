"""From a study into a folder: the expert that a method has for a target, in PEFT's format, with a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pitune.assets import public_name
from pitune.errors import PituneError
from pitune.experts.checkpoint import CONFIG, WEIGHTS, from_files
from pitune.results import RESULTS
from pitune.settings import shown
from pitune.sharing.card import README, Facts, write_card
from pitune.store import Manifest, Store


def export(store: Store, targets: Sequence[str], target: str, method: str, to: Path, license_: str) -> None:
    """Write an expert's two files and ``README.md``, its model card, into a folder, in the place of those it has.

    All that is read is held against the study's manifests. The weights are the study's to the byte; of the
    configuration only the name of the backbone changes, into one that means something elsewhere.

    Args:
        store: the study's.
        targets: those of the study.
        target: whose expert, such as ``movie@16#0``.
        method: the row of the result table that it is scored in.
        to: the folder, which is made if it is not there.
        license_: what the card says the expert's licence is.

    Raises:
        PituneError: there is no such target or method, it is not finished, the method has no expert, or something
            cannot be read or written.
    """
    rows = _scores(store, targets, target)
    row = next((row for row in rows if row["method"] == method), None)
    if row is None:
        known = ", ".join(row["method"] for row in rows)
        raise PituneError(f"--method: found {shown(method)}; {target} has {known}")
    prediction = _finished(store, row["prediction"])
    artifact = prediction["expert"]
    if artifact is None:
        raise PituneError(f"--method: {method} scores the backbone alone, it has no expert; name another one")
    expert = _finished(store, artifact)
    if prediction["inputs"]["expert"] != expert["fingerprint"]:
        raise PituneError(f"{store.where(artifact)}: is not the expert that was scored; run the study again")
    files = {name: store.read(artifact, name) for name in (CONFIG, WEIGHTS)}
    from_files(files[CONFIG], files[WEIGHTS], store.where(artifact))  # that it can be read, or why not
    config = _for_others(json.loads(files[CONFIG]))
    facts = Facts(target, row, rows, prediction["inputs"], expert, artifact, config, license_)
    files[CONFIG] = (json.dumps(config, indent=1, sort_keys=True) + "\n").encode()
    files[README] = write_card(store, facts).encode()
    folder = Store(to)
    for name, content in files.items():
        folder.write(name, content)


def _scores(store: Store, targets: Sequence[str], target: str) -> list[dict[str, Any]]:
    """Return the rows of the result table of a target."""
    if target not in targets:
        raise PituneError(f"target: found {shown(target)}; the study has {', '.join(targets)}")
    rows = store.table(RESULTS).to_pylist() if store.manifest(RESULTS) else []
    found = [row for row in rows if row["slice"] == target]
    if not found:
        raise PituneError(f"{store.root}: target {target} is not finished; run the study first")
    return found


def _finished(store: Store, artifact: str) -> Manifest:
    manifest = store.manifest(artifact)
    if manifest is None:
        raise PituneError(f"{store.where(artifact)}: is not there or not finished; run the study again")
    return manifest


def _for_others(config: dict[str, Any]) -> dict[str, Any]:
    """Return an ``adapter_config.json`` that names the backbone as PEFT and other machines know it."""
    name, _, revision = public_name(config["base_model_name_or_path"]).partition("@")
    if name.startswith("hf:"):
        return {**config, "base_model_name_or_path": name.removeprefix("hf:"), "revision": revision or None}
    return {**config, "base_model_name_or_path": public_name(config["base_model_name_or_path"])}
