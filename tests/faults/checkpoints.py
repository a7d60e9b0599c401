"""R7 and R8: checkpoints that are torn, and disks that fail. The exact state or a refusal; the former file stays."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slw_data import SLWLoader, StateError, load_state, save_state
from tests.faults.ledger import Counts
from tests.faults.runs import KINDS, Run, Trainer
from tests.faults.tally import Tally

# -- R7 ----------------------------------------------------------------------------------------------------------------


def torn(tally: Tally, small: bool) -> None:
    """R7: a file of each kind of run cut at every byte, and with every bit flipped (small: every seventh place)."""
    for kind, at in tally.each(list(itertools.product(KINDS, (37,) if small else (0, 37, 63)))):
        tally.call(1200, damaged, Run(kind, steps=40), at, 7 if small else 1)


def damaged(folder: Path, run: Run, at: int, every: int) -> Counts:
    """The trainer's own count is in the file too, which no checksum of the loader's guards."""
    (folder / "run").mkdir()
    trainer, changed, files = Trainer(run, folder / "run", prefetch=0), 0, 0
    before = trainer.state_dict()
    for _ in itertools.islice(trainer.steps(), at):
        pass
    saved = trainer.state_dict()
    save_state(trainer.path, trainer)
    trainer.load_state_dict(before)
    for content in damages(trainer.path.read_bytes(), every):
        trainer.path.write_bytes(content)
        changed += not exact_or_refused(trainer, before, saved)
        files += 1
    return {"runs": files, "changed": changed}


def damages(content: bytes, every: int) -> Iterator[bytes]:
    for size in range(0, len(content), every):
        yield content[:size]
        yield content[:size] + bytes(len(content) - size)  # as a file system may leave it: long enough, and empty
    for place, bit in itertools.product(range(0, len(content), every), range(8)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        yield bytes(flipped)


def exact_or_refused(trainer: Trainer, before: dict[str, Any], saved: dict[str, Any]) -> bool:
    try:
        load_state(trainer.path, trainer)
    except StateError as error:
        return str(trainer.path) in str(error) and trainer.state_dict() == before
    exact = trainer.state_dict() == saved
    trainer.load_state_dict(before)
    return exact


# -- R8 ----------------------------------------------------------------------------------------------------------------

CALLS = ("open", "write", "fsync", "replace")
CODES = (errno.ENOSPC, errno.EROFS, errno.EIO)


def disks(tally: Tally, small: bool) -> None:
    """R8: each call of the system fails in turn; a limit on the size of files at every byte; a disk that is really full."""
    for kind, do in tally.each(list(itertools.product(KINDS, (calls_fail, limited)))):
        tally.call(300, do, Run(kind, steps=40), 50 if small else 1)
    for _ in tally.each([0]):
        found = tally.call(60, full_disk, Run("lanes", steps=40))
        if found is not None:
            tally.notes.append(f"no small disk could be mounted here: {found}")


def loaders(run: Run, folder: Path) -> tuple[SLWLoader, SLWLoader]:
    """Two places of a run."""
    first, second = run.loader(folder, prefetch=0), run.loader(folder, prefetch=0)
    for count, loader in ((5, first), (11, second)):
        for _ in itertools.islice(loader, count):
            pass
    return first, second


def check(folder: Path, run: Run, states: Sequence[dict[str, Any]]) -> int:
    """Whether the file is not one of these states, or is not alone."""
    loader = run.loader(folder.parent, prefetch=0)
    load_state(folder / "state.json", loader)
    return int(loader.state_dict() not in states or os.listdir(folder) != ["state.json"])


def attempt(folder: Path, former: SLWLoader, latter: SLWLoader, failing: Any, codes: Sequence[int]) -> tuple[bool, int]:
    """Save one state, then another while something fails: whether it failed, and whether it did so wrongly."""
    path = folder / "state.json"
    save_state(path, former)
    with failing:
        try:
            save_state(path, latter)
        except OSError as error:
            return True, int(error.errno not in codes or error.filename != str(path))
    return False, 0


def calls_fail(parent: Path, run: Run, every: int) -> Counts:
    folder, changed, saves, (former, latter) = parent / "own", 0, 0, loaders(run, parent)
    folder.mkdir()
    for name, code in itertools.product(CALLS, CODES):
        for at in itertools.count():
            failed, wrongly = attempt(folder, former, latter, failing_call(name, at, code), [code])
            after = at > 0 or not failed  # the second call of a kind is of the folder, when the file has its name
            saves += 1
            changed += wrongly + check(folder, run, [(latter if after else former).state_dict()])
            if not failed:
                break
        changed += at == 0
    return {"runs": saves, "changed": changed}


@contextmanager
def failing_call(name: str, at: int, code: int) -> Iterator[None]:
    original, count = getattr(os, name), itertools.count()

    def call(*args: Any) -> Any:
        if next(count) == at:
            raise OSError(code, os.strerror(code))
        return original(*args)

    setattr(os, name, call)
    try:
        yield
    finally:
        setattr(os, name, original)


def limited(parent: Path, run: Run, every: int) -> Counts:
    """The system takes no more than so many bytes of a file, in the middle of a write."""
    folder, changed, (former, latter) = parent / "own", 0, loaders(run, parent)
    folder.mkdir()
    save_state(folder / "state.json", latter)
    size = (folder / "state.json").stat().st_size
    limits = [*range(0, size, every), size]
    for limit in limits:
        failed, wrongly = attempt(folder, former, latter, file_limit(limit), [errno.EFBIG])
        changed += wrongly + (failed != (limit < size))
        changed += check(folder, run, [(former if failed else latter).state_dict()])
    return {"runs": len(limits), "changed": changed}


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk(parent: Path, run: Run) -> dict[str, Any]:
    """A disk of four pages, three of them full; then read-only."""
    folder, (former, latter) = parent / "disk", loaders(run, parent)
    folder.mkdir()
    refused = mount("-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder))
    if refused:
        return {"skipped": refused}
    try:
        changed = 0
        for code, failing in ((errno.ENOSPC, full), (errno.EROFS, read_only)):
            failed, wrongly = attempt(folder, former, latter, failing(folder), [code])
            changed += int(not failed) + wrongly + check(folder, run, [former.state_dict()])
    finally:
        subprocess.run(["umount", str(folder)], check=False)
    return {"changed": changed}


@contextmanager
def full(folder: Path) -> Iterator[None]:
    (folder / "filler").write_bytes(bytes(3 * 4096))
    yield
    (folder / "filler").unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    mount("-o", "remount,ro", str(folder))
    yield
    mount("-o", "remount,rw", str(folder))


def mount(*arguments: str) -> str:
    """What ``mount`` has to say: nothing, if it could."""
    if os.geteuid() or shutil.which("mount") is None:
        return "mount needs root"
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False).stderr
