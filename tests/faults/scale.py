"""R10, R11 and R14: long runs, huge stores, and the same tokens whatever the lengths."""

from __future__ import annotations

import gc
import itertools
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from slw_data import LinearSchedule, SLWDataset, SLWLoader, StagedSchedule, open_tokens
from tests.faults import zygote
from tests.faults.ledger import Counts
from tests.faults.runs import KINDS, Run
from tests.faults.tally import Tally

# -- R10 ---------------------------------------------------------------------------------------------------------------

MEMORY = {"anonymous": "RssAnon", "shared": "RssShmem"}
# What the last three quarters of a soak may add, and the bytes of a state.
LIMITS = {"anonymous": 5 << 20, "shared": 0, "descriptors": 0, "threads": 0, "state": 4096}
OPEN = {"shared": 1 << 16, "descriptors": 4, "state": 8192}  # where each of 4 shards has a file open, or is between two


def soak(tally: Tally, small: bool) -> None:
    """R10: a million batches of each kind, and with workers, or an hour; what a process holds stays as it was."""
    batches = 5_000 if small else 1_000_000
    ways = [*((kind, 0) for kind in KINDS), ("file", 2)]
    for kind, workers in tally.each(ways):
        found = tally.call(4000, soaked, kind, workers, batches, 3600 / len(ways))
        if found:
            what = f"{kind}, {workers} workers: {found}"
            tally.notes.append(what)
            limits = LIMITS | (OPEN if kind == "parquet" else {})
            over = [name for name, limit in limits.items() if found[name] > limit]
            if over or found["wrong"]:
                tally.fault("changed", what)


def soaked(folder: Path, kind: str, workers: int, batches: int, seconds: float) -> dict[str, int]:
    """What has grown from a quarter of the run on. In order every token is known without a list."""
    run = Run(kind, steps=batches // 8)
    dataset = SLWDataset(run.source(folder), run.schedule, batch_size=4, total_steps=2 * batches, **run.options)
    loader, place, wrong, state = SLWLoader(dataset, num_workers=workers), 0, 0, 0
    end, start, number = time.monotonic() + seconds, None, 0
    iterator = iter(loader)  # held: else workers end with the loop, and what they hold is not seen
    for number, batch in enumerate(itertools.islice(iterator, batches), 1):
        ids = batch["input_ids"].numpy().ravel()
        if kind in ("file", "documents"):
            wrong += not np.array_equal(ids, (np.arange(ids.size) + place) % run.size)
            place += ids.size
        if number % 1000 == 0:
            state = max(state, len(repr(loader.state_dict())))
        if number == batches // 4:
            start = resources()
        if time.monotonic() > end:
            break
    assert start is not None, f"only {number} batches in {seconds} s"
    grown = {name: now - start[name] for name, now in resources().items()}
    loader.close()
    return {"batches": number, **grown, "state": state, "wrong": wrong}


def resources() -> dict[str, int]:
    """Of this process and its workers: bytes of anonymous and of shared memory (pages of files are not counted), open
    descriptors, threads."""
    gc.collect()
    found = Counter(dict.fromkeys(("anonymous", "shared", "descriptors", "threads"), 0))
    for pid in zygote.members({os.getpgrp()}):
        process = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text(encoding="ascii").splitlines())
        sizes = {name: int(status[field].split()[0]) << 10 for name, field in MEMORY.items()}
        found.update(sizes, descriptors=len(os.listdir(process / "fd")), threads=int(status["Threads"]))
    return dict(found)


# -- R11 ---------------------------------------------------------------------------------------------------------------

STORES = (("uint32", 100 * 10**9), ("uint16", 10**12), ("uint32", 10**12))  # 400 GB, 2 TB and 4 TB, none of it on the disk
ISLAND = 5  # tokens around a border
SECONDS, ROOM = 1.0, 64 << 20


def huge(tally: Tally, small: bool) -> None:
    """R11: sparse files; open, resume at the far end, and read what was written around the borders of integer types."""
    for dtype, count in tally.each(STORES):
        found = tally.call(120, far_end, dtype, count)
        if found:
            tally.notes.append(f"{count:,} {dtype}: {found}")
            if found["wrong"] or found["open"] > SECONDS or found["resume"] > SECONDS or found["memory"] > ROOM:
                tally.fault("changed", f"{count:,} {dtype}: {found}")


