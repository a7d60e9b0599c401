"""Processes forked from this one, which has imported torch and slw_data: each starts in milliseconds.

So this process must stay without threads: whatever reads a loader does so in a child. Children lead a process group of
their own, by which their workers are found when they are gone.
"""

from __future__ import annotations

import json
import multiprocessing.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ORPHANS_END = 12  # seconds: a worker looks for its parent every five


class Hung(Exception):
    """A child that was still there after its time, and was killed."""


class Failed(Exception):
    """A child that raised, with its traceback."""


def fork(log: Path, do: Callable[..., Any], *args: Any, **options: Any) -> int:
    """The process id of a child that does ``do(*args)``, with its output in ``log``, and ends as any Python program does."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)  # whatever they were here
        do(*args, **options)
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def reap(pid: int, seconds: float) -> int:
    """The exit status of a child (negative: its signal). Hung, with its whole group killed, if it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    kill_group(pid)
    os.waitpid(pid, 0)
    raise Hung(f"process {pid} was still there after {seconds} seconds")


def kill(pid: int) -> None:
    """``kill -9`` of a child, and its end."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def orphans(leaders: set[int], seconds: float = ORPHANS_END) -> list[int]:
    """Processes of these groups that are there still after ``seconds``; they are killed."""
    end = time.monotonic() + seconds
    while (left := members(leaders)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def members(leaders: set[int]) -> list[int]:
    """The processes of these groups that have not ended."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text(encoding="latin-1").rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z" and int(fields[2]) in leaders:
                found.append(int(entry))
    return found


def shared_memory(leaders: set[int]) -> list[str]:
    """What torch has left of these processes in /dev/shm: its names hold their ids."""
    return [name for name in os.listdir("/dev/shm") if name.startswith("torch_") and int(name.split("_")[1]) in leaders]


def call(folder: Path, seconds: float, do: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What ``do(*args)`` returns in a child, through JSON. Raises Hung, or Failed with the child's last words."""
    result, log = folder / "result.json", folder / "log.txt"
    for path in (result, log):
        path.unlink(missing_ok=True)
    status = reap(fork(log, lambda: result.write_text(json.dumps(do(*args, **options)), encoding="ascii")), seconds)
    if status:
        raise Failed(f"exit status {status}: {log.read_text(encoding='utf-8', errors='replace')[-1500:]}")
    return json.loads(result.read_text(encoding="ascii"))
