"""Traits of the systems: every entry is usable, sizes are those of the sources, limits are respected."""

from types import SimpleNamespace

import pytest

from simulator.errors import ConfigurationError, UnknownNameError
from simulator.steptime import HostTraits, list_traits, load_traits


@pytest.mark.parametrize("system", list_traits())
def test_every_system_has_source_and_status(system):
    traits = load_traits(system)
    assert traits.source
    assert traits.status in ("measured", "fitted", "assumed")


def test_vllm_sizes_are_those_of_its_documentation():
    sizes = load_traits("vllm", max_num_seqs=256).graph_sizes
    assert sizes[:5] == (1, 2, 4, 8, 16)
    assert (248 in sizes, 256 in sizes, 264 in sizes, 272 in sizes) == (True, True, False, True)
    assert sizes[-1] == 512


@pytest.mark.parametrize(
    ("system", "seqs", "tokens", "largest"),
    [
        ("vllm", 16, None, 32),
        ("vllm", 1024, None, 512),
        ("vllm", 1024, 100, 96),
        ("vllm-v0", 256, None, 256),
        ("sglang", 160, None, 160),
        ("trtllm", 2048, None, 128),
        ("hf", 8, None, 0),
    ],
)
def test_the_largest_graph_follows_the_limits(system, seqs, tokens, largest):
    traits = load_traits(system, max_num_seqs=seqs, max_num_batched_tokens=tokens)
    assert traits.graph_max_tokens == largest


def test_versions_take_the_nearest_name():
    assert load_traits("vllm-0.19") == load_traits("vllm")
    assert load_traits("vllm-0.11.2") == load_traits("vllm-0.11") != load_traits("vllm")
    assert load_traits("vllm-0.6.6.post1") == load_traits("vllm-v0")
    assert load_traits("sglang-0.5.10") == load_traits("sglang")
    with pytest.raises(UnknownNameError, match="did you mean 'sglang'"):
        load_traits("sglnag")


def test_a_profile_states_the_layer_overhead_where_no_fit_does():
    assert load_traits("lightllm", host=SimpleNamespace(layer_overhead_s=2e-5)).layer_overhead_s == 2e-5
    assert load_traits("ideal", host=SimpleNamespace(layer_overhead_s=2e-5)).layer_overhead_s == 0


@pytest.mark.parametrize(
    "wrong", [{"per_step_s": -1.0}, {"mixed_attention_factor": 0.5}, {"graph_sizes": (4, 2)}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        HostTraits(**wrong)
