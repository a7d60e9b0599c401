"""R5: a worker process is killed, stopped or crashes. The loop ends with an error in time, and the run goes on exactly."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

from slw_data import save_state
from slw_data.batch import chunk
from tests.faults import zygote
from tests.faults.kills import check_remains, finish
from tests.faults.runs import KINDS, Run, Trainer
from tests.faults.tally import Tally

SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS)
TIMEOUT = 2  # of the loader
MORE = 5  # seconds beyond it, in which the error must come
END = 20  # seconds for the process to end after that: workers are given five each


def struck(tally: Tally, small: bool) -> None:
    """R5: each signal, to either worker, after some batches."""
    times = 1 if small else 100
    for number, strike in tally.each([(number, strike) for number in range(times) for strike in SIGNALS]):
        run = Run(KINDS[(number + strike) % len(KINDS)], steps=600, seed=number)
        with tally.folder() as parent:
            strike_once(tally, run, parent, strike, number)


def strike_once(tally: Tally, run: Run, parent: Path, strike: signal.Signals, number: int) -> None:
    folder, log, where = parent / "run", parent / "log.txt", f"{strike.name} of worker {number % 2} of {run}"
    folder.mkdir()
    pid = zygote.fork(log, until_the_error, run, folder, strike, number)
    try:
        zygote.reap(pid, TIMEOUT + MORE + END)
    except zygote.Hung as error:
        tally.fault("hangs", f"{where}: {error}")
    text = (folder / "error.json").read_text(encoding="utf-8") if (folder / "error.json").exists() else "null"
    found = json.loads(text)
    if found is None or not found["error"].startswith("RuntimeError: DataLoader ") or found["seconds"] > TIMEOUT + MORE:
        tally.fault("hangs", f"{where}: {found}, {log.read_text(errors='replace')[-500:]}")
    log.unlink()  # torch has written there what became of the worker
    finish(tally, run, folder, log)
    check_remains(tally, {pid}, log)


def until_the_error(run: Run, folder: Path, strike: signal.Signals, number: int) -> None:
    """Train with two workers, strike one, and write down what is raised and when."""
    chunk.SPAN_BATCHES = 16  # of a message, so that most are still to come: else a run may end well beside a stopped worker
    trainer = Trainer(run, folder, num_workers=2, timeout=TIMEOUT)
    began = None
    try:
        for at in trainer.steps():
            save_state(trainer.path, trainer)
            if at == 3 + number % 40:
                worker = multiprocessing.active_children()[number % 2]
                began = time.monotonic()
                os.kill(worker.pid or 0, strike)
    except RuntimeError as error:
        seconds = time.monotonic() - (began or 0)
        found = {"error": f"{type(error).__name__}: {error}", "seconds": seconds}
        (folder / "error.json").write_text(json.dumps(found), encoding="utf-8")
