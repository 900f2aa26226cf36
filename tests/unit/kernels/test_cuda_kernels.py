"""The CUDA form without a GPU: no register spills, right when emulated, refused by the loader."""

from __future__ import annotations

import ctypes
import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engine.kernels import build as building  # noqa: E402
from engine.kernels import get_kernels  # noqa: E402
from engine.kernels.conformance import (  # noqa: E402
    check_decode_attention,
    check_prefill_attention,
    checks,
)
from engine.kernels.conformance_cases import Case  # noqa: E402
from engine.kernels.cuda_backend import CudaKernels  # noqa: E402
from engine.kernels.library import SIGNATURES  # noqa: E402
from simulator.errors import ConfigurationError  # noqa: E402

NVCC = building.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc")


@pytest.fixture(params=["late", "early"])
def kernels(request, emulated):
    """Asynchronous copies as late as allowed, then as early as allowed."""
    copies = ctypes.CDLL(str(emulated.library.path)).emulate_eager_copies
    copies(int(request.param == "early"))
    yield emulated
    copies(0)


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in checks()])
def test_emulated_form_conforms(kernels, check):
    check(kernels, torch.bfloat16)


@pytest.mark.parametrize("name", ["rms_norm", "rope", "silu_mul", "process_logits", "kv_write"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_emulated_form_conforms_in_other_dtypes(emulated, name, dtype):
    dict(checks())[name](emulated, dtype)


def test_emulated_draw_is_the_torch_forms(emulated):
    """The same seed gives the same token whatever the kernels are written in."""
    logits = torch.randn(50, 3000, generator=torch.Generator().manual_seed(2))
    seeds, steps = torch.arange(50) * 977, torch.arange(50)
    expected = get_kernels("cpu", backend="torch").draw(logits, seeds, steps)
    assert torch.equal(emulated.draw(logits, seeds, steps), expected)


def test_a_prefill_of_more_rows_than_a_grids_second_dimension(emulated):
    """65,535 is the most in y and z (CUDA programming guide, technical specifications); rows lie along x."""
    gate_up = torch.ones(65_600, 2)
    assert torch.equal(emulated.silu_mul(gate_up), torch.nn.functional.silu(gate_up[:, :1]))


@st.composite
def cases(draw) -> Case:
    contexts = tuple(draw(st.lists(st.integers(0, 150), min_size=1, max_size=3)))
    return Case(
        dim=draw(st.sampled_from((64, 96, 128, 256))),
        group=draw(st.integers(1, 16)),
        kv_heads=draw(st.integers(1, 2)),
        block_size=draw(st.sampled_from((1, 5, 16, 32))),
        contexts=contexts,
        queries=tuple(draw(st.integers(min(1, context), context)) for context in contexts),
        window=draw(st.sampled_from((0, 1, 40))),
        splits=draw(st.integers(0, 4)),
    )


@given(case=cases())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_emulated_attention_on_any_shape(emulated, case):
    check_decode_attention(emulated, torch.float16, case)
    check_prefill_attention(emulated, torch.float16, case)


def decode(kernels, dim=64, heads=2, kv_heads=2, dtype=torch.float16, index=torch.int32) -> None:
    q, cache = torch.zeros(1, heads, dim, dtype=dtype), torch.zeros(1, 16, kv_heads, dim, dtype=dtype)
    lens = torch.ones(1, dtype=index)
    kernels.decode_attention(torch.empty_like(q), q, cache, cache, lens[:, None] * 0, lens, 1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 80}, "head_dim 80: the CUDA kernels have 64, 96, 128, 256"),
        ({"heads": 34}, "17 query heads per KV head: the CUDA kernels take up to 16"),
        ({"dtype": torch.float32}, "must both be bfloat16 or both float16"),
        ({"index": torch.int64}, r"block table torch.int64, stride 1: must be int32"),
    ],
)
def test_what_the_kernels_would_misread_is_refused(emulated, changed, message):
    decode(emulated)
    with pytest.raises(ConfigurationError, match=message):
        decode(emulated, **changed)


