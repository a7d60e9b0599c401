"""Some peers import torchvision, whose wheel is built for CUDA and does not load beside a torch without it. Nothing here uses
it: what its import looks for is declared, if it is not there."""

from __future__ import annotations

import sys

import torch

DECLARED: list[torch.library.Library] = []  # held, or they are taken back


def let_import() -> None:
    """Make ``import torchvision`` work."""
    try:
        import torchvision  # noqa: F401 - whether it can be imported is the question
    except ImportError:
        return  # then nobody asks for it
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
