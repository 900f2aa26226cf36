"""The throughput benchmark: batches by the stated rules, lengths with the stated means, and what the
engine may import.
"""

from __future__ import annotations

import ast
import json
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from engine import bench_throughput  # noqa: E402
from engine.__main__ import main  # noqa: E402
from engine.bench_throughput import main as bench_main  # noqa: E402
from engine.lengths import sharegpt_like  # noqa: E402
from engine.settings import EngineSettings  # noqa: E402
from engine.static_batching import Job, fixed_batches, padded_batches  # noqa: E402

TINY = (
    '{"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,'
    ' "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,'
    ' "max_position_embeddings": 256}'
)
ENGINE = Path(__file__).resolve().parents[3] / "engine"


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), max_size=40))
def test_padded_batches_are_greedy_in_order(shapes: list[tuple[int, int]]) -> None:
    jobs = [Job([1] * prompt, output) for prompt, output in shapes]
    batches = list(padded_batches(jobs))
    assert [job for batch in batches for job in batch] == jobs

    def padded(batch: list[Job]) -> int:
        return len(batch) * (max(len(j.prompt) for j in batch) + max(j.output for j in batch))

    assert all(padded(batch) <= 2048 or len(batch) == 1 for batch in batches)
    assert all(padded([*a, b[0]]) > 2048 for a, b in pairwise(batches))
    assert [len(batch) for batch in fixed_batches(jobs, 7)] == [7] * (len(jobs) // 7) + [len(jobs) % 7] * (
        len(jobs) % 7 > 0
    )


def test_lengths_have_the_means_of_the_paper() -> None:
    lengths = sharegpt_like(20_000)
    assert lengths[:, 0].mean() == pytest.approx(161.31, rel=0.05)
    assert lengths[:, 1].mean() == pytest.approx(337.99, rel=0.05)
    assert lengths.sum(axis=1).max() <= 2048 and lengths.min() >= 4


def test_the_command_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(TINY)
    sizes = ["--num-prompts", "6", "--input-len", "20", "--output-len", "9", "--num-gpu-blocks", "60"]
    assert main(["bench", str(tmp_path), "--compare", *sizes]) == 0
    table = capsys.readouterr().out
    assert "engine / best static batch" in table and "transformers, batch 8" in table
    assert table.index("transformers, batch 8") < table.index("transformers, batch 4")
    assert "transformers, batch 16" not in table
    assert main(["bench", str(tmp_path), *sizes, "--dtype", "bfloat"]) == 2
    assert capsys.readouterr().err == "error: unknown dtype 'bfloat': did you mean 'bfloat16'?\n"


def test_what_was_measured_is_kept_when_the_rest_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_throughput, "transformers_generate", cut_off)
    (tmp_path / "config.json").write_text(TINY)
    options = Namespace(
        num_prompts=2, input_len=8, output_len=3, compare=True, json=str(tmp_path / "out.json")
    )
    with pytest.raises(KeyboardInterrupt):
        bench_throughput.run(EngineSettings(tmp_path, num_gpu_blocks=60), options)
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["name"] == "engine" and row["output_tokens"] == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_gpu_benchmark_skips_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main([]) == 0
    assert capsys.readouterr().out == "skipped: no CUDA device\n"


ALLOWED = {"engine", "numpy", "torch"}
ALLOWED_PARTS = ("simulator.scheduling", "simulator.models", "simulator.errors")
OPTIONAL = {"flashinfer", "tokenizers", "jinja2", "transformers", "triton"}


@pytest.mark.parametrize("path", sorted(ENGINE.rglob("*.py")), ids=lambda path: str(path.relative_to(ENGINE)))
def test_what_runs_on_a_gpu_machine_imports_nothing_else(path: Path) -> None:
    """Standard library, numpy, torch; optional packages only inside functions; FastAPI and uvicorn in the
    server alone.
    """
    tree = ast.parse(path.read_text())
    top = set(tree.body)
    for node in ast.walk(tree):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            root = name.split(".")[0]
            if root == "simulator":
                assert name.startswith(ALLOWED_PARTS), name
            elif path.parent.name == "server":
                assert (
                    root
                    in ALLOWED | {"fastapi", "starlette", "pydantic", "uvicorn"} | sys.stdlib_module_names
                )
            elif root not in ALLOWED | sys.stdlib_module_names:
                lazily = node not in top or path.name.startswith("triton_")
                assert root in OPTIONAL and lazily, name
