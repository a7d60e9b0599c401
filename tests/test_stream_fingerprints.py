"""What fixes the tokens of a stream is in its fingerprint or in its positions: another source is noticed, the same is not."""

import functools
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, interleave_datasets
from refusals import refused
from torch.utils.data import DataLoader

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StateError, open_stream
from slw_data.delivery.agreement import _described, _fault

DOCUMENTS = [[i, i + 1, i + 2] for i in range(2000)]
TEXTS = [f"text {i} of some" for i in range(300)]


class MapStyle(torch.utils.data.Dataset):
    def __init__(self, documents):
        self.documents = documents

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        return self.documents[index]


class Letters:
    """A tokenizer of one's own: ``shift`` is known to nobody but itself."""

    def __init__(self, shift=0):
        self.shift, self.calls = shift, 0

    def encode(self, text):
        self.calls += 1
        return [ord(letter) + self.shift for letter in text]


class Random(Letters):
    """As BPE dropout: the same text has other ids each time."""

    def encode(self, text):
        self.calls += 1
        return [self.calls, *super().encode(text)]


def tokenizer_of(vocabulary):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def fast(vocabulary):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(vocabulary), unk_token="?", pad_token="?")


def shifted(shift):
    return lambda text: [ord(c) + shift for c in text]


def around(tokenizer):
    return lambda text: tokenizer.encode(text).ids


def generate():
    yield from DOCUMENTS


def generate_otherwise():
    yield from DOCUMENTS[1:]


def mark(source, **options):
    return open_stream(source, **options).fingerprint


