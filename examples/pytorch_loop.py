"""A training loop in the manner of nanoGPT on real text, with nothing to download: the lengths grow from 8 to 64 bytes, the
run is stopped in the middle, and continued to the same parameters, bit by bit.

    python examples/pytorch_loop.py
    torchrun --standalone --nproc-per-node 2 examples/pytorch_loop.py

All that concerns the lengths is in ``make_loader``; the loop, and what is saved, are those of any dataset. Read next:
:mod:`fsdp2_dcp`, the same with sharded parameters and a distributed checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from corpus import VOCAB_SIZE, build_corpus
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from slw_data import LinearSchedule, SLWDataset, SLWLoader, open_tokens

ROWS, MICRO = 16, 2  # rows of a step over all ranks, and the micro-batches that they come in
LONGEST, WIDTH, HEADS, LAYERS, DROPOUT = 64, 64, 4, 2, 0.1


def make_loader(path: Path, steps: int, workers: int = 0) -> SLWLoader:
    """Lengths by multiples of 8, over the first 60% of the steps. The ranks are those of ``torch.distributed``."""
    schedule = LinearSchedule(8, LONGEST, warmup_fraction=0.6)
    tokens = open_tokens(path, dtype="uint16")
    rows = ROWS // MICRO // world_size()
    dataset = SLWDataset(
        tokens, schedule, batch_size=rows, grad_accum_steps=MICRO, total_steps=steps, shuffle=True, labels="shifted"
    )
    return SLWLoader(dataset, num_workers=workers)


# -- the model ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """It takes any length up to ``LONGEST``, and returns the mean cross entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB_SIZE, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB_SIZE)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


# -- the loop ----------------------------------------------------------------------------------------------------------


class Run:
    """One training run: a new model, optimizer and loader."""

    def __init__(self, path: Path, steps: int, workers: int = 0) -> None:
        torch.manual_seed(0)
        self.raw = GPT()
        self.model = DistributedDataParallel(self.raw) if dist.is_initialized() else self.raw
        self.optimizer = torch.optim.AdamW(self.raw.parameters(), lr=3e-3)
        self.loader = make_loader(path, steps, workers)
        torch.manual_seed(1 + rank())  # of dropout, which differs among ranks

    def train(self, until: int, report_every: int | None = None) -> None:
        """Go on until so many optimizer steps are done. Both micro-batches of a step have one length."""
        batches = iter(self.loader)
        while self.loader.step < until:
            step, total = self.loader.step, torch.zeros(())
            for micro in range(MICRO):
                batch = next(batches)
                if dist.is_initialized():
                    self.model.require_backward_grad_sync = micro == MICRO - 1  # average over the ranks once a step
                loss = self.model(batch["input_ids"], batch["labels"]) / MICRO
                loss.backward()
                total += loss.detach()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if report_every and (step % report_every == 0 or step == until - 1):
                report(self.loader, step, total)

    def save(self, folder: Path) -> None:
        """The loader's state is the same on all ranks; dropout's generator is not."""
        if rank() == 0:
            state = {"model": self.raw.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save({**state, "data": self.loader.state_dict()}, folder / "checkpoint.pt")
        torch.save(torch.get_rng_state(), folder / f"dropout-{rank()}.pt")
        if dist.is_initialized():
            dist.barrier()

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        self.raw.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["data"])
        torch.set_rng_state(torch.load(folder / f"dropout-{rank()}.pt", weights_only=True))

    def digest(self) -> str:
        """Of the bytes of all parameters."""
        values = [parameter.detach().numpy().tobytes() for parameter in self.raw.parameters()]
        return hashlib.blake2b(b"".join(values), digest_size=8).hexdigest()


def report(loader: SLWLoader, step: int, loss: torch.Tensor) -> None:
    """A line of the table, on rank 0: the loss is the mean over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(loss)
    if rank() == 0:
        length, tokens = loader.sequence_length, loader.dataset.plan.tokens(step)
        print(f"{step:>6}{length:>8}{tokens:>14,}{loader.tokens_seen:>14,}{loss.item() / world_size():>8.3f}", flush=True)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def shared_folder(wanted: Path | None, temporary: str) -> Path:
    """One folder for all ranks: what rank 0 has."""
    folder = [str(wanted or temporary)]
    if dist.is_initialized():
        dist.broadcast_object_list(folder)
    Path(folder[0]).mkdir(parents=True, exist_ok=True)
    return Path(folder[0])


def run(folder: Path, steps: int, max_tokens: int) -> bool:
    """The whole demonstration; False if the continued run ends elsewhere."""
    path, started = folder / "stdlib.bin", time.perf_counter()
    if rank() == 0:
        build_corpus(path, max_tokens=max_tokens)
        print(f"{'step':>6}{'length':>8}{'tokens a step':>14}{'tokens so far':>14}{'loss':>8}")
    if dist.is_initialized():
        dist.barrier()
    whole = Run(path, steps)
    whole.train(steps, report_every=max(1, steps // 6))

    stopped = Run(path, steps)
    stopped.train(steps // 2)
    stopped.save(folder)
    continued = Run(path, steps, workers=2)  # another number of workers: it does not matter
    continued.load(folder)
    length, seen = continued.loader.dataset.plan.length(steps // 2), continued.loader.tokens_seen
    continued.train(steps)

    equal = whole.digest() == continued.digest()
    table = {
        "ranks": f"{world_size()}",
        "stopped and continued at": f"step {steps // 2}, of length {length}, after {seen:,} tokens",
        "digests of the parameters": f"{whole.digest()} and {continued.digest()}",
        "parameters equal": "yes" if equal else "NO",
        "seconds": f"{time.perf_counter() - started:.1f}",
    }
    if rank() == 0:
        print(*(f"{name:<28}{value}" for name, value in table.items()), sep="\n")
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the corpus and the checkpoint (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of a run (default: 120)")
    parser.add_argument("--max-tokens", type=int, default=2_000_000, help="size of the corpus (default: 2 million)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # more would wait for each other, in so small a model
    if "RANK" in os.environ:  # torchrun
        dist.init_process_group("gloo")  # "nccl" on GPUs; before the dataset is made, which asks it for the rank
    with tempfile.TemporaryDirectory() as temporary:
        try:
            equal = run(shared_folder(options.out, temporary), options.steps, options.max_tokens)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    if not equal:
        raise SystemExit("the continued run differs from the uninterrupted one")


if __name__ == "__main__":
    main()
