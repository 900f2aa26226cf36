"""What happened to every request, as columns.

A serving benchmark keeps one record per request: when it arrived, when the scheduler first
picked it, when its first and last token reached the client. Everything a report says about
latency is a function of these columns, so they are numpy arrays, one entry per request in the
order of the trace, and the driver fills them with plain item assignments.

A request is in exactly one of nine states. `NOT_INJECTED` is none of them: the run ended before the request
arrived.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

STATUS: tuple[str, ...] = (
    "finished",
    "running",
    "waiting",
    "swapped",
    "in_transfer",
    "rejected",
    "failed",
    "cancelled",
    "lost",
)
"""Names of the states; ``Records.status`` holds the index."""

FINISHED, RUNNING, WAITING, SWAPPED, IN_TRANSFER, REJECTED, FAILED, CANCELLED, LOST = range(len(STATUS))
NOT_INJECTED = -1
NO_REASON = 0
"""Code of the empty reason, ``reasons[0]``."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Categories:
    """A categorical column: ``names[codes[i]]`` is the value of request *i*; a code of −1 is "not stated"."""

    codes: Codes
    names: Sequence[str]

    def values(self) -> list[str | None]:
        """The column as text, None where it is not stated."""
        return [self.names[code] if code >= 0 else None for code in self.codes.tolist()]


@dataclass(frozen=True)
class Records:
    """One entry per request, in the order of the trace. Times are seconds from the trace's start, NaN where
    it did not happen.
    """

    arrival_time: Floats
    first_scheduled_time: Floats
    first_token_time: Floats
    finish_time: Floats
    """When the request left the system, whatever the way: finished, rejected, failed, cancelled or lost."""
    input_length: Ints
    output_length: Ints
    """Tokens generated so far, not tokens wanted."""
    cached_tokens: Ints
    """Prompt tokens found in the prefix cache when the request was first scheduled."""
    num_preemptions: Ints
    status: npt.NDArray[np.int8]
    reason: Codes
    replica: Codes
    """Index of the replica that served the request, −1 before one was chosen."""
    reasons: tuple[str, ...] = ("",)
    model: Categories | None = None
    tenant: Categories | None = None
    slo_class: Categories | None = None
    request_id: Sequence[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.status)

    def count(self, status: int) -> int:
        """Number of requests in *status* (an index into `STATUS`)."""
        return int(np.count_nonzero(self.status == status))

    def counts(self) -> dict[str, int]:
        """Number of requests by name of status, in the order of `STATUS`."""
        found = np.bincount(self.status[self.status >= 0], minlength=len(STATUS))
        return {name: int(number) for name, number in zip(STATUS, found, strict=True)}

    def reason_counts(self, status: int) -> dict[str, int]:
        """How often each reason occurs among the requests in *status*, most frequent first."""
        found = np.bincount(self.reason[self.status == status], minlength=len(self.reasons))
        order = np.argsort(-found, kind="stable")
        return {self.reasons[code]: int(found[code]) for code in order if found[code]}

    def ids(self) -> Sequence[str]:
        """Identifiers of the requests, ``r0``, ``r1``, … where the trace gives none."""
        return self.request_id if self.request_id is not None else [f"r{i}" for i in range(len(self))]

    def to_columns(self) -> dict[str, Any]:
        """The columns in their order, codes replaced by nothing: numeric arrays and `Categories`."""
        skipped = ("reason", "reasons", "request_id", "status")
        columns: dict[str, Any] = {"request_id": list(self.ids())}
        columns |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        columns["status"] = Categories(self.status.astype(np.int32), STATUS)
        columns["reason"] = Categories(np.where(self.reason == NO_REASON, -1, self.reason), self.reasons)
        return {name: column for name, column in columns.items() if column is not None}

    def to_frame(self) -> pd.DataFrame:
        """A pandas frame with one row per request; status, reason and other codes become categories."""
        import pandas as pd

        def series(column: Any) -> Any:
            if isinstance(column, Categories):
                return pd.Categorical.from_codes(column.codes, categories=pd.Index(list(column.names)))
            return column

        return pd.DataFrame({name: series(column) for name, column in self.to_columns().items()})


RequestEvent: TypeAlias = tuple[float, int, str]
"""(time in s, index of the request, ``SCHEDULED`` or ``PREEMPTED``)."""

MAX_EVENTS = 100_000
"""Preemptions and returns kept, the first of a run."""


class RecordsBuilder:
    """Columns of *n* requests that a driver fills by item assignment: ``builder.first_token_time[i] = now``.

    Times are ``array('d')`` (NaN until assigned), whole numbers ``array('q')`` (0), so that an item costs
    one store and no Python object is kept. ``status[i]`` starts as `NOT_INJECTED`.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        never = array("d", [np.nan])
        self.arrival_time, self.first_scheduled_time = never * n, never * n
        self.first_token_time, self.finish_time = never * n, never * n
        zero = array("q", [0])
        self.input_length, self.output_length = zero * n, zero * n
        self.cached_tokens, self.num_preemptions = zero * n, zero * n
        self.status = array("b", [NOT_INJECTED]) * n
        self.reason, self.replica = array("i", [NO_REASON]) * n, array("i", [-1]) * n
        self._reason_codes: dict[str, int] = {"": NO_REASON}
        self.events: list[RequestEvent] = []
        """When requests were preempted and scheduled again, in order."""

    def note(self, time: float, i: int, event: str) -> None:
        """Request *i* was ``PREEMPTED``, or ``SCHEDULED`` once more, at *time* (s)."""
        if len(self.events) < MAX_EVENTS:
            self.events.append((time, i, event))

    def leave(self, i: int, status: int, reason: str, time: float) -> None:
        """Request *i* leaves unfinished at *time* (s): rejected, failed, cancelled or lost, and why."""
        self.status[i] = status
        self.finish_time[i] = time
        self.reason[i] = self._reason_codes.setdefault(reason, len(self._reason_codes))

    def build(
        self,
        *,
        model: Categories | None = None,
        tenant: Categories | None = None,
        slo_class: Categories | None = None,
        request_id: Sequence[str] | None = None,
    ) -> Records:
        """The columns as numpy arrays (copies: the builder may go on being filled)."""
        columns = {
            f.name: np.array(getattr(self, f.name)) for f in fields(Records) if f.name in self.__dict__
        }
        return Records(
            **columns,
            reasons=tuple(self._reason_codes),
            model=model,
            tenant=tenant,
            slo_class=slo_class,
            request_id=request_id,
        )
