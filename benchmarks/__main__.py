"""All of it beside the peers, in one run and one table each: ``python -m benchmarks``. See README.md here.

A round measures each peer once, in a process of its own, in a new random order; the limit beside it takes turns with it in the
same process. So a machine that slows down slows all of them down. Figures are medians over the rounds. A peer that is not
installed, or fails, is listed as such.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import LIMIT, PEERS, READY
from benchmarks.timing import above_zero, table

ROOT = Path(__file__).parent.parent
WORKERS = 2
Found = dict[str, Any]


def run(task: str, timeout: float = 600, **arguments: Any) -> Found:
    """What a task of :mod:`benchmarks.measure` returns; ``{"failed": why}`` if it does not."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.measure", json.dumps({"task": task, **arguments})]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {timeout:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(lines[-1])


class Suite:
    """The measurements of some peers, as they come in."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.options, self.folder, self.began = options, folder, time.perf_counter()
        self.peers = [name for name in PEERS if name in (options.peers or PEERS)]
        self.failed = {name: "not installed" for name in self.peers if PEERS[name].version is None}
        self.corpora = {"folder": f"{folder}/timed", "counted": f"{folder}/counted"}
        self.prepared: dict[str, Found] = {}
        self.rounds: list[dict[tuple[str, int], Found]] = []

    def ready(self, workers: int = 0) -> list[str]:
        """The peers that can be measured."""
        return [name for name in self.peers if name not in self.failed and (PEERS[name].forks or not workers)]

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def note(self, text: str) -> None:
        print(f"{self.seconds():5.0f} s  {text}", file=sys.stderr, flush=True)

    def prepare(self) -> None:
        """Write the corpora, and what the peers make of them."""
        for counted, tokens in ((False, self.options.tokens), (True, self.options.counted)):
            where = self.corpora["counted" if counted else "folder"]
            assert not run("write", folder=where, tokens=tokens, counted=counted), where
        shape = {"rows": self.options.rows, "lengths": self.options.lengths, "resume": self.options.resume}
        for name in self.ready():
            self.note(f"prepare {name}")
            self.prepared[name] = run("prepare", peer=name, **self.corpora, **shape)
            self._check(name, self.prepared[name])

    def measure(self) -> None:
        """One more round."""
        done = len(self.rounds)
        jobs = [(name, workers) for workers in (0, WORKERS) for name in self.ready(workers)]
        random.Random(done).shuffle(jobs)
        found: dict[tuple[str, int], Found] = {}
        for name, workers in jobs:
            if name in self.failed:
                continue
            self.note(f"round {done + 1}, {name}" + (f", {workers} workers" if workers else ""))
            wanted = {key: getattr(self.options, key) for key in ("rows", "lengths", "seconds", "resume", "steps")}
            found[name, workers] = run("measure", peer=name, folder=self.corpora["folder"], workers=workers, **wanted)
            self._check(name, found[name, workers])
        self.rounds.append(found)

    def _check(self, name: str, found: Found) -> None:
        if "failed" in found:
            self.failed[name] = f"failed: {found['failed']}"

    # -- tables -------------------------------------------------------------------------------------------------------

    def median(self, name: str, workers: int, figure: Callable[[Found], Any]) -> float | None:
        """Over the rounds; None where it was not asked for."""
        values = [figure(found[name, workers]) for found in self.rounds]
        return None if None in values else statistics.median(values)

    def rates(self, name: str, workers: int) -> list[str]:
        """Million tokens per second at each length, and in brackets how many times the limit's."""
        cells = []
        for i in range(len(self.options.lengths)):
            rate = statistics.median(found[name, workers]["rates"][i] for found in self.rounds) / 1e6
            times = statistics.median(found[name, workers]["times"][i] for found in self.rounds)
            cells.append(f"{significant(rate, 3)} ({significant(times, 2)})")
        return cells

    def in_process(self) -> str:
        lengths = self.options.lengths
        head = ["in process", *(f"{self.options.rows} x {length}" for length in lengths)]
        head += [f"never delivered, % at {min(lengths)} / {max(lengths)}", f"prepared, s at {min(lengths)} / {max(lengths)}"]
        head += ["import, ms", "first batch, ms", f"step {self.options.resume:,}, ms", "peak, MB"]
        head += ["next(), % of a step", "step longer, %"]
        return table(head, [[name, *self._row(name, len(head) - 1)] for name in self.peers])

    def _row(self, name: str, width: int) -> list[str]:
        if name in self.failed:
            return self._absent(name, width)
        made = self.prepared[name]
        ends = [made["prepared"][self.options.lengths.index(end(self.options.lengths))] for end in (min, max)]

        def cell(key: str, times: float, digits: int) -> str:
            return number(self.median(name, 0, lambda found: found[key]), times, digits)

        return [
            *self.rates(name, 0),
            " / ".join(number(share, 100, 1) for share in made["lost"]),
            " / ".join(number(took if took > 0.01 else 0, 1, 1) for took in ends),
            cell("import", 1e3, 0),
            cell("first", 1e3, 1),
            cell("resume", 1e3, 1),
            cell("peak", 1, 0),
            cell("waited", 100, 2),
            cell("longer", 100, 1),
        ]

    def with_workers(self) -> str:
        head = [f"{WORKERS} workers", *(f"{self.options.rows} x {length}" for length in self.options.lengths)]
        head += ["first batch, ms"]
        rows = []
        for name in (name for name in self.peers if PEERS[name].forks):
            if name in self.failed:
                rows.append([name, *self._absent(name, len(head) - 1)])
            else:
                first = self.median(name, WORKERS, lambda found: found["first"])
                rows.append([name, *self.rates(name, WORKERS), number(first, 1e3, 0)])
        return table(head, rows)

    def training(self) -> str:
        """How long a step of the GPT takes at each length, and which share of that the loader's batches take."""
        rows, lengths = self.options.rows, self.options.lengths
        found = run("training_steps", rows=rows, lengths=lengths, steps=self.options.steps)
        if "failed" in found:
            return f"failed: {found['failed']}"
        took = found["steps"]
        ours = [name for name in self.ready() if PEERS[name].module == "ours"]
        lines = []
        for i, length in enumerate(lengths):
            each = [rows * length / statistics.median(found[name, 0]["rates"][i] for found in self.rounds) for name in ours]
            cells = [f"{seconds * 1e6:.2f} ({seconds / took[i]:.2%})" for seconds in each]
            lines.append([f"{rows} x {length}", f"{took[i] * 1e3:.1f}", *cells])
        return table(["one thread", "training step, ms", *(f"{name}, us" for name in ours)], lines)

    def _absent(self, name: str, width: int) -> list[str]:
        return [self.failed[name].partition(":")[0], *["-"] * (width - 1)]

    def notes(self) -> str:
        """What was measured, and why a peer was not."""
        versions = sorted({f"{PEERS[name].needs} {PEERS[name].version}" for name in self.ready()})
        text = f"{len(self.rounds)} rounds, {self.options.tokens:,} tokens of uint16; {', '.join(versions)}"
        return "\n".join([text, *(f"{name}: {why}" for name, why in self.failed.items())])


def significant(value: float, digits: int) -> str:
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def number(value: float | None, times: float, digits: int) -> str:
    return "-" if value is None else f"{value * times:.{digits}f}"


def numbers(text: str) -> list[int]:
    return [above_zero(int)(word) for word in text.split(",")]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--peers", nargs="+", metavar="NAME", choices=PEERS, help="only these; the names are in the tables")
    parser.add_argument("--rounds", type=above_zero(int), default=3)
    parser.add_argument("--minutes", type=float, default=10, help="after which no further round begins")
    parser.add_argument("--seconds", type=above_zero(float), default=0.3, help="of each measurement of tokens per second")
    parser.add_argument("--rows", type=above_zero(int), default=16, help="of a batch")
    parser.add_argument("--lengths", type=numbers, default=[8, 64, 256, 1024], help="of its rows, as 8,64,256,1024")
    parser.add_argument("--tokens", type=above_zero(int), default=1 << 24, help="in the corpus")
    parser.add_argument("--counted", type=above_zero(int), default=1 << 19, help="in the corpus for what is never delivered")
    parser.add_argument("--resume", type=int, default=100_000, help="the step to resume at")
    parser.add_argument("--steps", type=above_zero(int), default=200, help="of training on a peer's batches")
    parser.add_argument("--growth", action=argparse.BooleanOptionalAction, default=True, help="the tables of growth too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(options, folder)
        suite.prepare()
        while len(suite.rounds) < options.rounds and not (suite.rounds and suite.seconds() > 60 * options.minutes):
            suite.measure()
        print(suite.notes(), end="\n\n")
        print(f"Million tokens per second, in brackets times the {LIMIT}", suite.in_process(), sep="\n\n", end="\n\n")
        print(f"Million tokens per second, in brackets times {READY}", suite.with_workers(), sep="\n\n", end="\n\n")
        print("Beside a training step of the small GPT, in brackets the share", suite.training(), sep="\n\n", flush=True)
    if options.growth:
        subprocess.run([sys.executable, "-m", "benchmarks.growth"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
