"""Lightning's Trainer, alone and with DDP on two processes: what ``training_step`` sees, and where a checkpoint goes on.

The module writes down what it is given, so nothing between the loader and the model is believed. (A script named
``lightning`` would hide the package.)
"""

import hashlib
import logging
import os
import warnings

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from stack import DIVIDED, LONG, OF_STEP, ROWS, SHORT, SHORT_RUNS, TOKENS, VOCAB, WARMUP, main, part
from torch.nn import functional as F

from slw_data import LinearSchedule, SLWDataset, SLWLoader
from slw_data.integrations.lightning import SequenceLengthLogger

STEPS, STOP, SEEN = 20, 10, 10  # of a whole run; where it is stopped; steps of a run that only looks
SCHEDULE = LinearSchedule(SHORT, LONG, warmup_steps=WARMUP, multiple_of=4)
WORLD = int(os.environ.get("WORLD_SIZE", 1))


class Model(L.LightningModule):
    """A small one without dropout: Lightning's checkpoints hold no state of random numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = torch.nn.Embedding(VOCAB, 16), torch.nn.Embedding(LONG, 16)
        self.head = torch.nn.Linear(16, VOCAB)
        self.seen, self.logged = [], []

    def training_step(self, batch, batch_idx):
        ids = batch["input_ids"]
        self.seen.append((self.trainer.global_step, ids.shape[1], ids.tolist()))
        hidden = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]) % LONG)
        return F.cross_entropy(self.head(hidden.tanh()).flatten(0, 1), batch["labels"].flatten())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.logged.append({name: value.item() for name, value in self.trainer.callback_metrics.items()})

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def digest(self):
        parts = [p.detach().numpy().tobytes() for p in self.parameters()]
        return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


def make_loader(source=TOKENS, workers=0, **options):
    options = {"batch_size": ROWS, "labels": "shifted", **options}
    return SLWLoader(SLWDataset(source, SCHEDULE, **options), num_workers=workers)


class Data(L.LightningDataModule):
    """The loader is made once the Trainer has made the process group, so the dataset knows its rank."""

    def __init__(self, workers, accum):
        super().__init__()
        self.workers, self.accum = workers, accum

    def train_dataloader(self):
        return make_loader(workers=self.workers, grad_accum_steps=self.accum, total_steps=STEPS)


class Divided(L.LightningDataModule):
    """A divided stream, with as many rows in a step on any number of ranks."""

    def __init__(self, workers=0):
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        rows = OF_STEP // WORLD // 2
        return make_loader(part, self.workers, batch_size=rows, grad_accum_steps=2, total_steps=STEPS, **DIVIDED)


def fit(data, *, module=Model, with_logger=True, save=None, load=None, logger=False, **options):
    """The model after training; with checkpoints in ``save``, a folder and their distance; or from the checkpoint ``load``."""
    callbacks = [SequenceLengthLogger()] if with_logger else []
    if save is not None:
        callbacks.append(ModelCheckpoint(save[0], filename="{step}", every_n_train_steps=save[1], save_top_k=-1))
    trainer = L.Trainer(
        accelerator="cpu", devices=WORLD, strategy="ddp" if WORLD > 1 else "auto", callbacks=callbacks, logger=logger,
        enable_checkpointing=save is not None, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    model = module()
    trainer.fit(model, data, ckpt_path=load)
    return model


def looked(workers, accum):
    return fit(Data(workers, accum), max_steps=SEEN, accumulate_grad_batches=accum).seen


def begin(at):
    """Look; train to the end, and leave a checkpoint of the middle."""
    found = {}
    if WORLD > 1:
        found["too early"] = message(make_loader)
        del os.environ["WORLD_SIZE"]  # as in the process that has not started the others yet
        early = make_loader(total_steps=1)
        os.environ["WORLD_SIZE"] = str(WORLD)
    found["seen"] = {f"{workers} {accum}": looked(workers, accum) for workers in (0, 2) for accum in (1, 3)}
    if WORLD > 1:
        found["made early"] = message(fit, early, max_steps=1)
    whole = fit(Data(0, 3), max_steps=STEPS, accumulate_grad_batches=3, save=(at, STOP))
    divided = fit(Divided(), max_steps=STEPS, accumulate_grad_batches=2, save=(f"{at} divided", STOP))
    return {**found, "digest": whole.digest(), "divided": {"seen": divided.seen, "digest": divided.digest()}}


def go_on(at):
    """In other processes, with another number of workers."""
    options = {"save": (at, STOP), "load": f"{at}/step={STOP}.ckpt"}
    model = fit(Data(2, 3), max_steps=STEPS, accumulate_grad_batches=3, **options)
    return {"seen": model.seen, "digest": model.digest(), "divided": divided(at, workers=2)}


def divided(at, workers=0):
    """From the checkpoint of a divided stream, whatever the number of ranks that saved it. (A copy of it: a resumed run that
    accumulates saves the step that it begins at once more, under the same name, after its first batch.)"""
    model = fit(
        Divided(workers), max_steps=STEPS, accumulate_grad_batches=2, save=(f"{at} divided", STOP),
        load=f"{at} kept.ckpt",
    )  # fmt: skip
    return {"seen": model.seen, "digest": model.digest()}


def message(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def act(name, **options):
    try:
        return {"begin": begin, "go_on": go_on, "divided": divided}[name](**options)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", SHORT_RUNS)
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # workers, from Python 3.12
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of torch, as Lightning 2.6 uses it
    warnings.filterwarnings("ignore", ".*`__len__` could be inaccurate", UserWarning)  # Lightning's guess; the tests count
    warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty", UserWarning)  # where a run goes on
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    main(act)
