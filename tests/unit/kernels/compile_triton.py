"""Compiles the Triton kernels for a GPU that is absent; prints one JSON object (see test_triton_kernels)."""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import triton_attention, triton_cache, triton_elementwise, triton_matmul, triton_sampling

DATA = "*bf16"
DIMS = {80: (128,), 90: (64, 128, 256)}
KINDS = {
    **dict.fromkeys(("out", "q", "k_cache", "v_cache", "k", "v", "x", "residual", "total", "weight"), DATA),
    **dict.fromkeys(("gate_up", "logits", "scales"), DATA),
    **dict.fromkeys(("partial", "log_sum", "cos_sin"), "*fp32"),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition", "presence", "frequency"), "*fp32"),
    **dict.fromkeys(("block_table", "context_lens", "query_start", "top_k", "counts"), "*i32"),
    **dict.fromkeys(("slot_mapping", "source", "target", "positions", "tokens"), "*i64"),
    **dict.fromkeys(("scale_log2", "eps"), "fp32"),
    "prompt": "*i8",
    "uniforms": "*fp64",
}


def compile_kernel(kernel, architecture: int, kinds: dict[str, str], constants: dict, **options) -> dict:
    names = kernel.arg_names
    kinds = {
        name: "constexpr" if name in constants else {**KINDS, **kinds}.get(name, "i32") for name in names
    }
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if kinds[name][0] == "*"}
    source = ASTSource(kernel, kinds, places, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    code = built.asm["ptx"]
    return {
        "shared": built.metadata.shared,
        "tensor_cores": code.count("mma.sync") + code.count("wgmma.mma_async"),
        "wgmma": code.count("wgmma.mma_async"),
        "copies": code.count("cp.async"),
    }


def main(architecture: int) -> dict[str, dict]:
    results = {}
    for dim in DIMS[architecture]:
        tile, stages = triton_attention.tile_of(dim, 2), triton_attention.stages_of(dim, 2)
        shape = {"GROUP": 4, "DIM": dim, "WIDTH": triton.next_power_of_2(dim), "TILE": tile}
        results[f"decode {dim}"] = compile_kernel(
            triton_attention.decode_kernel, architecture, {}, shape | {"ROWS": 16}, num_stages=stages
        )
        tiles = triton_attention.default_tiles(dim, 2)
        results[f"prefill {dim}"] = compile_kernel(
            triton_attention.prefill_kernel,
            architecture,
            {},
            shape | {"ROWS": tiles.rows},
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    others = [
        (triton_attention.merge_kernel, {}, {"DIM": 128, "WIDTH": 128, "TILE": 64}),
        (triton_cache.kv_write_kernel, {}, {"CHUNK": 1024}),
        (triton_cache.copy_blocks_kernel, {}, {"CHUNK": 1024}),
        (triton_elementwise.rms_norm_kernel, {}, {"ADD": True, "WIDTH": 4096}),
        (triton_elementwise.rope_kernel, {}, {"HEADS": 32, "HALF": 64}),
        (triton_elementwise.silu_mul_kernel, {}, {"CHUNK": 1024}),
        (triton_matmul.int8_kernel, {"data": "*i8", "k": "i32"}, {"ROWS": 16, "COLUMNS": 64, "GROUP": 128}),
        (triton_matmul.int4_kernel, {"data": "*u8", "k": "i32"}, {"ROWS": 16, "COLUMNS": 64, "GROUP": 128}),
        (triton_sampling.process_kernel, {"out": "*fp32"}, {"TILE": 4096}),
        (triton_sampling.draw_kernel, {"logits": "*fp32"}, {"TILE": 4096}),
    ]
    for kernel, kinds, constants in others:
        results[kernel.__name__] = compile_kernel(kernel, architecture, kinds, constants)
    return results


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
