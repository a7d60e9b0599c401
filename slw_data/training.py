"""Beside the data: a learning rate that counts tokens, shapes run before training, and two measures of stability.

The stability measures, and the reason to decay by tokens, are of Li et al., "The Stability-Efficiency Dilemma"
(https://arxiv.org/abs/2108.06084). Nothing here is needed to read data; the loader is :mod:`slw_data.loader`.
"""

from __future__ import annotations

import gc
import math
import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from slw_data.arguments import as_number, choice
from slw_data.plan import SequenceLengthPlan

__all__ = ["AdamVariance", "LossRatio", "adam_variance", "lr_scale", "token_lr", "warm_up"]


def token_lr(plan: SequenceLengthPlan, fn: Callable[[int], float]) -> Callable[[int], float]:
    """``fn`` of the tokens delivered before a step, as a function of the step: for ``LambdaLR``.

    With short rows at first, as many steps are fewer tokens, so a decay by steps would end after too few of them. The
    learning rate's own warmup stays a matter of steps. Both together::

        decay = token_lr(plan, lambda tokens: max(0.1, 1 - tokens / plan.total_tokens))
        scheduler = LambdaLR(optimizer, lambda step: min(1, (step + 1) / 100) * decay(step))

    Args:
        plan: of the run; its tokens are those of all ranks and micro-batches.
        fn: from tokens, an int, to the factor of the learning rate.
    """

    _check_called("fn", fn)
    _check_plan(plan)

    def factor(step: int) -> float:
        return fn(plan.tokens_before(step))

    return factor


def lr_scale(plan: SequenceLengthPlan, rule: str = "sqrt") -> Callable[[int], float]:
    """The factor by which the learning rate follows a batch that grows, as a function of the step: for ``LambdaLR``.

    The batch is what the plan asks for, ``batch_size`` or ``tokens_per_batch`` times ``grad_accum_steps``, beside that of step
    0; rows that get longer do not change it. ``rule="sqrt"``: the square root of that ratio, as is usual for Adam (Malladi et
    al., arXiv 2205.10287). ``"linear"``: the ratio itself, as for SGD (Goyal et al., arXiv 1706.02677). Beside a decay::

        scale, decay = lr_scale(plan), token_lr(plan, lambda tokens: max(0.1, 1 - tokens / plan.total_tokens))
        scheduler = LambdaLR(optimizer, lambda step: scale(step) * decay(step))

    >>> from slw_data import ConstantSchedule, StagedSchedule
    >>> plan = SequenceLengthPlan(ConstantSchedule(64), batch_size=StagedSchedule([4, 16], [100]), total_steps=200)
    >>> [lr_scale(plan)(step) for step in (0, 99, 100)]
    [1.0, 1.0, 2.0]
    """
    choice("rule", rule, ("sqrt", "linear"))
    _check_plan(plan)
    first, power = plan.batch(0), 0.5 if rule == "sqrt" else 1.0

    def factor(step: int) -> float:
        return float((plan.batch(step) / first) ** power)

    return factor


def warm_up(step_fn: Callable[[int, int], torch.Tensor], plan: SequenceLengthPlan, *, model: Any = None) -> None:
    """Run each distinct batch shape of ``plan`` once, the largest first, before training starts.

    Memory is then allocated for the largest batch at once, instead of anew for each length; a batch that does not fit
    fails in the first second; and graphs are compiled. Random number generators (PyTorch's, NumPy's, Python's) and the
    gradients of all parameters are afterwards as they were, bit by bit. Where there are some before, each is copied once.

    Args:
        step_fn: ``step_fn(rows, length)`` gives the loss of a batch of that shape, made of anything; ``warm_up`` calls
            ``backward`` on it. It must not call the optimizer.
        plan: of the run, with an end.
        model: a module, or modules and tensors, whose gradients are kept. Default: all leaf tensors of this process that
            require a gradient, as Python's garbage collector lists them. What ``gc.freeze()`` has hidden from it is found
            only where the graph of the loss holds it, which with ``fully_shard`` and inside reentrant checkpoints it does
            not: give the model then.

    Raises:
        TypeError: for a result that is no scalar tensor with a gradient, and for a ``model`` that is none.
    """
    _check_called("step_fn", step_fn)
    _check_plan(plan)
    parameters = None if model is None else _given(model)
    largest = plan.largest_batch()
    shapes = dict.fromkeys([largest, *((stage.rows, stage.length) for stage in plan.stages)])
    with _generators_kept():
        for rows, length in shapes:
            loss = step_fn(rows, length)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or loss.grad_fn is None:
                raise TypeError(f"step_fn must return the loss, a scalar tensor that requires grad, not {loss!r:.80}")
            if parameters is None:
                parameters = _alive()  # once: it looks at every object there is
            known = [leaf for reference in parameters if (leaf := reference()) is not None]
            with _gradients_kept([*_leaves(loss), *known]):
                loss.backward()  # type: ignore[no-untyped-call]
            del known


def _check_called(name: str, function: Any) -> None:
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {type(function).__name__}")


def _check_plan(plan: Any) -> None:
    if not isinstance(plan, SequenceLengthPlan):
        raise TypeError(f"plan must be a SequenceLengthPlan, such as dataset.plan, got {type(plan).__name__}")


