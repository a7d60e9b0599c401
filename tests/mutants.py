"""Break the library one line at a time, and see whether the tests notice: ``python -m tests.mutants``.

Each fault is put into a copy of the project, and the tests beside it run there until one fails. A fault that no test
notices is printed as SURVIVED, and the exit status is 1. Slow: a minute or so a fault; ``-k TEXT`` picks some.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIME_LIMIT = 1200  # seconds for one run of the tests; the whole suite takes about six minutes

# (fault, file, line as it is, line as it becomes, tests that run first)
FAULTS = [
    ("state frozen after a resume", "loader.py", "delivered, self._last = True, made[:2]", "delivered = True", "resume"),
    ("what is read ahead counts as delivered", "dataset.py", "chunk.numbers[i] + 1,", "chunk.numbers[-1] + 1,", "resume"),
    ("position is one batch behind", "dataset.py", "chunk.numbers[i] + 1,", "chunk.numbers[i],", "resume"),
    ("stale iterators go on", "loader.py", "if moves != self._moves:", "if False:", "resume"),
    (
        "carry off by one",
        "order/dealing.py",
        "self.spans[0] = (read, end, stop)",
        "self.spans[0] = (read, min(end + 1, stop - 1), stop)",
        "dataset_streams",
    ),
    ("a lane is dealt to before it runs dry", "batch/documents.py", "while held < width:", "while held <= width:", "dealing"),
    ("no label waits for the lane's next row", "batch/documents.py", "lane.waiting = row", "lane.waiting = None", "dealing"),
    (
        "an error overtakes a label",
        "batch/documents.py",
        "                    yield None\n                    raise",
        "                    raise",
        "dealing",
    ),
    (
        "a batch overtakes the error of another worker",
        "delivery/workers.py",
        "if chunk.numbers.start == self._next:",
        "if True:",
        "loader",
    ),
    (
        "a block that an error ended is held to its end",
        "order/dealing.py",
        "after = at.next if self.whole else",
        "after = at.next + len(offsets) if self.whole else",
        "dealing",
    ),
    ("an error met early is forgotten", "order/dealing.py", "self._failure = error", "pass", "dealing"),
    ("a begun document is forgotten", "order/dealing.py", "places += [read.first + document,", "places += [-1,", "resume"),
    (
        "the oldest document is not the one to read from",
        "order/dealing.py",
        "oldest = min(oldest, read",
        "oldest = max(oldest, read",
        "resume",
    ),
    ("epoch lost", "order/dealing.py", "self._epoch, self._barren = self._epoch + 1, True", "self._barren = True", "dealing"),
    (
        "worker stride off",
        "batch/rows.py",
        "if number % num_workers == worker:",
        "if number % (num_workers + 1) == worker:",
        "loader",
    ),
    ("workers all read everything", "batch/documents.py", "number % num_workers == worker, list", "True, list", "loader"),
    ("ranks swapped", "batch/rows.py", "(batch * world + self.rank)", "(batch * world - self.rank)", "rows"),
    (
        "every rank is rank 0 of a stream",
        "batch/documents.py",
        "self.plan.world_size + self.rank",
        "self.plan.world_size",
        "dataset_ranks",
    ),
    (
        "labels not moved across the cut",
        "batch/building.py",
        'parts["next"] = (self._target_column, 1)',
        'parts["next"] = (self._target_column, 0)',
        "dataset",
    ),
    (
        "padding is a target",
        "batch/building.py",
        "target.astype(np.int64), IGNORE)",
        "target.astype(np.int64), 0)",
        "dataset_streams",
    ),
    (
        "position ids run on over documents",
        "batch/building.py",
        "np.where(starts, column, 0)",
        "np.where(starts, 0, 0)",
        "dataset",
    ),
    ("every run of a chunk jumps", "batch/rows.py", "starts[jumped, done] = True", "starts[:, done] = True", "rows"),
    ("the data has no end", "batch/rows.py", "valid_next[ended, -1] = False", "valid_next[ended, -1] = True", "dataset"),
    ("one order for all epochs", "order/lanes.py", "(self.seed, epoch))", "(self.seed, 0))", "lanes"),
    (
        "the tail of an epoch is lost",
        "order/lanes.py",
        "lanes * self._tail + np.minimum",
        "0 * self._tail + np.minimum",
        "lanes",
    ),
    (
        "lanes forget a change of length",
        "order/lanes.py",
        "base = base + (before.length - stage.length)",
        "base = base + 0 * (before.length - stage.length)",
        "lanes",
    ),
    (
        "rounding to the nearest rung",
        "plan/schedules.py",
        "-(-(length - self.min_length) * duration //",
        "((length - self.min_length) * duration //",
        "schedules",
    ),
    ("the warmup ends a step late", "plan/schedules.py", "if step >= duration or", "if step > duration or", "schedules"),
    (
        "rows not rounded down",
        "plan/plan.py",
        "self.tokens_per_batch // length  #",
        "-(-self.tokens_per_batch // length)  #",
        "plan",
    ),
    (
        "accumulation left out of a step's tokens",
        "plan/plan.py",
        "return self._rows(length) * self.grad_accum_steps * self.world_size",
        "return self._rows(length) * self.world_size",
        "plan",
    ),
    ("another run's state is taken", "state.py", "if strict or other_rank or", "if other_rank or", "state"),
    ("a damaged state is taken", "state.py", 'if not _equal(state["checksum"], _checksum(state)):', "if False:", "state"),
    ("half a message is awaited for long", "delivery/workers.py", "1 + (timeout or LOOKS", "9 + (timeout or LOOKS", "loader"),
    ("a torn state file is taken", "delivery/checkpoint.py", 'if found["sha256"] != digest:', "if False:", "checkpoint"),
    ("a state does not reach the disk", "delivery/checkpoint.py", "os.fsync(file)", "pass", "checkpoint"),
    ("a failed save leaves its file", "delivery/checkpoint.py", "os.unlink(temporary)", "pass", "checkpoint"),
    ("ranks that differ agree", "delivery/agreement.py", "if len(ranks) == 1:", "if ranks:", "agreement"),
    ("a rank fails alone", "delivery/agreement.py", "failure, own = error, {", "raise; failure, own = error, {", "agreement"),
    ("a text is a flag", "arguments.py", "if not isinstance(value, (bool, np.bool_)):", "if value is None:", "fuzz"),
    (
        "labels are the inputs of several lanes",
        "batch/rows.py",
        "blocks[column][:, shift : shift + runs.width]",
        "blocks[column][:, : runs.width]",
        "rows",
    ),
    ("a label crosses flat rows", "batch/flat.py", "filled[:, ::length] = IGNORE", "pass", "flat"),
    ("the rate follows steps", "training.py", "return fn(plan.tokens_before(step))", "return fn(step)", "training"),
    ("DeepSpeed a step late", "compat.py", "float(step + 1) / total", "float(step) / total", "compat"),
    (
        "a cut batch shares the caller's memory",
        "functional.py",
        "value.clone(memory_format=torch.contiguous_format)",
        "value.contiguous()",
        "functional",
    ),
    ("a warmup that fluctuates is found", "tuning.py", "durations[beyond - 1]", "durations[beyond % len(durations)]", "tuning"),
    ("ids above the vocabulary pass", "sources/ids.py", "if int(unsigned.max()) < limit:", "if True:", "dataset"),
]


def run(fault: tuple[str, str, str, str, str], folder: Path) -> str:
    _, file, line, broken, first = fault
    for name in ("slw_data", "tests", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    path = folder / "slw_data" / file
    text = path.read_text(encoding="utf-8")
    if text.count(line) != 1:
        return f"STALE: the line is there {text.count(line)} times"
    path.write_text(text.replace(line, broken), encoding="utf-8")
    for tests in (sorted(map(str, (folder / "tests").glob(f"test_{first}*.py"))), [str(folder / "tests")]):
        outcome = red(tests, folder)
        if outcome:
            return outcome
    return "SURVIVED"


def red(tests: list[str], folder: Path) -> str | None:
    """What became of the tests: killed where one failed, and by which; None where all passed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "killed (it hangs)"
    if process.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S*?(test_\w+\.py::\w+)", output, re.MULTILINE)
    if failed:  # pytest-xdist stops with 2, pytest alone with 1
        return f"killed by {failed[1]}"
    return f"BROKEN: pytest ended with {process.returncode}, and no test failed\n{output[-2000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-k", default="", help="only faults whose name holds this text")
    chosen = [fault for fault in FAULTS if parser.parse_args().k in fault[0]]
    outcomes = []
    for fault in chosen:
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(run(fault, Path(folder)))
        print(f"{fault[0]:<52} {outcomes[-1]}", flush=True)
    killed = sum(outcome.startswith("killed") for outcome in outcomes)
    print(f"{len(outcomes)} faults, {killed} killed, {len(outcomes) - killed} not")
    return int(killed < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
