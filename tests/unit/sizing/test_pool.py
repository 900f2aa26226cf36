"""Processes that die are replaced, and what they were doing is done again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from simulator.errors import CapacityError, ConfigurationError
from simulator.sizing import local_executor


def square(x: int) -> int:
    return x * x


def die_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die(x: int) -> None:
    os._exit(1)


def refuse(x: int) -> None:
    raise ConfigurationError(f"{x} is refused")


def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with local_executor(2) as pool:
        before = [pool.submit(square, i) for i in range(6)]
        hurt = [pool.submit(die_once, tmp_path / f"{i}") for i in range(2)]
        after = [pool.submit(square, i) for i in range(6)]
        assert [future.result() for future in [*before, *after]] == [i * i for i in range(6)] * 2
        assert [future.result() for future in hurt] == ["done", "done"]
        assert pool.submit(square, 7).result() == 49


def test_work_that_takes_down_process_after_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.sizing.pool.ATTEMPTS", 1)
    with local_executor(2) as pool:
        future = pool.submit(die, 1)
        with pytest.raises(CapacityError, match="workers died 2 times without finishing a run"):
            future.result()


def test_an_error_of_the_work_is_the_work_s_own() -> None:
    with local_executor(2) as pool, pytest.raises(ConfigurationError, match="3 is refused"):
        pool.submit(refuse, 3).result()
    with pytest.raises(ConfigurationError, match="workers 0"), local_executor(0):
        pass
