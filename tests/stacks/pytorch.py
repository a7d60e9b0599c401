"""Plain PyTorch in the manner of nanoGPT: alone, with DDP, with FSDP2 and DCP, and beside tensor-parallel peers.

The model writes down what it is given, so nothing between the loader and the model is believed.
"""

import hashlib
import os
import pickle
import sys
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from stack import LONG, ROWS, SHORT, SHORT_RUNS, TOKENS, VOCAB, WARMUP, main
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parents[2]))  # the checkout that this file is of, where it is not installed
from slw_data import LinearSchedule, SLWDataset, SLWLoader

STEPS, STOP, SEEN = 20, 10, 10  # of a whole run; where it is stopped; steps of a run that only looks
WIDTH, HEADS = 16, 2
SCHEDULE = LinearSchedule(SHORT, LONG, warmup_steps=WARMUP, multiple_of=4)


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LONG, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm, self.head, self.drop = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB), nn.Dropout(0.1)
        self.seen, self.losses, self.step = [], [], 0

    def forward(self, ids, labels):
        self.seen.append((self.step, ids.shape[1], ids.tolist()))
        x = self.drop(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(attended.transpose(1, 2).flatten(2)))
        x = x + self.drop(self.down(F.gelu(self.up(x))))
        loss = F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())
        self.losses.append(loss.item())
        return loss


def make_loader(workers, accum, rows=ROWS, source=TOKENS, **options):
    options = {"batch_size": rows, "grad_accum_steps": accum, "total_steps": STEPS, "labels": "shifted", **options}
    return SLWLoader(SLWDataset(source, SCHEDULE, **options), num_workers=workers)


