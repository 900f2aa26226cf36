"""From settings to a runner: weights in place, the activation peak measured, the cache sized, graphs
captured.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from engine.batch import Row, pack
from engine.cache import KVCache
from engine.graphs import DecodeGraphs, capture_sizes
from engine.kernels import get_kernels
from engine.model import DENSE_TOKENS, Decoder
from engine.parallel import SINGLE, TensorParallel
from engine.room import check_room
from engine.runner import ModelRunner
from engine.safetensors import Checkpoint
from engine.settings import EngineSettings
from engine.weights import CheckpointWeights, RandomWeights, load_weights
from simulator.errors import CapacityError

__all__ = ["build_decoder", "build_runner"]


def build_decoder(settings: EngineSettings, parallel: TensorParallel = SINGLE) -> Decoder:
    """The model of *settings*, one rank's part, on its device."""
    config = settings.decoder_config()
    device, dtype = settings.torch_device(parallel.rank), settings.torch_dtype(config)
    kernels = get_kernels(device, dtype, settings.kernels)
    check_room(settings, config, device, parallel)
    if settings.has_checkpoint and settings.directory is not None:
        source: CheckpointWeights | RandomWeights = CheckpointWeights(Checkpoint(settings.directory))
    else:
        source = RandomWeights(settings.seed, device)
    weights = load_weights(
        config, source, dtype=dtype, device=device, quantization=settings.quantization, parallel=parallel
    )
    return Decoder(config, weights, kernels, max_position=settings.model_len(config), parallel=parallel)


def build_runner(settings: EngineSettings, parallel: TensorParallel = SINGLE) -> ModelRunner:
    """A runner ready to serve; raises CapacityError where the device has no room for a cache."""
    decoder = build_decoder(settings, parallel)
    num_blocks = settings.num_gpu_blocks or _fitting_blocks(decoder, settings)
    cache = make_cache(
        decoder, settings.block_size, num_blocks, settings.swap_space_blocks, settings.num_scratch_blocks
    )
    runner = ModelRunner(decoder, cache)
    if not settings.enforce_eager and _capturable(decoder):
        most = DENSE_TOKENS if decoder.config.is_moe else 512
        sizes = capture_sizes(min(settings.max_num_seqs, settings.max_num_batched_tokens, most))
        runner.graphs = DecodeGraphs(decoder, cache, sizes, settings.model_len(decoder.config))
        runner.graphs.capture()
    return runner


def make_cache(
    decoder: Decoder, block_size: int, num_blocks: int, num_host_blocks: int = 0, num_scratch: int = 0
) -> KVCache:
    """A cache in the decoder's number format."""
    return KVCache(
        decoder.config.num_layers,
        num_blocks,
        block_size,
        decoder.num_kv_heads,
        decoder.config.head_dim,
        kernels=decoder.kernels,
        dtype=decoder.dtype,
        num_host_blocks=num_host_blocks,
        num_scratch=num_scratch,
    )


def _capturable(decoder: Decoder) -> bool:
    """Whether a decode step asks the device nothing: a loop over the experts that were chosen does."""
    loops = any(layer.router is not None and layer.stacked is None for layer in decoder.weights.layers)
    return decoder.device.type == "cuda" and decoder.kernels.graph_safe and not loops


def _fitting_blocks(decoder: Decoder, settings: EngineSettings) -> int:
    itemsize = decoder.dtype.itemsize
    per_block = settings.block_size * decoder.config.kv_bytes_per_token(itemsize, decoder.parallel.size)
    if decoder.device.type != "cuda":
        room: float = settings.cpu_cache_bytes
    else:
        room = _device_room(decoder, settings)
    blocks = torch.tensor(int(room // per_block), device=decoder.device)
    if decoder.parallel.size > 1:
        dist.all_reduce(blocks, op=dist.ReduceOp.MIN)
    if (count := int(blocks)) < 1:
        raise CapacityError(
            f"model {settings.name}: {room / 1e9:.2f} GB are left for KV, "
            f"and a block takes {per_block / 1e9:.3f} GB"
        )
    return count


def _device_room(decoder: Decoder, settings: EngineSettings) -> float:
    """Bytes left for KV: the allowed share of the device, less weights, activation peak and what others
    hold.
    """
    device = decoder.device
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    probe = _run_largest(decoder, settings)
    peak = torch.cuda.max_memory_allocated(device) - probe
    torch.cuda.empty_cache()
    return total * settings.gpu_memory_utilization - others - peak


def _run_largest(decoder: Decoder, settings: EngineSettings) -> int:
    """Run the largest batch that the limits allow; returns the bytes of the little cache it needed."""
    tokens = settings.max_num_batched_tokens
    length = min(tokens, settings.model_len(decoder.config))
    num = -(-tokens // length)
    per_row = -(-length // settings.block_size)
    cache = make_cache(decoder, settings.block_size, num * per_row)
    ids = torch.arange(num * per_row, dtype=torch.int32).view(num, per_row).numpy()
    rows = [Row([0] * length, 0, ids[i], 1) for i in range(num)]
    logits = ModelRunner(decoder, cache).run(pack(rows, settings.block_size))
    sampled = torch.zeros((min(settings.max_num_seqs, tokens), logits.shape[1]), device=decoder.device)
    torch.cuda.synchronize()
    del logits, sampled
    return cache.data.numel() * cache.data.element_size()
