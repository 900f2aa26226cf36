from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.deployment import Deployment
from simulator.errors import ConfigurationError, InputError, UnknownNameError
from simulator.export import kubernetes_manifest, vllm_arguments
from simulator.results import write_run
from simulator.simulation import simulate
from simulator.sizing import Search, SearchSpace, local_executor, parse_slo, write_sizing
from simulator.sizing.evidence import evidence
from simulator.sizing.pages import report_of
from simulator.sizing.study import Study
from simulator.sizing.sweep import run_study
from simulator.workload import Lengths, Trace, generate_trace


def some_trace(n: int = 200) -> Trace:
    lengths = Lengths.parse("uniform:low=50,high=400"), Lengths.parse("uniform:low=5,high=40")
    return generate_trace(n, request_rate=8, input_length=lengths[0], output_length=lengths[1], seed=1)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    space = SearchSpace(
        Deployment.of(model="llama-3.1-8b"), ("h100", "l40s"), tensor_parallel_sizes=(1,), dtypes=(None,),
        max_num_seqs=(None,), max_num_batched_tokens=(None,),
    )  # fmt: skip
    search = Search(
        some_trace(), parse_slo(["ttft:p99:900", "tpot:p99:90"]), space, requests=200, confirm_runs=2
    )
    return evidence(search.run())


def offline(html: str) -> bool:
    """Whether the page asks for nothing from elsewhere: no element of it names another file."""
    outside_scripts = re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.S)
    elsewhere = re.search(
        r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", html.split("<script>")[0] + outside_scripts
    )
    return elsewhere is None


def test_a_sizing_is_one_page_with_the_recommendation_first(tmp_path: Path, found: dict[str, Any]) -> None:
    write_sizing(tmp_path / "out", found)
    html, suffix = report_of(tmp_path / "out", "html")
    assert suffix == ".html"
    assert offline(html)
    body = html[html.index("<body>") :]
    headings = re.findall(r"<h2>(.*?)</h2>", body)
    assert headings[0] == "Recommendation"
    assert found["best"]["name"] in body
    assert body.index("Confirmed with 95% confidence") < body.index("Cost against latency")
    markdown, _ = report_of(tmp_path / "out", "markdown")
    assert markdown.startswith("# Run ")
    assert json.loads(report_of(tmp_path / "out", "json")[0]) == json.loads(json.dumps(found))
    write_sizing(tmp_path / "out", found)  # an earlier sizing may be replaced


def test_a_directory_with_something_else_in_it_is_not_overwritten(
    tmp_path: Path, found: dict[str, Any]
) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(ConfigurationError, match=r"letter\.txt"):
        write_sizing(tmp_path, found)


def test_a_run_and_a_sweep_have_reports_too(tmp_path: Path) -> None:
    trace = some_trace()
    write_run(tmp_path / "run", simulate(trace, Deployment.of(model="llama-3.1-8b")).run(seed=0))
    assert "| completed | 200 |" in report_of(tmp_path / "run", "markdown")[0]
    assert json.loads(report_of(tmp_path / "run", "json")[0])["completed"] == 200
    assert offline(report_of(tmp_path / "run", "html")[0])
    trace.to_jsonl(tmp_path / "t.jsonl")
    (tmp_path / "study.yaml").write_text("trace: t.jsonl\ngrid: {gpu: [h100, l4], num_prompts: [50]}\n")
    run_study(Study.load(tmp_path / "study.yaml"), tmp_path / "sweep", lambda: local_executor(1))
    html = report_of(tmp_path / "sweep", "html")[0]
    assert offline(html)
    assert "lowest p99_tpot_ms" in html
    assert "| h100 | 50 |" in report_of(tmp_path / "sweep", "markdown")[0]
    assert len(json.loads(report_of(tmp_path / "sweep", "json")[0])["runs"]) == 2


def test_a_directory_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no summary"):
        report_of(tmp_path, "html")
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match="not finished"):
        report_of(tmp_path, "html")
    with pytest.raises(UnknownNameError, match="html"):
        report_of(tmp_path, "htm")


