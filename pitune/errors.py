"""The one exception that a user is meant to read."""

from __future__ import annotations


class PituneError(Exception):
    """A problem the user can mend.

    Its text is one line: the file, the field, what was found and what would be right. The command line prints it
    and exits with code 2; library callers may catch it.
    """
