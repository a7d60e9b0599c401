"""The training helpers, beside values computed by hand and loops over steps."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from slw_data import ConstantSchedule, LinearSchedule, SequenceLengthPlan, StagedSchedule
from slw_data.training import LossRatio, adam_variance, token_lr, warm_up

PLAN = SequenceLengthPlan(StagedSchedule([8, 16, 8, 32], [2, 4, 6]), batch_size=4, grad_accum_steps=3, total_steps=9)


# -- token_lr ----------------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), rows=st.integers(1, 4), accum=st.integers(1, 3))
def test_the_factor_of_a_step_is_that_of_the_tokens_before_it(lengths, rows, accum):
    schedule = StagedSchedule(lengths, range(1, len(lengths)))
    factor = token_lr(
        SequenceLengthPlan(schedule, batch_size=rows, grad_accum_steps=accum, world_size=2), lambda tokens: 1 / (1 + tokens)
    )
    tokens = 0
    for step in range(len(lengths) + 3):
        assert factor(step) == 1 / (1 + tokens)
        tokens += lengths[min(step, len(lengths) - 1)] * rows * accum * 2


def test_a_learning_rate_warms_up_by_steps_and_decays_by_tokens():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    decay = token_lr(PLAN, lambda tokens: 1 - tokens / PLAN.total_tokens)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 2) * decay(step))
    found, total = [], 12 * (2 * 8 + 2 * 16 + 2 * 8 + 3 * 32)
    for _ in range(9):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    before = [12 * n for n in (0, 8, 16, 32, 48, 56, 64, 96, 128)]
    assert found == pytest.approx([2 * (0.5 if i == 0 else 1) * (1 - b / total) for i, b in enumerate(before)])
    assert optimizer.param_groups[0]["lr"] == 0
    assert scheduler.state_dict()["lr_lambdas"] == [None], "a plain function leaves nothing in the scheduler's state"


# -- warm_up -----------------------------------------------------------------------------------------------------------


class Shapes:
    """A model whose loss is random and uses NumPy's and Python's generators, and which shapes it has seen."""

    def __init__(self):
        self.model, self.seen, self.grads = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout(0.5)), [], []

    def __call__(self, rows, length):
        self.seen.append((rows, length))
        self.grads.append([p.grad for p in self.model.parameters()])
        return self.model(torch.randn(rows, length, 3)).sum() * np.random.rand() * random.random()


def test_shapes_are_run_once_each_and_the_largest_first():
    shapes = Shapes()
    warm_up(shapes, PLAN)
    assert shapes.seen == [(4, 32), (4, 8), (4, 16)]
    shapes = Shapes()
    warm_up(shapes, SequenceLengthPlan(LinearSchedule(8, 24, warmup_steps=9), tokens_per_batch=50, total_steps=20))
    assert shapes.seen == [(2, 24), (6, 8), (3, 16)], "of the same number of tokens, the longest first"


@pytest.mark.parametrize("fails", [False, True])
def test_generators_and_gradients_are_left_as_they_were(fails):
    shapes = Shapes()
    weight, bias = shapes.model[0].weight, shapes.model[0].bias
    weight.grad = torch.full_like(weight, 7.0)
    kept = weight.grad

    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()

    states = state()
    if fails:
        with pytest.raises(MemoryError):
            warm_up(lambda rows, length: shapes(rows, length) if length > 8 else exec("raise MemoryError"), PLAN)
    else:
        warm_up(shapes, PLAN)
    assert state() == states
    assert weight.grad is kept and bool((kept == 7).all()) and bias.grad is None


def test_the_gradients_of_a_shared_and_a_frozen_parameter_are_kept_too():
    shared, frozen = torch.nn.Parameter(torch.ones(2)), torch.ones(2)
    shared.grad = torch.tensor([3.0, 4.0])
    warm_up(lambda rows, length: (shared * frozen).sum() + (shared * rows * length).sum(), PLAN)
    assert shared.grad.tolist() == [3, 4] and frozen.grad is None


def test_memory_is_freed_between_shapes():
    """The gradients of one shape are gone before the next is run."""
    shapes = Shapes()
    warm_up(shapes, PLAN)
    assert shapes.grads == [[None, None]] * 3


@pytest.mark.parametrize("wrong", [None, 1.0, torch.zeros(3, requires_grad=True) * 1, torch.zeros(())])
def test_a_step_function_must_return_its_loss(wrong):
    refused(lambda: warm_up(lambda rows, length: wrong, PLAN), "step_fn", "loss", error=TypeError)


def test_an_endless_plan_is_refused():
    with pytest.raises(ValueError, match="total_steps"):
        warm_up(Shapes(), SequenceLengthPlan(lambda step: 8, batch_size=2))
    warm_up(Shapes(), SequenceLengthPlan(ConstantSchedule(8), batch_size=2))


# -- stability ---------------------------------------------------------------------------------------------------------


def test_the_loss_ratio_is_against_the_best_so_far():
    ratio = LossRatio()
    assert [ratio.update(loss) for loss in (4.0, 5.0, 2.0, 3.0, torch.tensor(1.0), 2.5)] == [1, 1.25, 0.5, 1.5, 0.5, 2.5]
    assert (ratio.best, ratio.largest) == (1.0, 2.5)
    assert ratio.update(math.inf) == math.inf and ratio.best == 1 and ratio.largest == math.inf
    refused(lambda: ratio.update(0.0), "above 0", "0.0", error=ValueError)


@pytest.mark.parametrize("loss", [2, 2.0, np.float32(2), np.int64(2), np.array([[2.0]]), torch.tensor(2), torch.ones(1, 1) * 2])
def test_a_loss_is_one_number_of_any_library(loss):
    ratio = LossRatio()
    assert ratio.update(loss) == 1.0 and ratio.best == 2.0 and type(ratio.best) is float


@pytest.mark.parametrize("loss", ["2.0", "nan", b"2", None, True, 2j, [2.0], np.array(["2"]), np.ones(2), 10**400])
def test_what_is_not_one_number_is_no_loss(loss):
    ratio = LossRatio()
    refused(lambda: ratio.update(loss), "loss must be a number", error=TypeError)
    assert ratio.best == math.inf


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_the_loss_ratio_equals_the_quadratic_definition(losses):
    ratio = LossRatio()
    found = [ratio.update(loss) for loss in losses]
    assert found == [1.0] + [losses[t] / min(losses[:t]) for t in range(1, len(losses))]


def test_a_loss_that_is_no_number_is_seen_and_does_not_become_the_best():
    ratio = LossRatio()
    assert math.isnan(ratio.update(math.nan))
    assert ratio.update(2.0) == 1.0
    assert math.isnan(ratio.update(math.nan)) and math.isnan(ratio.largest) and ratio.best == 2.0
    assert ratio.update(1.0) == 0.5 and math.isnan(ratio.largest)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_variance_by_hand(kind):
    """After gradients g1, g2: v = b (1 - b) g1^2 + (1 - b) g2^2, element by element."""
    one, two, unused = (torch.nn.Parameter(torch.zeros(n)) for n in (2, 1, 3))
    optimizer = kind([{"params": [one]}, {"params": [two, unused], "lr": 0.5}], betas=(0.9, 0.75))
    refused(lambda: adam_variance(optimizer), kind.__name__, "step()", error=ValueError)
    for gradient in (2.0, 4.0):
        one.grad, two.grad = torch.tensor([gradient, -1.0]), torch.tensor([gradient * 3])
        optimizer.step()
    first = [0.75 * 0.25 * 4 + 0.25 * 16, 0.75 * 0.25 + 0.25]
    second = 0.75 * 0.25 * 36 + 0.25 * 144
    assert adam_variance(optimizer) == pytest.approx((sum(first) + second, second))
    assert adam_variance(optimizer).l1_norm > adam_variance(optimizer).maximum


def test_adam_variance_is_of_adam():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(2)
    optimizer.step()
    refused(lambda: adam_variance(optimizer), "SGD", "Adam", error=ValueError)
