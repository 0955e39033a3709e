"""The one exception that a user is meant to read."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path


class PituneError(Exception):
    """A problem the user can mend.

    Its text is one line: the file, the field, what was found and what would be right. The command line prints it
    and exits with code 2; library callers may catch it.
    """


class OutOfMemory(PituneError):
    """What was to be trained together does not fit into memory; fewer may."""


def reason(error: BaseException) -> str:
    """Return an error's text as one line without what may be secret in a URL."""
    number = getattr(error, "errno", None)
    text = os.strerror(number) if isinstance(number, int) and number > 0 else str(error) or type(error).__name__
    return without_secrets(" ".join(text.split()))[:300]


def without_secrets(text: str) -> str:
    """Return a text without who asks in the URLs that are in it: ``s3://key:secret@bucket/study``."""
    return re.sub(r"//[^/\s@]*@", "//", text)


def one_line(error: BaseException) -> str:
    """Return what went wrong in a worker: a :class:`PituneError` as it is, anything else with its type and place."""
    cause = getattr(error, "cause", None) or error  # what Ray wraps
    if isinstance(cause, PituneError):
        return str(cause)
    frames = traceback.extract_tb(cause.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(cause).__name__}: {reason(cause)}{place}"
