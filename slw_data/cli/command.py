"""The parser, the commands, and what a run of the program ends with.

    0     done                                          1     ``check`` has found faults
    2     bad input: the usage, then one line           141   whoever read the output went away (128 + SIGPIPE)
    130   interrupted

Read next: :mod:`slw_data.cli.arguments`.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from slw_data.cli import check, inspect, plan, plot

__all__ = ["build_parser", "main"]

BROKEN_PIPE, INTERRUPTED = 128 + 13, 128 + 2  # what a shell reports of programs that these signals end


class Command(NamedTuple):
    """A command: what it is for, its arguments, and the function that does it and returns the exit status."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[dict[str, Any]], int]
    positional: str = ""


COMMANDS = {
    "plan": Command("the lengths, rows and tokens of every step, and what they cost", plan.add_arguments, plan.run),
    "plot": Command("the same as a picture, of one plan or of several", plot.add_arguments, plot.run),
    "inspect": Command("what a store holds, and the exact batch of a step", inspect.add_arguments, inspect.run, "PATH ... "),
    "check": Command("read a whole store and report every fault", check.add_arguments, check.run, "PATH ... "),
}


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands. Only what is given on the command line is in what they return."""
    parser = argparse.ArgumentParser(
        prog="slw-data", description="Sequence length warmup: look at plans, stores and batches.", allow_abbrev=False
    )
    version = sys.modules["slw_data"].__version__  # imported by now: this module is part of it
    parser.add_argument("--version", action="version", version=f"slw-data {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        parsers[name] = commands.add_parser(
            name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            usage=f"slw-data {name} {command.positional}[options]   (slw-data {name} --help lists them)",
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        command.add_arguments(parsers[name])
    return parser, parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with ``argv`` (None: that of the process), and return the exit status; SystemExit after usage."""
    try:
        try:
            _survive_any_character()
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        _drop_output()
        print(f"slw-data: error: reading or writing failed: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    parser, parsers = build_parser()
    given = vars(parser.parse_args(argv))
    name = given.pop("command")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", RuntimeWarning)
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            return COMMANDS[name].run(given)
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, KeyError, OSError, ImportError, OverflowError, MemoryError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise  # of the output, as far as can be told
        parsers[name].error(_one_line(error))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory: is one of the numbers too large?"
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"slw-data: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _survive_any_character() -> None:
    """Paths and decoded tokens may hold what the terminal's encoding has not; those are shown escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Let nothing be written when the interpreter flushes its output at the end."""
    with suppress(OSError, ValueError):  # the output may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
