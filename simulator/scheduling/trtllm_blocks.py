"""TensorRT-LLM's KV blocks: one line of free blocks, and a tree of those whose content can be used again.

Blocks are taken from the front of the line and come back at its end, a sequence's last block first. A block
in the tree can be matched, in use or free, until it is taken; then it leaves the tree with everything below
it. Prompts enter the tree when they are computed, sequences when they end or are paused, then with their
last block though it is not full; such a block matches only a prompt that goes exactly as far.

Blocks nobody can ever match are only counted: that is all but those of named content, of a named output, and
of a paused request, which may find itself. Read in TensorRT-LLM (batch_manager/kvCacheManager.cpp) and the
stand-in of the recorded cases; block priorities, host pool and partial reuse are left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator

from simulator.errors import ConfigurationError
from simulator.scheduling.request import Request

__all__ = ["ReuseBlock", "ReusePool"]

ENDLESS = 1 << 62


class ReuseBlock:
    """A block that has, or may get, a place in the tree: under *parent* by the content *key*."""

    __slots__ = ("children", "key", "parent", "users")

    def __init__(self) -> None:
        self.parent: ReuseBlock | None = None
        self.key: Hashable = None
        self.children: dict[Hashable, ReuseBlock] = {}
        self.users = 1


class _Plain:
    """Neighbours in the line of free blocks that nobody can match."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


