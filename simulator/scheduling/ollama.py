"""Ollama: a queue and a model loader before llama.cpp's server.

A request first waits for its model. Loading blocks everything behind it: the channel of pending requests
holds ``OLLAMA_MAX_QUEUE`` of them, and whoever finds it full is refused at once. Once the model is there, a
semaphore lets ``OLLAMA_NUM_PARALLEL`` requests into the server, first come, first served, so that the
server's own queue stays empty. A model that nobody has used for ``OLLAMA_KEEP_ALIVE`` is unloaded, and what
its slots and the prompt cache held is gone. The server gets ``-c num_ctx·num_parallel -np num_parallel``
and batches of ``num_batch`` tokens.

Behaviour as described for Ollama fb307609 (server/sched.go, envconfig/config.go, llm/llama_server.go); not
compared with a recording. Prompts beyond
``num_ctx`` are refused here; a chat API in front would drop messages instead.
"""

from __future__ import annotations

from collections.abc import Iterable

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Batch, Wait
from simulator.scheduling.llamacpp import LlamaCpp
from simulator.scheduling.offloading import CPU, DISK, loaded_model
from simulator.scheduling.request import FINISHED, Request
from simulator.scheduling.system import Device, System

__all__ = ["SYSTEMS", "Ollama"]

BEYOND_THE_CHANNEL = 2
"""Requests that the loader has taken out: the one it loads for, and the next, which blocks it. Inferred."""


class Ollama(LlamaCpp):
    """One model behind Ollama's scheduler.

    *num_ctx* tokens of context for each of *num_parallel* requests (0: *device_ctx*, which goes by the
    device's memory, or what the model and the memory allow). Loading takes *load_seconds*; *keep_alive*
    seconds of idleness unload the model (below 0: never). *num_gpu* layers are on the GPU (below 0: all).
    """

    def __init__(
        self,
        *,
        num_kv_cells: int,
        max_model_len: int = 131072,
        num_ctx: int = 0,
        device_ctx: int = 4096,
        num_parallel: int = 1,
        num_batch: int = 512,
        max_queue: int = 512,
        load_seconds: float = 0.0,
        keep_alive: float = 300.0,
        num_gpu: int = -1,
        kv_bytes_per_token: int = 131072,
        explicit: bool = False,
    ) -> None:
        if num_parallel < 1:
            raise ConfigurationError(f"num_parallel {num_parallel}: must be at least 1")
        if max_queue < 0 or load_seconds < 0:
            raise ConfigurationError(
                f"max_queue {max_queue}, load_seconds {load_seconds}: must not be negative"
            )
        context = num_ctx or max(min(device_ctx, max_model_len, num_kv_cells // num_parallel), 1)
        super().__init__(
            num_kv_cells=num_kv_cells,
            n_ctx=context * num_parallel,
            max_model_len=max_model_len,
            n_parallel=num_parallel,
            n_batch=num_batch,
            n_ubatch=num_batch,
            kv_unified=False,
            kv_bytes_per_token=kv_bytes_per_token,
            n_gpu_layers=num_gpu,
            explicit=explicit,
        )
        self.max_queue = max_queue
        self.load_seconds = load_seconds
        self.keep_alive = keep_alive
        self.held: dict[Request, None] = {}
        """Requests that wait for the model or for a permit."""
        self._ready_at: float | None = None
        self._idle_since = 0.0

    def add(self, request: Request, now: float) -> None:
        if request.n > len(self.slots):
            raise CapacityError(f"n {request.n}: the server has {len(self.slots)} slots")
        idle = not self.running and not self.num_waiting
        if self._ready_at is not None and idle and 0 <= self.keep_alive <= now - self._idle_since:
            self._unload()
        if self._ready_at is None:
            self._ready_at = now + self.load_seconds
        room = self.max_queue + BEYOND_THE_CHANNEL
        if now < self._ready_at and len(self.held) >= room:
            raise CapacityError(f"server busy: {room} requests wait for the model to load")
        self.held[request] = None

    def _unload(self) -> None:
        self._ready_at = None
        for slot in self.slots:
            self._clear(slot)
            slot.last_used = -1
        if self.cache is not None:
            self.cache.clear()

    @property
    def num_waiting(self) -> int:
        return len(self.held) + super().num_waiting

    def schedule(self, now: float) -> Batch | Wait | None:
        if self.held:
            if self._ready_at is not None and now < self._ready_at:
                return Wait(self._ready_at)
            while self.held and len(self.running) + super().num_waiting < len(self.slots):
                request = next(iter(self.held))
                del self.held[request]
                super().add(request, now)
        return super().schedule(now)

    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        super().commit(batch, ended, now)
        self._idle_since = now

    def cancel(self, request: Request, now: float) -> None:
        self._idle_since = now
        if request in self.held:
            del self.held[request]
            request.status = FINISHED
        else:
            super().cancel(request, now)


def _defaults(device: Device) -> dict[str, int]:
    """4k, 32k or 256k tokens of context by the device's memory; the bounds of 24 and 48 GiB are assumed."""
    memory = device.memory_gib * device.num_gpus
    return {"device_ctx": 4096 if memory < 24 else 32768 if memory < 48 else 262144}


SYSTEMS = (
    System(
        name="ollama",
        version="fb307609 (2026-08-21)",
        summary="llama.cpp's server behind a model loader, a bounded queue and num_parallel permits",
        source="Ollama fb307609, server/sched.go, llm/llama_server.go, as described; llama.cpp 0c1e57098",
        status="inferred",
        policy="ollama:Ollama",
        defaults=_defaults,
        block_size=1,
        memory="llamacpp",
        traits="llamacpp",
        capacity="num_kv_cells",
        capacity_in_tokens=True,
        offload=loaded_model,
        offload_options={**CPU, **DISK},
    ),
)
