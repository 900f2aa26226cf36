"""The command line: what it prints for good input, and the one line it prints for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulator.cli import main

GOOD = """\
{"timestamp": 0, "input_length": 100, "output_length": 5}
{"timestamp": 40, "input_length": 30, "output_length": 9}
"""


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``sim("run …") -> (exit code, stdout, stderr)`` in an empty directory that holds ``good.jsonl``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text(GOOD)

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sim", *line.split()])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


FILES = {
    "negative.jsonl": '{"timestamp": 0, "input_length": -4, "output_length": 5}\n',
    "missing.jsonl": '{"timestamp": 0, "input_length": 4, "output_length": 5}\n{"timestamp": 0, "output_length": 5}\n',
    "broken.jsonl": '{"timestamp": 0, "input_length": 4, "output_length": 5}\n{"timestamp": 0, "inp',
    "empty.jsonl": "",
    "long.jsonl": '{"timestamp": 0, "input_length": 200000, "output_length": 5}\n',
    "list.yaml": "- 1\n",
    "unknown.yaml": "gpu: h100\nmax_seqs: 3\n",
    "text.yaml": "tensor_parallel_size: two\n",
}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("compare good.jsonl --vary max_num_seqs=8", "give at least 2 alternatives, got 1"),
        ("compare good.jsonl --vary max_num_seqs=,8", "--vary 'max_num_seqs=,8': must be NAME=VALUE,VALUE"),
        ("compare good.jsonl --vary speculation=method=ngram,tokens=3", 'in quotes, speculation="method'),
        ("compare good.jsonl --gpu h100,h100", "alternatives 1 and 2 are the same"),
        ("run good.jsonl --block-size 7", "block_size 7: vllm 0.33.0 needs a multiple of 16"),
        ("estimate --batch 5000", "batch 5000: at most 345 requests of 1,280 tokens fit at once"),
        ("estimate --request-rate 5 --prompt 200000", "exceed the context of llama-3.1-8b, 131072 tokens"),
        ("run", "Missing argument 'trace'. See `sim run --help`."),
        ("run good.jsonl --max-seqs 3", "No such option: --max-seqs"),
        ("run good.jsonl --request-rate fast", "Invalid value for '--request-rate'"),
        ("run good.jsonl --seed -1", "Invalid value for '--seed'"),
        ("run good.jsonl --num-prompts 0", "0 requests: must be at least 1"),
        ("run good.jsonl --out good.jsonl/sub", "good.jsonl exists and is not a directory"),
        ("run good.jsonl --out /proc/none/sub", "/proc/none"),
        ("gpus show h100 --data folder", "--data folder: its points are drawn with --plot"),
        ("gpus show quantum", "h100-nvl and "),
        ("gpsu", "No such command 'gpsu'"),
        ("run good.jsonl --gpu h10", "unknown gpu 'h10': did you mean 'h100'?"),
        ("run good.jsonl --model lama-3.1-8b", "unknown model 'lama-3.1-8b': did you mean 'llama-3.1-8b'?"),
        ("run good.jsonl --system vlm", "unknown system 'vlm': did you mean 'vllm'?"),
        ("run negative.jsonl", "negative.jsonl:1: input_length: -4: must be"),
        ("run missing.jsonl", "missing.jsonl:2: input_length"),
        ("run broken.jsonl", "broken.jsonl:2: broken JSON"),
        ("run empty.jsonl", "empty.jsonl: is empty"),
        ("run long.jsonl", "no request fits: 1 of 1 rejected because the prompt leaves no room"),
        ("run vanished.jsonl", "vanished.jsonl: no such file"),
        ("run good.jsonl --model llama-3.1-70b", "does not fit 1 x h100-sxm-80gb"),
        ("run good.jsonl --num-gpu-blocks 0", "num_gpu_blocks: 0:"),
        ("run good.jsonl --tp 3", "tensor_parallel_size 3: must divide the 32 attention heads"),
        ("run good.jsonl --gpu a100 --dtype fp8", "dtype fp8: a100-sxm-80gb does not multiply in it"),
        ("run good.jsonl -o speed=3", "system vllm has no option 'speed'"),
        ("run good.jsonl -o speed", "--option 'speed': must be NAME=VALUE"),
        ("run good.jsonl --request-rate -1", "request rate -1.0: must be above 0"),
        ("run good.jsonl --goodput ttft:fast", "'fast' is not a number of milliseconds"),
        ("run good.jsonl --metric-percentiles 101", "must be from 0 to 100"),
        ("estimate --model llama-3.1-8b --request-rate 5 --batch 8", "--batch 8: of one batch"),
        ("run good.jsonl --percentile-metrics ttft,tpop", "unknown latency 'tpop': did you mean 'tpot'?"),
        ("run good.jsonl --scheduling-policy lifo", "scheduling_policy: 'lifo'"),
        ("run good.jsonl -c list.yaml", "list.yaml: must hold a mapping"),
        ("run good.jsonl -c unknown.yaml", "unknown.yaml: unknown option 'max_seqs'"),
        ("run good.jsonl -c text.yaml", "text.yaml: tensor_parallel_size: 'two'"),
        ("run good.jsonl --out .", "is not part of a run"),
        ("conform good.jsonl", "good.jsonl: is not"),
        ("gpus show h10", "unknown gpu 'h10'"),
        ("models lama", "unknown model 'lama'"),
        ("systems vlm", "unknown system 'vlm'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(sim: Any, tmp_path: Path, line: str, says: str) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.iterdir())
    code, _, err = sim(line)
    assert code == 2
    assert err.startswith("sim: error: ")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


def test_alternatives_are_named_by_what_was_varied(sim: Any) -> None:
    """Commas and repetition say the same; ``default`` is what the system would choose."""
    for line in (
        "--vary max_num_seqs=8,default --vary dtype=bf16,fp8",
        "--vary max-num-seqs=8 --vary dtype=bf16,fp8 --vary max_num_seqs=default",
    ):
        code, out, _ = sim(f"compare good.jsonl {line}")
        heading = " ".join(out.split("requests finished")[0].split())
        assert code == 0
        for dtype, seqs in (("bf16", 8), ("fp8", 8), ("bf16", 1024), ("fp8", 1024)):
            assert f"{dtype} max_num_seqs {seqs}" in heading
    assert sim("compare good.jsonl --gpu h100 --gpu l40s")[1].split()[:2] == ["h100", "l40s"]
    line = 'compare good.jsonl --vary speculation="method=ngram,tokens=2,acceptance=0.5",default'
    assert "no speculation" in sim(line)[1]


def test_run_prints_the_table_after_what_it_rests_on(sim: Any) -> None:
    code, out, _ = sim("run good.jsonl")
    assert code == 0
    for line in (
        "llama-3.1-8b on 1 × h100-sxm-80gb, vllm 0.33.0",
        "step times: calibrated in part, profile h100-sxm-80gb; fitted to measurements of this device:",
        "defaults: model: llama-3.1-8b; gpu: h100; system: vllm; default_max_tokens: pow2",
        "Successful requests:                     2",
        "Total generated tokens:                  14",
    ):
        assert line in out


def test_run_writes_the_run_directory(sim: Any, tmp_path: Path) -> None:
    code, _, _ = sim("run good.jsonl --out results --goodput ttft:2000 --quiet")
    assert code == 0
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["completed"] == 2
    assert summary["failed"] == summary["rejected"] == summary["preemptions"] == 0
    assert {p.name for p in (tmp_path / "results").iterdir()} == {
        "config.yaml",
        "summary.json",
        "requests.parquet",
        "series.parquet",
        "timeline.json",
        "report.html",
    }


def test_a_written_configuration_runs_again_to_the_same_numbers(sim: Any, tmp_path: Path) -> None:
    import yaml

    sim("run good.jsonl --out first --quiet --gpu h200 --max-num-seqs 7 --max-num-batched-tokens 64")
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert config["deployment"] == {"gpu": "h200", "max_num_seqs": 7, "max_num_batched_tokens": 64}
    assert config["resolved"]["num_gpu_blocks"] > 0
    code, _, err = sim("run good.jsonl --out second --quiet -c first/config.yaml")
    assert code == 0, err
    first, second = (json.loads((tmp_path / d / "summary.json").read_text()) for d in ("first", "second"))
    drop = {"date"}
    assert {k: v for k, v in first.items() if k not in drop} == {
        k: v for k, v in second.items() if k not in drop
    }


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, simulator.cli\n"
        "heavy = {'numpy', 'pandas', 'scipy', 'plotly', 'pyarrow', 'pydantic', 'simpy', 'torch', 'rich.table'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
