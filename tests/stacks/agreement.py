"""Two or more real ranks that agree, or do not: each job below runs on all ranks of one world, one after the other."""

import itertools
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch.distributed as dist
from forked import in_worlds
from stack import main

sys.path.append(str(Path(__file__).parents[2]))  # the checkout that this file is of, where it is not installed
from slw_data import ConstantSchedule, SLWDataset, SLWLoader, check_ranks_agree, load_state, save_state


def loader(size=1000, source=None, moved=0, **options):
    source = np.arange(size) if source is None else source
    made = SLWLoader(SLWDataset(source, ConstantSchedule(4), **{"batch_size": 2, "total_steps": 50, **options}), prefetch=0)
    list(itertools.islice(made, moved))
    return made


def rank_is(which):
    return dist.get_rank() == which


def same(moved):
    made = loader(moved=moved)
    return check_ranks_agree(made) is made and check_ranks_agree(made.dataset) is made.dataset


def differing(name, value):
    """Rank 1 has another ``value`` of the argument ``name``."""
    check_ranks_agree(loader(**({name: value} if rank_is(1) else {})))


def differing_streams():
    documents = [[i] * (3 + i % 4) for i in range(200)]
    check_ranks_agree(loader(source=documents, moved=2 + dist.get_rank()))


def shuffled(seed):
    """Each rank shuffles the same rows; without a ``seed`` each draws one of its own."""
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[i] * 4 for i in range(64)]}).to_iterable_dataset(num_shards=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if seed is None else "error")  # it says that such a run has no state
        warnings.filterwarnings("ignore", ".* would each read the whole of")
        made = loader(source=rows.shuffle(seed=seed, buffer_size=1))
    return check_ranks_agree(made) is made


def sharded(moved):
    """Each rank has its own part, and stands ``moved[rank]`` batches in it."""
    rank = dist.get_rank()
    check_ranks_agree(loader(900 + 10 * rank, sharded=True, moved=moved[rank]))


def one_part_twice():
    check_ranks_agree(loader(dp_rank=0, dp_world_size=2))


def peers():
    """All ranks take the only part, as tensor-parallel peers do; and each alone in a group is compared with nobody."""
    check_ranks_agree(loader(dp_rank=0, dp_world_size=1))
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    check_ranks_agree(loader(size=500 + dist.get_rank(), dp_rank=0, dp_world_size=2), group=alone)


def load_fails(folder, failing, **options):
    """The state is whole, but on the ranks ``failing``, each of which finds a damaged copy."""
    rank, folder = dist.get_rank(), Path(folder)
    path = folder / f"{rank}.json"
    save_state(path, loader(moved=3))
    if rank in failing:
        path.write_bytes(path.read_bytes()[:50])

    def make():
        made = loader(**options)
        load_state(path, made)
        return made

    began = time.monotonic()
    try:
        return check_ranks_agree(make).step
    except ValueError as error:
        cause = type(error.__cause__).__name__
        return {"error": f"{type(error).__name__}: {error}", "cause": cause, "seconds": time.monotonic() - began}


def one_cannot_make_it():
    check_ranks_agree(lambda: loader(batch_size=0 if rank_is(1) else 2))


def do(name, options):
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    try:
        return globals()[name](**options)
    finally:
        dist.barrier()  # what was raised has left the ranks together


if __name__ == "__main__":
    main(lambda worlds: in_worlds(do, worlds))
