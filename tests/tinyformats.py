"""Tiny data sets in the layouts of CoOp and of ELEVATER, as their own tools write them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIZES = {"train": 6, "val": 4, "test": 2}
"""Pictures of each class."""


def png(number: int) -> bytes:
    """A small picture of its own."""
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), (number % 256, number // 256 % 256, number // 65536)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def coop(file: Path, images: str, names: Sequence[str], sizes: Mapping[str, int] = SIZES, seed: int = 0) -> Path:
    """Write a split file of CoOp's, and its pictures into ``images`` beside it."""
    found: dict[str, list[list[Any]]] = {}
    number = 1000 * seed
    for split, size in sizes.items():
        found[split] = []
        for label, name in enumerate(names):
            for _ in range(size):
                path = f"{name}/image_{number:05d}.png"
                write(file.parent / images / path, png(number))
                found[split].append([path, label, name])
                number += 1
    file.write_text(json.dumps(found))
    return file


def elevater(
    root: Path, entry: Mapping[str, Any], names: Sequence[str], sizes: Mapping[str, int] = SIZES, seed: int = 0
) -> None:
    """Write what an entry of the registry names below ``root``: indices, labelmap, zip archives of pictures."""
    folder = root / entry["root_folder"]
    folder.mkdir(parents=True, exist_ok=True)
    number = 1000 * seed
    archives: dict[str, list[tuple[str, bytes]]] = {}
    for split, size in sizes.items():
        if split in entry:
            archive = entry[split]["files_for_local_usage"][0]
            lines = []
            for label in [label for label in range(len(names)) for _ in range(size)]:
                path = f"{split}/some {label}/{number:05d}.png"  # paths may have spaces
                archives.setdefault(archive, []).append((path, png(number)))
                lines.append((archive, path, label))
                number += 1
            index = _coco(lines, names) if entry.get("format") == "coco" else _iris(lines)
            (folder / entry[split]["index_path"]).write_text(index)
    if "labelmap" in entry:
        (folder / entry["labelmap"]).write_text("".join(f"{name}\n" for name in names))
    for archive, members in archives.items():
        with zipfile.ZipFile(folder / archive, "w") as held:
            for place, (path, content) in enumerate(members):
                held.writestr(path, content, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[place % 2])


def _iris(lines: Sequence[tuple[str, str, int]]) -> str:
    return "".join(f"{archive}@{path} {label}\n" for archive, path, label in lines)


def _coco(lines: Sequence[tuple[str, str, int]], names: Sequence[str]) -> str:
    numbered = list(enumerate(lines, 1))
    return json.dumps(
        {
            "images": [
                {"id": i, "file_name": path, "zip_file": archive, "width": 2} for i, (archive, path, _) in numbered
            ],
            "annotations": [{"id": i, "image_id": i, "category_id": label + 1} for i, (_, _, label) in numbered],
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)][::-1],
        }
    )


def registered(root: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Write the registry."""
    path = root / "vision_datasets.json"
    write(path, json.dumps(entries).encode())
    return path