@contextmanager
def _generators_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _gradients_kept(leaves: Iterable[torch.Tensor]) -> Iterator[None]:
    """No leaf has a gradient within; afterwards each has its own again, with the values it had: a backward may write into
    it all the same, where it is a view of a bucket."""
    different = list({id(leaf): leaf for leaf in leaves}.values())
    kept = [(leaf, leaf.grad, leaf.grad.detach().clone()) for leaf in different if leaf.grad is not None]
    for leaf, _, _ in kept:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf in different:
            if leaf.grad is not None:
                leaf.grad = None
        with torch.no_grad():
            for leaf, grad, values in kept:
                leaf.grad = grad.copy_(values)


Leaf = Callable[[], torch.Tensor | None]  # a weak reference: a batch that requires a gradient is not kept alive


def _given(model: Any) -> list[Leaf]:
    """The parameters of a module, or of several modules and tensors."""
    parts = [model] if isinstance(model, (torch.nn.Module, torch.Tensor)) else model
    if not isinstance(parts, Iterable) or isinstance(parts, (str, bytes, Mapping)):
        parts = [parts]
    leaves: list[Leaf] = []
    for part in parts:
        if not isinstance(part, (torch.nn.Module, torch.Tensor)):
            raise TypeError(f"model must be a module, or a list of modules and parameters, got {part!r:.80} in it")
        leaves += map(weakref.ref, part.parameters() if isinstance(part, torch.nn.Module) else [part])
    return leaves


def _alive() -> list[Leaf]:
    """Every tensor that may get a gradient. The graph does not tell of all: what ``fully_shard`` reduces, and what a
    reentrant checkpoint runs again, gets its gradient from a graph that is made within backward."""
    with torch._C.DisableTorchFunctionSubclass():  # only ask, and run no subclass's code
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        return [weakref.ref(tensor) for tensor in tensors if tensor.is_leaf and tensor.requires_grad]


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The tensors whose gradients ``loss.backward()`` accumulates, as far as the graph holds them."""
    found, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return found


class LossRatio:
    """The loss of a step over the smallest loss before it: 1 or less while training goes well, far above 1 in a spike.

    Li et al. count the steps whose ratio is above 1.2 and keep the largest. ``best`` and ``largest`` are plain floats; save
    and set them where a run is resumed.
    """

    def __init__(self) -> None:
        self.best, self.largest = math.inf, 0.0

    def update(self, loss: float) -> float:
        """The ratio of this step (1.0 for the first). A loss that is not finite gives a ratio that is not finite.

        ValueError for a loss that is not positive: there is no ratio to it.
        """
        number = as_number(loss)
        if number is None:
            raise TypeError(f"loss must be a number, such as loss.item(), got {loss!r:.200}")
        if number <= 0:
            raise ValueError(f"a loss must be above 0 to be a ratio's denominator, got {number}")
        first = 1.0 if math.isfinite(number) else number
        ratio = number / self.best if self.best < math.inf else first
        self.best = min(self.best, number)
        self.largest = ratio if math.isnan(ratio) else max(self.largest, ratio)
        return ratio


class AdamVariance(NamedTuple):
    """Of all elements of Adam's variance state: the l1 norm, and the largest."""

    l1_norm: float
    maximum: float


def adam_variance(optimizer: torch.optim.Optimizer) -> AdamVariance:
    """The l1 norm and the largest element of Adam's variance (``exp_avg_sq``, before bias correction) over all parameters.

    Outliers in it go with instability (Li et al., section 3). Sharded parameters (``DTensor``) are summed over their mesh,
    so each of its ranks must call this.

    Raises:
        TypeError: for what is no optimizer.
        ValueError: for an optimizer without such a state: it is no Adam, or has not made a step yet.
    """
    if not isinstance(getattr(optimizer, "state", None), Mapping):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    states = [state["exp_avg_sq"].detach() for state in optimizer.state.values() if "exp_avg_sq" in state]
    if not states:
        raise ValueError(
            f"{type(optimizer).__name__} has no exp_avg_sq: adam_variance is of Adam and AdamW, after their first step()"
        )
    norms = [float(_of_all_ranks(state, _norm).sum()) for state in states]
    maxima = [float(_of_all_ranks(state, _largest).max()) for state in states]
    return AdamVariance(math.fsum(norms), float(np.max(maxima)))  # NumPy's: it keeps a NaN, wherever it stands


def _norm(values: torch.Tensor) -> torch.Tensor:
    return values.float().abs().sum()


def _largest(values: torch.Tensor) -> torch.Tensor:
    """0 where there are none: a rank may have no part of a small parameter, and no variance is below 0."""
    return values.float().max() if values.numel() else values.new_zeros((), dtype=torch.float32)


def _of_all_ranks(state: torch.Tensor, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``measure`` of each rank's part of ``state``, 1-D on the CPU; of parts that several ranks have, once."""
    if not hasattr(state, "device_mesh"):
        return measure(state).reshape(1).cpu()
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(state, DTensor)
    mesh, parts = state.device_mesh, [Replicate() if p.is_replicate() else Shard(0) for p in state.placements]
    return DTensor.from_local(measure(state.to_local()).reshape(1), mesh, parts, run_check=False).full_tensor().cpu()
