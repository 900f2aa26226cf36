"""Parameter counts against published ones: the totals of the safetensors indices and model cards."""

import pytest

from simulator.models import Precision, list_models, load_model

PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-4-scout-17b-16e": 108_641_793_536,
    "llama-4-maverick-17b-128e": 401_583_781_376,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-4b": 4_300_079_472,
    "gemma-3-12b": 12_187_325_040,
    "gemma-3-27b": 27_432_406_640,
    "phi-2": 2_779_683_840,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-175b": 175e9,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "falcon-180b": 179_522_565_120,
    "yi-6b": 6_061_035_520,
    "yi-34b": 34_388_917_248,
    "bloom-176b": 176_247_271_424,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "megatron-530b": 530e9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_is_the_published_count(name):
    assert load_model(name).total_parameters == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize(
    ("name", "billions", "embedding"),
    [
        ("gpt-oss-120b", "5.13", False),  # model cards differ in whether the embedding table counts
        ("gpt-oss-20b", "3.61", False),
        ("deepseek-v3", "37", False),
        ("deepseek-v2", "21", False),
        ("deepseek-v2-lite", "2.4", False),
        ("mixtral-8x7b", "12.9", True),
        ("mixtral-8x22b", "39", False),
        ("qwen3-235b-a22b", "22", True),
        ("llama-4-maverick-17b-128e", "17", True),
    ],
)
def test_active_is_the_published_count(name, billions, embedding):
    model = load_model(name)
    count = model.active_parameters + (model.parameters_by_part()["embedding"] if embedding else 0)
    decimals = len(billions.partition(".")[2])
    assert abs(count / 1e9 - float(billions)) <= 0.55 * 10**-decimals


def test_gemma_3_by_part():
    # Gemma 3 technical report, table 1: vision encoder, embedding, the rest
    parts = load_model("gemma-3-12b").parameters_by_part()
    rest = sum(n for part, n in parts.items() if part not in ("vision", "embedding"))
    assert parts["vision"] == pytest.approx(417e6, rel=0.02)
    assert parts["embedding"] == pytest.approx(1012e6, rel=0.01)
    assert rest == pytest.approx(10_759e6, rel=0.005)


def test_gpt_oss_by_part():
    # gpt-oss model card, table 1: MLP 114.71, attention 0.96, embedding and unembedding 1.16 billion
    parts = load_model("gpt-oss-120b").parameters_by_part()
    assert (parts["experts"] + parts["router"]) / 1e9 == pytest.approx(114.71, abs=0.01)
    assert parts["attention"] / 1e9 == pytest.approx(0.96, abs=0.01)
    assert (parts["embedding"] + parts["lm_head"]) / 1e9 == pytest.approx(1.16, abs=0.01)


@pytest.mark.parametrize("name", list_models())
def test_parts_are_whole_and_active_is_less(name):
    model = load_model(name)
    assert all(count >= 0 for count in model.parameters_by_part().values())
    assert model.total_parameters == sum(model.parameters_by_part().values())
    assert model.active_parameters <= model.total_parameters
    assert model.is_moe == (model.parameters_by_part()["experts"] > 0)


@pytest.mark.parametrize(
    ("name", "kv", "expected"),
    [
        ("llama-13b", "fp16", 819_200),  # 2 · 40 layers · 5120 · 2 B
        ("llama-3.1-8b", "bf16", 131_072),  # 2 · 32 · 8 · 128 · 2 B
        ("llama-3.1-8b", "fp8", 65_536),
        ("deepseek-v3", "bf16", 70_272),  # 61 layers · (512 + 64) · 2 B
        ("falcon-7b", "bf16", 8_192),  # one KV head
    ],
)
def test_kv_bytes_per_token(name, kv, expected):
    assert load_model(name).kv_bytes_per_token(kv) == expected


def test_kv_of_a_sequence_of_llama_13b():
    # "up to 1.7 GB for a single sequence": vLLM launch post
    assert 2048 * load_model("llama-13b").kv_bytes_per_token("fp16") == pytest.approx(1.7e9, rel=0.02)


def test_kv_heads_are_replicated_when_there_are_fewer_than_devices():
    model = load_model("qwen2.5-7b")  # 4 KV heads
    assert model.kv_bytes_per_token("bf16", tp=4) == model.kv_bytes_per_token("bf16") / 4
    assert load_model("falcon-40b").kv_bytes_per_token("bf16", tp=16) == 2 * 60 * 64 * 2


@pytest.mark.parametrize(
    ("name", "precision", "gigabytes"),
    [
        ("llama-3.1-8b", Precision("bf16"), 16.06),
        ("llama-3.1-70b", Precision("fp8"), 72.7),  # nvidia/Llama-3.1-70B-Instruct-FP8: 72.7 GB of files
        ("gpt-oss-120b", None, 65.2),  # openai/gpt-oss-120b: 65.2 GB of files
        ("gpt-oss-20b", None, 13.8),
        ("llama-2-7b", Precision("q4_k_m", head="q4_k_m"), 4.08),  # TheBloke/Llama-2-7B-GGUF: 4.08 GB
        ("qwen2.5-32b", Precision("int4"), 19.3),  # Qwen2.5-32B-Instruct-AWQ: 19.3 GB of files
    ],
)
def test_weight_bytes_are_the_size_of_the_files(name, precision, gigabytes):
    assert load_model(name).weight_bytes(precision) / 1e9 == pytest.approx(gigabytes, rel=0.015)
