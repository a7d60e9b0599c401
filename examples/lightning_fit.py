"""Lightning on real text, with nothing to download: a tiny model is trained along a warmup from 8 to 128 tokens, stopped in
the middle, and continued from the checkpoint by a new Trainer, with another number of workers. Batches and parameters are
compared with the run that was never stopped. Needs Lightning: pip install -e '.[lightning]'.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from corpus import VOCAB_SIZE, build_corpus
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from slw_data import LinearSchedule, SLWDataset, SLWLoader, open_tokens
from slw_data.integrations.lightning import SequenceLengthLogger

STEPS, MIDDLE = 120, 40  # the middle of the warmup
ROWS, ACCUM, WIDTH = 8, 2, 64
SCHEDULE = LinearSchedule(8, 128, warmup_steps=80)


class Text(L.LightningDataModule):
    """Makes the loader when the Trainer asks for it: by then the process group is there, if there are several processes."""

    def __init__(self, path: Path, workers: int) -> None:
        super().__init__()
        self.path, self.workers = path, workers

    def train_dataloader(self) -> SLWLoader:
        tokens = open_tokens(self.path, dtype="uint16")
        shape: dict[str, Any] = {"batch_size": ROWS, "grad_accum_steps": ACCUM, "total_steps": STEPS}
        dataset = SLWDataset(tokens, SCHEDULE, **shape, shuffle=True, labels="shifted", vocab_size=VOCAB_SIZE)
        return SLWLoader(dataset, num_workers=self.workers)


class Model(L.LightningModule):
    """One layer of attention over bytes. It knows nothing of lengths; here it also takes digests of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB_SIZE, WIDTH), nn.Embedding(128, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, VOCAB_SIZE)
        self.digests: list[str] = []
        self.table: list[tuple[int, int, float]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        ids, length = batch["input_ids"], batch["input_ids"].shape[1]
        self.digests.append(hashlib.sha256(ids.numpy().tobytes()).hexdigest())
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.layer(self.tokens(ids) + self.positions(torch.arange(length)), src_mask=mask, is_causal=True)
        loss = F.cross_entropy(self.head(hidden).flatten(0, 1), batch["labels"].flatten())
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step % 20 == 0 and not self.trainer.fit_loop._should_accumulate():
            found = self.trainer.callback_metrics
            length, seen = (int(found[f"slw/{name}"]) for name in ("sequence_length", "tokens_seen"))
            self.table.append((length, seen, float(found["loss"])))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def train(path: Path, folder: Path, workers: int, *, until: int = STEPS, checkpoint: Path | None = None) -> Model:
    """A new model and a new Trainer, up to step ``until``; it saves at the middle, and goes on from ``checkpoint``."""
    torch.manual_seed(0)
    model = Model()
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=MIDDLE, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=until,
        accumulate_grad_batches=ACCUM,  # as many as the dataset's grad_accum_steps, which the logger checks
        callbacks=[SequenceLengthLogger(), saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Text(path, workers), ckpt_path=checkpoint)
    return model


def run(folder: Path) -> bool:
    """Train without a stop, and with one; print what was found. Whether they are equal."""
    path, _ = build_corpus(folder / "corpus.bin", max_tokens=4_000_000)
    started = time.perf_counter()
    whole = train(path, folder / "whole", workers=0)
    seconds = time.perf_counter() - started
    stopped = train(path, folder / "stopped", workers=0, until=MIDDLE)
    rest = train(path, folder / "stopped", workers=2, checkpoint=folder / "stopped" / f"step={MIDDLE}.ckpt")

    batches = stopped.digests + rest.digests == whole.digests
    parameters = all(torch.equal(p, q) for p, q in zip(whole.parameters(), rest.parameters(), strict=True))
    print(f"{'step':>6}{'length':>8}{'tokens seen':>13}{'loss':>7}")
    for index, (length, seen, loss) in enumerate(whole.table, start=1):
        print(f"{20 * index:>6}{length:>8}{seen:>13,}{loss:>7.2f}")
    table = {
        "seconds, without a stop": f"{seconds:.1f}",
        "stopped and continued at": f"step {MIDDLE}, of length {SCHEDULE(MIDDLE)}, with 0 and then 2 workers",
        "batches equal": "yes" if batches else "NO",
        "parameters equal, bit by bit": "yes" if parameters else "NO",
    }
    print(*(f"{name:<34}{value}" for name, value in table.items()), sep="\n")
    return batches and parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the corpus and the checkpoints (default: a temporary one)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*LeafSpec")  # of torch, as Lightning 2.6 uses it
    warnings.filterwarnings("ignore", ".*`__len__` could be inaccurate")  # not of this loader: its length is exact
    warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty")  # where the run goes on
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not run(folder):
            raise SystemExit("the continued run differs from the uninterrupted one")


if __name__ == "__main__":
    main()
