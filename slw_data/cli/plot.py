"""``slw-data plot``: the lengths and the tokens of one or more plans as a picture.

The picture is made in memory, written to a temporary file beside its target, and renamed: whatever happens, the target
is either what it was before or whole.

Read next: :mod:`slw_data.cli.inspect`.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from typing import Any

from slw_data.cli.arguments import Arguments, add_plan, merged
from slw_data.plan.plotting import Curve, picture

__all__ = ["add_arguments", "run"]

SUFFIXES = (".png", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_plan(parser, many=True)
    parser.add_argument("--output", metavar="FILE", required=True, help="the picture, .png or .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def run(given: dict[str, Any]) -> int:
    path = given["output"]
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"--output must end in {' or '.join(SUFFIXES)}, got {path}")
    if os.path.isdir(path):
        raise ValueError(f"--output is a folder: {path}")
    if os.path.exists(path) and not given.get("overwrite"):
        raise ValueError(f"{path} exists: choose another name, or give --overwrite")
    curves = []
    for arguments in _each(given):
        plan = arguments.plan()
        tokens = [plan.tokens(stage.start) for stage in plan.stages]
        curves.append(Curve(arguments.name(plan), plan.stages, tokens))
    _write(path, _rendered(curves, suffix[1:]))
    print(f"{path}: {len(curves)} {'plan' if len(curves) == 1 else 'plans'}")
    return 0


def _each(given: dict[str, Any]) -> list[Arguments]:
    """The arguments of each plan: one for each configuration file, labelled by its name."""
    configs = given.get("config")
    if not configs:
        return [merged(given)]
    names = [os.path.basename(config) for config in configs]
    labels = names if len(set(names)) == len(names) else configs
    return [merged(given, config, label) for config, label in zip(configs, labels, strict=True)]


def _rendered(curves: Sequence[Curve], form: str) -> bytes:
    """The picture's bytes; the same for the same plans, so no date and no random names in it."""
    figure, data = picture(curves), io.BytesIO()
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "slw-data"}):
        figure.savefig(data, format=form, metadata={"Date": None} if form == "svg" else None)
    return data.getvalue()


def _write(path: str, data: bytes) -> None:
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from None
        raise
