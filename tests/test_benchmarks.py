"""The benchmarks run, in a small form, and print their tables. What they measure is nothing that a test may assert."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def output(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_throughput_prints_every_shape_and_every_way():
    text = output("benchmarks.throughput", "--tokens", "2000000", "--seconds", "0.01", "--rounds", "1")
    rates, against = text.split("Times the limit")
    for table in (rates, against):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + 7 and all(line.count("|") == 13 for line in lines)
        cells = [cell for line in lines[2:] for cell in line.split("|")[2:-1]]
        assert len(cells) == 77 and all(float(cell) > 0 for cell in cells)
    assert {f"{rows} x {length}" for rows, length in ((2048, 8), (16, 1024), (16, 8))} <= set(re.findall(r"\d+ x \d+", rates))


def test_startup_prints_what_it_took():
    text = output("benchmarks.startup", "--imports", "1")
    assert re.search(r"import slw_data after import torch \| +[\d.]+ ms", text) and "10^12 tokens" in text
    assert re.search(r"step 1,000,000, and its batch \| +[\d.]+ ms", text)
