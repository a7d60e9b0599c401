"""What it costs to begin, and to go on: ``python -m benchmarks.startup``.

The import, beyond torch's; a store of 10^12 tokens (computed ones) opened, planned and read at its far end; and a run
continued at optimizer step 1,000,000.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.timing import above_zero, table
from slw_data import LinearSchedule, SLWDataset, SLWLoader, open_tokens
from slw_data.cli.batch import Places

IMPORT = "import time, torch; start = time.perf_counter(); import slw_data; print(time.perf_counter() - start)"


def importing(times: int) -> float:
    """Seconds that ``import slw_data`` takes after ``import torch``, from compiled files, each in a new process."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    took = [float(subprocess.check_output([sys.executable, "-c", IMPORT], env=environment)) for _ in range(times + 1)]
    return statistics.median(took[1:])


def anonymous() -> float:
    """MB of memory that is not a file's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def far_end(tokens: int = 10**12) -> tuple[float, float, float]:
    """Seconds to open and plan, seconds to the last batch, and MB. The tokens are computed: how long a file system takes to
    find a page is another matter."""
    before, start = anonymous(), time.perf_counter()
    schedule = LinearSchedule(8, 1024, warmup_steps=100_000)
    loader = SLWLoader(SLWDataset(Places(tokens), schedule, batch_size=512, shuffle=True))
    opened = time.perf_counter()
    loader.seek(len(loader) - 1)
    next(iter(loader))
    return opened - start, time.perf_counter() - opened, anonymous() - before


def resuming(folder: str, times: int = 21) -> tuple[float, float]:
    """Seconds from a state of step 1,000,000 to its first batch: the first time, and the median."""
    path = os.path.join(folder, "tokens.bin")
    np.zeros(1 << 24, np.uint16).tofile(path)
    schedule = LinearSchedule(8, 1024, warmup_steps=3000)
    dataset = SLWDataset(open_tokens(path, dtype="uint16"), schedule, batch_size=16, total_steps=2_000_000, shuffle=True)
    loader = SLWLoader(dataset)
    loader.seek(1_000_000)
    state, took = loader.state_dict(), []
    for _ in range(times):
        loader = SLWLoader(dataset)
        start = time.perf_counter()
        loader.load_state_dict(state)
        next(iter(loader))
        took.append(time.perf_counter() - start)
    return took[0], statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--imports", type=above_zero(int), default=7, help="of slw_data that are timed (default: 7)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        opened, read, memory = far_end()
        first, resumed = resuming(folder)
    rows = [
        ["import slw_data after import torch", f"{importing(options.imports) * 1e3:.0f} ms"],
        ["open and plan a store of 10^12 tokens", f"{opened * 1e3:.0f} ms"],
        ["its last batch, 512 x 1024, shuffled", f"{read * 1e3:.0f} ms"],
        ["anonymous memory for both", f"{memory:.0f} MB"],
        ["load a state of step 1,000,000, and its batch", f"{resumed * 1e3:.1f} ms (first time {first * 1e3:.1f})"],
    ]
    print(table(["what", "took"], rows))


if __name__ == "__main__":
    main()
