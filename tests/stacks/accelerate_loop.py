"""A training loop with Accelerate, alone and on two processes. ``worlds`` says which of the jobs below run together; see
``forked``. (A script named ``accelerate`` would hide the package.)"""

import hashlib
import os
import sys
import warnings
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer would import it, in each process
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from forked import in_worlds
from stack import DIVIDED, LONG, OF_STEP, ROWS, SHORT, TOKENS, VOCAB, WARMUP, main, part
from torch.utils.data import DataLoader

sys.path.append(str(Path(__file__).parents[2]))  # the checkout that this file is of, where it is not installed
from slw_data import LinearSchedule, SLWDataset, SLWLoader
from slw_data.integrations.accelerate import GatheredState

SCHEDULE = LinearSchedule(SHORT, LONG, warmup_steps=WARMUP, multiple_of=4)


def dataset(source=TOKENS, accum=1, batch_size=ROWS, **options):
    return SLWDataset(source, SCHEDULE, batch_size=batch_size, grad_accum_steps=accum, total_steps=20, **options)


class Model(torch.nn.Module):
    """Next tokens from embeddings with dropout; writes down what it is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.head = torch.nn.Embedding(VOCAB, 16), torch.nn.Linear(16, VOCAB)
        self.seen = []

    def forward(self, input_ids, labels):
        self.seen.append(input_ids.tolist())
        logits = self.head(torch.nn.functional.dropout(self.embedding(input_ids), 0.1, self.training))
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def prepared(loader, accelerator):
    """(model, wrapped model, optimizer, what ``prepare`` makes of the loader)"""
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, *accelerator.prepare(model, optimizer, loader)


def train(loader, accelerator, model, wrapped, optimizer, until=20):
    """(step, length, ids) of each forward, with the optimizer's steps counted here."""
    step, seen = loader.step, []
    if step == until:
        return seen
    for batch in loader:
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.accumulate(wrapped):
            loss = wrapped(**batch)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        ids = model.seen.pop()
        seen.append((step, len(ids[0]), ids))
        step += accelerator.sync_gradients
        assert not model.seen and step == loader.step
        if step == until:
            break
    return seen


def digest(model):
    return hashlib.blake2b(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


# -- jobs --------------------------------------------------------------------------------------------------------------


def run(accum=1, workers=0, folder=None, until=20, resume=False, stateful=False):
    """Train 20 steps with dropout, or up to a step and save there, or go on from there."""
    configuration = DataLoaderConfiguration(use_stateful_dataloader=stateful)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accum, dataloader_config=configuration)
    set_seed(accelerator.process_index)
    loader = SLWLoader(dataset(accum=accum), num_workers=workers)
    model, wrapped, optimizer, same = prepared(loader, accelerator)
    accelerator.register_for_checkpointing(loader)
    if resume:
        accelerator.load_state(folder)
    seen = train(loader, accelerator, model, wrapped, optimizer, until)
    if folder and not resume:
        accelerator.save_state(folder)
    files = sorted(path.name for path in Path(folder).glob("custom*")) if folder else []
    return {"same": same is loader, "seen": seen, "parameters": digest(model), "files": files}


def divided(folder, until=20, workers=0, resume=False, gathered=True):
    """The same on a divided stream: with the shards of all ranks in the one state that Accelerate keeps, or of rank 0 alone."""
    accelerator = Accelerator(cpu=True)
    set_seed(accelerator.process_index)
    rows = OF_STEP // accelerator.num_processes
    loader = SLWLoader(dataset(part, batch_size=rows, **DIVIDED), num_workers=workers)
    model, wrapped, optimizer, same = prepared(loader, accelerator)
    accelerator.register_for_checkpointing(GatheredState(loader) if gathered else loader)
    if resume:
        accelerator.load_state(folder)
    seen = train(loader, accelerator, model, wrapped, optimizer, until)
    if until < 20:
        accelerator.save_state(folder)
    return {"same": same is loader, "seen": seen, "parameters": digest(model)}


def wrong(workers=0, **options):
    """A DataLoader over the dataset, given to ``prepare``."""
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # by torchdata's StatefulDataLoader
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    loader = DataLoader(dataset(), batch_size=None, num_workers=workers)
    _, _, _, changed = prepared(loader, accelerator)
    return [batch["input_ids"].tolist() for batch in changed]


def sharded(folder):
    """Each rank reads its own half; Accelerate keeps what rank 0 saves."""
    accelerator = Accelerator(cpu=True)
    rank, half = accelerator.process_index, len(TOKENS) // 2
    loader = SLWLoader(dataset(TOKENS[rank * half : (rank + 1) * half], sharded=True))
    next(iter(loader))
    accelerator.register_for_checkpointing(loader)
    accelerator.save_state(folder)
    accelerator.wait_for_everyone()
    try:
        accelerator.load_state(folder)
    except ValueError as error:
        return f"{type(error).__name__}: {error}", loader.step
    return "loaded", loader.step


def another_world(folder, **ranks):
    """What a state of two sharded ranks is in a run of one."""
    dataset(sharded=True, **ranks).load_state_dict(torch.load(f"{folder}/custom_checkpoint_0.pkl", weights_only=True))


def too_early():
    dataset()


def made_before():
    """A dataset that was made before the process group, as rank 0 of 1, and read after it."""
    world = os.environ.pop("WORLD_SIZE")
    early = dataset()
    os.environ["WORLD_SIZE"] = world
    Accelerator(cpu=True)
    next(iter(SLWLoader(early)))


if __name__ == "__main__":
    main(lambda worlds: in_worlds(lambda name, options: globals()[name](**options), worlds))
