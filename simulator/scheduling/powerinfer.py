"""PowerInfer: the neurons that fire often on the GPU, the others on the CPU.

In models with ReLU-like activations few neurons of an MLP fire for a token, and the same few most of the time.
A predictor says which will; the hot ones are on the GPU, the cold ones in host memory, and both sides compute
theirs of one layer at the same time. The server is a fork of llama.cpp's, so its slots decide who runs.

Inferred from the paper (Song et al., SOSP 2024, arXiv 2312.12456) and the documentation; the source was not
read. Defaults: 43 % of the neurons catch 80 % of the activations (LLaMA(ReGLU)-70B, section 3; not checked
against the text), a token activates 20 % of the neurons (assumed: the paper's models are at least 80 % sparse).
For models without such sparsity set *active_neurons* to 1.
"""

from __future__ import annotations

from simulator.scheduling.offloading import CPU, cpu_neurons
from simulator.scheduling.system import System

__all__ = ["SYSTEMS"]

SYSTEMS = (
    System(
        name="powerinfer",
        version="SOSP 2024",
        summary="llama.cpp's slots; hot neurons on the GPU, cold ones on the CPU, side by side",
        source="arXiv 2312.12456 and the documentation; hot and active shares and the CPU's rates are options",
        status="inferred",
        policy="llamacpp:LlamaCpp",
        fixed={"uniform": ()},
        block_size=1,
        memory="llamacpp",
        traits="llamacpp",
        capacity="num_kv_cells",
        capacity_in_tokens=True,
        offload=cpu_neurons,
        offload_options={**CPU, "hot_neurons": 0.43, "hot_activations": 0.80, "active_neurons": 0.2},
    ),
)
