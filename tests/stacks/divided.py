"""Real ranks over gloo that share one divided Parquet stream: which files each of them opens, what it delivers, and where it
goes on from checkpoints of other numbers of ranks."""

import json
import os
import random
import sys
import warnings
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from forked import in_worlds
from stack import main

sys.path.append(str(Path(__file__).parents[2]))  # the checkout that this file is of, where it is not installed
from slw_data import (
    ConstantSchedule,
    DataError,
    DoublingSchedule,
    LinearSchedule,
    SLWDataset,
    SLWLoader,
    check_ranks_agree,
    gather_state,
    load_state,
    save_state,
)
from slw_data.integrations.accelerate import GatheredState
from slw_data.integrations.torchtitan import TorchTitanLoader

opened: list[str] = []


def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".parquet"):
        opened.append(Path(arguments[0]).name)


sys.addaudithook(watch)


def streamed(folder):
    import datasets

    files = sorted(str(path) for path in Path(folder).glob("*.parquet"))
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def loader(folder, steps, num_workers=0):
    rows = streamed(folder)
    opened.clear()  # the files were looked at to find what columns they have
    world = dist.get_world_size()
    schedule = LinearSchedule(4, 12, warmup_steps=6, multiple_of=4)
    dataset = SLWDataset(rows, schedule, batch_size=16 // world, total_steps=steps, num_shards=8)
    return check_ranks_agree(SLWLoader(dataset, prefetch=0, num_workers=num_workers))


def deliver(folder, steps, save=None, num_workers=0, **_):
    """Train for ``steps``, save after ``save`` of them by each way there is, and say what was delivered and opened."""
    one, rows = loader(folder, steps, num_workers), []
    for batch in one:
        rows.append(batch["input_ids"].tolist())
        if one.step == save:
            world, rank = dist.get_world_size(), dist.get_rank()
            dcp.save({"loader": one}, checkpoint_id=f"{folder}/dcp{world}")
            save_state(f"{folder}/own{world}_{rank}.json", one)
            whole = GatheredState(one).state_dict()
            assert whole == gather_state(one) and len(whole["shards"]) == 8 == 8 // world * world
            if rank == 0:
                Path(f"{folder}/whole{world}.json").write_text(json.dumps(whole))
    return {"rows": rows, "opened": sorted(set(opened)), "epoch": one.epoch}


def resume(folder, steps, saved, way, **_):
    """Go on from what ``saved`` ranks have saved."""
    one = loader(folder, steps)
    if way == "dcp":
        dcp.load({"loader": one}, checkpoint_id=f"{folder}/dcp{saved}")
    elif way == "files":
        load_state([f"{folder}/own{saved}_{rank}.json" for rank in range(saved)], one)
    else:
        GatheredState(one).load_state_dict(json.loads(Path(f"{folder}/whole{saved}.json").read_text()))
    return [batch["input_ids"].tolist() for batch in one]


def titan(folder, steps, save=None, saved=None, **_):
    """As torchtitan trains: the batches of this rank, saved after ``save`` of them; or from what ``saved`` ranks have."""
    options = {"labels": "shifted", "extras": ("position_ids",), "total_steps": steps, "num_shards": 8}
    schedule, world = DoublingSchedule(4, 8, warmup_steps=16, multiple_of=4), dist.get_world_size()
    dataset = SLWDataset(streamed(folder), schedule, tokens_per_batch=128 // world, **options)
    one, batches = TorchTitanLoader(check_ranks_agree(SLWLoader(dataset, prefetch=0))), []
    if saved is not None:
        dcp.load({"dataloader": one}, checkpoint_id=f"{folder}/titan{saved}")
    for tokens, labels in one:
        batches.append([tokens["input"].tolist(), labels.tolist()])
        if one.loader.step == save:
            dcp.save({"dataloader": one}, checkpoint_id=f"{folder}/titan{world}")
    return batches


class Shuffled:
    """Documents in an order that is drawn anew for each pass, by this rank's own generator if ``seed`` is None."""

    def __init__(self, seed):
        self.seed, self.epoch = seed, 0
        self.own = random.Random(dist.get_rank())

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        docs = [[10 * i + k for k in range(4)] for i in range(300)]
        (self.own if self.seed is None else random.Random(self.seed + self.epoch)).shuffle(docs)
        return iter(docs)


def unlike(seed, **_):
    """Every rank reads a stream of its own order, or the same one, over three passes; twice, as two loaders."""
    found = []
    for _ in range(2):
        one = SLWLoader(SLWDataset(Shuffled(seed), ConstantSchedule(4), batch_size=2, total_steps=220), prefetch=0)
        try:
            found.append(sum(1 for _ in check_ranks_agree(one)))
        except DataError as error:
            found.append(str(error))
    return found


def do(name, options):
    warnings.filterwarnings("ignore", "This DataLoader will create")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not dist.is_initialized():
        os.environ |= {"RANK": os.environ.get("RANK", "0"), "WORLD_SIZE": os.environ.get("WORLD_SIZE", "1")}
        dist.init_process_group("gloo")
    try:
        return globals()[name](**options)
    finally:
        dist.barrier()


if __name__ == "__main__":
    main(lambda worlds: in_worlds(do, worlds))
