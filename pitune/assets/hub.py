"""The Hugging Face Hub: model and data set repositories, and of those only files that run no code."""

from __future__ import annotations

import os
import re
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pitune.assets.archives import descend, safe_name
from pitune.assets.cache import files_under
from pitune.assets.registry import parts_of
from pitune.errors import PituneError, reason

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.bpe", "*.md", "LICENSE*")
"""What is fetched of a model repository. Pickled weights (``*.bin``, ``*.pt``, …) are not among it."""
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""How the names of picture files end, in lower case."""
DATASET_FILES = (
    *("*.parquet", "*.csv", "*.tsv", "*.jsonl", "*.txt", "*.tar"),
    *(f"*{ending}" for ending in PICTURE_ENDINGS),
    *(f"*{ending.upper()}" for ending in PICTURE_ENDINGS),  # as cameras name them
)
"""What is fetched of a data set repository."""
HUB = re.compile(r"hf:(?P<datasets>datasets/)?(?P<repository>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^#\s]+))?")


def from_hub(uri: str, work: Path) -> Path:
    """Bring what an ``hf:`` URI names below ``work``; the Hub's own cache is used, its files are linked, not copied."""
    match, inner = parts_of(uri, HUB, "hf:OWNER/NAME@REVISION")
    allowed = DATASET_FILES if match["datasets"] else MODEL_FILES
    wanted = safe_name(inner[0], uri) if inner else "."
    if PurePosixPath(wanted).suffix and not _is_allowed(wanted, allowed):
        raise PituneError(f"{uri}: {wanted} is of a kind that is not read; it must be one of {', '.join(allowed)}")
    patterns = [wanted, f"{wanted}/*"] if inner else list(allowed)
    snapshot = _snapshot(uri, match["repository"], bool(match["datasets"]), match["revision"], patterns)
    folder = work / PurePosixPath(match["repository"]).name
    for name, file in files_under(snapshot):
        if _is_allowed(name, allowed):
            _link(file.resolve(), folder / name)
    if not folder.exists():
        raise PituneError(f"{uri}: has none of the files that are read ({', '.join(patterns)})")
    return descend(folder, inner, work, uri)


def _snapshot(uri: str, repository: str, is_dataset: bool, revision: str | None, patterns: list[str]) -> Path:
    import httpx2
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    kind = "dataset" if is_dataset else "model"
    try:
        found = snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=patterns)
    except errors.RevisionNotFoundError as error:
        raise PituneError(f"{uri}: {repository} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise PituneError(f"{uri}: no {kind} repository {repository}, or it is private (set HF_TOKEN)") from error
    except errors.HFValidationError as error:
        raise PituneError(f"{uri}: {repository!r} is no name of a repository; write OWNER/NAME") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise PituneError(f"{uri}: is not in the cache and the Hugging Face Hub cannot be reached") from error
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise PituneError(f"{uri}: the Hugging Face Hub failed ({reason(error)})") from error
    return Path(found)


def _is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in allowed)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
