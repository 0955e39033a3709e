"""pip's own settings: a registry is reached as pip reaches it, so that whatever mirror pip uses will do."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys


def pip_settings() -> dict[str, str]:
    """Return pip's own settings, as ``pip config list`` and the ``PIP_…`` variables give them.

    Returns:
        the value of each option (``index-url``, ``extra-index-url``, ``find-links``, ``cert``, …); the environment
        goes before the ``install`` section, that before ``global``.
    """
    by_section: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in _pip_config_list().splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.strip().rpartition(".")
        with contextlib.suppress(ValueError, SyntaxError):
            by_section.get(section, {})[option] = str(ast.literal_eval(value))
    # Environments made without pip still have its variables.
    variables = {
        key[4:].lower().replace("_", "-"): value for key, value in os.environ.items() if key.startswith("PIP_")
    }
    return {**by_section["global"], **by_section["install"], **by_section[":env:"], **variables}


def _pip_config_list() -> str:
    command = [sys.executable, "-m", "pip", "--no-input", "config", "list"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
