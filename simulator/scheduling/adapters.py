"""LoRA adapters on the GPU: slots, who holds them, what has to be loaded.

A batch may use at most as many adapters as there are slots. An adapter that no running request uses keeps its slot
until another one needs it; then the one not used for longest goes (vLLM, lora/model_manager.py: an LRU of
``max_loras``).
"""

from __future__ import annotations

from collections import OrderedDict

from simulator.errors import ConfigurationError

__all__ = ["AdapterSlots"]


class AdapterSlots:
    """*max_loras* slots; *num_loads* counts the adapters that were copied into one."""

    def __init__(self, max_loras: int) -> None:
        if max_loras < 1:
            raise ConfigurationError(f"max_loras {max_loras}: must be at least 1")
        self.max_loras = max_loras
        self.num_loads = 0
        self._users: dict[str, int] = {}
        self._resident: OrderedDict[str, None] = OrderedDict()
        self._numbers: dict[str, int] = {}

    def admits(self, adapter: str | None) -> bool:
        """Whether a request with *adapter* may join those that run."""
        return adapter is None or adapter in self._users or len(self._users) < self.max_loras

    def enter(self, adapter: str | None) -> bool:
        """A request with *adapter* starts. Whether the adapter has to be loaded."""
        if adapter is None:
            return False
        self._users[adapter] = self._users.get(adapter, 0) + 1
        loaded = adapter not in self._resident
        if loaded:
            if len(self._resident) == self.max_loras:
                del self._resident[next(name for name in self._resident if name not in self._users)]
            self.num_loads += 1
        self._resident[adapter] = None
        self._resident.move_to_end(adapter)
        return loaded

    def leave(self, adapter: str | None) -> None:
        """A request with *adapter* no longer runs; its slot stays filled."""
        if adapter is None:
            return
        self._users[adapter] -= 1
        if not self._users[adapter]:
            del self._users[adapter]

    def number(self, adapter: str) -> int:
        """A number for *adapter*, the same each time."""
        return self._numbers.setdefault(adapter, len(self._numbers))