TOKENIZERS = {
    "a function": (lambda text: [ord(c) for c in text], lambda text: [ord(c) + 1 for c in text]),
    "a closure": (shifted(0), shifted(1)),
    "an object": (Letters(), Letters(1)),
    "a bound method": (Letters().encode, Letters(1).encode),
    "a partial": (functools.partial(Letters.encode, Letters()), functools.partial(Letters.encode, Letters(1))),
    "a tokenizers.Tokenizer": (tokenizer_of(["?", "some", "rare"]), tokenizer_of(["?", "some", "rarer"])),
    "one of transformers": (fast(["?", "some", "rare"]), fast(["?", "some", "rarer"])),
    "a function around one": (around(tokenizer_of(["?", "some", "rare"])), around(tokenizer_of(["?", "some", "rarer"]))),
}
SOURCES = {
    "a list": lambda: list(TEXTS),
    "a generator": lambda: functools.partial(iter, TEXTS),
    "an IterableDataset": lambda: Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(num_shards=2),
    "a Dataset": lambda: Dataset.from_dict({"text": TEXTS}),
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("source", SOURCES)
def test_another_tokenizer_is_another_source(tokenizer, source):
    one, other = TOKENIZERS[tokenizer]
    make = SOURCES[source]
    assert mark(make(), tokenizer=one) != mark(make(), tokenizer=other)
    assert mark(make(), tokenizer=one) == mark(make(), tokenizer=one)


def test_a_tokenizer_that_was_used_meanwhile_is_the_same():
    made = fast(["?", "some", "rare"])
    before = mark(TEXTS, tokenizer=made)
    made(["some", "rare some"], padding=True, truncation=True, max_length=2)
    assert mark(TEXTS, tokenizer=made) == before
    letters = Letters()
    before = mark(TEXTS, tokenizer=letters)
    list(open_stream(TEXTS, tokenizer=letters).blocks(0))
    assert mark(TEXTS, tokenizer=letters) == before


def test_a_tokenizer_that_gives_other_ids_each_time_does_not_keep_a_run_from_going_on():
    assert mark(TEXTS, tokenizer=Random()) == mark(TEXTS, tokenizer=Random())
    used = Random()
    list(open_stream(TEXTS, tokenizer=used).blocks(0))
    assert mark(TEXTS, tokenizer=used) == mark(TEXTS, tokenizer=Random())


def test_a_tokenizer_that_refuses_a_text_is_opened_all_the_same():
    def picky(text):
        if "fox" in text or "text 299" in text:
            raise ValueError("no such words")
        return [ord(c) for c in text]

    assert mark(TEXTS, tokenizer=picky) == mark(TEXTS, tokenizer=picky)


@pytest.mark.parametrize("source", [DOCUMENTS, generate, MapStyle(DOCUMENTS)])
def test_an_end_token_is_part_of_the_source(source):
    marks = {mark(source), mark(source, append_eos=0), mark(source, append_eos=1)}
    assert len(marks) == 3 and any("append_eos=1" in text for text in marks)


def test_the_end_token_of_a_hugging_face_stream_is_part_of_it():
    rows = Dataset.from_dict({"input_ids": DOCUMENTS[:50]}).to_iterable_dataset()
    assert len({mark(rows), mark(rows, append_eos=0), mark(rows, append_eos=1)}) == 3


@pytest.mark.parametrize("kind", [list, tuple, MapStyle, lambda docs: DataLoader(docs, batch_size=None)])
@pytest.mark.parametrize("at", [0, -1, 1999 * 3 // 7])
def test_other_documents_of_the_same_number_are_another_source(kind, at):
    changed = list(DOCUMENTS)
    changed[at] = [7, 7, 7]
    assert mark(kind(changed)) != mark(kind(DOCUMENTS)) == mark(kind(list(DOCUMENTS)))


def test_another_column_of_the_same_documents_is_another_source():
    def rows(mask):
        return [{"input_ids": [1, 2], "mask": [mask, mask]} for _ in range(50)]

    names = ("input_ids", "mask")
    assert mark(rows(0), columns=names) != mark(rows(1), columns=names)
    assert mark(rows(0), columns=names) == mark(rows(0), columns=names[::-1]) != mark(rows(0))


def test_documents_are_sampled_a_few_at_the_ends_and_between_and_not_where_passes_differ():
    class Counting(MapStyle):
        seen = ()

        def __getitem__(self, index):
            self.seen = (*self.seen, index)
            return super().__getitem__(index)

    class Reversing(Counting):
        def set_epoch(self, epoch):
            raise AssertionError("opening begins no pass")

    source = Counting(DOCUMENTS)
    assert open_stream(source) and source.seen == (), "opening reads nothing"
    SLWDataset(source, ConstantSchedule(4), batch_size=2)
    assert len(source.seen) <= 16 and {0, 1999} <= set(source.seen)
    source = Reversing(DOCUMENTS)
    assert mark(source).endswith("of 2000 documents") and source.seen == ()


def test_documents_that_differ_each_time_do_not_keep_a_run_from_going_on():
    class Noisy(MapStyle):
        def __getitem__(self, index):
            return [*super().__getitem__(index), next(counter)]

    counter = itertools.count()
    assert mark(Noisy(DOCUMENTS)) == mark(Noisy(DOCUMENTS))


def test_a_document_that_cannot_be_read_for_a_while_does_not_keep_a_run_from_going_on():
    class Failing(MapStyle):
        bad = ()

        def __getitem__(self, index):
            if index in self.bad:
                raise OSError("disk 7 failed")
            return super().__getitem__(index)

    def loader(bad, documents=DOCUMENTS):
        source = Failing(documents)
        source.bad = bad
        return SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=2), prefetch=0)

    for before, after in itertools.permutations([(), (0,), (1999,)], 2):
        state = loader(before).state_dict()
        again = loader(after)
        again.load_state_dict(state)
    refused(lambda: loader(()).load_state_dict({**state, "source": state["source"] + " x"}), "source", error=StateError)
    changed = loader((), [[9], *DOCUMENTS[1:]])
    refused(lambda: changed.load_state_dict(loader((1999,)).state_dict()), "source", error=StateError)


def test_code_that_was_changed_is_another_source_and_a_partial_is_its_function():
    assert mark(generate) == mark(generate) != mark(generate_otherwise)
    both = [functools.partial(function) for function in (generate, generate_otherwise)]
    assert mark(both[0]) != mark(both[1]) and "generate" in mark(both[0])

    def rows(function):
        return Dataset.from_dict({"input_ids": DOCUMENTS[:50]}).to_iterable_dataset().map(function)

    one, other = (lambda row, k=k: {"input_ids": [i + k for i in row["input_ids"]]} for k in (0, 1))
    assert mark(rows(one)) == mark(rows(one)) != mark(rows(other))
    assert mark(rows(one).filter(one)) != mark(rows(one).filter(other))
    assert mark(rows(one).skip(2)) != mark(rows(one).skip(3))
    packed = [rows(one).map(one, batched=True, batch_size=size) for size in (4, 5)]
    assert mark(packed[0]) != mark(packed[1])
    made = IterableDataset.from_generator(generate), IterableDataset.from_generator(generate_otherwise)
    assert mark(made[0]) != mark(made[1])


# -- shuffled streams of Hugging Face ---------------------------------------------------------------------------------


def rows(**options):
    made = Dataset.from_dict({"input_ids": DOCUMENTS[:64]}).to_iterable_dataset(num_shards=8)
    return made.shuffle(**options) if options else made


def test_a_seed_is_part_of_a_shuffled_stream_and_none_is_noticed():
    marks = [mark(rows(seed=seed, buffer_size=1)) for seed in (1, 1, 2)]
    assert marks[0] == marks[1] != marks[2] != mark(rows())
    assert mark(rows(buffer_size=1)) != mark(rows(buffer_size=1)), "each draws a seed of its own, and so an order"
    one = rows(buffer_size=1)
    assert mark(one) == mark(one)
    generator = np.random.default_rng(3)
    assert mark(rows(generator=generator, buffer_size=1)) == mark(rows(seed=3, buffer_size=1))


def test_a_stream_that_was_shuffled_without_a_seed_warns_that_no_other_process_has_its_order():
    for source in (rows(buffer_size=1), interleave_datasets([rows(), rows()], probabilities=[0.5, 0.5])):
        with pytest.warns(UserWarning, match="without a seed.*seed="):
            SLWDataset(source, ConstantSchedule(4), batch_size=2)
    for source in (rows(seed=1, buffer_size=1), interleave_datasets([rows(), rows()], probabilities=[0.5, 0.5], seed=1)):
        SLWDataset(source, ConstantSchedule(4), batch_size=2)


def test_an_unseeded_stream_has_no_state_since_its_order_cannot_be_had_again():
    with pytest.warns(UserWarning, match="without a seed"):
        loader = SLWLoader(SLWDataset(rows(buffer_size=1), ConstantSchedule(4), batch_size=2))
    refused(loader.state_dict, "without a seed", "seed=", error=StateError)


def test_ranks_that_differ_in_order_tokenizer_or_end_token_do_not_agree():
    """What each rank says of its run, without processes: see test_agreement for real ones."""

    def told(rank, source):
        dataset = SLWDataset(source, ConstantSchedule(4), batch_size=1, dp_rank=rank, dp_world_size=2)
        return {"failed": "", "dp_rank": rank, **_described(SLWLoader(dataset))}

    def fault(one, other):
        return _fault([told(0, one), told(1, other)], whole=True)

    assert fault(rows(seed=1, buffer_size=1), rows(seed=1, buffer_size=1)) is None
    with pytest.warns(UserWarning, match="without a seed"):
        assert "source is" in fault(rows(buffer_size=1), rows(buffer_size=1))
    for one, other in TOKENIZERS.values():
        assert fault(open_stream(TEXTS, tokenizer=one), open_stream(TEXTS, tokenizer=one)) is None
        assert "source is" in fault(open_stream(TEXTS, tokenizer=one), open_stream(TEXTS, tokenizer=other))
    assert "append_eos=1" in fault(open_stream(DOCUMENTS, append_eos=0), open_stream(DOCUMENTS, append_eos=1))
    assert "source is" in fault(DOCUMENTS, [[0], *DOCUMENTS[1:]])


# -- changes within the block that is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "function", "rows"])
@pytest.mark.parametrize("changed", [0, 1, 17, 40])
def test_a_document_that_changed_in_the_block_that_is_read_is_noticed(kind, changed):
    def make(documents):
        if kind == "rows":
            return Dataset.from_dict({"input_ids": documents}).to_iterable_dataset()
        return documents if kind == "list" else lambda: iter(documents)

    documents = [[i] * (3 + i % 4) for i in range(2000)]
    positions = [block.position for block in open_stream(make(documents)).blocks(0)]
    others = list(documents)
    first = 256 if kind != "function" else 64
    others[first + changed] = [9999] * len(others[first + changed])
    position = json.loads(json.dumps(positions[1]))
    assert next(open_stream(make(documents)).blocks(0, position)).position == position
    if kind == "rows":
        with pytest.warns(UserWarning, match="does not resume"):
            refused(lambda: list(open_stream(make(others)).blocks(0, position)), "does not repeat", error=StateError)
    else:
        name = f"items {first} to"
        refused(lambda: list(open_stream(make(others)).blocks(0, position)), name, "does not repeat", error=StateError)


@pytest.mark.parametrize("columns", [("input_ids", "mask"), ("mask", "input_ids")])
def test_a_change_in_any_column_of_the_block_is_noticed(columns):
    def documents(mask):
        return [{"input_ids": [1, 2], "mask": [mask if i == 5 else 0, 0]} for i in range(50)]

    for make in (lambda docs: lambda: iter(docs), lambda docs: Dataset.from_list(docs).to_iterable_dataset()):
        position = next(open_stream(make(documents(0)), columns=columns).blocks(0)).position
        assert next(open_stream(make(documents(0)), columns=columns[::-1]).blocks(0, position))
        with pytest.raises(StateError, match="does not repeat"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            list(open_stream(make(documents(1)), columns=columns).blocks(0, position))


def test_a_source_that_now_ends_within_the_block_is_noticed():
    position = next(open_stream(lambda: iter(DOCUMENTS[:40])).blocks(0)).position
    refused(lambda: list(open_stream(lambda: iter(DOCUMENTS[:30])).blocks(0, position)), "ended", "30", "40", error=StateError)
    assert len(next(open_stream(lambda: iter(DOCUMENTS[:50])).blocks(0, position))) == 50, "more may have come since"


# -- the same everywhere -----------------------------------------------------------------------------------------------

SCRIPT = """
    import functools, json, sys
    sys.path.insert(0, sys.argv[1])
    import test_stream_fingerprints as here
    words = {"some", "of", "text", "none"}
    def chosen(text):
        return [len(w) for w in text.split() if w in {"some", "of", "text", "none"}]
    found = {}
    for name, (one, other) in here.TOKENIZERS.items():
        for source, make in here.SOURCES.items():
            found[f"{name} of {source}"] = [here.mark(make(), tokenizer=one), here.mark(make(), tokenizer=other)]
    found["set"] = here.mark(here.TEXTS, tokenizer=chosen)
    found["list"] = here.mark(here.DOCUMENTS)
    found["shuffled"] = here.mark(here.rows(seed=5, buffer_size=3).map(here.Letters))
    print(json.dumps(found))
"""


def test_fingerprints_are_the_same_in_every_process_whatever_the_hash_seed_and_the_folder(tmp_path):
    here = Path(__file__).parent
    found = []
    for seed in ("0", "1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        folder = tmp_path / seed
        folder.mkdir()
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(here)]
        ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        found.append(json.loads(ran.stdout.splitlines()[-1]))
    assert found[0] == found[1] == found[2]
    assert not [text for text in json.dumps(found[0]).split() if "0x" in text]
