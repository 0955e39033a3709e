"""npm's own settings: a registry is reached as npm reaches it, so that whatever mirror npm uses will do.

Read from where npm reads them, so that no Node.js is needed: ``npm_config_…`` variables, then the ``.npmrc`` of the
project, of the user and of the machine.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_REGISTRY = "https://registry.npmjs.org/"
PREFIX = "npm_config_"
UNSET = ("", "null", "undefined", "false")
"""How npm writes that an option has no value."""


@dataclass(frozen=True)
class NpmSettings:
    """npm's settings; what is nearer to the user goes first.

    Attributes:
        options: the value of each (``registry``, ``@scope:registry``, ``//host/:_authToken``, ``cafile``, …).
    """

    options: dict[str, str]

    def get(self, option: str) -> str | None:
        """Return the value of an option, or None where it has none."""
        value = self.options.get(option, "")
        return None if value in UNSET else value

    def registry(self, name: str) -> str:
        """Return the address of the registry that has the package ``name``."""
        scope = name.partition("/")[0] if name.startswith("@") else ""
        return (self.get(f"{scope}:registry") if scope else None) or self.get("registry") or _npm_default()

    def headers(self, url: str) -> dict[str, str]:
        """Return what proves to a registry who asks: of all settings the ones for the longest start of ``url``."""
        parts = urlsplit(url)
        place = f"//{parts.netloc.rpartition('@')[2]}{parts.path}"
        while len(place) > 2:
            proof = self._authorization(place)
            if proof is not None:
                return {"Authorization": proof}
            place = re.sub(r"([^/]+|/)$", "", place)
        return {}

    def _authorization(self, place: str) -> str | None:
        if token := self.get(f"{place}:_authToken"):
            return f"Bearer {token}"
        if both := self.get(f"{place}:_auth"):
            return f"Basic {both}"
        user, password = self.get(f"{place}:username"), self.get(f"{place}:_password")
        if user is None or password is None:
            return None
        try:
            pair = user.encode() + b":" + base64.b64decode(password)
        except binascii.Error:
            return None
        return f"Basic {base64.b64encode(pair).decode()}"


def npm_settings() -> NpmSettings:
    """Return npm's own settings: of the environment, else of the project, else of the user, else of the machine."""
    variables = {}
    for key, value in os.environ.items():
        if key.lower().startswith(PREFIX):
            variables[_option(key[len(PREFIX) :])] = value
    user = Path(variables.get("userconfig") or "~/.npmrc").expanduser()
    files = [*_of_the_machine(variables), user, *_of_the_project()]
    options: dict[str, str] = {}
    for file in files:
        options |= _read(file)
    return NpmSettings(options | variables)


def _option(variable: str) -> str:
    """Return the option that a variable sets; the keys of addresses are taken as they are."""
    return variable if variable.startswith("//") else re.sub("(?<!^)_", "-", variable).lower()


def _of_the_machine(variables: dict[str, str]) -> Iterator[Path]:
    yield Path("/etc/npmrc")  # of Debian's npm
    node = shutil.which("node")
    prefix = variables.get("prefix") or (Path(node).parent.parent if node else "/usr/local")
    yield Path(variables.get("globalconfig") or Path(prefix) / "etc" / "npmrc")


def _of_the_project() -> Iterator[Path]:
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "package.json").exists() or (folder / "node_modules").exists():
            here = folder
            break
    yield here / ".npmrc"


def _read(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    options = {}
    for line in map(str.strip, lines):
        key, equals, value = line.partition("=")
        if equals and not line.startswith((";", "#")):
            value = re.split(r"\s[;#]", value)[0].strip().strip("\"'")  # what follows is a comment
            options[_with_variables(key.strip())] = _with_variables(value)
    return options


def _with_variables(text: str) -> str:
    """Put the environment's variables where ``${NAME}`` stands; ``${NAME?}`` may be unset."""

    def value(match: re.Match[str]) -> str:
        return os.environ.get(match[1], "" if match[2] else match[0])

    return re.sub(r"\$\{([^}?]+)(\??)\}", value, text)


def _npm_default() -> str:
    """Return the registry that npm itself has in mind where nothing is set; where there is no npm, the public one."""
    npm = shutil.which("npm")
    if npm is None:
        return DEFAULT_REGISTRY
    try:
        command = [npm, "config", "get", "registry"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return DEFAULT_REGISTRY
    return found if found.startswith("http") else DEFAULT_REGISTRY
