"""A source that is not the same in all workers is noticed, where two of them have read the same documents."""

import random

import pytest
import torch
from refusals import refused

from slw_data import ConstantSchedule, DataError, SLWDataset, SLWLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Shuffled:
    """600 documents in an order that is drawn anew for each pass; ``seeded``: by the pass alone."""

    def __init__(self, seeded):
        self.seeded, self.epoch = seeded, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        docs = [[10 * i + k for k in range(4)] for i in range(600)]
        (random.Random(self.epoch) if self.seeded else random).shuffle(docs)
        return iter(docs)


class Permuting(torch.utils.data.Dataset):
    """A map-style dataset that permutes itself in each process."""

    def __init__(self):
        self.order = None

    def __len__(self):
        return 600

    def __getitem__(self, index):
        if self.order is None or index == 0:
            self.order = torch.randperm(600).tolist()
        return [10 * self.order[index] + k for k in range(4)]


def run_of(source, num_workers):
    dataset = SLWDataset(source, ConstantSchedule(4), batch_size=2, total_steps=2600)
    return SLWLoader(dataset, num_workers=num_workers)


@pytest.mark.parametrize("make", [lambda: Shuffled(False), Permuting])
def test_workers_that_read_other_documents_are_noticed_by_the_second_message(make):
    loader = run_of(make(), 2)
    refused(lambda: list(loader), "must be the same everywhere", "worker 0", "worker 1", "shuffle_buffer", error=DataError)
    assert loader.step <= 1024  # what the first worker sent at once


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_an_order_that_follows_from_the_pass_is_one_run(num_workers):
    rows = [batch["input_ids"].tolist() for batch in run_of(Shuffled(True), num_workers)]
    assert len(rows) == 2600
    for epoch in range(8):  # each document once in a pass
        docs = [row[0] // 10 for batch in rows[300 * epoch : 300 * (epoch + 1)] for row in batch]
        assert sorted(docs) == list(range(600))


def test_one_process_alone_may_shuffle_as_it_likes():
    assert len(list(run_of(Shuffled(False), 0))) == len(list(run_of(Shuffled(False), 1))) == 2600