class Run:
    """A model and its optimizer, with what the stack does to them."""

    def __init__(self, stack, mesh=None):
        torch.manual_seed(0)
        self.raw = self.model = GPT()
        self.stack = stack
        if mesh is not None:
            parallelize_module(self.raw, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if stack == "fsdp2":
            fully_shard(self.raw, mesh=None if mesh is None else mesh["dp"])
        elif stack == "ddp":
            self.model = DistributedDataParallel(self.raw)
        self.optimizer = torch.optim.AdamW(self.raw.parameters(), lr=1e-2)
        torch.manual_seed(1 + (mesh["dp"].get_local_rank() if mesh else rank()))  # of dropout, as nanoGPT offsets it

    def train(self, loader, until):
        batches, accum = iter(loader), loader.dataset.plan.grad_accum_steps
        while self.raw.step < until:
            for micro in range(accum):
                last = micro == accum - 1
                if self.stack == "fsdp2":
                    self.model.set_requires_gradient_sync(last)
                elif self.stack == "ddp":
                    self.model.require_backward_grad_sync = last
                batch = next(batches)
                (self.model(batch["input_ids"], batch["labels"]) / accum).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.raw.step += 1
        return self

    def digest(self):
        """Of every parameter's bytes."""
        full = [p.full_tensor() if isinstance(p, DTensor) else p for p in self.raw.parameters()]
        return hashlib.blake2b(b"".join(p.detach().numpy().tobytes() for p in full), digest_size=8).hexdigest()

    # A checkpoint by hand: one file of rank 0, and each rank's own generator of dropout.

    def save(self, loader, folder):
        Path(folder).mkdir(exist_ok=True)
        if rank() == 0:
            state = {"model": self.raw.state_dict(), "optim": self.optimizer.state_dict(), "data": loader.state_dict()}
            torch.save(state, f"{folder}/checkpoint.pt")
        torch.save(torch.get_rng_state(), f"{folder}/rng_{rank()}.pt")

    def load(self, loader, folder):
        state = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
        self.raw.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optim"])
        loader.load_state_dict(state["data"], expected_step=STOP)
        torch.set_rng_state(torch.load(f"{folder}/rng_{rank()}.pt", weights_only=True))
        self.raw.step = STOP

    # A distributed checkpoint: the loader is a Stateful, whose state is that of all ranks.

    def parts(self, loader):
        model, optim = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optim, "data": loader, f"rng_{rank()}": torch.get_rng_state()}

    def save_distributed(self, loader, folder):
        dcp.save(self.parts(loader), checkpoint_id=folder)

    def load_distributed(self, loader, folder):
        parts = self.parts(loader)
        dcp.load(parts, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optim"])
        torch.set_rng_state(parts[f"rng_{rank()}"])
        self.raw.step = STOP


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def message(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# -- what is run -------------------------------------------------------------------------------------------------------


def looked(stacks):
    """What the model saw, by stack, workers and accumulation."""
    return {
        f"{stack} {workers} {accum}": Run(stack).train(make_loader(workers, accum), SEEN).raw.seen
        for stack in stacks
        for workers in (0, 2)
        for accum in (1, 3)
    }


def whole_and_stopped(stack, workers, folder):
    """The digest of the uninterrupted run; another run is stopped and saved."""
    whole = Run(stack).train(make_loader(0, 3), STEPS)
    loader = make_loader(workers, 3)
    stopped = Run(stack).train(loader, STOP)
    (stopped.save_distributed if stack == "fsdp2" else stopped.save)(loader, folder)
    return whole.digest()


def continued(stack, workers, folder):
    """What the model saw of a run that was stopped elsewhere, and its digest at the end."""
    run, loader = Run(stack), make_loader(workers, 3)
    (run.load_distributed if stack == "fsdp2" else run.load)(loader, folder)
    run.train(loader, STEPS)
    return {"seen": run.raw.seen, "digest": run.digest()}


def begin(at):
    """On any number of ranks: look, and stop in the middle."""
    if "WORLD_SIZE" not in os.environ:
        return {"seen": looked(["plain"]), "digests": {"plain": whole_and_stopped("plain", 2, f"{at}/plain")}}
    found = {"too early": message(make_loader, 0, 1)}
    world = os.environ.pop("WORLD_SIZE")
    early = make_loader(0, 1)
    os.environ["WORLD_SIZE"] = world
    dist.init_process_group("gloo")
    found["made early"] = message(lambda: next(iter(early)))
    found["seen"] = looked(["ddp", "fsdp2"])
    found["digests"] = {
        "ddp": whole_and_stopped("ddp", 0, f"{at}/ddp"),
        "fsdp2": whole_and_stopped("fsdp2", 2, f"{at}/fsdp2"),
    }
    found["meshes"] = {"1 x 2": on_mesh(1, 2, workers=0), "2 x 1": on_mesh(2, 1, workers=2)}
    found["no member"] = message(make_loader, 0, 1, mesh=DeviceMesh("cpu", [0]))
    found["sharded"] = sharded(f"{at}/sharded")
    dist.destroy_process_group()
    return found


def on_mesh(dp, tp, workers):
    mesh = init_device_mesh("cpu", (dp, tp), mesh_dim_names=("dp", "tp"))
    loader = make_loader(workers, 3, mesh=mesh["dp"])
    run = Run("fsdp2", mesh).train(loader, SEEN)
    again = pickle.loads(pickle.dumps(loader.dataset))
    return {
        "seen": run.raw.seen,
        "losses": run.raw.losses,
        "pickled": [again.dp_rank, again.dp_world_size, next(iter(again))["input_ids"].tolist()],
        "two dimensions": message(make_loader, 0, 1, mesh=mesh),
        "unnamed": message(make_loader, 0, 1, mesh=init_device_mesh("cpu", (dp, tp))),
        "beside ranks": message(make_loader, 0, 1, mesh=mesh["dp"], dp_rank=0, dp_world_size=2),
        "beside a rank": message(make_loader, 0, 1, mesh=mesh["dp"], dp_rank=0),
    }


def sharded(folder):
    """Two ranks, each with its own part: their states, under one key of a distributed checkpoint and under two."""
    part, name = np.array_split(TOKENS, 2)[rank()], f"data_{rank()}"
    loader, one, two = (make_loader(0, 1, source=part, sharded=True) for _ in range(3))
    list(islice(loader, 3))
    dcp.save({"data": loader}, checkpoint_id=f"{folder}/one")
    dcp.save({name: loader}, checkpoint_id=f"{folder}/two")
    mixed = message(dcp.load, {"data": one}, checkpoint_id=f"{folder}/one")
    dcp.load({name: two}, checkpoint_id=f"{folder}/two")
    return {"state": loader.state_dict(), "mixed": mixed, "steps": [one.step, two.step]}


def go_on(at):
    """In other processes, with other numbers of workers."""
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
        found = {"ddp": continued("ddp", 2, f"{at}/ddp"), "fsdp2": continued("fsdp2", 0, f"{at}/fsdp2")}
        dist.destroy_process_group()
        return found
    found = {"plain": continued("plain", 0, f"{at}/plain")}
    for rows, accum in ((ROWS, 6), (3 * ROWS, 2)):  # what two ranks with three micro-batches saved
        run, loader = Run("plain"), make_loader(0, accum, rows=rows)
        run.load_distributed(loader, f"{at}/fsdp2")
        found[f"{rows} rows, {accum} batches"] = run.train(loader, STEPS).raw.seen
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", SHORT_RUNS)
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # workers, from Python 3.12
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")  # DCP in one process
    sys.argv[2] = sys.argv[2].format(**os.environ)  # torchrun gives every rank the same arguments
    main(lambda act, **options: {"begin": begin, "go_on": go_on}[act](**options))