def far_end(folder: Path, dtype: str, count: int) -> dict[str, Any]:
    path, itemsize = folder / "tokens.bin", np.dtype(dtype).itemsize
    path.touch()
    os.truncate(path, count * itemsize)
    islands = {place for power in (31, 32, 33, 40) for place in (1 << power, (1 << power) // itemsize)}
    islands = {place for place in islands if place + ISLAND < count} | {count - ISLAND}
    for place in islands:
        tokens = (np.arange(place - 2, place - 2 + ISLAND) % 60_000 + 1).astype(dtype)
        with path.open("r+b") as file:
            file.seek((place - 2) * itemsize)
            file.write(tokens.tobytes())
    blocks = path.stat().st_blocks
    before, began = resources()["anonymous"], time.monotonic()
    store = open_tokens(path, dtype=dtype)
    opened, wrong = time.monotonic() - began, 0
    for place in sorted(islands):
        wrong += store.read(place - 2, place - 2 + ISLAND).tolist() != [(place - 2 + i) % 60_000 + 1 for i in range(ISLAND)]
    schedule = LinearSchedule(8, 1024, warmup_steps=3000)
    took = 0.0
    for shuffle in (False, True):
        seconds = []
        for _ in range(2):  # the first touch of a page of a sparse file costs what the file system asks, up to a millisecond
            began = time.monotonic()
            loader = SLWLoader(SLWDataset(store, schedule, batch_size=16, shuffle=shuffle), prefetch=0)
            loader.load_state_dict({"step": len(loader) - 2})
            delivered = [batch["input_ids"].numpy() for batch in loader]
            seconds.append(time.monotonic() - began)
            wrong += len(delivered) != 2
        took = max(took, min(seconds))
    in_order = SLWLoader(SLWDataset(store, schedule, batch_size=16), prefetch=0)
    for place in sorted(islands):
        wrong += not seen(in_order, place, dtype)
    memory = resources()["anonymous"] - before
    return {"wrong": wrong, "open": round(opened, 3), "resume": round(took, 3), "memory": memory, "blocks": blocks}


def seen(loader: SLWLoader, place: int, dtype: str) -> bool:
    """Whether the token at ``place``, and the two on each side, come in the step that the plan says (or are the left-over)."""
    plan = loader.dataset.plan
    if place + ISLAND > (plan.total_tokens or 0):
        return True
    step = plan.step_at(place)
    loader.seek(step)
    tokens = np.concatenate([batch["input_ids"].numpy().ravel() for batch in itertools.islice(loader, 2)])
    at = place - plan.tokens_before(step)
    expected = [(place + i) % 60_000 + 1 for i in range(3)]
    return tokens[at : at + 3].tolist() == [int(np.array(token).astype(dtype)) for token in expected]


# -- R14 ---------------------------------------------------------------------------------------------------------------


def any_lengths(tally: Tally, small: bool) -> None:
    """R14: ten million tokens along random schedules come in one order; what is left over is less than a step, and counted."""
    for seed in tally.each(range(10 if small else 50)):
        tally.call(300, along, seed, 1_000_000 if small else 10_000_000)


def along(folder: Path, seed: int, size: int) -> Counts:
    rng = random.Random(seed)
    boundaries = sorted(rng.sample(range(1, 2000), 12))
    schedule = StagedSchedule([rng.randint(1, 2048) for _ in range(13)], boundaries)
    shape: dict[str, Any] = {"batch_size": rng.randint(1, 32)} if seed % 2 else {"tokens_per_batch": rng.randint(2048, 40_000)}
    if seed % 4 < 2:
        path = folder / "tokens.bin"
        np.arange(size, dtype=np.uint32).tofile(path)
        source: Any = open_tokens(path, dtype="uint32")
    else:
        edges = sorted({0, size, *(rng.randrange(size) for _ in range(2000))})
        source = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    loader = SLWLoader(SLWDataset(source, schedule, grad_accum_steps=rng.randint(1, 3), labels="shifted", **shape))
    place = changed = 0
    for number, batch in enumerate(loader):
        ids, accum = batch["input_ids"].numpy(), loader.dataset.plan.grad_accum_steps
        targets = batch["labels"].numpy().ravel()
        changed += ids.shape[1] != schedule(number // accum)
        changed += not np.array_equal(ids.ravel(), np.arange(place, place + ids.size))
        changed += not np.array_equal(targets[:-1], ids.ravel()[1:]) or targets[-1] not in (place + ids.size, -100)
        place += ids.size
    left = size - place
    step = loader.dataset.plan.tokens(loader.step)
    return {"lost": 0 if loader.tokens_left == left < step else left, "changed": changed}
