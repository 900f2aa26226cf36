"""Results of guidellm (``benchmarks.json``): fields of 0.8.1, and the flat ones of 0.2 and 0.3.

Times are the client's clock in seconds. Per request there are the first and the last token and how many came; what lay
between them is not kept. A sweep holds one benchmark per rate.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibrate.observe.observation import COMPLETE, Header, Observation, ObservedRequest
from simulator.errors import InputError
from simulator.results import CANCELLED, FAILED, FINISHED, STATUS

__all__ = ["guidellm_observations", "is_guidellm"]

GROUPS = {"successful": FINISHED, "errored": FAILED, "incomplete": CANCELLED}
REASONS = {FAILED: "guidellm: error", CANCELLED: "guidellm: stopped before it was whole"}


def is_guidellm(document: Any) -> bool:
    """Whether *document* has guidellm's list of benchmarks."""
    return isinstance(document, dict) and isinstance(document.get("benchmarks"), list)


def guidellm_observations(report: dict[str, Any], path: Path) -> list[Observation]:
    """One observation per benchmark of *report*."""
    if not report["benchmarks"]:
        raise InputError(path, "holds no benchmark", field="benchmarks")
    version = (report.get("metadata") or {}).get("guidellm_version")
    source = f"guidellm {version}" if version else "guidellm"
    return [_observation(benchmark, source, path) for benchmark in report["benchmarks"]]


def _observation(benchmark: dict[str, Any], source: str, path: Path) -> Observation:
    groups = benchmark.get("requests")
    if not isinstance(groups, dict):
        raise InputError(path, "has no requests: was it written as JSON?", field="benchmarks.requests")
    try:
        requests = [
            _request(entry, status) for name, status in GROUPS.items() for entry in groups.get(name) or ()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, f"a request cannot be used: {error}", field="benchmarks.requests") from error
    requests = [request for request in requests if not math.isnan(request.sent)]
    if not requests:
        raise InputError(path, "holds no request that was sent", field="benchmarks.requests")
    began = min(request.sent for request in requests)
    for request in requests:
        _shift(request, began)
    requests.sort(key=lambda request: request.sent)
    return Observation(
        _header(benchmark, source, path, len(requests), began), requests, ended=COMPLETE, path=path
    )


def _header(benchmark: dict[str, Any], source: str, path: Path, count: int, began: float) -> Header:
    backend = (benchmark.get("config") or {}).get("backend") or benchmark.get("worker") or {}
    return Header(
        source=source,
        date=datetime.fromtimestamp(began, UTC).date().isoformat(),
        num_requests=count,
        url=backend.get("target") or backend.get("backend_target"),
        model=backend.get("model") or backend.get("backend_model"),
        endpoint=backend.get("request_format"),
        trace=str(path),
    )


def _request(entry: dict[str, Any], status: int) -> ObservedRequest:
    info = entry.get("info")
    timings = info["timings"] if info else None
    sent, due, first, last, end = _nested(timings) if timings else _flat(entry)
    outputs = _tokens(entry, "output")
    name = str(entry.get("request_id") or entry.get("response_id") or "")
    request = ObservedRequest(name, due, _tokens(entry, "prompt"), outputs, sent=sent, token_times=None)
    request.output_length = outputs if not math.isnan(first) else 0
    request.first_token, request.finish = first, last if status == FINISHED and not math.isnan(last) else end
    request.cached_tokens = int((entry.get("input_metrics") or {}).get("cached_tokens") or 0)
    request.status = STATUS[status]
    if status != FINISHED:
        error = entry.get("error") or (info or {}).get("error")
        request.reason = str(error).strip().splitlines()[-1] if error else REASONS[status]
    return request


def _nested(timings: dict[str, Any]) -> tuple[float, float, float, float, float]:
    """(sent, due, first token, last token, end) of 0.4 and later."""
    sent = _time(timings, "request_start", "resolve_start")
    due = _time(timings, "targeted_start", "request_start", "resolve_start")
    first = _time(timings, "first_output_token_iteration", "first_token_iteration")
    end = _time(timings, "request_end", "resolve_end")
    return sent, due, first, _time(timings, "last_token_iteration"), end


def _flat(entry: dict[str, Any]) -> tuple[float, float, float, float, float]:
    """The same of 0.2 and 0.3."""
    sent, end = _time(entry, "start_time"), _time(entry, "end_time")
    return sent, sent, _time(entry, "first_token_time"), _time(entry, "last_token_time"), end


def _time(values: dict[str, Any], *names: str) -> float:
    """The first of *names* that is stated; NaN if none is."""
    return next((float(values[name]) for name in names if values.get(name) is not None), math.nan)


def _tokens(entry: dict[str, Any], kind: str) -> int:
    metrics = entry.get({"prompt": "input_metrics", "output": "output_metrics"}[kind]) or {}
    count = entry.get(f"{kind}_tokens")
    return int(count if count is not None else metrics.get("text_tokens") or 0)


def _shift(request: ObservedRequest, began: float) -> None:
    """Seconds from *began* on."""
    request.arrival = min(request.arrival, request.sent) - began
    request.sent -= began
    request.first_token -= began
    request.finish -= began
