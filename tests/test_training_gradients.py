"""``warm_up`` leaves every gradient as it was, wherever backward finds the parameters; ``adam_variance`` of empty shards."""

import functools
import gc

import pytest
import torch
from refusals import refused
from stack import launch
from torch.utils.checkpoint import checkpoint

from slw_data import SequenceLengthPlan, StagedSchedule
from slw_data.training import adam_variance, warm_up

PLAN = SequenceLengthPlan(StagedSchedule([8, 16], [2]), batch_size=2, total_steps=4)


def make_model():
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))


def checkpointed(model, rows, length, reentrant=True):
    """The first two layers are run again in backward: with ``reentrant`` the graph does not hold their parameters."""
    batch = torch.rand(rows, length, 3, requires_grad=True)
    return model[2](checkpoint(model[:2], batch, use_reentrant=reentrant)).square().mean()


def bits(model):
    return [None if p.grad is None else p.grad.view(torch.int32).tolist() for p in model.parameters()]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("given", [False, True])
def test_the_gradients_inside_a_checkpoint_are_left_as_they_were(reentrant, given):
    model = make_model()
    options = {"model": model} if given else {}
    warm_up(lambda rows, length: checkpointed(model, rows, length, reentrant), PLAN, **options)
    assert bits(model) == [None] * 4
    model(torch.rand(2, 3)).sum().backward()
    before, kept = bits(model), [p.grad for p in model.parameters()]
    warm_up(lambda rows, length: checkpointed(model, rows, length, reentrant), PLAN, **options)
    assert bits(model) == before
    assert all(p.grad is grad for p, grad in zip(model.parameters(), kept, strict=True))


def test_the_gradients_of_a_parameter_that_only_a_checkpointed_function_knows_are_left_as_they_were():
    free = torch.ones(3, requires_grad=True)

    def step(rows, length):
        return checkpoint(lambda x: (x * free).sum(), torch.rand(rows, length, 3, requires_grad=True), use_reentrant=True)

    warm_up(step, PLAN)
    assert free.grad is None


def test_a_gradient_that_backward_writes_into_has_its_values_again():
    """As DistributedDataParallel does with gradients that are views of its buckets."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([3.0, float("nan")])
    bucket = parameter.grad
    parameter.register_hook(lambda grad: bucket.fill_(9.0) * 0 + grad)
    warm_up(lambda rows, length: (parameter * rows).sum(), PLAN)
    assert (
        parameter.grad is bucket
        and bucket.view(torch.int32).tolist() == torch.tensor([3.0, float("nan")]).view(torch.int32).tolist()
    )


def test_gradients_are_restored_where_a_backward_fails():
    model = make_model()
    model(torch.rand(2, 3)).sum().backward()
    before = bits(model)

    def failing(grad):
        raise MemoryError("too large")

    def step(rows, length):
        loss = checkpointed(model, rows, length)
        if length == 8:
            loss.register_hook(failing)
        return loss

    with pytest.raises(MemoryError, match="too large"):
        warm_up(step, PLAN)
    assert bits(model) == before


@pytest.mark.parametrize("wrap", [list, tuple, lambda model: list(model.parameters())])
def test_a_model_may_be_given_in_parts_that_the_collector_does_not_see(wrap):
    model = make_model()
    parts = model if wrap is None else wrap(model)
    gc.freeze()  # as servers do before they fork: what is frozen is not listed
    try:
        warm_up(functools.partial(checkpointed, model), PLAN, model=parts)
    finally:
        gc.unfreeze()
    assert bits(model) == [None] * 4


@pytest.mark.parametrize("model", ["model", 3, [torch.ones(2), "weight"], torch.nn.Linear])
def test_what_is_no_model_is_refused(model):
    refused(lambda: warm_up(lambda rows, length: None, PLAN, model=model), "model must be", error=TypeError)


@pytest.mark.parametrize("world", [1, 2])
def test_the_gradients_of_a_sharded_model_are_left_as_they_were_bit_by_bit(tmp_path, world):
    for (empty, *without), (some, *with_some) in launch("sharded_training", world, tmp_path, job="gradients"):
        assert empty == [None] * 4 and without == [empty, True]
        assert None not in some and with_some == [some, True]


@pytest.mark.parametrize("world", [1, 2])
def test_the_variance_of_a_sharded_model_is_that_of_the_whole_where_a_rank_has_nothing(tmp_path, world):
    sizes = []
    for (plain, sharded), held in launch("sharded_training", world, tmp_path, job="variance"):
        assert sharded == pytest.approx(plain)
        sizes.append(held)
    assert sizes == ([[3, 1]] if world == 1 else [[3, 1], [0, 0]])


def test_the_variance_of_an_empty_parameter_counts_for_nothing():
    parameters = [torch.nn.Parameter(torch.zeros(0)), torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.75))
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()
    assert adam_variance(optimizer) == (1.0, 1.0)
    del optimizer.state[parameters[1]]
    assert adam_variance(optimizer) == (0.0, 0.0)