def test_a_deployment_becomes_vllm_arguments() -> None:
    """Flags as `vllm serve --help` of 0.27 names them."""
    deployment = Deployment.of(
        model="llama-3.1-70b", gpu="h100", tensor_parallel_size=4, max_num_seqs=128, max_num_batched_tokens=4096,
        gpu_memory_utilization=0.9, enable_prefix_caching=False, enable_chunked_prefill=True, dtype="fp8",
        kv_cache_dtype="fp8", num_gpu_blocks=5000, scheduling_policy="priority",
    )  # fmt: skip
    assert shlex.join(vllm_arguments(deployment, "meta-llama/Llama-3.1-70B-Instruct")) == (
        "vllm serve meta-llama/Llama-3.1-70B-Instruct --tensor-parallel-size 4 --max-num-seqs 128 "
        "--max-num-batched-tokens 4096 --gpu-memory-utilization 0.9 --scheduling-policy priority --quantization fp8 "
        "--kv-cache-dtype fp8 --no-enable-prefix-caching --enable-chunked-prefill --num-gpu-blocks-override 5000"
    )
    assert vllm_arguments(Deployment.of(model="llama-3.1-8b")) == ["vllm", "serve", "llama-3.1-8b"]


@pytest.mark.parametrize(
    ("stated", "config"),
    [
        ("method=ngram,tokens=4,acceptance=0.5", {"method": "ngram", "num_speculative_tokens": 4}),
        (
            "method=draft,model=llama-3.2-1b,tokens=3,acceptance=0.7",
            {"method": "draft_model", "num_speculative_tokens": 3, "model": "llama-3.2-1b"},
        ),
    ],
)
def test_speculation_is_exported(stated: str, config: dict[str, Any]) -> None:
    """Keys and methods as `SpeculativeConfig` of vLLM names them."""
    arguments = vllm_arguments(Deployment.of(model="llama-3.1-8b", speculation=stated))
    assert json.loads(arguments[arguments.index("--speculative-config") + 1]) == config


def test_heads_that_draft_are_named_by_their_checkpoint() -> None:
    deployment = Deployment.of(model="llama-3.1-8b", speculation="method=eagle,tokens=3,acceptance=0.7")
    with pytest.raises(ConfigurationError, match="--draft-model-id"):
        vllm_arguments(deployment)
    config = json.loads(vllm_arguments(deployment, draft_id="someone/eagle-llama")[-1])
    assert config == {"method": "eagle", "num_speculative_tokens": 3, "model": "someone/eagle-llama"}


def test_a_deployment_becomes_a_manifest() -> None:
    deployment = Deployment.of(model="llama-3.1-8b", gpu="l40s", tensor_parallel_size=2, num_replicas=3)
    text = kubernetes_manifest(deployment)
    workload, service = yaml.safe_load_all(text)
    assert "&id" not in text and "*id" not in text
    assert workload["spec"]["replicas"] == 3
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert container["image"] == f"vllm/vllm-openai:v{deployment.resolve().system.version}"
    assert container["command"] == vllm_arguments(deployment)
    assert service["spec"]["selector"] == workload["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"].items() <= workload["spec"]["template"]["metadata"]["labels"].items()
    amd = yaml.safe_load_all(kubernetes_manifest(Deployment.of(model="llama-3.1-8b", gpu="mi300x")))
    assert (
        "amd.com/gpu" in next(iter(amd))["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    )


def test_what_vllm_cannot_do_is_not_exported() -> None:
    with pytest.raises(ConfigurationError, match="system sglang"):
        vllm_arguments(Deployment.of(model="llama-3.1-8b", system="sglang"))
    with pytest.raises(ConfigurationError, match=r"system vllm-0\.2: only vllm and vllm-0\.11"):
        vllm_arguments(Deployment.of(model="llama-3.1-8b", system="vllm-0.2"))
    with pytest.raises(ConfigurationError, match="dtype int4"):
        vllm_arguments(Deployment.of(model="llama-3.1-8b", dtype="int4"))
