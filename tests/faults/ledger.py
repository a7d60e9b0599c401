"""What was delivered, written down before it is used; and what is wrong with it.

A line of the ledger is keyed by the batch's number and the rank, because a killed run delivers again what it had not yet
saved. So the same key may come again, and must then be the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.faults.runs import Run

Counts = dict[str, int]  # lost, duplicated, changed
PAD = (1 << 31) - 1  # no token has it


def digest(ids: np.ndarray, labels: np.ndarray) -> str:
    """Of both tensors: types, shapes and bytes."""
    found = hashlib.sha256()
    for part in (ids, labels):
        found.update(f"{part.dtype} {part.shape}".encode() + np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def spans(ids: np.ndarray) -> list[tuple[int, int]]:
    """The places that the tokens say, as ``[start, stop)`` of neighbours; padding has none."""
    flat = ids[ids != PAD]
    edges = [0, *(np.flatnonzero(np.diff(flat) != 1) + 1).tolist(), len(flat)]
    return [(int(flat[a]), int(flat[b - 1]) + 1) for a, b in itertools.pairwise(edges)]


class Ledger:
    """A file that each line reaches in one write: the system has it, whatever becomes of the process. But a kill may tear
    the write where two pages meet; that batch was not used yet, and the next process drops what is there of its line."""

    def __init__(self, folder: Path, rank: int) -> None:
        path = folder / f"ledger {rank}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._file, path.read_bytes().rfind(b"\n") + 1)

    def write(self, number: int, ids: np.ndarray, labels: np.ndarray) -> None:
        line = json.dumps([number, digest(ids, labels), spans(ids)]) + "\n"
        assert os.write(self._file, line.encode()) == len(line)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def verdict(run: Run, folder: Path, world: int = 1, batches: int | None = None) -> Counts:
    """Tokens lost and duplicated, and batches changed, of the first ``batches`` (None: all) of a run."""
    last = run.batches if batches is None else batches
    found_ids = (run.expected(number, rank, world)[0] for number in range(last) for rank in range(world))
    wanted = sum(int((ids != PAD).sum()) for ids in found_ids)
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    changed = 0
    for rank in range(world):
        for line in (folder / f"ledger {rank}").read_text(encoding="ascii").splitlines():
            number, found, where = json.loads(line)
            changed += found != digest(*run.expected(number, rank, world))
            if number < last:
                places[number, rank] = where
    covered, end = 0, 0
    duplicated = 0
    for start, stop in sorted(tuple(span) for where in places.values() for span in where):
        duplicated += max(0, min(stop, end) - start)
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return {"lost": max(0, wanted - covered), "duplicated": duplicated, "changed": changed}
