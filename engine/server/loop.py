"""The engine's own thread: it owns the executor, takes requests from an inbox and hands tokens back.

Nothing else touches the executor, so it needs no locks. Between two iterations the inbox is emptied: what
was cancelled has freed its blocks before the next iteration is decided. An iteration that fails takes its
requests with it and nothing else: they get the error, their blocks return, and the loop goes on.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.executor import Executor
from engine.params import SamplingParams
from engine.sequence import Sequence
from engine.server.executor import Deliver, Update
from engine.stats import Stats
from engine.tokenizer import Tokenizer
from simulator.errors import SimError

__all__ = ["EngineLoop"]

log = logging.getLogger("engine.server")


@dataclass
class Stream:
    """One request on its way: where its updates go and how much of each sample has been sent."""

    group: list[Sequence]
    params: SamplingParams
    deliver: Deliver
    sent_text: dict[int, int] = field(default_factory=dict)
    sent_tokens: dict[int, int] = field(default_factory=dict)
    left: int = 0
    """Samples whose end has not been sent."""


class EngineLoop:
    """A `ServingExecutor` over the real engine."""

    def __init__(self, executor: Executor, model_name: str, max_model_len: int, tokenizer: Tokenizer) -> None:
        self.executor, self.model_name, self.max_model_len = executor, model_name, max_model_len
        self.tokenizer = tokenizer
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._streams: dict[str, Stream] = {}
        self._of_group: dict[int, str] = {}
        self._stopping = False
        self._asked_when_idle = True
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    # from any thread

    def start(self) -> None:
        self._thread.start()

    def submit(self, request_id: str, prompt: list[int], params: SamplingParams, deliver: Deliver) -> None:
        self._post(lambda: self._add(request_id, prompt, params, deliver))

    def cancel(self, request_id: str) -> None:
        self._post(lambda: self._cancel(request_id))

    def stats(self) -> Stats:
        return self.executor.stats()

    def clock(self) -> float:
        return self.executor.clock()

    def stop(self, reason: str) -> None:
        self._post(lambda: self._stop(reason))
        if self._thread.is_alive():
            self._thread.join()

    def _post(self, action: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(action)
            self._wake.notify()

    # the loop

    def _run(self) -> None:
        while not self._stopping:
            self._read_inbox()
            if not self._stopping:
                self._asked_when_idle = not self.executor.has_work
                self._step()

    def _read_inbox(self) -> None:
        with self._wake:
            # A policy is asked once more when there is nothing to do (some reset themselves then); after that we wait.
            if not self._inbox and not self.executor.has_work and self._asked_when_idle:
                self._wake.wait()
            actions = list(self._inbox)
            self._inbox.clear()
        for action in actions:
            action()

    def _step(self) -> None:
        try:
            touched = self.executor.step()
        except Exception as error:
            log.exception("an iteration failed; its requests end with an error")
            self._fail_all(f"the engine failed: {error}")
            return
        for sequence in touched:
            self._send(sequence)
        if self.executor.idle and self.executor.has_work:
            self._rest()

    def _rest(self) -> None:
        """The policy waits: for time alone, or for a request that the inbox brings."""
        until = self.executor.wait_until
        seconds = POLL if until is None else min(max(until - self.executor.clock(), 0.0), POLL)
        with self._wake:
            if not self._inbox:
                self._wake.wait(seconds)

    # requests

    def _add(self, request_id: str, prompt: list[int], params: SamplingParams, deliver: Deliver) -> None:
        try:
            group = self.executor.add(prompt, params, request_id)
        except SimError as error:
            deliver(Update(0, self.clock(), error=str(error), refused=True))
            return
        self._streams[request_id] = Stream(group, params, deliver, left=params.n)
        self._of_group[id(group)] = request_id

    def _cancel(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            self._forget(request_id)
            self.executor.cancel(stream.group)

    def _send(self, sequence: Sequence) -> None:
        request_id = self._of_group.get(id(sequence.group))
        if request_id is None:  # cancelled in this very iteration
            return
        stream = self._streams[request_id]
        if sequence.error is not None:
            stream.deliver(Update(sequence.index, self.clock(), error=sequence.error, refused=True))
            self._forget(request_id)
            self.executor.cancel(stream.group)
            return
        stream.deliver(self._update(stream, sequence))
        stream.left -= sequence.finished
        if not stream.left:
            self._forget(request_id)

    def _update(self, stream: Stream, sequence: Sequence) -> Update:
        k, text, count = sequence.index, sequence.text, sequence.num_output
        text_from, tokens_from = stream.sent_text.get(k, 0), stream.sent_tokens.get(k, 0)
        stream.sent_text[k], stream.sent_tokens[k] = len(text), count
        return Update(
            index=k,
            time=self.clock() if sequence.times.last_token is None else sequence.times.last_token,
            text=text[text_from:],
            tokens=sequence.tokens[len(sequence.prompt) + tokens_from :],
            logprobs=sequence.logprobs[tokens_from:],
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            scheduled=sequence.times.scheduled,
            cached_tokens=sequence.request.cached_tokens,
        )

    def _forget(self, request_id: str) -> None:
        stream = self._streams.pop(request_id)
        del self._of_group[id(stream.group)]

    def _fail_all(self, reason: str) -> None:
        for request_id, stream in list(self._streams.items()):
            self._forget(request_id)
            stream.deliver(Update(0, self.clock(), error=reason))
            self.executor.cancel(stream.group)
        self.executor.abandon()

    def _stop(self, reason: str) -> None:
        self._fail_all(reason)
        self._stopping = True


POLL = 0.05  # s: how often a policy that waits for nothing we know of is asked again
