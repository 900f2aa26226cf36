"""KV blocks with reference counts and a prefix cache, counted in runs.

A block-by-block manager keeps one object per block: a 12,000-token prompt is 750 of them. But what a
request takes and returns are *runs* of neighbouring blocks that share one history: they were filled, shared and
freed together. So the unit here is the `Span`, an interval of blocks of one content, and it is
split only when a partial match or an eviction demands it. Decisions are those of the block-by-block manager.

Content is a tree. A node is one content id attached at a token position under a parent; block *j* belongs
to the node that owns its last token, ``(j + 1) * block_size - 1``. Two prompts meet in a node exactly when
all their tokens up to there agree, which is what vLLM's chain of block hashes says
(vllm/v1/core/kv_cache_utils.py, 0.33).

Freed blocks that carry cached content wait in least-recently-used order and stay matchable until taken;
blocks of one request are freed from the tail, so the deepest goes first. Blocks without content go to the
front of the queue (vLLM 0.33) or, with ``unhashed_first=False``, in line with the others (vLLM 0.11).
"""

from __future__ import annotations

from collections import OrderedDict

from simulator.compiled.attributes import mypyc_attr
from simulator.errors import ConfigurationError
from simulator.scheduling.request import Request

__all__ = ["BlockManager", "Hit", "Node", "Span"]


class Node:
    """One content id attached at token *start* under *parent*."""

    __slots__ = ("children", "key", "parent", "spans", "start")

    def __init__(self, parent: Node | None, key: tuple[int, int], start: int) -> None:
        self.parent = parent
        self.key = key
        self.start = start
        self.children: dict[tuple[int, int], Node] = {}
        self.spans: list[Span] = []

    def find(self, block: int, stop: int) -> tuple[Span, int] | None:
        """The span that holds *block* and how far, at most to *stop*, it is the one to use.

        Where copies exist the first registered is used, block by block.
        """
        for span in self.spans:
            if span.lo <= block < span.hi:
                return span, min(span.hi, stop)
            if block < span.lo < stop:
                stop = span.lo
        return None


class Span:
    """Blocks ``lo <= j < hi`` of one node, physically present.

    ``holders`` counts the requests that hold ``a <= j < x``, by ``(a, x)``; nobody holds a free span.
    ``ids`` are the physical block numbers where the manager tracks them.
    """

    __slots__ = ("hi", "holders", "ids", "lo", "node")

    def __init__(self, node: Node | None, lo: int, hi: int, ids: list[int] | None = None) -> None:
        self.node = node
        self.lo = lo
        self.hi = hi
        self.holders: dict[tuple[int, int], int] = {}
        self.ids = ids

    def part(self, lo: int, hi: int) -> Span:
        """A new span of blocks ``lo..hi`` of this one, registered beside it."""
        ids = None if self.ids is None else self.ids[lo - self.lo : hi - self.lo]
        new = Span(self.node, lo, hi, ids)
        if self.node is not None:
            self.node.spans.insert(self.node.spans.index(self) + 1, new)
        return new

    def shrink(self, lo: int, hi: int) -> None:
        """Keep only blocks ``lo..hi``."""
        if self.ids is not None:
            self.ids = self.ids[lo - self.lo : hi - self.lo]
        self.lo, self.hi = lo, hi


class Hit:
    """What a prompt finds in the cache: *blocks* leading blocks, of which *free* would leave the free queue."""

    __slots__ = ("blocks", "free", "node", "parts")

    def __init__(self) -> None:
        self.blocks = 0
        self.free = 0
        self.parts: list[tuple[Span, int, int]] = []
        self.node: Node | None = None
        """Where the search ended: a longer match must add to this node or below it. None: there is none."""


MISS = Hit()
"""Nothing found."""


