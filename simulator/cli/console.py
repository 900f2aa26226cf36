"""Where the tables of a command go: the terminal's width, or enough of it in a file or a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console"]

FILE_WIDTH = 160


def console() -> Console:
    """A console on stdout that does not break lines of text."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH, soft_wrap=True, highlight=False)
