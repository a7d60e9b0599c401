"""Divided streams of real libraries: Parquet and JSON lines by ``datasets``, mapped and interleaved, and webdataset."""

import io
import itertools
import json
import tarfile
from functools import partial

import numpy as np
import pytest
from delivery import as_lists, built
from oracle import naive_dealing, naive_plan, rows_of
from refusals import refused

from slw_data import ConstantSchedule, DataError, SLWLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SHAPE = {"batch_size": 8, "grad_accum_steps": 1, "world_size": 1}
FILES, STEPS = 4, 25


def text_of(number, i):
    return "".join(chr(97 + (number + i * 7 + k) % 26) for k in range(1 + (i * 5 + number) % 11))


def ids_of(number, i):
    return [ord(letter) for letter in text_of(number, i)]


def tokenized(row):
    return {"input_ids": [ord(letter) for letter in row["text"]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("files")
    for number in range(FILES):
        rows = [{"text": text_of(number, i), "input_ids": ids_of(number, i)} for i in range(40)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{number}.parquet", row_group_size=10)
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for i, row in enumerate(rows):
                file = io.BytesIO()
                np.save(file, np.array(row["input_ids"]))
                member = tarfile.TarInfo(f"{i:04}.npy")
                member.size = len(file.getvalue())
                tar.addfile(member, io.BytesIO(file.getvalue()))
    return folder


def streamed(folder, kind):
    import datasets

    loader, end = ("parquet", "parquet") if kind != "json" else ("json", "jsonl")
    files = [str(folder / f"{number}.{end}") for number in range(FILES)]
    rows = datasets.load_dataset(loader, data_files=files, split="train", streaming=True)
    if kind == "map":
        return rows.map(tokenized, remove_columns=["text"])
    if kind == "interleave":
        parts = [datasets.load_dataset("parquet", data_files=files[k::2], split="train", streaming=True) for k in range(2)]
        return datasets.interleave_datasets(parts)
    return rows


def from_tars(folder, shuffle, shard, num_shards):
    """A webdataset pipeline over the part's tar files; every pass anew."""
    import webdataset

    urls = [str(folder / f"{number}.tar") for number in range(shard, FILES, num_shards)]
    pipeline = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None, workersplitter=None)
    pipeline = pipeline.shuffle(shuffle) if shuffle else pipeline
    return (sample[0].tolist() for sample in pipeline.decode().to_tuple("npy"))


def source_of(folder, kind):
    return partial(from_tars, folder, 0) if kind == "webdataset" else streamed(folder, kind)


def expected(parts):
    """The rows of each step: those of shard 0, then of shard 1."""
    shapes = naive_plan(ConstantSchedule(6), batch_size=8 // len(parts), total_steps=STEPS)
    runs = [naive_dealing(docs * 6, shapes)[0] for docs in parts]
    return [[row[:6] for run in runs for row in rows_of([run[i]])] for i in range(STEPS)]


def parts_of(kind):
    """What the two shards hold: ``datasets`` gives a shard neighbouring files, and interleaves those of each source."""
    files = [[ids_of(number, i) for i in range(40)] for number in range(FILES)]
    if kind == "interleave":  # sources of files 0, 2 and 1, 3: shard k has the k-th file of both, until one is at its end
        return [[doc for pair in zip(files[2 * k], files[2 * k + 1], strict=True) for doc in pair][:-1] for k in range(2)]
    if kind == "webdataset":
        return [files[0] + files[2], files[1] + files[3]]
    return [files[0] + files[1], files[2] + files[3]]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["parquet", "json", "map", "interleave", "webdataset"])
def test_every_kind_of_source_is_divided_and_resumes(folder, kind, num_workers):
    def loader(**options):
        dataset = built(source_of(folder, kind), ConstantSchedule(6), SHAPE, num_shards=2, total_steps=STEPS)
        return SLWLoader(dataset, **options)

    one, states, found = loader(num_workers=num_workers), [], []
    for batch in one:
        found.append(as_lists(batch)["input_ids"])
        states.append(json.loads(json.dumps(one.state_dict())))
    assert found == expected(parts_of(kind))
    for cut in (1, 9, 20):
        again = loader(prefetch=0)
        again.load_state_dict(states[cut - 1])
        assert [as_lists(batch)["input_ids"] for batch in itertools.islice(again, 4)] == found[cut : cut + 4]


def test_more_shards_than_files_are_refused(folder):
    rows = streamed(folder, "parquet")
    refused(
        lambda: built(rows, ConstantSchedule(6), SHAPE, num_shards=8, total_steps=4),
        "must divide the 4 shards", "num_shards=4", error=DataError,
    )  # fmt: skip
    of_three = {"batch_size": 4, "grad_accum_steps": 1, "world_size": 3}
    said = refused(
        lambda: built(rows, ConstantSchedule(6), of_three, num_shards=3, total_steps=4), "must divide the 4 shards",
        "multiple of 3", error=DataError,
    )  # fmt: skip
    assert "write num_shards" not in said


def test_webdatasets_shuffle_is_noticed_by_two_workers(folder):
    source = partial(from_tars, folder, 100)
    dataset = built(lambda: source(0, 1), ConstantSchedule(2), {**SHAPE, "batch_size": 2}, total_steps=3000)
    refused(lambda: list(SLWLoader(dataset, num_workers=2)), "must be the same everywhere", "shuffle_buffer", error=DataError)
