"""Goodput: requests per second that meet every stated objective (DistServe's term, vLLM's option).

Objectives are written as vLLM's benchmark writes them, ``ttft:2000 tpot:100 e2el:30000``, in milliseconds. A
request of a single token has no TPOT; it counts as 0 there, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from simulator.errors import ConfigurationError, UnknownNameError

OBJECTIVES = ("ttft", "tpot", "e2el")


def parse_goodput(texts: Iterable[str]) -> dict[str, float]:
    """Objectives in milliseconds by name, from texts such as ``ttft:2000``.

    Raises `UnknownNameError` for a name that is not in `OBJECTIVES` and `ConfigurationError` for a
    value that is not a positive number.
    """
    goodput: dict[str, float] = {}
    for text in texts:
        name, separator, value = text.partition(":")
        if not separator:
            raise ConfigurationError(f"goodput {text!r}: expected NAME:MILLISECONDS, such as ttft:2000")
        if name not in OBJECTIVES:
            raise UnknownNameError("goodput objective", name, OBJECTIVES)
        goodput[name] = _milliseconds(text, value)
    return goodput


def _milliseconds(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ConfigurationError(f"goodput {text!r}: {value!r} is not a number of milliseconds") from None
    if not 0 < number < float("inf"):
        raise ConfigurationError(f"goodput {text!r}: milliseconds must be positive and finite")
    return number


def meets(
    goodput: Mapping[str, float], seconds: Mapping[str, npt.NDArray[np.float64]]
) -> npt.NDArray[np.bool_]:
    """Which requests meet every objective (ms), from their ``ttft``, ``tpot`` and ``e2el`` in seconds, shape
    [n] each.
    """
    good = np.ones(len(seconds["e2el"]), bool)
    for name, milliseconds in goodput.items():
        good &= np.nan_to_num(seconds[name], nan=0.0) <= milliseconds / 1000  # ms -> s
    return good
