"""Public reports about resuming at a place in a source: by its own state, by an index, or by reading it again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from cases import cut, flat, ids, joined, numbered, take, through_json
from refusals import refused

import slw_data
from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StagedSchedule, StateError, open_stream, open_tokens

OPENED = []  # the shards that a generator has read, in this process


def read_shards(shards):
    for shard in shards:
        OPENED.append(shard)
        for i in range(300):
            token = 2 * (300 * shard + i)
            yield {"input_ids": [token, token + 1]}


def five_shards(**options):
    source = datasets.IterableDataset.from_generator(read_shards, gen_kwargs={"shards": list(range(5))})
    return SLWLoader(SLWDataset(source, ConstantSchedule(8), batch_size=16), prefetch=0, **options)


def test_B009_a_stream_resumes_at_every_batch_without_reading_earlier_shards(tmp_path):
    expected = cut(range(3000), [(16, 8)] * 23)
    for k in range(1, 21):
        first = five_shards()
        assert ids(take(first, k)) == expected[:k]
        state = through_json(first.state_dict())
        OPENED.clear()
        second = five_shards()
        second.load_state_dict(state)
        assert ids(take(second, 3)) == expected[k : k + 3]
        oldest_row = max(0, 64 * k - 257)  # a block of 256 rows is read again
        assert OPENED[0] >= oldest_row // 300, f"{OPENED} after {k} batches"
    torch.save(state, tmp_path / "state.pt")
    code = "import json, torch, test_cases_sources as t; loader = t.five_shards()"
    code += "; loader.load_state_dict(torch.load('state.pt')); print(json.dumps(t.ids(loader)))"
    paths = [Path(__file__).parent, Path(slw_data.__file__).parents[1]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(found.stdout) == expected[20:]


def test_B013_a_file_resumes_at_step_a_million_at_once(tmp_path):
    before = 4 * (8 * 1000 + 64 * 999_000)
    path = tmp_path / "train.bin"
    with path.open("wb") as file:
        file.truncate(2 * (before + 10**6))
        file.seek(2 * before)
        file.write(np.arange(1, 257, dtype=np.uint16).tobytes())

    def loader():
        store = open_tokens(path, dtype="uint16", vocab_size=300)
        return SLWLoader(SLWDataset(store, StagedSchedule([8, 64], [1000]), batch_size=4))

    far = loader()
    far.seek(10**6)
    state = through_json(far.state_dict())
    assert state["tokens"] == before
    ways = [lambda loader, s=s: loader.load_state_dict(s) for s in (state, {"step": 10**6})]
    for go in (*ways, lambda loader: loader.seek(10**6)):
        took = []
        for resumed in (loader(), loader(), loader()):
            began = time.perf_counter()
            go(resumed)
            batch = next(iter(resumed))
            took.append(time.perf_counter() - began)
            assert batch["input_ids"].flatten().tolist() == list(range(1, 257))
        assert min(took) < 0.1, "a loop over a million steps would take longer"


def test_B023_a_mapped_stream_resumes_at_the_very_next_token():
    rows = datasets.Dataset.from_dict({"n": list(range(5000))}).to_iterable_dataset()
    mapped = rows.map(lambda row: {"input_ids": [2 * row["n"], 2 * row["n"] + 1]}, remove_columns=["n"])

    def loader():
        return SLWLoader(SLWDataset(mapped, ConstantSchedule(8), batch_size=10), prefetch=0)

    expected = cut(range(10_000), [(10, 8)] * 125)
    for k in (5, 33, 90):  # 200 rows, and two places beyond the thousand rows of an Arrow batch
        first = loader()
        take(first, k)
        second = loader()
        second.load_state_dict(through_json(first.state_dict()))
        assert ids(take(second, 20)) == expected[k : k + 20]


class Blocks:
    """Reads ten documents at once; ``exact`` says whether its state knows which of them it has handed out."""

    def __init__(self, documents, exact):
        self.documents, self.exact, self.at = documents, exact, 0

    def state_dict(self):
        return {"at": self.at if self.exact else -(-self.at // 10) * 10}

    def load_state_dict(self, state):
        self.at = state["at"]

    def __iter__(self):
        while self.at < len(self.documents):
            block = self.documents[self.at // 10 * 10 :][:10]
            for document in block[self.at % 10 :]:
                self.at += 1
                yield document


@pytest.mark.parametrize("kind", ["list", "callable", "Hugging Face", "its own state"])
def test_B024_the_state_is_the_delivered_place_however_much_is_read_at_once(kind):
    docs = numbered([4] * 35)
    rows = datasets.Dataset.from_dict({"input_ids": docs})
    make = {
        "list": lambda: docs,
        "callable": lambda: lambda: iter(docs),
        "Hugging Face": lambda: rows.to_iterable_dataset(num_shards=4),
        "its own state": lambda: Blocks(docs, exact=True),
    }[kind]

    def loader():
        return SLWLoader(SLWDataset(make(), ConstantSchedule(4), batch_size=1), prefetch=0)

    for k in (3, 10, 13):
        first = loader()
        take(first, k)
        second = loader()
        second.load_state_dict(through_json(first.state_dict()))
        assert ids(second) == [[doc] for doc in docs[k:]]


def test_B024_a_source_whose_state_has_read_ahead_is_refused():
    docs = numbered([6] * 35)

    def loader():
        return SLWLoader(SLWDataset(Blocks(docs, exact=False), ConstantSchedule(4), batch_size=1), prefetch=0)

    first, second = loader(), loader()
    take(first, 5)
    second.load_state_dict(first.state_dict())
    refused(lambda: next(iter(second)), "did not resume at item 3", "last item handed out", error=StateError)


def test_B041_a_shuffle_buffer_is_refused_with_its_size_instead_of_losing_rows():
    source = datasets.Dataset.from_dict({"input_ids": [[i] for i in range(200)]}).to_iterable_dataset()
    source = source.shuffle(seed=1, buffer_size=100)
    facts = "buffer of 100 rows", "lost on resuming", "shuffle=True"
    for face in (SLWLoader, lambda dataset: dataset):
        with pytest.warns(UserWarning, match="cannot be resumed exactly.*buffer of 100 rows"):
            loader = face(SLWDataset(source, ConstantSchedule(1), batch_size=1))
        assert len(set(flat(take(loader, 20)))) == 20
        refused(loader.state_dict, *facts, error=StateError)


class Lines:
    """The lines of a text file, from a place in it."""

    def __init__(self, path):
        self.path, self.at, self.read = path, 0, 0

    def state_dict(self):
        return {"byte": self.at}

    def load_state_dict(self, state):
        self.at = state["byte"]

    def __iter__(self):
        with open(self.path, "rb") as file:
            file.seek(self.at)
            while line := file.readline():
                self.at = file.tell()
                self.read += 1
                yield line.decode()
        self.at = 0


def test_B067_a_source_that_can_seek_is_asked_to(tmp_path):
    docs = numbered([3] * 3000)
    (tmp_path / "text").write_text("\n".join(" ".join(map(str, doc)) for doc in docs), encoding="utf-8")

    def loader(lines):
        stream = open_stream(lines, tokenizer=lambda text: [int(word) for word in text.split()])
        return SLWLoader(SLWDataset(stream, ConstantSchedule(5), batch_size=4), prefetch=0)

    expected = cut(joined(docs), [(4, 5)] * 450)
    first = loader(Lines(tmp_path / "text"))
    take(first, 420)
    lines = Lines(tmp_path / "text")
    second = loader(lines)
    second.load_state_dict(through_json(first.state_dict()))
    assert ids(take(second, 4)) == expected[420:424] and lines.read < 40
