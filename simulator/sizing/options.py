"""Options of a deployment by name: ``max_num_seqs``, or with a dot into what is nested, ``options.watermark``,
``speculation.tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.deployment import Deployment

__all__ = ["is_option", "unfold"]


def is_option(name: str) -> bool:
    """Whether *name* is an option of a deployment or within one."""
    return name.partition(".")[0] in Deployment.model_fields


def unfold(stated: Mapping[str, Any]) -> dict[str, Any]:
    """*stated* with dotted names put where they belong; they add to what is stated as a whole."""
    found: dict[str, Any] = {name: value for name, value in stated.items() if "." not in name}
    for name, value in stated.items():
        outer, dot, inner = name.partition(".")
        if dot:
            whole = found.get(outer)
            found[outer] = {**(whole if isinstance(whole, dict) else {}), inner: value}
    return found
