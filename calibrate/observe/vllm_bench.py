"""Results of ``vllm bench serve --save-detailed`` (vllm/benchmarks/serve.py @009e6d4).

Arrays per request, in seconds: ``ttfts`` from sending, ``itls`` between the chunks that followed, ``start_times`` on
the client's clock, ``errors`` with a traceback where a request failed. ``output_lens`` counts tokens of the whole
answer: where chunks held several, only the first and the last time are known.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from calibrate.observe.observation import COMPLETE, Header, Observation, ObservedRequest
from simulator.errors import InputError
from simulator.results import FAILED, FINISHED, STATUS

__all__ = ["is_vllm_bench", "vllm_bench_observation"]

ARRAYS = ("input_lens", "output_lens", "ttfts", "itls", "errors")


def is_vllm_bench(document: Any) -> bool:
    """Whether *document* has the keys that every result of it has."""
    return isinstance(document, dict) and {"completed", "total_input_tokens", "request_throughput"} <= set(
        document
    )


def vllm_bench_observation(result: dict[str, Any], path: Path) -> Observation:
    """The run of one result. Raises `InputError` where it was saved without its details."""
    missing = [name for name in ARRAYS if not isinstance(result.get(name), list)]
    if missing:
        needed = "has no times per request: run `vllm bench serve` with --save-detailed"
        raise InputError(path, needed, field=missing[0])
    count = len(result["input_lens"])
    for name in ARRAYS:
        if len(result[name]) != count:
            raise InputError(path, f"holds {len(result[name])} entries for {count} requests", field=name)
    starts = _starts(result, count, path)
    try:
        requests = [_request(result, i, starts[i]) for i in range(count)]
    except (TypeError, ValueError) as error:
        raise InputError(path, f"an entry per request cannot be used: {error}") from error
    requests.sort(key=lambda request: request.sent)
    return Observation(_header(result, path, count), requests, ended=COMPLETE, path=path)


def _header(result: dict[str, Any], path: Path, count: int) -> Header:
    return Header(
        source="vllm bench serve",
        date=_date(str(result.get("date", ""))),
        num_requests=int(result.get("num_prompts") or count),
        model=result.get("model_id"),
        endpoint=result.get("backend") or result.get("endpoint_type"),
        max_concurrency=result.get("max_concurrency"),
        trace=str(path),
    )


def _date(text: str) -> str:
    """``20260814-093000`` as an ISO date."""
    match = re.match(r"(\d{4})(\d{2})(\d{2})-", text)
    return "-".join(match.groups()) if match else text


def _starts(result: dict[str, Any], count: int, path: Path) -> list[float]:
    """Seconds from the first sending. Older results do not say; then all must have been sent at once."""
    starts = result.get("start_times")
    if isinstance(starts, list) and len(starts) == count:
        known = [float(start) for start in starts if start]
        first = min(known, default=0.0)
        return [float(start) - first if start else 0.0 for start in starts]
    if str(result.get("request_rate")) == "inf" and not result.get("max_concurrency"):
        return [0.0] * count
    raise InputError(
        path, "does not say when requests were sent: a newer release of vLLM does", field="start_times"
    )


def _request(result: dict[str, Any], i: int, start: float) -> ObservedRequest:
    outputs, first, gaps = int(result["output_lens"][i]), float(result["ttfts"][i] or 0.0), result["itls"][i]
    request = ObservedRequest(f"r{i}", start, int(result["input_lens"][i]), outputs, sent=start)
    request.output_length = outputs
    times = [start + first]
    for gap in gaps:
        times.append(times[-1] + float(gap))
    error = str(result["errors"][i] or "").strip()
    request.finish = times[-1] if outputs or first else start
    request.first_token = times[0] if outputs and first else math.nan
    request.token_times = times if len(times) == outputs else None
    request.status = STATUS[FINISHED] if outputs and not error else STATUS[FAILED]
    if request.status == STATUS[FAILED]:
        request.reason = error.splitlines()[-1] if error else "no output"
        request.output_length = len(gaps) + 1 if first else 0
        request.first_token = times[0] if first else math.nan
        request.token_times = times if first else []
    return request
