"""R13: one digest, whatever the hash seed, the threads of torch, how workers are started, and the Python.

``python -m tests.faults.determinism START THREADS KIND...`` prints the digests of what these kinds of run deliver. Pythons
outside of pyenv are named in the environment: ``PYTHONS=/venvs/3.13/bin/python:... python -m tests.faults -k R13``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from tests.faults.ledger import digest
from tests.faults.runs import KINDS, Run
from tests.faults.tally import Tally

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "delivery.json"
SEEDS, STARTS, THREADS = ("0", "1", "random"), ("fork", "spawn", "forkserver"), ("1", "2")


def one_digest(tally: Tally, small: bool) -> None:
    """R13: all ways, on this Python and on each of pyenv's that has torch and datasets; compared with ``tests/golden``."""
    golden = json.loads(GOLDEN.read_text(encoding="ascii"))
    if expected() != golden:
        tally.fault("changed", f"{GOLDEN} says {golden}, the lists say {expected()}")
    ways = [(*way, KINDS) for way in itertools.product(pythons(), SEEDS, STARTS, THREADS)]
    if small:
        ways = [(sys.executable, "0", "fork", "1", KINDS), (sys.executable, "random", "spawn", "2", KINDS[-1:])]
    else:
        tally.notes.append(f"Pythons: {', '.join(pythons())}")
    for python, seed, start, threads, kinds in tally.each(ways):
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        command = [python, "-m", "tests.faults.determinism", start, threads, *kinds]
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            tally.fault("hangs", " ".join(command))
            continue
        if done.returncode or json.loads(done.stdout) != {kind: golden[kind] for kind in kinds}:
            tally.fault("changed", f"{command}, PYTHONHASHSEED={seed}: {done.stdout[:500]} {done.stderr[-1000:]}")


def pythons() -> list[str]:
    """This one, and those of pyenv and of the environment that can run the library."""
    found, named = [sys.executable], [Path(path) for path in os.environ.get("PYTHONS", "").split(os.pathsep) if path]
    for path in [*named, *sorted(Path.home().glob(".pyenv/versions/*/bin/python"))]:
        if not subprocess.run([path, "-c", "import torch, datasets, tqdm"], capture_output=True, check=False).returncode:
            found.append(str(path))
    return found


def expected() -> dict[str, str]:
    """What the lists say."""
    return {kind: joined(digest(*Run(kind).expected(n)) for n in range(Run(kind).batches)) for kind in KINDS}


def joined(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def delivered(start: str, kinds: list[str]) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            kind: joined(
                digest(batch["input_ids"].numpy(), batch["labels"].numpy())
                for batch in Run(kind).loader(Path(folder), num_workers=2, multiprocessing_context=start)
            )
            for kind in kinds
        }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(delivered(sys.argv[1], sys.argv[3:])))
