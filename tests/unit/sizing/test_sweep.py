"""Sweeps: the same results whatever the executor and however often the sweep was killed."""

from __future__ import annotations

import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from simulator.errors import CapacityError, ConfigurationError, SimError
from simulator.sizing import SerialExecutor, local_executor
from simulator.sizing.pool import DurableExecutor
from simulator.sizing.study import Run, Study
from simulator.sizing.sweep import dask_executor, failures, run_study, simulate_run
from simulator.workload import Lengths, generate_trace

STUDY = """
trace: chat.jsonl
base: {model: llama-3.1-8b, gpu: h100}
grid:
  gpu: [h100, l40s]
  request_rate: [2, 6]
  max_num_seqs: [4, 64]
seeds: 2
goodput: [ttft:500]
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return written(tmp_path, STUDY)


def written(directory: Path, text: str) -> Study:
    lengths = Lengths.parse("uniform:low=50,high=400"), Lengths.parse("uniform:low=5,high=40")
    trace = generate_trace(120, request_rate=3, input_length=lengths[0], output_length=lengths[1], seed=1)
    trace.to_jsonl(directory / "chat.jsonl")
    (directory / "study.yaml").write_text(text)
    return Study.load(directory / "study.yaml")


class Shuffled(SerialExecutor):
    """Finishes what it was given in an order of its own, and breaks after *lives* runs."""

    def __init__(self, lives: int = 10**9) -> None:
        self.lives = lives

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.lives -= 1
        if self.lives < 0:
            raise KeyboardInterrupt
        return super().submit(fn, *args, **kwargs)


def rows(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def serially(study: Study, directory: Path) -> list[dict[str, Any]]:
    return rows(run_study(study, directory, lambda: local_executor(1)))


def test_every_point_and_seed_is_a_row_in_the_order_of_the_study(study: Study, tmp_path: Path) -> None:
    found = serially(study, tmp_path / "out")
    assert len(found) == len(study.runs) == 2 * 2 * 2 * 2
    assert [row["index"] for row in found] == list(range(16))
    assert [(row["point.gpu"], row["seed"]) for row in found[:2]] == [("h100", 0), ("h100", 1)]
    assert all(row["completed"] == 120 and row["request_goodput"] is not None for row in found)
    by_point = {
        (row["point.gpu"], row["point.max_num_seqs"], row["point.request_rate"], row["seed"]): row
        for row in found
    }
    assert by_point["l40s", 64, 6, 0]["mean_tpot_ms"] > by_point["h100", 64, 6, 0]["mean_tpot_ms"]


def test_alternatives_see_the_same_traffic(study: Study, tmp_path: Path) -> None:
    found = serially(study, tmp_path / "out")
    tokens = {
        row["seed"]: {r["total_input_tokens"] for r in found if r["seed"] == row["seed"]} for row in found
    }
    assert all(len(one) == 1 for one in tokens.values())
    assert tokens[0] != tokens[1]


def test_processes_give_what_one_process_gives(study: Study, tmp_path: Path) -> None:
    one = run_study(study, tmp_path / "one", lambda: local_executor(1))
    two = run_study(study, tmp_path / "two", lambda: local_executor(2))
    assert one.read_bytes() == two.read_bytes()


def test_a_killed_sweep_goes_on_without_repeating_or_losing_a_run(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def counting(run: Run) -> dict[str, Any]:
        counted.append(run.key)
        return simulate_run(run)

    monkeypatch.setattr("simulator.sizing.sweep.simulate_run", counting)
    monkeypatch.setattr("simulator.sizing.sweep.IN_FLIGHT", 1)
    for lives in (5, 4):
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path / "cut", lambda lives=lives: shuffled(lives))  # type: ignore[misc]
    assert len(list((tmp_path / "cut" / "runs").glob("*.parquet"))) == 9
    assert not (tmp_path / "cut" / "results.parquet").exists()
    resumed = run_study(study, tmp_path / "cut", lambda: local_executor(1))
    assert sorted(counted) == sorted(run.key for run in study.runs)
    assert (
        resumed.read_bytes() == run_study(study, tmp_path / "whole", lambda: local_executor(1)).read_bytes()
    )
    run_study(study, tmp_path / "cut", lambda: local_executor(1))
    assert len(counted) == 2 * len(
        study.runs
    )  # once for each directory; going on with a finished sweep runs nothing


@contextmanager
def shuffled(lives: int) -> Iterator[Executor]:
    yield Shuffled(lives)


def die_once(run: Run) -> dict[str, Any]:
    """Takes its worker down the first time that it is run."""
    mark = Path(run.trace).with_name(f"{run.key}.died")
    if run.index == 3 and not mark.exists():
        mark.touch()
        os._exit(1)
    return simulate_run(run)


def always_die(run: Run) -> dict[str, Any]:
    os._exit(1)


def test_a_worker_that_dies_is_replaced_and_its_run_redone(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_study(study, tmp_path / "whole", lambda: local_executor(1))
    monkeypatch.setattr("simulator.sizing.sweep.simulate_run", die_once)
    hurt = run_study(study, tmp_path / "hurt", lambda: local_executor(2))
    assert hurt.read_bytes() == whole.read_bytes()
    monkeypatch.setattr("simulator.sizing.sweep.simulate_run", always_die)
    monkeypatch.setattr("simulator.sizing.pool.ATTEMPTS", 1)
    with pytest.raises(CapacityError, match="workers died 2 times"):
        run_study(study, tmp_path / "never", lambda: local_executor(2))


def test_a_run_that_cannot_be_is_a_result(tmp_path: Path) -> None:
    text = "trace: chat.jsonl\nbase: {model: llama-3.1-70b}\ngrid: {gpu: [l4, b200], num_prompts: [20]}\n"
    found = serially(written(tmp_path, text), tmp_path / "out")
    assert "does not fit" in found[0]["error"]
    assert failures(tmp_path / "out" / "results.parquet") == [found[0]["error"]]
    assert found[0]["completed"] is None
    assert found[1]["error"] is None
    assert found[1]["completed"] == 20


def test_nested_options_are_axes_too(tmp_path: Path) -> None:
    text = (
        "trace: chat.jsonl\n"
        "base: {model: llama-3.1-8b, speculation: {method: ngram, acceptance: 0.6}, options: {watermark: 0.1}}\n"
        "num_prompts: 20\ngrid: {speculation.tokens: [2, 4], options.watermark: [0.0]}\n"
    )
    found = written(tmp_path, text)
    assert [run.deployment["speculation"]["tokens"] for run in found.runs] == [2, 4]
    assert all(run.deployment["speculation"]["method"] == "ngram" for run in found.runs)
    assert all(run.deployment["options"] == {"watermark": 0.0} for run in found.runs)


def test_samples_are_drawn_once_and_for_all(tmp_path: Path) -> None:
    text = (
        "trace: chat.jsonl\nbase: {model: llama-3.1-8b}\nseed: 5\nsamples:\n  count: 40\n"
        "  over: {request_rate: {low: 1, high: 100, log: true}, max_num_seqs: {low: 8, high: 64}, gpu: [h100, l4]}\n"
    )
    first, again = written(tmp_path, text), Study.load(tmp_path / "study.yaml")
    assert [run.key for run in first.runs] == [run.key for run in again.runs]
    rates = [run.request_rate or 0 for run in first.runs]
    assert all(1 <= rate <= 100 for rate in rates)
    assert sum(rate < 10 for rate in rates) == pytest.approx(20, abs=9)  # half below the geometric mean
    assert all(isinstance(run.deployment["max_num_seqs"], int) for run in first.runs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1", "must hold a mapping"),
        ("grid: {gpu: [h100]}", "trace: is missing"),
        ("trace: absent.jsonl\ngrid: {gpu: [h100]}", "'absent.jsonl': no such file"),
        ("trace: chat.jsonl", "needs a grid or samples"),
        ("trace: chat.jsonl\ngrid: {gpu: []}", "grid.gpu: []: must be a list with at least one value"),
        ("trace: chat.jsonl\ngrid: {gqu: [h100]}", "unknown axis of study.yaml 'gqu': did you mean 'gpu'?"),
        ("trace: chat.jsonl\ngird: {gpu: [h100]}", "did you mean 'grid'?"),
        ("trace: chat.jsonl\ngrid: {max_num_seqs: [0]}", "max_num_seqs"),
        ("trace: chat.jsonl\ngrid: {gpu: [h100, h100]}", "two points are the same run"),
        (
            "trace: chat.jsonl\ngrid: {gpu: [h100]}\nseeds: none",
            "seeds: 'none': must be a whole number from 1",
        ),
        (
            "trace: chat.jsonl\nsamples: {count: 3, over: {request_rate: {low: 5, high: 2}}}",
            "low must be below high",
        ),
        ("trace: chat.jsonl\ngrid: {request_rate: [.nan]}", "request_rate: nan: must be above 0"),
        ("trace: chat.jsonl\ngrid: {gpu: [h100]}\ngoodput: [speed:3]", "speed"),
        (
            "trace: chat.jsonl\nbase: [1]\ngrid: {gpu: [h100]}",
            "base: [1]: must be a mapping of deployment options",
        ),
        ("trace: chat.jsonl\ngrid: {gpu: [h100, h10]}", "unknown gpu 'h10': did you mean 'h100'?"),
        ("trace: chat.jsonl\ngrid: {system: [vlm]}", "did you mean 'vllm'?"),
    ],
)
def test_a_bad_study_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SimError) as error:
        written(tmp_path, text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_of_something_else_is_left_alone(study: Study, tmp_path: Path) -> None:
    other = written(tmp_path, STUDY.replace("seeds: 2", "seeds: 1"))
    serially(other, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="holds another study"):
        serially(study, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(ConfigurationError, match="not empty"):
        serially(study, tmp_path / "full")


def test_a_profile_that_has_changed_makes_another_study(tmp_path: Path) -> None:
    """Rows of the old figures and of the new ones must not stand in one table."""
    profile = tmp_path / "mine.yaml"
    text = files("hwprofiles").joinpath("data/l40s-48gb.yaml").read_text(encoding="utf-8")
    profile.write_text(text, encoding="utf-8")
    stated = f"trace: chat.jsonl\nbase: {{gpu: {profile}}}\ngrid: {{max_num_seqs: [4]}}\n"
    before = written(tmp_path, stated)
    serially(before, tmp_path / "out")
    memory = re.search(r"memory_bandwidth: *(\S+)", text)
    assert memory is not None
    profile.write_text(text.replace(memory[0], f"memory_bandwidth: {float(memory[1]) * 0.9:.4e}"))
    with pytest.raises(ConfigurationError, match="this one with other traces, profiles or models"):
        serially(Study.load(tmp_path / "study.yaml"), tmp_path / "out")


def test_an_unreachable_cluster_says_so() -> None:
    pytest.importorskip("distributed")
    port = random.randint(50000, 60000)
    with (
        pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}.*cannot be reached"),
        dask_executor(f"tcp://127.0.0.1:{port}", timeout=1),
    ):
        pass
    for address in ("nonsense", "tcp://host", "http://host/8786"):
        with (
            pytest.raises(ConfigurationError, match="must be the address of a scheduler"),
            dask_executor(address),
        ):
            pass


def test_a_dask_cluster_gives_what_one_process_gives(study: Study, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    one = run_study(study, tmp_path / "one", lambda: local_executor(1))
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        far = run_study(study, tmp_path / "far", lambda: dask_executor(cluster.scheduler_address))
    assert far.read_bytes() == one.read_bytes()


def test_results_can_be_queried_while_the_sweep_runs_and_after(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.setattr("simulator.sizing.sweep.IN_FLIGHT", 1)
    query = "SELECT \"point.gpu\", count(*), avg(p99_ttft_ms) FROM '{}' GROUP BY 1 ORDER BY 1"
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", lambda: shuffled(10))
    half = duckdb.sql(query.format(tmp_path / "out" / "runs" / "*.parquet")).fetchall()
    assert 0 < sum(count for _, count, _ in half) < len(study.runs)
    found = serially(study, tmp_path / "out")
    whole = duckdb.sql(query.format(tmp_path / "out" / "results.parquet")).fetchall()
    assert [(gpu, count) for gpu, count, _ in whole] == [("h100", 8), ("l40s", 8)]
    for gpu, _, mean in whole:
        assert mean == pytest.approx(
            sum(r["p99_ttft_ms"] for r in found if r["point.gpu"] == gpu) / 8, rel=1e-12
        )


FREE_CORE = 0.85
"""Share of a second core that must be idle beside one worker, or there is nothing to be gained from it."""


def test_two_workers_finish_a_sweep_faster_than_one(tmp_path: Path) -> None:
    """At least 1.3 times as fast, by the median of interleaved pairs; skipped where others use the second core."""
    before = idle_seconds()
    time.sleep(0.5)
    if (idle_seconds() - before) / 0.5 < FREE_CORE:
        pytest.skip("no second core is idle")
    text = (
        STUDY.replace("[h100, l40s]", "[h100]")
        .replace("[2, 6]", "[2, 3, 4, 6]")
        .replace("seeds: 2", "seeds: 1")
    )
    lengths = Lengths.parse("uniform:low=200,high=900"), Lengths.parse("uniform:low=50,high=150")
    trace = generate_trace(2000, request_rate=3, input_length=lengths[0], output_length=lengths[1], seed=1)
    trace.to_jsonl(tmp_path / "chat.jsonl")
    (tmp_path / "study.yaml").write_text(text)
    study, ratios = Study.load(tmp_path / "study.yaml"), []
    for pair in range(4):  # the first imports what is used for the first time
        seconds = []
        for workers in (1, 2):
            with DurableExecutor(workers) as pool:
                warm = [pool.submit(simulate_run, study.runs[0]) for _ in range(2 * workers)]
                wait(warm)
                start, before = time.perf_counter(), idle_seconds()
                run_study(study, tmp_path / f"{pair}-{workers}", lambda pool=pool: kept(pool))  # type: ignore[misc]
                seconds.append(time.perf_counter() - start)
                idle = (idle_seconds() - before) / seconds[-1]
                if pair and workers == 1 and idle < FREE_CORE:
                    pytest.skip(f"beside one worker {idle:.2f} cores are idle, less than {FREE_CORE}")
        ratios.append(seconds[0] / seconds[1])
    assert statistics.median(ratios[1:]) >= 1.3, ratios


def idle_seconds() -> float:
    """Idle time of all cores so far, s."""
    if not Path("/proc/stat").exists():
        pytest.skip("the system does not tell how idle it is")
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[4]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def kept(pool: Executor) -> Iterator[Executor]:
    """*pool*, left open."""
    yield pool
