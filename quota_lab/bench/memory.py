"""Peak memory of a process that runs one variant of a model: prefill and a few tokens.

The peak is the whole process's (interpreter and libraries included), as the system counts it, and every variant runs in
a fresh one (quota_lab/bench/process.py): what an allocator keeps from an earlier model would blur it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from quota import ops
from quota.errors import QuotaError

_STATUS = Path("/proc/self/status")


def peak_bytes(name: str, variant: str) -> int:
    """Peak resident bytes of a new process that makes the model called `name` and lets it answer once."""
    environment = dict(os.environ)
    if (forced := ops.forced()) is not None:
        environment[ops.ENVIRONMENT_VARIABLE] = forced
    command = [sys.executable, "-m", "quota_lab.bench.process", name, variant]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was ended by the system, perhaps for lack of memory"])[-1]
        raise QuotaError(f"measuring the memory of {name} {variant} failed: {last}")
    return int(done.stdout.split()[-1])


def own_peak() -> int:
    """Peak resident bytes of this process so far."""
    if _STATUS.is_file():
        # Not what getrusage says: on Linux a new program inherits that from the process that started it.
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
