"""The search space that the options of ``sim size`` describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.deployment import Deployment
    from simulator.sizing import SearchSpace

__all__ = ["search_space"]

SWITCH = {"default": None, "on": True, "off": False}


def search_space(base: Deployment, options: dict[str, Any]) -> SearchSpace:
    """Around *base*. Raises `SimError` for what is no value of an axis."""
    from simulator.cli.varied import names, varied
    from simulator.sizing import SearchSpace

    return SearchSpace(
        base,
        names(options["gpus"]),
        names(options["systems"]),
        _sizes("tp", options["tensor_parallel_sizes"]),
        tuple(None if text == "published" else text for text in names(options["dtypes"])),
        tuple(_limit("max-num-seqs", text) for text in names(options["max_num_seqs"])),
        tuple(_limit("max-num-batched-tokens", text) for text in names(options["max_num_batched_tokens"])),
        _sizes("pp", options["pipeline_parallel_sizes"]),
        tuple(_switch("chunked-prefill", text) for text in names(options["chunked_prefill"])),
        _splits(options["pools"], options["kv_bandwidth"]),
        varied(options["vary"] or ()),
    )


def _limit(option: str, text: str) -> int | None:
    return None if text == "default" else _whole(option, text)


def _sizes(option: str, text: str) -> tuple[int, ...]:
    from simulator.cli.varied import names

    return tuple(_whole(option, part) for part in names(text))


def _whole(option: str, text: str) -> int:
    from simulator.errors import ConfigurationError

    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"--{option} {text!r}: must be whole numbers from 1, separated by commas")
    return int(text)


def _switch(option: str, text: str) -> bool | None:
    from simulator.errors import ConfigurationError

    if text not in SWITCH:
        raise ConfigurationError(f"--{option} {text!r}: must be of {', '.join(SWITCH)}")
    return SWITCH[text]


def _splits(text: str, bandwidth: float | None) -> tuple[Any, ...]:
    from simulator.cli.varied import names
    from simulator.sizing.split import KV_BANDWIDTH, Split

    speed = KV_BANDWIDTH if bandwidth is None else 1e9 * bandwidth  # GB/s -> B/s
    return tuple(None if part == "together" else Split.parse(part, speed) for part in names(text))
