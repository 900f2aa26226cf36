"""Which sizes of a block a system takes: what its own start-up checks say."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.deployment import Deployment
from simulator.errors import ConfigurationError

# vLLM: "Block size must be a multiple of 16."; V0: choices 8 to 128, on CUDA up to 32; LMDeploy: "block_size must be
# >= 16 and a power of 2"; TurboMind: a multiple of 32; TensorRT-LLM: "tokens_per_block must be a power of 2"
CASES = [
    ("vllm", "block_size", (16, 32, 48, 256), (1, 7, 8, 24)),
    ("vllm-0.11", "block_size", (16, 128), (8, 17)),
    ("vllm-0.6", "block_size", (8, 16, 32), (1, 7, 64)),
    ("vllm-0.2", "block_size", (8, 16, 32), (4, 128)),
    ("lmdeploy", "block_size", (16, 64, 256), (8, 48)),
    ("lmdeploy-turbomind", "block_size", (32, 96), (16, 33)),
    ("tensorrt-llm", "tokens_per_block", (2, 32, 128), (1, 33, "32")),
]


@pytest.mark.parametrize(("system", "option", "taken", "refused"), CASES)
def test_a_system_refuses_blocks_that_its_kernels_cannot_walk(
    system: str, option: str, taken: tuple[int, ...], refused: tuple[Any, ...]
) -> None:
    def stated(size: Any) -> dict[str, Any]:
        return {"block_size": size} if option == "block_size" else {"options": {option: size}}

    for size in taken:
        assert Deployment.of(system=system, **stated(size)).resolve().limits[option] == size
    for size in refused:
        with pytest.raises(ConfigurationError, match=f"{option} {size}: {system} .* needs"):
            Deployment.of(system=system, **stated(size)).resolve()