@mypyc_attr(allow_interpreted_subclasses=True)
class BlockManager:
    """*num_blocks* usable blocks of *block_size* tokens.

    With ``track_ids`` every block has a number and every request a ``block_table`` (the engine needs them);
    the simulator only counts. *prefix_caching* makes freed content matchable.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_caching: bool = True,
        unhashed_first: bool = True,
        track_ids: bool = False,
    ) -> None:
        if num_blocks < 1:
            raise ConfigurationError(f"num_gpu_blocks {num_blocks}: must be at least 1")
        if block_size < 1:
            raise ConfigurationError(f"block_size {block_size}: must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.unhashed_first = unhashed_first
        self.root = Node(None, (0, 0), 0)
        self.num_free = num_blocks
        """Blocks that can be taken, matchable ones included."""
        self.num_cached_free = 0
        """Free blocks that still carry matchable content."""
        self._lru: OrderedDict[Span, None] = OrderedDict()
        self._free_ids = list(range(num_blocks - 1, -1, -1)) if track_ids else None
        self._num_own = 0
        self.num_shared = 0
        """References to held blocks beyond the first: blocks saved by sharing."""
        self.tables: dict[Request, list[int]] = {}
        """Physical block ids by request, where they are tracked."""
        self._watched: Node | None = None
        self.stirred = False
        """Whether what was last given to `watch` may have grown since."""

    # free blocks

    @property
    def usage(self) -> float:
        """Fraction of the blocks that requests hold."""
        return 1.0 - self.num_free / self.num_blocks

    def cached_ids(self) -> list[int]:
        """Numbers of the free blocks that are still matchable, where blocks have numbers."""
        return [block for span in self._lru if span.node is not None for block in span.ids or ()]

    def take(self, n: int) -> list[int] | None:
        """Take *n* free blocks from the front of the queue, evicting what they held; ids where tracked."""
        free = self.num_free
        if n > free:
            raise ConfigurationError(f"cannot take {n} blocks: {free} of {self.num_blocks} are free")
        plain = free - self.num_cached_free
        self.num_free = free - n
        if plain > n:
            plain = n
        ids = None if self._free_ids is None else [self._free_ids.pop() for _ in range(plain)]
        if plain < n:
            n -= plain
            span = next(iter(self._lru))
            if ids is None and span.hi - span.lo > n:  # by far the commonest: the oldest run gives its end
                span.hi -= n
                self.num_cached_free -= n
            else:
                self._evict(n, ids)
        return ids

    def _evict(self, n: int, ids: list[int] | None) -> None:
        lru = self._lru
        self.num_cached_free -= n
        while True:
            span = next(iter(lru))
            size = span.hi - span.lo
            if size > n:
                span.hi -= n
                if ids is not None and span.ids is not None:
                    ids.extend(reversed(span.ids[size - n :]))
                    del span.ids[size - n :]
                return
            del lru[span]
            if ids is not None and span.ids is not None:
                ids.extend(reversed(span.ids))
            if span.node is not None:
                self._forget(span, span.node)
            n -= size
            if not n:
                return

    def _forget(self, span: Span, node: Node) -> None:
        node.spans.remove(span)
        while node.parent is not None and not node.spans and not node.children:
            if node is self._watched:
                self.stirred = True  # its content may come back in another node
            parent = node.parent
            if parent.children.get(node.key) is not node:
                return
            del parent.children[node.key]
            node = parent

    # content

    def match(self, request: Request, max_tokens: int) -> Hit:
        """The longest run of leading cached blocks of *request* within its first *max_tokens* tokens."""
        if not self.prefix_caching or not (request.content or request.own_node):
            return MISS
        hit = Hit()
        node, position, limit = self.root, 0, max_tokens // self.block_size
        for content_id, tokens in request.content:
            child = node.children.get((position, content_id))
            position += tokens
            if child is None:
                hit.node = node
                return hit
            if not self._match_node(child, min(position // self.block_size, limit), hit):
                hit.node = child
                return hit
            node = child
        hit.node = node
        own = request.own_node
        if own is not None and own.parent is node:
            self._match_node(own, limit, hit)
        return hit

    def watch(self, hit: Hit) -> None:
        """Set `stirred` as soon as the prompt of *hit* may find more blocks than it did."""
        self._watched, self.stirred = hit.node, False

    def _match_node(self, node: Node, stop: int, hit: Hit) -> bool:
        block = hit.blocks
        while block < stop:
            found = node.find(block, stop)
            if found is None:
                break
            span, upto = found
            hit.parts.append((span, block, upto))
            if not span.holders:
                hit.free += upto - block
            hit.blocks = block = upto
        return block >= stop

    def touch(self, request: Request, hit: Hit) -> None:
        """*request* takes the blocks it found: they leave the free queue and gain a reference."""
        for span, lo, hi in hit.parts:
            if not span.holders:
                self.num_free -= hi - lo
                self.num_cached_free -= hi - lo
                span = self._claim(span, lo, hi)
            else:
                self.num_shared += hi - lo
            span.holders[lo, hi] = span.holders.get((lo, hi), 0) + 1
            request.held.append((span, lo, hi))
            if span.ids is not None:
                self.tables.setdefault(request, []).extend(span.ids[lo - span.lo : hi - span.lo])
        request.num_blocks = request.registered = hit.blocks

    def _claim(self, span: Span, lo: int, hi: int) -> Span:
        """Blocks ``lo..hi`` of a free span leave the queue; the rest keeps its place there."""
        if lo == span.lo and hi == span.hi:
            del self._lru[span]
            return span
        part = span.part(lo, hi)
        if lo > span.lo and hi < span.hi:
            self._insert_behind(span, span.part(span.lo, lo))
        if hi < span.hi:
            span.shrink(hi, span.hi)
        else:
            span.shrink(span.lo, lo)
        return part

    def _insert_behind(self, span: Span, new: Span) -> None:
        """Queue *new* right behind *span*: a hit in the middle of a free run, which is rare."""
        order = list(self._lru)
        at = order.index(span) + 1
        self._lru = OrderedDict.fromkeys([*order[:at], new, *order[at:]])

    # requests

    def grow(self, request: Request, tokens: int) -> None:
        """Take blocks until *request* holds room for *tokens* tokens."""
        need = -(-tokens // self.block_size) - request.num_blocks
        if need > 0:
            ids = self.take(need)
            request.num_blocks += need
            if ids is not None:
                self.tables.setdefault(request, []).extend(ids)

    def register(self, request: Request, tokens: int) -> None:
        """The first *tokens* tokens of *request* are computed: their full blocks become matchable."""
        full, block = tokens // self.block_size, request.registered
        if full <= block or not self.prefix_caching:
            return
        content, size = request.content, self.block_size
        # The way to a block that the request holds stays in the tree: go on from where the last one was added.
        node, position, first = request.cursor or (self.root, 0, 0)
        for at in range(first, len(content)):
            content_id, length = content[at]
            parent, start = node, position
            node, position = self._child(node, (position, content_id)), position + length
            stop = position // size
            if stop > full:
                stop = full
            if stop > block:
                self._add_span(request, node, block, stop)
                request.cursor = parent, start, at
                block = stop
                if stop == full:
                    break
        if full > block:
            self._add_span(request, self._own(request, node, position), block, full)
        request.registered = full

    def _child(self, parent: Node, key: tuple[int, int]) -> Node:
        child = parent.children.get(key)
        if child is None:
            child = parent.children[key] = Node(parent, key, key[0])
        return child

    def _own(self, request: Request, parent: Node, position: int) -> Node:
        """The node of what *request*'s content does not name: the rest of its prompt, and its output."""
        own: Node | None = request.own_node
        if own is None or own.parent is not parent:
            if request.output_id is not None and position >= request.prompt_length:
                own = self._child(parent, (position, request.output_id))
            else:
                self._num_own += 1
                own = Node(parent, (position, -self._num_own), position)
            request.own_node = own
        parent.children.setdefault(own.key, own)
        return own

    def _add_span(self, request: Request, node: Node, lo: int, hi: int) -> None:
        if node is self._watched or node.parent is self._watched:
            self.stirred = True
        ids = None if self._free_ids is None else self.tables[request][lo:hi]
        if request.held:
            span, a, x = request.held[-1]
            if node.spans[-1:] == [span] and span.hi == lo == x and span.holders == {(a, x): 1}:
                span.hi = hi  # its own run, continued; copies are kept in the order of their registration
                span.holders = {(a, hi): 1}
                if ids is not None:
                    span.ids.extend(ids)
                request.held[-1] = (span, a, hi)
                return
        span = Span(node, lo, hi, ids)
        span.holders[lo, hi] = 1
        node.spans.append(span)
        request.held.append((span, lo, hi))

    def retire(self, request: Request, tokens: int, *, for_good: bool) -> None:
        """*request* gives all its blocks back, having computed *tokens* tokens.

        The same as `register` and `free`; but nobody can match what only a request that has ended
        *for_good* could name, so that its own run needs a place in the queue and none in the tree.
        """
        own = tokens // self.block_size - request.registered
        if (
            own > 0
            and for_good
            and self.prefix_caching
            and request.output_id is None
            and self._free_ids is None
        ):
            named = 0
            for _, length in request.content:
                named += length
            if named // self.block_size <= request.registered:
                plain = request.num_blocks - request.registered - own
                if plain:
                    self._free_plain(request, plain)
                self._queue(Span(None, 0, own))
                request.num_blocks = request.registered
                if request.held:
                    self.free(request)
                else:
                    request.num_blocks = 0
                return
        self.register(request, tokens)
        self.free(request)

    def free(self, request: Request) -> None:
        """Return all blocks of *request*, the deepest first; full registered ones stay matchable."""
        held = request.held
        plain = request.num_blocks - request.registered
        if plain:
            self._free_plain(request, plain)
        for span, lo, hi in held[::-1]:
            self._release(span, (lo, hi))
        held.clear()
        request.cursor = None
        request.num_blocks = request.registered = 0
        if self._free_ids is not None:
            self.tables.pop(request, None)

    def _free_plain(self, request: Request, n: int) -> None:
        ids = self.tables[request][request.registered :] if self._free_ids is not None else None
        if self.unhashed_first or not self.prefix_caching:
            self.num_free += n
            if ids is not None and self._free_ids is not None:
                self._free_ids.extend(ids)
        else:
            self._queue(Span(None, 0, n, ids))

    def _release(self, span: Span, key: tuple[int, int]) -> None:
        holders = span.holders
        size = span.hi - span.lo
        if holders[key] > 1:
            holders[key] -= 1
            self.num_shared -= key[1] - key[0]
            return
        del holders[key]
        if not holders:
            self._queue(span)
            return
        if key[1] == span.hi and (hi := max(x for _, x in holders)) < span.hi:
            tail = span.part(hi, span.hi)
            span.shrink(span.lo, hi)
            self._queue(tail)
        if key[0] == span.lo and (lo := min(a for a, _ in holders)) > span.lo:
            head = span.part(span.lo, lo)
            span.shrink(lo, span.hi)
            self._queue(head)
        self.num_shared -= key[1] - key[0] - (size - (span.hi - span.lo))

    def _queue(self, span: Span) -> None:
        self._lru[span] = None
        size = span.hi - span.lo
        self.num_free += size
        self.num_cached_free += size