def test_queries_off_the_words_that_are_copied_are_refused(emulated):
    """A GPU would stop with a misaligned address, and every later call with it."""
    rows = torch.zeros(2, 2 * 64 + 4, dtype=torch.float16)
    cache, lens = torch.zeros(1, 16, 2, 64, dtype=torch.float16), torch.ones(2, dtype=torch.int32)
    for q in (rows[:, : 2 * 64].view(2, 2, 64), rows[0, 4:].view(1, 2, 64)):
        with pytest.raises(ConfigurationError, match="must be aligned to 16 bytes"):
            emulated.decode_attention(
                torch.empty_like(q).contiguous(), q, cache, cache, lens[:, None] * 0, lens, 1.0
            )


def test_a_device_with_little_shared_memory_is_named(emulated):
    small = CudaKernels(torch.device("cpu"), "small", emulated.library, (4, 100 * 1024))
    decode(small, dim=128)
    with pytest.raises(ConfigurationError, match="needs 140288 bytes of shared memory, a multiprocessor has"):
        decode(small, dim=256)


@pytest.fixture(scope="session")
def compiled(pytestconfig):
    """The compiler's report for the two architectures, and the library; kept until sources or flags change."""
    folder = pytestconfig.cache.mkdir("kernels")
    key = building._key(NVCC, (*building.ARCHITECTURES, "verbose"))
    output, report = folder / f"{key}.so", folder / f"{key}.txt"
    if not report.exists():
        command = building.command(NVCC, building.ARCHITECTURES, output, "-Xptxas", "-v")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:2000]
        report.write_text(done.stderr)
    return report.read_text(), output


@needs_nvcc
def test_compiles_without_register_spills(compiled):
    report, _ = compiled
    kernels = re.findall(r"Compiling entry function '(\S+)' for '(sm_\d+)'", report)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert {architecture for _, architecture in kernels} == {"sm_80", "sm_90"}
    assert len(spills) == len(kernels) >= 2 * 40
    spilled = [name for (name, _), counts in zip(kernels, spills, strict=True) if counts != ("0", "0")]
    assert not spilled


@needs_nvcc
def test_attention_kernels_leave_room_for_two_blocks(compiled):
    """65,536 registers hold two blocks of 128 threads at up to 255 registers each."""
    report, _ = compiled
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", report)) <= 255


@needs_nvcc
def test_library_exports_what_the_binding_declares(compiled):
    library = ctypes.CDLL(str(compiled[1]))
    assert all(hasattr(library, name) for name in SIGNATURES)


@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_launch_without_a_driver_is_an_error_not_a_crash(compiled):
    from engine.kernels.library import Library

    with pytest.raises(RuntimeError, match=r"copy_blocks: CUDA error \d+"):
        Library(compiled[1]).call("copy_blocks", 0, 0, 0, 0, 1, 16, 0)


@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_runtime_that_the_driver_refuses_is_a_cause_to_take_another_form(compiled, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(building, "build", lambda architectures: compiled[1])
    assert re.match(r"CUDA error \d+: the runtime of nvcc", building.refusal(torch.device("cuda")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_form_is_refused_without_a_device():
    with pytest.raises(ConfigurationError, match="kernels 'cuda' cannot run here: cpu device"):
        get_kernels("cpu", torch.bfloat16, "cuda")


def test_build_is_cached_by_content(tmp_path, monkeypatch):
    """A stand-in for nvcc counts its calls: one build per flags, and a changed source builds again."""
    fake = tmp_path / "bin" / "nvcc"
    fake.parent.mkdir()
    log = tmp_path / "log"
    fake.write_text(
        '#!/bin/sh\necho "$@" >>'
        + str(log)
        + '\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && echo built >"$2"; shift; done\n'
    )
    fake.chmod(0o755)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.cu").write_text("one")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "SOURCES", source)
    first = building.build(("90",))
    assert building.build(("90",)) == first and first.read_text() == "built\n"
    assert building.build(("80",)) != first
    (source / "a.cu").write_text("two")
    assert building.build(("90",)) != first
    builds = [line for line in log.read_text().splitlines() if "--version" not in line]
    assert len(builds) == 3
    assert "-gencode=arch=compute_90,code=sm_90" in builds[0]


def test_a_failed_build_is_one_line(tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "nvcc"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "note: x" >&2\necho "a.cu(3): error: no such thing" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("ENGINE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigurationError, match=r"^nvcc failed: a\.cu\(3\): error: no such thing$"):
        building.build(("90",))


def test_without_a_compiler_the_cause_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "find_nvcc", lambda: None)
    with pytest.raises(ConfigurationError, match="no nvcc in CUDA_HOME, PATH or /usr/local/cuda"):
        building.build(("90",))
