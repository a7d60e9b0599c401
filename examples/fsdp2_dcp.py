"""Sharded parameters (FSDP2) and a distributed checkpoint (DCP) with a sequence length warmup, on real text: stopped in the
middle, and continued to the same parameters, bit by bit; then the same checkpoint gives one rank the rows of both.

    torchrun --standalone --nproc-per-node 2 examples/fsdp2_dcp.py
    python examples/fsdp2_dcp.py                                      starts two processes itself

The loader is a part of the checkpoint as it is: DCP asks it for its state, and hands the state back to it. Its state is the
same on every rank, as one key of a distributed checkpoint must be.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from corpus import build_corpus
from pytorch_loop import GPT, LONGEST, MICRO, ROWS, rank, report, shared_folder, world_size
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from slw_data import LinearSchedule, SLWDataset, SLWLoader, open_tokens

RANKS = 2  # that are started without torchrun


def make_loader(path: Path, steps: int, workers: int = 0, **ranks: Any) -> SLWLoader:
    """``ranks`` are the data-parallel coordinates, and how the rows of a step are split over them."""
    schedule = LinearSchedule(8, LONGEST, warmup_fraction=0.6)
    tokens = open_tokens(path, dtype="uint16")
    dataset = SLWDataset(tokens, schedule, total_steps=steps, shuffle=True, labels="shifted", **ranks)
    return SLWLoader(dataset, num_workers=workers)


class Run:
    """One training run: a new model with its parameters sharded over the mesh, optimizer and loader."""

    def __init__(self, path: Path, steps: int, mesh: DeviceMesh, workers: int = 0) -> None:
        torch.manual_seed(0)
        self.model = GPT()
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        rows = ROWS // MICRO // mesh.size()
        # With more dimensions, such as ("dp", "tp"), this is mesh["dp"]: tensor-parallel peers need the same batches.
        self.loader = make_loader(path, steps, workers, mesh=mesh, batch_size=rows, grad_accum_steps=MICRO)
        torch.manual_seed(1 + mesh.get_local_rank())  # of dropout, which differs among data-parallel ranks

    def train(self, until: int, report_every: int | None = None) -> None:
        """Go on until so many optimizer steps are done. Both micro-batches of a step have one length."""
        batches = iter(self.loader)
        while self.loader.step < until:
            step, total = self.loader.step, torch.zeros(())
            for micro in range(MICRO):
                batch = next(batches)
                self.model.set_requires_gradient_sync(micro == MICRO - 1)
                loss = self.model(batch["input_ids"], batch["labels"]) / MICRO
                loss.backward()
                total += loss.detach()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if report_every and (step % report_every == 0 or step == until - 1):
                report(self.loader, step, total)

    def parts(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "data": self.loader,
            f"dropout {rank()}": torch.get_rng_state(),  # differs by rank, so each has a key of its own
        }

    def save(self, folder: Path) -> None:
        dcp.save(self.parts(), checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        parts = self.parts()
        dcp.load(parts, checkpoint_id=folder)  # the loader now stands where it was saved
        model, optimizer = parts["model"], parts["optimizer"]
        set_state_dict(self.model, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)
        torch.set_rng_state(parts[f"dropout {rank()}"])

    def digest(self) -> str:
        """Of the bytes of all parameters, put together from all ranks."""
        values = [parameter.full_tensor().detach().numpy().tobytes() for parameter in self.model.parameters()]
        return hashlib.blake2b(b"".join(values), digest_size=8).hexdigest()


def one_rank_reads_the_rows_of_both(path: Path, steps: int, folder: Path, rest: SLWLoader) -> bool:
    """What a run on one rank would get from the checkpoint, against what the ranks of this one get: row by row.

    A step has as many rows as before, so the one rank takes them in larger batches.
    """
    alone = make_loader(path, steps, dp_rank=0, dp_world_size=1, batch_size=ROWS // MICRO, grad_accum_steps=MICRO)
    dcp.load({"data": alone}, checkpoint_id=folder)
    for mine, all_rows in zip(rest, alone, strict=True):
        gathered = [torch.empty_like(mine["input_ids"]) for _ in range(world_size())]
        dist.all_gather(gathered, mine["input_ids"])
        if not torch.equal(torch.cat(gathered), all_rows["input_ids"]):
            return False
    return True


def run(folder: Path, steps: int, max_tokens: int) -> bool:
    """The whole demonstration; False if something was continued elsewhere."""
    path, checkpoint, started = folder / "stdlib.bin", folder / "checkpoint", time.perf_counter()
    if rank() == 0:
        build_corpus(path, max_tokens=max_tokens)
        print(f"{'step':>6}{'length':>8}{'tokens a step':>14}{'tokens so far':>14}{'loss':>8}")
    mesh = init_device_mesh("cpu", (world_size(),), mesh_dim_names=("dp",))  # "cuda" on GPUs
    dist.barrier()
    whole = Run(path, steps, mesh)
    whole.train(steps, report_every=max(1, steps // 6))

    stopped = Run(path, steps, mesh)
    stopped.train(steps // 2)
    stopped.save(checkpoint)
    continued = Run(path, steps, mesh, workers=2)  # another number of workers: it does not matter
    continued.load(checkpoint)
    length, seen = continued.loader.dataset.plan.length(steps // 2), continued.loader.tokens_seen
    continued.train(steps)

    equal = whole.digest() == continued.digest()
    whole.loader.seek(steps // 2)
    alone = one_rank_reads_the_rows_of_both(path, steps, checkpoint, whole.loader)
    table = {
        "ranks": f"{world_size()}",
        "stopped and continued at": f"step {steps // 2}, of length {length}, after {seen:,} tokens",
        "digests of the parameters": f"{whole.digest()} and {continued.digest()}",
        "parameters equal": "yes" if equal else "NO",
        "rows equal on one rank": "yes" if alone else "NO",
        "seconds": f"{time.perf_counter() - started:.1f}",
    }
    if rank() == 0:
        print(*(f"{name:<28}{value}" for name, value in table.items()), sep="\n")
    return equal and alone


def start(local_rank: int, options: argparse.Namespace, folder: str) -> None:
    """In each process: join the others, run, and leave them."""
    torch.set_num_threads(1)  # more would wait for each other, in so small a model
    if "RANK" in os.environ:  # torchrun
        dist.init_process_group("gloo")  # "cpu:gloo,cuda:nccl" on GPUs
    else:
        dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=local_rank, world_size=RANKS)
    try:
        equal = run(shared_folder(options.out, folder), options.steps, options.max_tokens)
    finally:
        dist.destroy_process_group()
    if not equal:
        raise SystemExit("the continued run differs from the uninterrupted one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the corpus and the checkpoint (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a run (default: 40)")
    parser.add_argument("--max-tokens", type=int, default=2_000_000, help="size of the corpus (default: 2 million)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" in os.environ:
            start(0, options, folder)
        else:
            torch.multiprocessing.spawn(start, (options, folder), nprocs=RANKS)


if __name__ == "__main__":
    main()
