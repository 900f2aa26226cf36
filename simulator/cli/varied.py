"""Alternatives on the command line: ``--gpu h100,a100`` and ``--vary NAME=VALUE,VALUE``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["HELP", "names", "varied"]

HELP = (
    "NAME=VALUE,VALUE of any option of a deployment, options.NAME of the system's own; `default` leaves it open, a "
    "value with commas goes in quotes. Repeatable: every combination is taken."
)


def names(text: str) -> list[str]:
    """What commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]


def varied(texts: Iterable[str]) -> dict[str, list[Any]]:
    """The values of each option as YAML reads them; None for ``default``. What is stated twice adds up."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        found.setdefault(name.strip().replace("-", "_"), []).extend(_values(text, name, values))
    return found


def _values(text: str, name: str, values: str) -> list[Any]:
    import yaml

    from simulator.errors import ConfigurationError

    try:
        parsed = yaml.safe_load(f"[{values}]")  # a list without its brackets
    except yaml.YAMLError:
        parsed = None
    if not name.strip() or not isinstance(parsed, list) or not parsed:
        raise ConfigurationError(f"--vary {text!r}: must be NAME=VALUE,VALUE, such as max_num_seqs=64,256")
    if len(parsed) > 1 and any(isinstance(one, str) and "=" in one and "," not in one for one in parsed):
        raise ConfigurationError(
            f'--vary {text!r}: a value with commas goes in quotes, {name.strip()}="{values}"'
        )
    return [None if value == "default" else value for value in parsed]
