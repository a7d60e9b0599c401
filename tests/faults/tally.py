"""The counts of one row, and the table of all rows."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from tests.faults import zygote

T = TypeVar("T")
COUNTED = ("lost", "duplicated", "changed", "hangs")

tqdm.monitor_interval = 0  # its thread would be forked with the rest


@dataclass
class Tally:
    """``runs`` that were made, tokens ``lost`` and ``duplicated``, what was ``changed``, and runs that did not end."""

    name: str
    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    changed: int = 0
    hangs: int = 0
    seconds: float = 0
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not any(getattr(self, name) for name in COUNTED)

    def each(self, items: Sequence[T]) -> Iterator[T]:
        """The items, each of them a run, with a progress bar."""
        with tqdm(items, desc=self.name, unit="run", leave=False, dynamic_ncols=True) as bar:
            for item in bar:
                yield item
                self.runs += 1

    def add(self, counts: Mapping[str, int], where: object = "") -> None:
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)
        if any(counts.values()):
            self.notes.append(f"{where}: {dict(counts)}")

    def fault(self, kind: str, text: str) -> None:
        """One fault that is no count of tokens."""
        self.add({kind: 1}, text)

    def call(self, seconds: float, do: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """``do(*args)`` in a child and a folder of its own, whose counts are added. A child that fails has changed something.

        ``do`` gets the folder first and returns ``{"lost": ...}``, with ``"runs"`` where it was more than one; or anything
        else, which is returned.
        """
        with self.folder() as folder:
            try:
                found = zygote.call(folder, seconds, do, folder, *args, **options)
            except zygote.Hung as error:
                return self.fault("hangs", f"{do.__name__} {args}: {error}")
            except zygote.Failed as error:
                return self.fault("changed", f"{do.__name__} {args}: {error}")
        if not isinstance(found, dict) or not set(found) <= {"runs", *COUNTED}:
            return found
        self.runs += found.pop("runs", 1) - 1
        return self.add(found, f"{do.__name__} {args}")

    @contextmanager
    def folder(self) -> Iterator[Path]:
        path = Path(tempfile.mkdtemp(prefix="faults-"))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds = time.monotonic() - began


def table(tallies: Sequence[Tally]) -> str:
    """A line for each row, then what was wrong, then the sum."""
    head = ("test", "runs", *COUNTED, "seconds")
    total = Tally("all", *(sum(getattr(t, name) for t in tallies) for name in ("runs", *COUNTED, "seconds")))
    lines = [f"{head[0]:<44}" + "".join(f"{name:>12}" for name in head[1:])]
    for tally in (*tallies, total):
        numbers = "".join(f"{getattr(tally, name):>12,}" for name in ("runs", *COUNTED))
        lines.append(f"{tally.name:<44}{numbers}{tally.seconds:>12.1f}")
    notes = [f"  {tally.name}: {note}" for tally in tallies for note in tally.notes[:5]]
    return "\n".join([*lines[:-1], *notes, lines[-1]])
