"""KV blocks in host memory: what leaves the GPU can be read back instead of being computed again.

Blocks of a request are copied out when it gives its GPU blocks back, and stay matchable by content, least recently used
first out, until the host memory is needed for others. A prompt is looked up on the GPU first, then here; what is found
here comes over the host link into new GPU blocks (vLLM's OffloadingConnector, v1/kv_offload, LRU over CPU blocks;
LMCache's CPU backend). Copies out use the other direction of the link and are not waited for.
"""

from __future__ import annotations

from simulator.scheduling.blocks import BlockManager, Hit
from simulator.scheduling.request import RUNNING, Request

__all__ = ["HostTier", "TieredBlocks"]


class HostTier:
    """*num_blocks* blocks of host memory. *blocks_loaded* counts what came back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.blocks = BlockManager(num_blocks, block_size)
        self.blocks_loaded = 0
        self._copies: dict[Request, Request] = {}

    def find(self, request: Request, max_tokens: int) -> int:
        """Leading tokens of *request* that are here, within its first *max_tokens*."""
        return self.blocks.match(self._copy(request), max_tokens).blocks * self.blocks.block_size

    def store(self, request: Request, tokens: int, *, for_good: bool) -> None:
        """Keep the full blocks of the first *tokens* tokens of *request*, which leaves the GPU."""
        size = self.blocks.block_size
        tokens = min(tokens // size, self.blocks.num_blocks) * size
        if tokens:
            copy = self._copy(request)
            self.blocks.touch(copy, self.blocks.match(copy, tokens))
            self.blocks.grow(copy, tokens)
            self.blocks.retire(copy, tokens, for_good=for_good)
        if for_good:
            self._copies.pop(request, None)

    def _copy(self, request: Request) -> Request:
        """*request* as this tier's block manager sees it: the same content, blocks of its own."""
        copy = self._copies.get(request)
        if copy is None:
            copy = self._copies[request] = Request(
                request.id,
                request.prompt_length,
                request.max_tokens,
                content=request.content,
                output_id=request.output_id,
            )
        return copy


class TieredBlocks(BlockManager):
    """A block manager in front of a `HostTier`: what a prompt misses here may be there (``Request.ready``)."""

    def __init__(self, num_blocks: int, block_size: int, *, unhashed_first: bool, tier: HostTier) -> None:
        super().__init__(num_blocks, block_size, unhashed_first=unhashed_first)
        self.tier = tier
        self.brought: set[Request] = set()
        """Requests that came with KV from a prefill pool: theirs is not looked up."""
        self.looked_up: list[Request] = []
        """Requests whose ``ready`` says what is in the tier now."""

    def match(self, request: Request, max_tokens: int) -> Hit:
        if request not in self.brought:
            request.ready = self.tier.find(request, max_tokens)
            self.looked_up.append(request)
        return super().match(request, max_tokens)

    def forget_looks(self) -> None:
        """Who was not admitted brings nothing along: what it found may be gone when it is looked up again."""
        for request in self.looked_up:
            if request.status is not RUNNING:
                request.ready = 0
        self.looked_up.clear()

    def retire(self, request: Request, tokens: int, *, for_good: bool) -> None:
        self.tier.store(request, tokens, for_good=for_good)
        super().retire(request, tokens, for_good=for_good)
