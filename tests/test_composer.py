"""Composer's conventions, without Composer: what its Trainer asks of a batch, and how often it is asked.

The expected numbers of schedules are those of its own tests and formula.
"""

import itertools

import numpy as np
import pytest
import torch
from refusals import refused

from slw_data import LinearSchedule, SLWDataset, SLWLoader, StagedSchedule, from_composer
from slw_data.integrations.composer import data_spec, get_num_samples_in_batch, get_num_tokens_in_batch, split_batch


def make_loader(source=None, schedule=StagedSchedule([8, 16], [1]), **options):
    source = np.arange(100_000) if source is None else source
    return SLWLoader(SLWDataset(source, schedule, **{"batch_size": 2, **options}))


def clock(loaders, until):
    """Composer's time after ``until`` batches, as its Trainer keeps it: the counts of all ranks added up."""
    samples = tokens = 0
    specs = [data_spec(loader) for loader in loaders]
    for batches in itertools.islice(zip(*(spec["dataloader"] for spec in specs), strict=True), until):
        for spec, batch in zip(specs, batches, strict=True):
            samples += spec["get_num_samples_in_batch"](batch)
            tokens += spec["get_num_tokens_in_batch"](batch)
    return samples, tokens


def test_the_arguments_are_those_of_a_data_spec():
    loader = make_loader()
    assert data_spec(loader) == {
        "dataloader": loader,
        "split_batch": split_batch,
        "get_num_samples_in_batch": get_num_samples_in_batch,
        "get_num_tokens_in_batch": get_num_tokens_in_batch,
    }
    assert not isinstance(loader, torch.utils.data.DataLoader), "of which Composer would ask the dataset's state"


def test_a_warmup_over_half_of_two_batches_has_8_and_then_16_tokens():
    schedule = LinearSchedule(8, 16, warmup_fraction=0.5)
    batches = list(data_spec(make_loader(schedule=schedule, total_steps=2))["dataloader"])
    assert [batch["input_ids"].shape for batch in batches] == [(2, 8), (2, 16)]


def test_a_run_that_was_planned_in_composer_has_its_lengths():
    lengths = {0: 8, 1: 8, 2: 16, 3: 16, 10: 48, 100: 408, 253: 1016, 254: 1024, 255: 1024, 299: 1024, 300: 1024, 999: 1024}
    loader = make_loader(schedule=from_composer(total_steps=1000), batch_size=1, total_steps=1000)
    found = [batch["input_ids"].shape[1] for batch in data_spec(loader)["dataloader"]]
    assert len(found) == 1000 and {step: found[step] for step in lengths} == lengths


def test_B133_samples_and_tokens_are_of_one_rank_and_their_sum_is_the_run_s():
    ranks = [make_loader(schedule=LinearSchedule(8, 64, warmup_steps=20), dp_rank=r, dp_world_size=4) for r in range(4)]
    samples, tokens = clock(ranks, 30)
    plan = ranks[0].dataset.plan
    assert samples == 30 * 2 * 4
    assert tokens == plan.tokens_before(30) == ranks[0].tokens_seen == ranks[3].tokens_seen
    batch = next(iter(ranks[0]))
    assert get_num_samples_in_batch(batch) == 2 and get_num_tokens_in_batch(batch) == 2 * 64


@pytest.mark.parametrize("world", [1, 2])
def test_padding_is_not_a_token(world):
    documents = [list(range(size)) for size in (3, 5, 20, 1, 9, 12, 8, 8)] * 8
    options = {"schedule": StagedSchedule([8, 16], [4]), "mode": "segment", "pad_id": 0, "dp_world_size": world}
    ranks = [make_loader(documents, dp_rank=rank, **options) for rank in range(world)]
    samples, tokens = clock(ranks, 12)
    assert tokens == ranks[0].tokens_seen and samples == 12 * 2 * world
    assert tokens < ranks[0].dataset.plan.tokens_before(12), "nothing was padded"


@pytest.mark.parametrize("size, rows", [(1, [1] * 5), (2, [2, 2, 1]), (2.0, [2, 2, 1]), (4, [4, 1]), (5, [5]), (64, [5])])
def test_micro_batches_are_the_rows_in_order(size, rows):
    batch = next(iter(make_loader(batch_size=5, labels="both", extras=("position_ids", "step"))))
    parts = split_batch(batch, size)
    assert [get_num_samples_in_batch(part) for part in parts] == rows
    for name, whole in batch.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), whole)
    assert sum(map(get_num_tokens_in_batch, parts)) == get_num_tokens_in_batch(batch)


def test_a_flat_batch_is_one_sample_and_stays_whole():
    batch = next(iter(make_loader(batch_size=None, tokens_per_batch=40, extras=("cu_seq_lens",))))
    assert split_batch(batch, 1) == [batch] and get_num_samples_in_batch(batch) == 1
    assert get_num_tokens_in_batch(batch) == 40


@pytest.mark.parametrize("size", [0, -1, 0.5, 2.5])
def test_what_is_no_number_of_rows_is_refused(size):
    batch = next(iter(make_loader()))
    refused(lambda: split_batch(batch, size), "device_train_microbatch_size", repr(size), error=ValueError)


def test_what_composer_would_train_wrongly_is_refused():
    refused(lambda: data_spec(make_loader(grad_accum_steps=3)), "grad_accum_steps=3", "write 1", error=ValueError)
    dataset = make_loader().dataset
    plain = torch.utils.data.DataLoader(dataset, batch_size=None)
    refused(lambda: data_spec(plain), "got DataLoader", "data_spec(SLWLoader(dataset))", error=TypeError)
    refused(lambda: data_spec(dataset), "got SLWDataset", error=TypeError)
