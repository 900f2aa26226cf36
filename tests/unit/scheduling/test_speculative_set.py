"""The decoding set with drafts, against counting every member by hand."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.scheduling import Request
from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.speculative import SpeculativeDecodeSet


class ByHand:
    """One member: its tokens, its blocks, and where its answer ends."""

    def __init__(self, request, drafting, left, size):
        self.tokens, self.output, self.end = request.computed, request.generated, request.generated + left
        self.blocks = math.ceil(request.computed / size)
        self.certain = self.tokens  # tokens that nobody has to assume
        self.drafting, self.request = drafting, request

    def top(self, set_):
        limit = set_.limit
        if set_.own_limit:
            limit = min(limit, self.request.prompt_length + self.request.max_tokens)
        return min(self.certain + set_.room, limit)

    def step(self, set_):
        self.blocks = max(self.blocks, math.ceil(self.top(set_) / set_.block_size))
        start, left = self.tokens, self.end - self.output
        if left:
            accepted = self.drafting.accepted(self.request.index, self.request.id, self.output, left)[0]
            gain = min(1 + max(accepted, 0), left)
            self.tokens, self.output = self.tokens + gain, self.output + gain
        self.certain = start + set_.width if set_.depth > 1 else self.tokens
        if set_.returns and left:
            self.blocks = math.ceil(self.tokens / set_.block_size)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_the_set_counts_what_its_members_do(data):
    draw = data.draw
    k = draw(st.integers(1, 6))
    drafting = Drafting(
        (draw(st.sampled_from([0.0, 0.5, 1.0])),) * k, k + 1, lookahead=draw(st.sampled_from([0, k]))
    )
    options = {"depth": draw(st.sampled_from([1, 2])), "own_limit": draw(st.booleans()), "limit": 60}
    set_ = SpeculativeDecodeSet(draw(st.sampled_from([1, 4, 16])), drafting, **options)
    members, made = {}, 0
    for _ in range(draw(st.integers(1, 25))):
        action = draw(st.sampled_from(["join", "advance", "advance", "advance", "stall", "leave"]))
        if action == "join":
            prompt, left = draw(st.integers(1, 30)), draw(st.integers(1, 20))
            request = Request(f"r{made}", prompt, left + 1, index=made)
            made += 1
            request.computed, request.generated = prompt, 1
            request.num_blocks = math.ceil(prompt / set_.block_size)
            set_.join(request)
            hand = members[request] = ByHand(request, drafting, left, set_.block_size)
            assert set_.steps(request, left) == len(drafting.accepted(request.index, request.id, 1, left))
        elif action == "leave" and members:
            request = draw(st.sampled_from(sorted(members, key=lambda r: r.index)))
            hand = members.pop(request)
            set_.leave(request)
            assert (request.computed, request.generated) == (hand.tokens, hand.output)
            assert request.num_blocks == hand.blocks and request not in set_
        else:
            missing = []
            if action == "stall" and members:
                missing = [draw(st.sampled_from(sorted(members, key=lambda r: r.index)))]
                members[missing[0]].certain = members[missing[0]].tokens  # what was in flight is back by then
            before = sum(hand.output for hand in members.values())
            context = sum(
                hand.tokens + set_.width for request, hand in members.items() if request not in missing
            )
            set_.advance()
            for request in missing:
                set_.stall(request)
            for request, hand in members.items():
                if request not in missing:
                    hand.step(set_)
            assert set_.gains.pop(set_.iteration) == sum(hand.output for hand in members.values()) - before
            assert set_.attended == context
        over = [request for request, hand in members.items() if hand.output == hand.end]
        for request in over:  # whoever has its last token leaves
            del members[request]
            set_.leave(request)
        assert set_.computed == sum(hand.tokens for hand in members.values())
        for request, hand in members.items():
            assert (set_.tokens(request), set_.generated(request)) == (hand.tokens, hand.output)
            assert set_.held(request) == hand.blocks
            need = max(math.ceil(hand.top(set_) / set_.block_size) - hand.blocks, 0)
            assert set_.needs_block(request) == need
        assert set_.blocks_next == sum(set_.needs_block(request) for request in members)