class ReusePool:
    """*num_blocks* blocks of *block_size* tokens; with *reuse* their content can be found again."""

    def __init__(self, num_blocks: int, block_size: int, *, reuse: bool) -> None:
        if num_blocks < 1:
            raise ConfigurationError(f"num_blocks {num_blocks}: must be at least 1")
        if block_size < 1:
            raise ConfigurationError(f"tokens_per_block {block_size}: must be at least 1")
        self.num_blocks = self.free = num_blocks
        self.block_size = block_size
        self.reuse = reuse
        self.cached = 0
        """Free blocks that can be matched."""
        self.num_shared = 0
        """References to used blocks beyond the first."""
        self._root = ReuseBlock()
        self._line: OrderedDict[ReuseBlock | _Plain, None] = OrderedDict({_Plain(num_blocks): None})

    def blocks_for(self, tokens: int) -> int:
        """Blocks that *tokens* tokens fill."""
        return -(-tokens // self.block_size)

    # the line of free blocks

    def take(self, n: int) -> None:
        """*n* blocks leave the front of the line; what they held is forgotten."""
        if n > self.free:
            raise ConfigurationError(f"cannot take {n} blocks: {self.free} of {self.num_blocks} are free")
        self.free -= n
        if not self.reuse:
            return
        while n:
            entry = next(iter(self._line))
            if isinstance(entry, _Plain) and entry.count > n:
                entry.count -= n
                return
            del self._line[entry]
            if isinstance(entry, _Plain):
                n -= entry.count
            else:
                self._detach(entry)
                n -= 1

    def _put(self, count: int) -> None:
        self.free += count
        if not count or not self.reuse:
            return
        last = next(reversed(self._line), None)
        if isinstance(last, _Plain):
            last.count += count
        else:
            self._line[_Plain(count)] = None

    def _detach(self, block: ReuseBlock) -> None:
        """*block* and everything below it leave the tree; where they are they stay."""
        if block.parent is not None:
            del block.parent.children[block.key]
        below = [block]
        while below:
            block = below.pop()
            below += block.children.values()
            if not block.users and block.parent is not None:
                self.cached -= 1
            block.parent = None
            block.children = {}

    # content

    def _keys(self, request: Request, tokens: int) -> Iterator[Hashable]:
        """What the blocks of *request*'s first *tokens* tokens hold, the last one as far as they go."""
        size = self.block_size
        segments: list[tuple[Hashable, int, int]] = []
        room = min(size, tokens)
        for content_id, length in self._runs(request):
            offset = 0
            while offset < length and tokens:
                count = min(room, length - offset)
                segments.append((content_id, offset, count))
                offset, room, tokens = offset + count, room - count, tokens - count
                if not room:
                    yield segments[0] if len(segments) == 1 else tuple(segments)
                    segments, room = [], min(size, tokens)

    @staticmethod
    def _runs(request: Request) -> Iterator[tuple[Hashable, int]]:
        yield from request.content
        if _output_is_named(request):
            yield request.output_id, ENDLESS
        else:
            yield request, ENDLESS

    def _named(self, request: Request, tokens: int) -> int:
        """How many blocks of *request*'s first *tokens* tokens another request may name."""
        named = named_tokens(request)
        return self.blocks_for(tokens) if tokens <= named else named // self.block_size

    def missing(self, request: Request) -> tuple[ReuseBlock, Hashable] | None:
        """The first whole block of *request*'s prompt that the tree lacks: its place and its content."""
        node = self._root
        for key in self._keys(request, request.target // self.block_size * self.block_size):
            child = node.children.get(key)
            if child is None:
                return node, key
            node = child
        return None

    # requests

    def allocate(self, request: Request) -> int:
        """Blocks for the whole prompt of *request*; how many of its tokens were found in the tree."""
        cached = self._reuse(request) if self.reuse else 0
        total = self.blocks_for(request.target)
        self.take(total - len(request.held))
        request.num_blocks = total
        return cached

    def _reuse(self, request: Request) -> int:
        tokens = request.target - 1
        node, held = self._root, request.held
        for index, key in enumerate(self._keys(request, tokens)):
            child = node.children.get(key)
            if child is None:
                return index * self.block_size
            if (index + 1) * self.block_size > tokens:
                if child.users or child.children:  # its tokens are copied to a fresh block
                    return tokens
                self._detach(child)
            self._claim(child)
            held.append(child)
            node = child
        return tokens

    def _claim(self, block: ReuseBlock) -> None:
        if block.users:
            self.num_shared += 1
        else:
            del self._line[block]
            self.free -= 1
            self.cached -= block.parent is not None
        block.users += 1

    def insert(self, request: Request, tokens: int) -> None:
        """The first *tokens* tokens of *request* are computed: what others may name can be matched."""
        if self.reuse:
            self._insert(request, tokens, self._named(request, tokens))

    def _insert(self, request: Request, tokens: int, count: int) -> None:
        request.held.extend(ReuseBlock() for _ in range(count - len(request.held)))
        node = self._root
        for block, key in zip(request.held[:count], self._keys(request, tokens), strict=False):
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = block
                block.parent, block.key = node, key
            node = child

    def release(self, request: Request, tokens: int, *, returns: bool = False) -> None:
        """*request* gives its blocks back.

        Its first *tokens* tokens can be matched by others, if it *returns* by itself too.
        """
        if self.reuse:
            own = returns or _output_is_named(request)
            self._insert(request, tokens, self.blocks_for(tokens) if own else self._named(request, tokens))
        self._put(request.num_blocks - len(request.held))
        for block in request.held[::-1]:
            block.users -= 1
            if block.users:
                self.num_shared -= 1
            elif block.parent is None:
                self._put(1)
            else:
                self._line[block] = None
                self.free += 1
                self.cached += 1
        request.held = []
        request.num_blocks = 0

    def would_free(self, request: Request, released: dict[ReuseBlock, int]) -> int:
        """Blocks that come free if *request* gives its own back after those counted in *released*."""
        freed = request.num_blocks - len(request.held)
        for block in request.held:
            released[block] = released.get(block, 0) + 1
            freed += released[block] == block.users
        return freed


def named_tokens(request: Request) -> int:
    """Leading tokens of *request* that another request can name."""
    return sum(tokens for _, tokens in request.content)


def _output_is_named(request: Request) -> bool:
    return request.output_id is not None and named_tokens(request) >= request.prompt_length
