"""The kernel benchmark without a GPU: a device of known speed, a recorded fake."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from engine.bench_kernels import Bench, main  # noqa: E402
from engine.kernels import get_kernels, rivals  # noqa: E402
from engine.kernels.bench_results import Result, format_table, read_results, verdicts  # noqa: E402
from engine.kernels.bench_shapes import CPU_SHAPES, Shape  # noqa: E402
from engine.kernels.timing import Sample, Timer  # noqa: E402
from simulator.errors import InputError  # noqa: E402

CPU = torch.device("cpu")


class FixedTimer(Timer):
    """Every call takes the same time."""

    def measure(self, calls, capturable=True):
        for call in calls:
            call()
        return Sample(2e-3, 1e-5, 7, "graph")


class SteppingClock:
    """A host clock that moves by the given steps."""

    def __init__(self, *steps: float) -> None:
        self.now, self.steps = 0.0, list(steps)

    def __call__(self) -> float:
        self.now += self.steps.pop(0) if self.steps else 0.0
        return self.now


def test_the_median_and_its_spread_are_per_call():
    """Two calls per run; runs of 6 (to size the budget), then 2, 4, 4, 4, 40 s."""
    steps = [step for run in (6, 2, 4, 4, 4, 40) for step in (0.0, run)]
    sample = Timer(CPU, budget=0.0, clock=SteppingClock(*steps)).measure([lambda: None] * 2)
    assert sample == Sample(2.0, 0.0, 5, "host")


def test_the_budget_sets_the_repeats():
    steps = [0.0, 0.25] + [0.0, 0.25] * 50
    assert Timer(CPU, budget=5.0, clock=SteppingClock(*steps)).measure([lambda: None]).repeats == 20


def test_shape_counts_by_hand():
    """2 sequences of 3 tokens with 2 new ones: 2 + 3 visible pairs each."""
    shape = Shape((3, 3), chunk=2, kv_heads=2, group=4, dim=64)
    assert shape.flops() == 4 * (2 * 5) * 8 * 64
    assert shape.kv_bytes(2) == 2 * 6 * 2 * 64 * 2
    assert shape.bytes(2) == shape.kv_bytes(2) + 2 * (4 * 8) * 64 * 2


def test_fractions_of_what_was_measured():
    bench = Bench(CPU, FixedTimer(CPU))
    rows = bench.run(CPU_SHAPES, [get_kernels("cpu", backend="torch")])
    assert bench.copy_bandwidth == 2 * 2 * (1 << 16) / 2e-3
    assert bench.gemm_rate == 2 * 64**3 / 2e-3
    decode = next(row for row in rows if row.operator == "decode_attention" and row.form == "torch")
    assert decode.rate == pytest.approx(CPU_SHAPES[0].bytes(2) / 2e-3)
    assert decode.fraction == pytest.approx(decode.rate / bench.copy_bandwidth)
    prefill = next(row for row in rows if row.operator == "prefill_attention" and row.form == "sdpa")
    assert prefill.fraction == pytest.approx(CPU_SHAPES[2].flops() / 2e-3 / bench.gemm_rate)


def test_rivals_compute_the_same_and_say_why_they_cannot():
    """A row without a cause has passed the comparison with the reference."""
    rows = Bench(CPU, FixedTimer(CPU)).run(CPU_SHAPES, [get_kernels("cpu", backend="torch")])
    causes = {(row.shape, row.form): row.cause for row in rows}
    for shape in (CPU_SHAPES[0], CPU_SHAPES[2]):
        assert causes[shape.name, "sdpa"] == ""
    assert causes[CPU_SHAPES[1].name, "sdpa"] == "contexts differ in length"
    assert causes[CPU_SHAPES[0].name, "flex"] == "FlexAttention is compiled for GPUs"


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setitem(rivals.DECODE_RIVALS, "sdpa", lambda problem: lambda: torch.ones_like(problem.q))
    rows = Bench(CPU, FixedTimer(CPU)).run(CPU_SHAPES[:1], [])
    row = next(row for row in rows if row.form == "sdpa")
    assert row.seconds == 0 and "differs from the reference" in row.cause


def test_an_operator_that_fails_is_a_row_with_its_cause():
    kernels = get_kernels("cpu", backend="torch")
    kernels.silu_mul = lambda gate_up: 1 / 0
    rows = Bench(CPU, FixedTimer(CPU)).run((), [kernels])
    causes = {row.operator: row.cause for row in rows}
    assert causes["silu_mul"] == "ZeroDivisionError: division by zero"
    assert causes["rms_norm"] == causes["swap_in"] == causes["sample"] == ""


def test_results_are_kept_as_they_come():
    kept = []
    bench = Bench(CPU, FixedTimer(CPU), keep=lambda rows: kept.append(len(rows)))
    bench.run(CPU_SHAPES, [get_kernels("cpu", backend="torch")])
    assert len(kept) == len(CPU_SHAPES) + 1 and kept == sorted(set(kept))


def test_rivals_are_left_out_after_the_limit():
    clock = SteppingClock(0.0, 100.0)
    rows = Bench(CPU, FixedTimer(CPU, clock=clock), limit=60.0).run(CPU_SHAPES[:1], [])
    assert {row.cause for row in rows if row.operator == "decode_attention"} == {"left out after 60 s"}


# A made-up record of a GPU run, in the shape of a real one: for the table and the targets, not a measurement.
RECORD = [
    Result("copy", "2147483648 bytes", "torch", 1e-3, 1e-6, 300, "graph", 4.3e12, 1.0),
    Result("decode_attention", "a", "cuda", 5.0e-4, 1e-6, 9, "graph", 4.0e12, 0.93, 2 << 30, 4),
    Result("decode_attention", "a", "sdpa", 6.0e-4, 1e-6, 9, "graph", 3.3e12, 0.78, 2 << 30, 4),
    Result("decode_attention", "b", "cuda", 5.0e-4, 1e-6, 9, "graph", 3.0e12, 0.70, 2 << 30, 8),
    Result("decode_attention", "b", "flashinfer", 4.0e-4, 1e-6, 9, "eager", 3.8e12, 0.88, 2 << 30, 8),
    Result("decode_attention", "small", "cuda", 5.0e-6, 1e-7, 9, "graph", 1e12, 0.25, 1 << 20, 4),
    Result("prefill_attention", "c", "cuda", 5.0e-3, 1e-5, 9, "graph", 3.0e14, 0.38, 1 << 25, 4),
    Result("prefill_attention", "c", "triton", 3.0e-3, 1e-5, 9, "graph", 5.0e14, 0.63, 1 << 25, 4),
    Result("prefill_attention", "c", "flex", cause="RuntimeError: no"),
]


def test_targets_are_judged_by_the_faster_of_ours():
    assert verdicts(RECORD) == [
        "reached: decode_attention a: 93.0% by cuda, target 90%",
        "MISSED: decode_attention b: 70.0% by cuda, target 90%",
        "SLOWER: decode_attention b: cuda takes 1.25 x flashinfer",
        "reached: prefill_attention c: 63.0% by triton, target 60%",
    ]


def test_the_bandwidth_target_is_for_large_caches_and_groups_of_4_to_8():
    row = RECORD[1]
    assert not verdicts([replace(row, kv_bytes=1 << 20), replace(row, shape="z", group=1)])


def test_the_table_gives_time_rate_and_share_or_the_cause():
    lines = format_table(RECORD).splitlines()
    assert " ".join(lines[2].split()) == "decode_attention a cuda 500.0 us ±0.2% 4000.0 GB/s 93.0%"
    assert " ".join(lines[8].split()) == "prefill_attention c triton 3000.0 us ±0.3% 500.0 TFLOP/s 63.0%"
    assert lines[5].endswith("eager")
    assert lines[-1].endswith("RuntimeError: no")


def test_the_command_writes_what_the_reader_reads(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert main(["--device", "cpu", "--budget", "0.001", "--json", str(path)]) == 0
    rows = read_results(path)
    assert format_table(rows) in capsys.readouterr().out
    facts = json.loads(path.read_text())["environment"]["before"]
    assert facts["torch"] == torch.__version__ and facts["device"] == "cpu"


def test_another_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"results": [{"x": 1}]}')
    with pytest.raises(InputError, match=r"must be a file written by engine\.bench_kernels"):
        read_results(path)
