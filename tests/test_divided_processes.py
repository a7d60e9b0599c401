"""1, 2, 4 and 8 real processes over gloo on one divided Parquet stream."""

import itertools

import pytest
from oracle import naive_dealing, naive_plan, rows_of
from stack import launch

from slw_data import DoublingSchedule, LinearSchedule

STEPS, SAVE, WORLDS = 30, 11, (1, 2, 4, 8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eight files of three row groups each, and the documents in them."""
    import pyarrow
    import pyarrow.parquet

    folder, documents = tmp_path_factory.mktemp("corpus"), []
    for number in range(8):
        mine = [[1000 * number + 10 * i + k for k in range(1 + (i * 7 + number) % 9)] for i in range(30)]
        table = pyarrow.table({"input_ids": mine})
        pyarrow.parquet.write_table(table, folder / f"{number}.parquet", row_group_size=10)
        documents.append(mine)
    return folder, documents


@pytest.fixture(scope="module")
def found(corpus, tmp_path_factory):
    folder = str(corpus[0])
    ways = [("resume", {"folder": folder, "steps": STEPS, "saved": saved, "way": way})
            for saved in WORLDS for way in ("dcp", "files", "whole")]  # fmt: skip
    ways += [("titan", {"folder": folder, "steps": STEPS, "saved": saved}) for saved in WORLDS]
    first = [(name, {"folder": folder, "steps": STEPS, "save": SAVE}) for name in ("deliver", "titan")]
    workers = [("deliver", {"folder": folder, "steps": STEPS, "num_workers": 2})]
    worlds = [(world, first + (workers if world in (2, 4) else [])) for world in WORLDS]
    unlike = [("unlike", {"seed": seed}) for seed in (5, None)]
    worlds = [*worlds, *((world, ways) for world in WORLDS), (2, unlike)]
    results = launch("divided", 1, tmp_path_factory.mktemp("out"), worlds=worlds)[0]
    return dict(zip(WORLDS, results[:4], strict=True)), dict(zip(WORLDS, results[4:8], strict=True)), ways, results[8]


def expected(documents):
    """The rows of each step: those of file 0, of file 1, and so on."""
    shapes = naive_plan(LinearSchedule(4, 12, warmup_steps=6, multiple_of=4), batch_size=2, total_steps=STEPS)
    runs = [naive_dealing(mine * 10, shapes)[0] for mine in documents]
    return [[row[: shapes[i][0]] for run in runs for row in rows_of([run[i]])] for i in range(STEPS)]


def joined(ranks):
    """The rows of each step over all ranks."""
    return [[row for rank in step for row in rank] for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world", WORLDS)
def test_the_union_of_all_ranks_is_one_run_and_each_file_is_opened_by_one_rank(corpus, found, world):
    delivered = [jobs[0] for jobs in found[0][world]]
    assert joined([one["rows"] for one in delivered]) == expected(corpus[1])
    files = list(itertools.chain(*(one["opened"] for one in delivered)))
    assert sorted(files) == [f"{number}.parquet" for number in range(8)]  # each once
    assert all(one["epoch"] >= 1 for one in delivered)  # passes begin again by themselves


@pytest.mark.parametrize("world", (2, 4))
def test_workers_of_ranks_deliver_the_same(corpus, found, world):
    assert joined([jobs[2]["rows"] for jobs in found[0][world]]) == expected(corpus[1])


@pytest.mark.parametrize("world", WORLDS)
def test_every_number_of_ranks_goes_on_from_what_any_other_saved(corpus, found, world):
    _, resumed, ways, _ = found
    rest = expected(corpus[1])[SAVE:]
    for number, (name, options) in enumerate(ways):
        if name == "resume":
            assert joined([jobs[number] for jobs in resumed[world]]) == rest, options


@pytest.mark.parametrize("world", WORLDS)
def test_torchtitans_state_goes_on_with_every_number_of_ranks(corpus, found, world):
    """Each step has 128 tokens, of rows of 4 and then of 8."""
    shapes = naive_plan(DoublingSchedule(4, 8, warmup_steps=16, multiple_of=4), tokens_per_batch=16, total_steps=STEPS)
    runs = [naive_dealing(mine * 10, shapes)[0] for mine in corpus[1]]
    rows = [[(row[:-1], row[1:]) for run in runs for row in rows_of([run[i]])] for i in range(STEPS)]
    wanted = [[[token for pair in step for token in pair[part]] for part in (0, 1)] for step in rows]

    def whole(ranks):
        return [[[token for rank in step for token in rank[part]] for part in (0, 1)] for step in zip(*ranks, strict=True)]

    delivered, resumed, ways, _ = found
    assert whole([jobs[1] for jobs in delivered[world]]) == wanted
    numbers = [number for number, (name, _) in enumerate(ways) if name == "titan"]
    assert len(numbers) == len(WORLDS)
    for number in numbers:
        assert whole([jobs[number] for jobs in resumed[world]]) == wanted[SAVE:], ways[number]


def test_ranks_that_read_other_documents_are_told_at_the_first_block(found):
    """One of them at least: the other had come first."""
    alike, unlike = zip(*found[3], strict=True)
    assert alike == ([220, 220], [220, 220])
    told = [text for rank in unlike for text in rank if isinstance(text, str)]
    assert len(told) == 2 and all("rank 0" in text and "rank 1" in text and "shuffle_buffer" in text for text in told)
