"""R9, R15 and R16: what the tests cover in full already is run from there, and ranks that fail to load are counted here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from slw_data import SLWLoader, check_ranks_agree, load_state, save_state
from tests.faults import zygote
from tests.faults.runs import KINDS, Run
from tests.faults.tally import Tally

ROOT = Path(__file__).parents[2]
BAD_INPUTS = ("store_bad_inputs", "stream_bad_inputs", "dataset_refusals", "plan_refusals", "state", "checkpoint", "cli")
IN_TIME = 60  # seconds


def bad_inputs(tally: Tally, small: bool) -> None:
    """R9: the tests of refusals, each of which checks the type, the facts that are named, and the state after it."""
    for name in tally.each(BAD_INPUTS[:2] if small else BAD_INPUTS):
        output = run(tally, [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", f"tests/test_{name}.py"])
        if output is not None:
            tally.runs += max(0, count(output, "passed") + count(output, "failed") - 1)
            for line in re.findall(r"^(?:FAILED|ERROR) .*", output, re.MULTILINE):
                tally.fault("changed", line)
            if not count(output, "passed"):
                tally.fault("changed", output[-1000:])


def mutants(tally: Tally, small: bool) -> None:
    """R15: faults in the library itself, each of which some test must notice. Only in the full form."""
    for _ in tally.each([] if small else [0]):
        output = run(tally, [sys.executable, "-m", "tests.mutants"], seconds=4 * 3600)
        if output is not None:
            tally.runs += count(output, "faults") - 1
            for line in re.findall(r".*(?:SURVIVED|STALE|BROKEN).*", output):
                tally.fault("changed", line)


def run(tally: Tally, command: list[str], seconds: float = 1200) -> str | None:
    """What a command prints; None, and a hang, if it takes longer."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )  # fmt: skip
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return tally.fault("hangs", " ".join(command))


def count(output: str, what: str) -> int:
    found = re.findall(rf"(\d+) {what}", output)
    return int(found[-1]) if found else 0


# -- R16 ---------------------------------------------------------------------------------------------------------------


def agreement(tally: Tally, small: bool) -> None:
    """R16: two ranks over gloo, one of which cannot load its state; then shapes on all ranks, in the full form."""
    for number in tally.each(range(2 if small else 50)):
        with tally.folder() as folder:
            fail_together(tally, folder, Run(KINDS[number % len(KINDS)], steps=24), number % 2)
    if not small:
        output = run(tally, [sys.executable, "-m", "pytest", "-n", "0", "tests/test_agreement.py"])
        tally.runs += 50 * count(output or "", "passed") // 3
        if output is not None and (count(output, "failed") or not count(output, "passed")):
            tally.fault("changed", output[-1000:])


def fail_together(tally: Tally, parent: Path, run: Run, failing: int) -> None:
    log = parent / "log.txt"
    pids = [zygote.fork(log, load_on, parent, run, rank, rank == failing) for rank in (0, 1)]
    for pid in pids:
        try:
            zygote.reap(pid, IN_TIME)
        except zygote.Hung as error:
            tally.fault("hangs", f"{run}, rank {failing} fails: {error}")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(parent.glob("error *"))]
    if len(found) != 2 or found[0] != found[1] or not found[0].startswith(f"StateError: rank {failing} of 2 failed"):
        tally.fault("changed", f"{run}, rank {failing} fails: {found}, {log.read_text(errors='replace')[-1000:]}")


def load_on(parent: Path, run: Run, rank: int, fails: bool) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{parent}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=IN_TIME)
    )  # fmt: skip
    path = parent / f"state {rank}.json"

    def make() -> SLWLoader:
        loader = run.loader(parent, rank, 2, prefetch=0)
        next(iter(loader))
        save_state(path, loader)
        if fails:
            path.write_bytes(path.read_bytes()[:100])
        load_state(path, loader)
        return loader

    began = time.monotonic()
    try:
        check_ranks_agree(make)
        text = "no error"
    except ValueError as error:
        text = f"{type(error).__name__}: {error}"
    assert time.monotonic() - began < IN_TIME
    (parent / f"error {rank}").write_text(json.dumps(text), encoding="utf-8")
    dist.barrier()  # they are still together
    dist.destroy_process_group()
