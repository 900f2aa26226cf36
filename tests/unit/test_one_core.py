"""A simulation keeps one core busy, so that as many run beside each other as there are cores."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import time
from simulator import Deployment, simulate
from simulator.workload import Lengths, generate_trace

lengths = Lengths.parse("lognormal:mean=500,sigma=0.8,max=4000"), Lengths.parse("lognormal:mean=80,sigma=0.6")
trace = generate_trace(400, request_rate=3, input_length=lengths[0], output_length=lengths[1], seed=1)
simulate(trace, Deployment())
process, thread = time.process_time(), time.thread_time()
for _ in range(5):
    simulate(trace, Deployment())
print((time.process_time() - process) / (time.thread_time() - thread))
"""


def test_no_other_thread_works_for_it() -> None:
    """Linear algebra libraries start a thread per core, which wait for work by spinning."""
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=free, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.2
