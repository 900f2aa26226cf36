"""Tables that outlive the deployment they were made for.

A sweep, a search for capacity or a slider asks for hundreds of deployments that differ in limits and run the same
kernels. What equal laws, model and parallelism give is evaluated once in a thread. It is the same to the last bit
whoever asks first: every entry of a table depends on its own place alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["KEPT", "shared"]

T = TypeVar("T")

KEPT = 64
"""Tables that are kept, of each thread: 0.1 to 3 MB each."""


class _Shelf(threading.local):
    """What this thread made, the last used first. Tables grow while they are read, so threads do not share them."""

    def __init__(self) -> None:
        self.made: list[tuple[tuple[Any, ...], Any]] = []


_SHELF = _Shelf()


def shared(make: Callable[..., T], *parts: Any) -> T:
    """``make(*parts)``, or what *make* gave for equal *parts* before.

    They are compared, not hashed: what differs most often and is soonest compared goes first.
    """
    made, key = _SHELF.made, (make, *parts)
    for place, (known, found) in enumerate(made):
        if known == key:
            made.insert(0, made.pop(place))
            return found  # type: ignore[no-any-return]
    new = make(*parts)
    made.insert(0, (key, new))
    del made[KEPT:]
    return new
