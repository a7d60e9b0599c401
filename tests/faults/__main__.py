"""``python -m tests.faults [--small] [-k R3]``: inject faults, and print what was lost, delivered twice or changed.

The exit status is 1 if anything was, or if anything hung. Ctrl-C ends it with what is counted so far.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process with threads should not be forked
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # the same of pyarrow
os.environ["HF_HUB_OFFLINE"] = "1"  # all files are here

import datasets  # noqa: F401, so that no child has to

from tests.faults import checkpoints, determinism, kills, machine, scale, suites, topology, workers
from tests.faults.runs import small_blocks
from tests.faults.tally import Tally, table

ROWS: dict[str, tuple[str, Callable[[Tally, bool], None]]] = {
    "R1": ("a state at every step", topology.at_every_step),
    "R2": ("a chain of resumes", topology.in_a_chain),
    "R3": ("kill -9 at any time", kills.at_any_time),
    "R4": ("kill -9 at chosen places", kills.at_chosen_places),
    "R5": ("a worker is killed, stopped or crashes", workers.struck),
    "R6": ("other ranks and workers", topology.to_another_topology),
    "R7": ("torn checkpoints", checkpoints.torn),
    "R8": ("disks that fail", checkpoints.disks),
    "R9": ("bad inputs", suites.bad_inputs),
    "R10": ("a long run", scale.soak),
    "R11": ("10^11 and 10^12 tokens", scale.huge),
    "R12": ("anything in any order", machine.anything),
    "R13": ("one digest everywhere", determinism.one_digest),
    "R14": ("the same tokens along any lengths", scale.any_lengths),
    "R15": ("faults in the library", suites.mutants),
    "R16": ("all ranks agree", suites.agreement),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few of each, in minutes")
    parser.add_argument("-k", metavar="NAME", choices=list(ROWS), help="one row only")
    arguments = parser.parse_args()
    small_blocks()
    tallies = []
    for name, (what, row) in ROWS.items():
        if arguments.k in (None, name):
            tallies.append(Tally(f"{name} {what}"))
            try:
                with tallies[-1].timed():
                    row(tallies[-1], arguments.small)
            except KeyboardInterrupt:
                tallies[-1].notes.append("interrupted")
                break
    print(table(tallies))
    return int(not all(tally.sound for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
