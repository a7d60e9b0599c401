"""The dataset in several processes: ranks, given or found, and the workers of other loaders."""

import itertools
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from delivery import as_lists, built, small_runs
from hypothesis import given
from hypothesis import strategies as st
from oracle import batches_of, naive_batches, naive_dealing, naive_plan
from refusals import refused
from torch.utils.data import DataLoader

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StagedSchedule


@given(small_runs, st.data())
def test_sharded_ranks_read_their_own_part_and_count_for_all(case, data):
    schedule, shape, total = case
    world, accum = shape["world_size"], shape["grad_accum_steps"]
    as_stream, num_lanes = data.draw(st.booleans()), data.draw(st.sampled_from([1, 2]))
    shapes = naive_plan(schedule, **shape, total_steps=total)
    own = naive_plan(schedule, **{**shape, "world_size": 1}, total_steps=total)
    needed = sum(length * rows * accum for length, rows, _ in own)
    for rank in range(world):
        part = list(range(1000 * rank, 1000 * rank + 50))
        run = naive_batches([part * (needed // 50 + 2)], own, grad_accum_steps=accum)
        if as_stream and num_lanes == 2:
            run, _ = naive_dealing([part[:20], part[20:]] * (needed // 20 + 4), own, num_lanes=2, grad_accum_steps=accum)
            run = [[[[row[:-1] for row in rows] for rows in micro] for micro in step] for step in run]
        source = [part[:20], part[20:]] if as_stream else np.array(part)
        options = {"num_lanes": num_lanes} if as_stream else {}
        dataset = built(source, schedule, shape, rank, total_steps=total, sharded=True, **options)
        loader = SLWLoader(dataset, prefetch=0)
        found, seen = [], []
        for batch in loader:
            found.append(batch["input_ids"].tolist())
            seen.append(loader.tokens_seen)
        expected = batches_of(run, 0)
        assert found == expected
        sizes = [length * rows * world for length, rows, _ in shapes for _ in range(accum)]
        assert seen == list(itertools.accumulate(sizes)), "tokens_seen counts all ranks"


def test_sharded_states_are_of_one_rank_and_resume_there():
    def loader(rank, source):
        return SLWLoader(
            SLWDataset(
                source, ConstantSchedule(4), batch_size=2, total_steps=9, sharded=True, dp_rank=rank, dp_world_size=2
            ),
            prefetch=0,
        )

    for source in (np.arange(50), [list(range(20)), list(range(20, 50))]):
        first = loader(1, source)
        whole = [batch["input_ids"].tolist() for batch in itertools.islice(first, 5)]
        state = first.state_dict()
        refused(
            lambda s=source, x=state: loader(0, s).load_state_dict(x),
            "dp_rank",
            "saved 1, current 0",
            "own state",
            error=ValueError,
        )
        again = loader(1, source)
        again.load_state_dict(state)
        rest = [batch["input_ids"].tolist() for batch in again]
        assert [*whole, *rest] == [batch["input_ids"].tolist() for batch in loader(1, source)]


def in_group(rank, folder, work):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    early = SLWDataset(np.arange(400), ConstantSchedule(4), batch_size=2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.save(work(rank, early), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def iterate(dataset):
    return iter(SLWLoader(dataset))


def iterate_with_a_worker(dataset):
    return iter(SLWLoader(dataset, num_workers=1))


def deliver_in_group(rank, early):
    schedule, found = StagedSchedule([3, 5, 2], [4, 8]), {}
    stores = {"store": np.arange(400), "shuffled": np.arange(400), "stream": [[i, i + 500] for i in range(200)]}
    for name, source in stores.items():
        options = {"shuffle": name == "shuffled", "num_lanes": 3 if name == "stream" else None}
        dataset = SLWDataset(source, schedule, batch_size=2, grad_accum_steps=2, epochs=1, **options)
        loader = SLWLoader(dataset, prefetch=0)
        found[name] = [(batch["input_ids"], loader.state_dict()) for batch in loader]
        shapes = [None, None]
        torch.distributed.all_gather_object(shapes, [tuple(ids.shape) for ids, _ in found[name]])
        found[f"{name} shapes"] = shapes
    explicit = SLWDataset(stores["store"], schedule, batch_size=2, grad_accum_steps=2, dp_rank=0, dp_world_size=1)
    found["explicit"] = [batch["input_ids"] for batch in explicit]
    for how, make in (("dataset", iter), ("loader", iterate), ("workers", iterate_with_a_worker)):
        try:
            next(make(early))
            found[how] = "no error"
        except ValueError as error:
            found[how] = str(error)
    return found


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """What two real processes of a gloo group delivered."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=in_group, args=(r, folder, deliver_in_group)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["store", "shuffled", "stream"])
def test_ranks_of_a_process_group_are_found_and_agree(group, name):
    sources = {"store": np.arange(400), "shuffled": np.arange(400), "stream": [[i, i + 500] for i in range(200)]}
    options = {"shuffle": name == "shuffled", "num_lanes": 3 if name == "stream" else None}
    assert len(group[0][name]) > 15 and group[0][f"{name} shapes"][0] == group[0][f"{name} shapes"][1]
    for rank in (0, 1):
        explicit = SLWDataset(
            sources[name], StagedSchedule([3, 5, 2], [4, 8]), batch_size=2, grad_accum_steps=2, epochs=1,
            dp_rank=rank, dp_world_size=2, **options,
        )  # fmt: skip
        assert [ids.tolist() for ids, _ in group[rank][name]] == [b["input_ids"].tolist() for b in explicit]
    assert [state for _, state in group[0][name]] == [state for _, state in group[1][name]]
    assert group[0][name][0][0].tolist() != group[1][name][0][0].tolist()


def test_given_ranks_go_before_those_of_the_process_group(group):
    assert torch.cat([ids.flatten() for ids in group[1]["explicit"]]).tolist() == list(
        range(sum(ids.numel() for ids in group[1]["explicit"]))
    )


@pytest.mark.parametrize("how", ["dataset", "loader", "workers"])
def test_a_process_group_made_after_the_dataset_is_refused(group, how):
    for rank in (0, 1):
        assert "rank 0 of 1" in group[rank][how] and f"{rank} of 2" in group[rank][how], group[rank][how]
        assert "after torch.distributed.init_process_group" in group[rank][how]


def test_world_size_without_a_process_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    facts = "WORLD_SIZE=8", "no process group", "init_process_group", "dp_rank"
    refused(lambda: SLWDataset(np.arange(99), ConstantSchedule(2), batch_size=1), *facts, error=ValueError)
    SLWDataset(np.arange(99), ConstantSchedule(2), batch_size=1, dp_rank=7, dp_world_size=8)
    monkeypatch.setenv("WORLD_SIZE", "1")
    SLWDataset(np.arange(99), ConstantSchedule(2), batch_size=1)


# -- other loaders -----------------------------------------------------------------------------------------------------


def sources():
    docs = [list(range(10 * i, 10 * i + i % 7)) for i in range(60)]
    return {
        "store": (np.arange(700), {}),
        "shuffled": (np.arange(700), {"shuffle": True, "num_lanes": 3}),
        "documents": (docs, {"num_lanes": 2, "labels": "shifted"}),
        "padded": (docs, {"mode": "segment", "pad_id": 0, "extras": ("position_ids", "document_ids", "step")}),
    }


def dataset_of(name, **options):
    source, more = sources()[name]
    schedule = StagedSchedule([3, 7, 2], [4, 8])
    return SLWDataset(source, schedule, batch_size=2, grad_accum_steps=2, total_steps=20, **more, **options)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("name", list(sources()))
def test_a_plain_dataloader_gives_the_same_batches_with_any_number_of_workers(name, num_workers):
    loader = DataLoader(
        dataset_of(name), batch_size=None, num_workers=num_workers, prefetch_factor=3 if num_workers else None
    )
    expected = [as_lists(batch) for batch in dataset_of(name)]
    found = list(loader)
    assert [{k: t.tolist() for k, t in batch.items()} for batch in found] == expected and len(expected) == 40
    assert all(t.untyped_storage().nbytes() == t.numel() * 8 for batch in found for t in batch.values())


@pytest.mark.filterwarnings("ignore:this run is finished")  # of a state of its end
@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")  # torchdata calls it
@pytest.mark.parametrize(("num_workers", "every"), [(0, 1), (0, 3), (1, 1), (2, 1), (2, 5)])
@pytest.mark.parametrize("name", ["shuffled", "documents", "padded"])
def test_torchdata_resumes_exactly_with_as_many_workers(name, num_workers, every):
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader():
        options = {"num_workers": num_workers, "snapshot_every_n_steps": every}
        return StatefulDataLoader(dataset_of(name), batch_size=None, **options)

    expected = [as_lists(batch) for batch in dataset_of(name)]
    states = {}
    first = loader()
    for i, batch in enumerate(first):
        assert as_lists(batch) == expected[i]
        states[i + 1] = first.state_dict()
    cuts = (1, 2, 9, 22, 40) if num_workers == 0 else (1, 9, 40)
    for cut in cuts:
        again = loader()
        again.load_state_dict(states[cut])
        rest = [as_lists(batch) for batch in again]
        # after the end, torchdata starts the next pass: what is left of it is nothing, the run is over
        assert rest == expected[cut:], f"cut {cut}"
