"""The training helpers beside a model that ``fully_shard`` splits over one or two ranks."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from stack import main
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.append(str(Path(__file__).parents[2]))  # the checkout that this file is of, where it is not installed
from slw_data import SequenceLengthPlan, StagedSchedule
from slw_data.training import adam_variance, warm_up

PLAN = SequenceLengthPlan(StagedSchedule([8, 16], [2]), batch_size=2, total_steps=4)


def local(gradient):
    """What this rank holds of a gradient, as whole numbers that keep every bit."""
    return None if gradient is None else gradient.to_local().view(torch.int32).tolist()


def run(job):
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo")
    try:
        return {"gradients": gradients, "variance": variance}[job](init_device_mesh("cpu", (dist.get_world_size(),)))
    finally:
        dist.destroy_process_group()


def gradients(mesh):
    """The gradients before and after ``warm_up``: where there are none, and where a backward has left some."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)
    found = []
    for _ in range(2):
        before = [local(p.grad) for p in model.parameters()]
        objects = [p.grad for p in model.parameters()]
        warm_up(lambda rows, length: model(torch.rand(rows, length, 3)).square().mean(), PLAN)
        same = all(p.grad is kept for p, kept in zip(model.parameters(), objects, strict=True))
        found.append((before, [local(p.grad) for p in model.parameters()], same))
        model(torch.rand(2, 8, 3)).square().mean().backward()
    return found


def variance(mesh):
    """Of a layer with fewer rows than ranks: the last rank has nothing of it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    plain = torch.nn.Linear(3, 1)
    plain.load_state_dict(model.state_dict())
    fully_shard(model, mesh=mesh)
    batch, found = torch.rand(4, 3), []
    for one in (plain, model):
        optimizer = torch.optim.Adam(one.parameters())
        one(batch).square().mean().backward()
        optimizer.step()
        found.append(list(adam_variance(optimizer)))
    return found, [p.to_local().numel() for p in model.parameters()]


if __name__ == "__main__":
    main(run)
