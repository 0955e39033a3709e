"""From a folder to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, errors, get_token
from huggingface_hub.utils.tqdm import disable_progress_bars

from pitune.errors import PituneError, reason
from pitune.experts.checkpoint import CONFIG, WEIGHTS, read
from pitune.sharing.card import README

FILES = (CONFIG, WEIGHTS, README)


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload an exported expert to a model repository, which is made if it is not there; return its address.

    The token is the one of ``HF_TOKEN`` or of ``hf auth login``, the Hub the one that ``HF_ENDPOINT`` names.

    Args:
        folder: what :func:`pitune.sharing.export` wrote. These three files are uploaded, nothing else that lies there.
        repository: ``OWNER/NAME``.
        private: nobody else may see it.

    Raises:
        PituneError: the folder is no exported expert, there is no token, it may not write there, a repository that was
            to be private is public, or the Hub cannot be reached.
    """
    read(folder)
    if not (folder / README).is_file():
        raise PituneError(f"{folder}: has no {README}, the model card; pitune export writes one")
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    try:
        if get_token() is None:
            raise PituneError(f"{api.endpoint}: there is no token for it; set HF_TOKEN, or log in by hf auth login")
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise PituneError(f"{made}: is there already, and public; name another repository, or leave out --private")
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload an expert by pitune",
        )
    except errors.HFValidationError as error:
        raise PituneError(f"{repository!r} is no name of a repository; write OWNER/NAME") from error
    except errors.HfHubHTTPError as error:
        raise PituneError(f"{api.endpoint}: refused {repository} ({_refusal(error)})") from error
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise PituneError(f"{api.endpoint}: {repository} cannot be uploaded ({reason(error)})") from error
    return str(made)


def _refusal(error: errors.HfHubHTTPError) -> str:
    """Return what the Hub said, as one line: its own words where it has some."""
    status = error.response.status_code
    told = error.server_message or error.response.reason_phrase
    hint = "; the token may not write there" if status in (401, 403) else ""
    return f"{status}: {' '.join(told.split())[:300]}{hint}"
