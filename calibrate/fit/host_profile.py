"""A device's profile with what was observed of a serving system on it: laws and datasheet as they were."""

from __future__ import annotations

import hashlib
from pathlib import Path

from calibrate.fit.host import HostFit
from calibrate.observe.observation import Header, Observation
from hwprofiles import HardwareProfile, ServingCosts, Source, load_profile
from hwprofiles.datasheet import write_profile
from hwprofiles.registry import bundled_path, parse_profile
from simulator.errors import InputError
from simulator.steptime.traits import nearest_traits

__all__ = ["serving_costs", "write_host_profile"]

DIGITS = 4


def write_host_profile(fit: HostFit, observation: Observation, gpu: str, out: Path) -> HardwareProfile:
    """Write the profile *gpu* with *fit* to *out*; an earlier fit of the same deployment is replaced."""
    if out.suffix != ".yaml":
        raise InputError(out, "must end in .yaml, so that --gpu finds it by its path")
    base = parse_profile(
        Path(gpu) if gpu.endswith((".yaml", ".yml")) else bundled_path(load_profile(gpu).name)
    )
    costs = serving_costs(fit, observation)
    others = [old for old in base.serving if _deployed(old) != _deployed(costs)]
    name = base.name if out.stem in base.name else f"{base.name}-{out.stem}"
    again = Path(gpu).exists() and out.exists() and Path(gpu).samefile(out)
    profile = base.model_copy(
        update={
            "name": name,
            "aliases": [],
            "device": base.device if gpu.endswith((".yaml", ".yml")) else base.name,
            "version": base.version + again,
            "serving": [*others, costs],
        }
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_profile(profile, out)
    return profile


def _deployed(costs: ServingCosts) -> tuple[str, str, int, str, str]:
    return costs.system, costs.model, costs.num_gpus, costs.dtype, costs.kv_dtype


def serving_costs(fit: HostFit, observation: Observation) -> ServingCosts:
    """*fit* as a profile holds it, with where it comes from."""
    resolved, kv = fit.resolved, fit.kv
    return ServingCosts(
        system=nearest_traits(resolved.system.traits),
        model=resolved.model.name,
        num_gpus=resolved.parallelism.num_gpus,
        dtype=resolved.precision.weights,
        kv_dtype=resolved.precision.kv,
        step_s=_rounded(fit.step_s),
        seq_s=_rounded(fit.seq_s),
        token_s=resolved.steptime.traits.engine.token_s,
        request_s=_rounded(fit.request_s),
        standard_errors={name: _rounded(value) for name, value in fit.standard_errors.items()},
        kv_tokens=None if kv is None else kv.tokens,
        kv_source="" if kv is None else f"{kv.source}",
        server=observation.header.server,
        held_out={name: _rounded(value) for name, value in fit.after.items()},
        spread_step=_rounded(fit.spread_step),
        spread_ttft=_rounded(fit.spread_ttft),
        requests=fit.num_fitted,
        digest=_digest(observation),
        source=Source(kind="fitted", text=_origin(observation.header), date=observation.header.date or None),
    )


def _origin(header: Header) -> str:
    server = f" of server {header.server}" if header.server else ""
    return f"observed by {header.source}{server}, {header.date}"


def _digest(observation: Observation) -> str:
    if observation.path is None:
        raise InputError("observation", "was not read from a file, so nothing can be traced to it")
    return hashlib.sha256(observation.path.read_bytes()).hexdigest()


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
