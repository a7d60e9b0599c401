"""A training loop with Accelerate on real text, with nothing to download: a small model is trained along a warmup from 8 to
256 tokens; once more, stopped in the middle, and continued from what ``save_state`` wrote with another number of workers.
Both end with the same parameters, bit for bit, although the model has dropout.

It runs as it is, and on two processes: ``torchrun --nproc-per-node 2 examples/accelerate_loop.py --out folder``.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from corpus import VOCAB_SIZE, build_corpus
from torch import nn
from torch.nn import functional as F

from slw_data import LinearSchedule, SLWDataset, SLWLoader, open_tokens

ACCUMULATION = 2


def make_loader(path: Path, steps: int, num_workers: int) -> SLWLoader:
    """Made after the Accelerator, which starts the process group: the dataset takes its rank from there."""
    tokens = open_tokens(path, dtype="uint16")
    schedule = LinearSchedule(8, 256, warmup_fraction=2 / 3)
    dataset = SLWDataset(
        tokens, schedule, batch_size=8, grad_accum_steps=ACCUMULATION, total_steps=steps, shuffle=True, labels="shifted",
        vocab_size=VOCAB_SIZE,
    )  # fmt: skip
    return SLWLoader(dataset, num_workers=num_workers)


class Model(nn.Module):
    """Each next token from the last 16, by a convolution; ``forward`` gives the mean cross entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(VOCAB_SIZE, 64), nn.Dropout(0.1)
        self.mixed, self.head = nn.Conv1d(64, 128, kernel_size=16), nn.Linear(128, VOCAB_SIZE)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = F.pad(self.dropout(self.embedding(input_ids)).transpose(1, 2), (15, 0))
        return F.cross_entropy(self.head(F.gelu(self.mixed(x)).transpose(1, 2)).flatten(0, 1), labels.flatten())


def train(path: Path, folder: Path, steps: int, until: int, resume: bool = False, num_workers: int = 0) -> tuple[str, dict]:
    """A new model, optimizer and loader, as in a new process. Returns the parameters' digest, and (length, tokens, loss)
    at every sixth of the steps."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    set_seed(0)
    model, loader = Model(), make_loader(path, steps, num_workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)  # the loader passes through as it is
    accelerator.register_for_checkpointing(loader)
    if resume:
        accelerator.load_state(str(folder))  # parameters, optimizer, random numbers, and where the data stands
    shown = {}
    for batch in loader:
        batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with accelerator.accumulate(model):
            loss = model(**batch)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and loader.step % max(1, steps // 6) == 0:
            shown[loader.step] = loader.sequence_length, loader.tokens_seen, float(loss.detach())
        if loader.step == until:
            break
    accelerator.save_state(str(folder))
    accelerator.wait_for_everyone()
    parameters = accelerator.unwrap_model(model).parameters()
    return hashlib.blake2b(b"".join(p.detach().numpy().tobytes() for p in parameters)).hexdigest(), shown


def run(folder: Path, steps: int, max_tokens: int) -> bool:
    """The whole demonstration; False if the continued run ended elsewhere."""
    accelerator = Accelerator(cpu=True)
    path = folder / "stdlib.bin"
    if accelerator.is_main_process:
        build_corpus(path, max_tokens=max_tokens)
    accelerator.wait_for_everyone()
    whole, shown = train(path, folder / "whole", steps, until=steps)
    _, first = train(path, folder / "stopped", steps, until=steps // 2)
    continued, second = train(path, folder / "stopped", steps, until=steps, resume=True, num_workers=2)

    accelerator.print(f"{'step':>5}{'length':>8}{'tokens seen':>13}{'loss':>8}{'loss, continued':>17}")
    for step, (length, tokens, loss) in shown.items():
        accelerator.print(f"{step:>5}{length:>8}{tokens:>13,}{loss:>8.4f}{(first | second)[step][2]:>17.4f}")
    equal = whole == continued and shown == first | second
    accelerator.print(f"stopped and continued at step {steps // 2}; parameters equal: {'yes' if equal else 'NO'}")
    accelerator.end_training()
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the corpus and the states (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a whole run (default: 60)")
    parser.add_argument("--max-tokens", type=int, default=2_000_000, help="of the corpus (default: 2,000,000)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is small
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not run(folder, options.steps, options.max_tokens):
            raise SystemExit("the continued run differs from the uninterrupted one")


if __name__ == "__main__":
    main()
