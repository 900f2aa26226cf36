"""The schedule of a closed loop, found once, against the simulator itself."""

import numpy as np
import pandas as pd
import pytest

from calibrate.fit.serving import ServingFit
from calibrate.fit.serving_terms import case_terms
from calibrate.serving import predict_case, record_schedule
from calibrate.serving.closed_loop import closed_loop_cases

ROW = {
    "system": "h100_sxm",
    "backend": "vllm",
    "backend_version": "0.19.0",
    "model_path": "meta-llama/Llama-3.1-8B",
    "precision": "fp8",
    "isl": 1024,
    "osl": 64,
    "concurrency": 6,
    "tp_size": 1,
    "pp_size": 1,
    "silicon_ttft_ms": 50.0,
    "silicon_tpot_ms": 7.0,
    "lengths": "uniform 0.8L..L",
    "score_ttft": True,
}


def cases(*changes):
    rows = pd.DataFrame([{**ROW, **change} for change in changes])
    found = closed_loop_cases("rows.csv", rows)
    assert not found.skipped
    return found.cases


def system(name, version=""):
    return {"backend": name, "backend_version": version}


SYSTEMS = [
    system("vllm", "0.19.0"),
    system("vllm", "0.12.0"),
    system("trtllm", "1.2.0rc2"),
    system("sglang", "0.5.8"),
]
KINDS = [
    *SYSTEMS,
    {"concurrency": 1},
    {"lengths": "not stated"},
    {"model_path": "openai/gpt-oss-120b", "precision": "fp4"},
]


@pytest.mark.parametrize("change", KINDS, ids=lambda change: "-".join(map(str, change.values())))
def test_weighted_steps_are_the_simulated_latencies(change):
    (case,) = cases(change)
    schedule, step = record_schedule(case), case.resolve().steptime
    seconds = [
        step.seconds(d, c, p) if p else float(np.sum(step.segment(d, c, n)))
        for d, c, n, p in zip(
            schedule.decodes.tolist(),
            schedule.context.tolist(),
            schedule.count.tolist(),
            schedule.prefills,
            strict=True,
        )
    ]
    simulated = predict_case(case)
    assert schedule.w_tpot @ seconds == pytest.approx(simulated["tpot"], rel=1e-6)
    front = step.traits.engine.request_s
    assert schedule.w_ttft @ seconds + front == pytest.approx(simulated["ttft"], rel=1e-6)


def test_the_sums_of_the_fit_are_the_simulated_latencies():
    """Terms and costs, put together by the fit, are what the simulator says with those costs."""
    found = cases(*[{**kind, "concurrency": c} for kind in SYSTEMS for c in (2, 12)])
    terms = [case_terms(case) for case in found]
    fit = ServingFit().fit(terms)
    for case, ttft, tpot in zip(found, *fit.predict(terms), strict=True):
        engine = fit.costs(case.system, case.traits)
        simulated = predict_case(with_engine(case, engine))
        assert tpot == pytest.approx(simulated["tpot"], rel=0.02)
        assert ttft == pytest.approx(simulated["ttft"], rel=0.02)


def with_engine(case, costs):
    """*case* with engine costs as fitted here, not as shipped."""
    from dataclasses import replace

    from simulator.steptime import StepTime
    from simulator.steptime.engine_costs import EngineCosts

    class Refitted(type(case)):
        def resolve(self):
            resolved = super().resolve()
            step, engine = resolved.steptime, EngineCosts(**costs)
            traits = replace(
                step.traits,
                engine=engine,
                layer_overhead_s=engine.layer_s,
                mixed_attention_factor=1 + engine.mixed_attention,
            )
            own = StepTime(step.model, step.laws, step.parallelism, traits, step.precision)
            return replace(resolved, steptime=own)

    return Refitted(**{name: getattr(case, name) for name in case.__dataclass_fields__})
