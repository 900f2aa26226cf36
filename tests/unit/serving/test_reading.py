"""Rows of published tables as cases: names, units, scopes, what is left out and why."""

import json

import numpy as np
import pandas as pd
import pytest

from calibrate.serving import read_cases, score_cases, summarize_serving, thin
from calibrate.serving.names import find_gpu, find_precision, find_serving_system
from simulator.errors import InputError, UnknownNameError

ROW = {
    "source_key": "page",
    "system": "TensorRT-LLM",
    "version": "0.17",
    "gpu": "H100 SXM 80GB",
    "gpu_count": 2,
    "tp": 2,
    "pp": 1,
    "dp": 1,
    "model": "Llama-3.1-8B",
    "weight_dtype": "FP8",
    "kv_dtype": "FP8",
    "load_type": "static_batch",
    "dataset": "fixed",
    "isl": 128,
    "osl": 32,
    "num_requests": None,
    "batch_or_concurrency": "8",
    "request_rate_qps": None,
    "metric": "output_throughput",
    "statistic": "mean",
    "value": 700.0,
    "unit": "tok/s",
    "scope": "per_gpu",
    "spec_grade": "A",
}


def read(tmp_path, *changes):
    path = tmp_path / "published.csv"
    pd.DataFrame([{**ROW, **change} for change in changes]).to_csv(path, index=False)
    return read_cases(path)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("h200_sxm", "h200-sxm-141gb"),
        ("H100 SXM 80GB", "h100-sxm-80gb"),
        ("A100 40GB", "a100-sxm-40gb"),
        ("A100 PCIe 80GB (NVLink pairs)", "a100-pcie-80gb"),
        ("GH200 480GB", "gh200-96gb"),
        ("A10G 24GB", "a10g-24gb"),
        ("4090 24GB", "rtx-4090-24gb"),
        ("RTX PRO 6000 Blackwell", "rtx-pro-6000-server-96gb"),
        ("RTXPRO6000", "rtx-pro-6000-server-96gb"),
    ],
)
def test_gpu_labels(label, name):
    assert find_gpu(label) == name


@pytest.mark.parametrize("label", ["M2 Ultra 192GB", "RTX 6000 Ada 48GB", "3090 24GB", "not stated"])
def test_gpus_that_nobody_profiled_are_refused(label):
    with pytest.raises(UnknownNameError):
        find_gpu(label)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("FP16 (assumed)", "fp16"),
        ("F16", "fp16"),
        ("Q4_K_M", "q4_k_m"),
        ("fp4", "nvfp4"),
        ("INT4 g32", "int4"),
    ],
)
def test_precision_labels(label, name):
    assert find_precision(label) == name


@pytest.mark.parametrize(
    ("label", "version", "system", "traits"),
    [
        ("vllm", "0.12.0", "vllm-0.11", "vllm-0.11"),
        ("vLLM", "0.19.0", "vllm", "vllm"),
        ("vllm", "", "vllm", "vllm"),
        ("trtllm", "1.0.0rc3", "tensorrt-llm", "trtllm-1.0"),
        ("TensorRT-LLM (Triton tensorrtllm_backend)", "1.2.0", "tensorrt-llm", "trtllm"),
        ("sglang", "0.5.1.post1", "sglang", "sglang"),
    ],
)
def test_versions_take_the_nearest_model_and_say_so(label, version, system, traits):
    choice = find_serving_system(label, version)
    assert (choice.system, choice.traits) == (system, traits)
    assert system in choice.note


def test_metrics_of_one_configuration_are_one_case(tmp_path):
    latency = {"metric": "e2e_latency", "value": 250.0, "unit": "ms", "scope": "batch"}
    (case,) = read(tmp_path, {}, latency).cases
    assert case.measured == {"throughput": 1400.0, "makespan": 0.25}  # per GPU times two; ms
    assert (len(case.trace), case.deployment.options["max_batch_size"]) == (8, 8)


def test_rows_left_out_are_counted_by_reason(tmp_path):
    found = read(
        tmp_path,
        {"load_type": "kernel"},
        {"statistic": "p99"},
        {"osl": None},
        {"gpu": "M1 Max"},
        {"gpu": "M1 Max", "value": 1.0},
        {"system": "Exllama V2"},
        {},
    )
    assert len(found.cases) == 1
    assert sum(found.skipped.values()) == found.rows - 1 == 6
    assert found.skipped["unknown gpu 'M1 Max'"] == 2


def test_errors_are_summarised_by_group(tmp_path):
    score = score_cases(read(tmp_path, {}, {"isl": 256}).cases)
    (group,) = summarize_serving(score.rows)
    sizes = (score.rows["predicted"] / score.rows["measured"] - 1).abs()
    assert group["rows"] == 2
    assert group["mean_ape"] == pytest.approx(sizes.mean())
    assert json.loads(json.dumps(group))["metric"] == "throughput"


def test_logs_of_a_run_are_one_case(tmp_path):
    folder = tmp_path / "h100_run"
    folder.mkdir()
    engine = {
        "model": "meta-llama/Llama-3.1-8B",
        "tensor_parallel_size": 1,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 512,
    }
    config = {"vllm_version": "0.19.0", "engine_kwargs": engine, "resolved": {"num_gpu_blocks": 900}}
    (folder / "engine_config.json").write_text(json.dumps(config))
    columns = {
        "idx": [0, 1],
        "input_tokens": [40, 48],
        "output_tokens": [3, 1],
        "dataset_arrival_s": [0.0, 0.1],
        "queued_s": [0.0, 0.1],
        "first_token_s": [0.02, 0.14],
        "last_token_s": [0.04, 0.14],
    }
    pd.DataFrame(columns).to_csv(folder / "requests.csv", index=False)
    (tmp_path / "prefix_blocks_a.jsonl").write_text(
        '{"idx":0,"block_ids":[7,8]}\n{"idx":1,"block_ids":[7,8,9]}\n'
    )
    (case,) = read_cases(tmp_path).cases
    assert (case.deployment.num_gpu_blocks, case.gpu) == (900, "h100-sxm-80gb")
    assert case.measured == {"ttft": pytest.approx(0.03), "tpot": pytest.approx(0.01)}
    assert case.trace.content_ids.tolist() == [7, 8, 7, 8, 9]
    assert np.isnan(case.per_request["tpot"][1])
    assert set(score_cases([case]).rows["metric"]) == {"ttft", "tpot", "ttft_per_request", "tpot_per_request"}


def test_other_tables_and_missing_files_are_refused(tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="must have the columns"):
        read_cases(other)
    with pytest.raises(InputError, match="cannot be read"):
        read_cases(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"requests\.csv"):
        read_cases(tmp_path)


def test_thinning_keeps_both_ends():
    assert thin(list(range(100)), 3) == [0, 50, 99]
    assert thin([1, 2], 3) == [1, 2]
