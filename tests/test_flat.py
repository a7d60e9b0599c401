"""Flat rows: the rows of a rectangle in one row, beside a naive loop; and a model that cannot tell the difference."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from torch._dynamo.testing import CompileCounter

from slw_data import ConstantSchedule, LinearSchedule, SLWDataset, SLWLoader, StagedSchedule

FLAT = {"extras": ("cu_seq_lens",)}


def flat_by_hand(rows, budget, labels, documents):
    """Lists of one flat row, from the rows (ids, and the token after each row) of a rectangle."""
    length = len(rows[0][0])
    ids = [token for row, _ in rows for token in row]
    rest = budget - len(ids)
    shifted = [token for row, after in rows for token in (*row[1:], after)] + [-100] * rest
    unshifted = [-100 if i % length == 0 else token for i, token in enumerate(ids)] + [-100] * rest
    bounds, position_ids = [], []
    for i in range(budget):
        begins = i == len(ids) or (i < len(ids) and (i % length == 0 or ids[i] in documents))
        bounds += [i] if begins else []
        position_ids.append(i - bounds[-1])
    bounds.append(budget)
    flat = {"input_ids": ids + [0] * rest, "position_ids": position_ids, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    flat["max_length_q"] = flat["max_length_k"] = max(b - a for a, b in itertools.pairwise(bounds))
    targets = {"unshifted": {"labels": unshifted}, "shifted": {"labels": shifted}, "none": {}}
    targets["both"] = {"labels": unshifted, "shift_labels": shifted}
    return flat | targets[labels]


def lists(batch):
    return {name: value.flatten().tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    spare=st.integers(0, 9),
    labels=st.sampled_from(["unshifted", "shifted", "both", "none"]),
    documents=st.lists(st.integers(1, 20), max_size=8),
    stored=st.booleans(),
)
def test_a_flat_row_has_the_rows_of_the_rectangle(lengths, spare, labels, documents, stored):
    budget = max(lengths) + spare
    ends = np.cumsum([0, *documents]).tolist()  # token t has id t, so a document begins at the ids in `ends`
    ends = [*[end for end in ends if end < 200], 200]
    docs = [list(range(a, b)) for a, b in itertools.pairwise(ends)]
    source = np.arange(200) if stored else docs
    schedule = StagedSchedule(lengths, range(2, 2 * len(lengths), 2))
    found = list(SLWDataset(source, schedule, tokens_per_batch=budget, labels=labels, total_steps=12, **FLAT))
    position = 0
    for step, batch in enumerate(found):
        length = lengths[min(step // 2, len(lengths) - 1)]
        rows = []
        for _ in range(budget // length):
            rows.append(([(position + i) % 200 for i in range(length)], (position + length) % 200))
            position += length
        assert lists(batch) == flat_by_hand(rows, budget, labels, {0} if stored else set(ends))
        assert batch["input_ids"].shape == batch["position_ids"].shape == (1, budget)
        assert batch["cu_seq_lens_q"].dtype == batch["cu_seq_lens_k"].dtype == torch.int32
        assert type(batch["max_length_q"]) is int
    assert len(found) == 12


@pytest.mark.parametrize("num_workers", [0, 2])
def test_columns_and_other_extras_are_flat_too(num_workers):
    source = {"input_ids": np.arange(1000), "loss_mask": np.arange(1000) % 2}
    options = {"columns": ("input_ids", "loss_mask"), "extras": ("step", "cu_seq_lens", "document_ids"), "eos_id": 6}
    dataset = SLWDataset(source, ConstantSchedule(4), tokens_per_batch=10, shuffle=False, **options)
    first, second = list(SLWLoader(dataset, num_workers=num_workers))[:2]
    assert first["loss_mask"].tolist() == [[0, 1] * 4 + [0, 0]]
    assert first["document_ids"].tolist() == [[0, 0, 0, 0, 0, 0, 0, 1, 0, 0]]
    assert first["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 0, 1]]
    assert (first["step"].tolist(), second["step"].tolist()) == ([0], [1])


def test_flat_rows_need_a_budget_and_no_padding():
    make = SLWDataset
    refused(
        lambda: make(np.arange(99), ConstantSchedule(4), batch_size=2, **FLAT),
        "batch_size=2",
        "tokens_per_batch",
        error=ValueError,
    )
    options = {"mode": "segment", "pad_id": 0, "tokens_per_batch": 8, **FLAT}
    refused(lambda: make([[1, 2]], ConstantSchedule(4), **options), "cu_seq_lens", "mode='segment'", "stream", error=ValueError)


# -- a model ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'slw_data[huggingface]'")
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=64, use_cache=False)
    return transformers.LlamaForCausalLM(config).eval()


TOKENS = np.random.default_rng(0).integers(1, 97, 5000)


def batches(flat, *, source=TOKENS, labels="unshifted", steps=6, **options):
    extras = ("cu_seq_lens",) if flat else ("position_ids",)
    schedule = LinearSchedule(8, 24, warmup_steps=5)
    return list(SLWDataset(source, schedule, tokens_per_batch=50, labels=labels, extras=extras, total_steps=steps, **options))


@pytest.mark.parametrize("labels", ["unshifted", "both"])
@pytest.mark.parametrize("eos_id", [None, 5])
def test_the_loss_of_a_flat_row_is_that_of_the_rectangle(llama, labels, eos_id):
    losses = []
    for flat in (True, False):
        with torch.no_grad():
            losses.append([float(llama(**batch).loss) for batch in batches(flat, labels=labels, eos_id=eos_id)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len({round(loss, 6) for loss in losses[0]}) == 6, "different batches have different losses"


def test_documents_do_not_see_each_other_when_they_are_known(llama):
    """Change one document: the logits of the others change only where documents are not told apart."""
    changed = np.array(TOKENS)
    begins = np.flatnonzero(TOKENS[:50] == TOKENS[7])[0] + 1  # after token 7, which ends a document if eos_id says so
    changed[: begins - 1] = (changed[: begins - 1] % 96) + 1
    eos_id = int(TOKENS[begins - 1])
    changed[: begins - 1][changed[: begins - 1] == eos_id] = (eos_id % 96) + 1
    length = 16
    assert 0 < begins < length
    for known in (True, False):
        logits = []
        for source in (TOKENS, changed):
            options = {"eos_id": eos_id} if known else {}
            dataset = SLWDataset(source, ConstantSchedule(length), tokens_per_batch=50, total_steps=1, **FLAT, **options)
            with torch.no_grad():
                logits.append(llama(**next(iter(dataset))).logits[0])
        same = (logits[0] - logits[1]).abs().amax(dim=1) < 1e-6
        rest_of_the_row, other_rows = same[begins:length], same[length:48]
        assert other_rows.all() and bool(rest_of_the_row.all()) is known


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # what torch says of Python 3.13.0
def test_one_graph_for_the_whole_warmup(llama):
    """Flat rows compile once; rectangles once for each length that max_distinct leaves."""
    counter = CompileCounter()

    def step(input_ids, position_ids):
        return llama(input_ids=input_ids, position_ids=position_ids).logits.sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=counter, dynamic=False)
    found = batches(True, steps=12)
    assert len({batch["cu_seq_lens_q"].numel() for batch in found}) == 3
    for batch in found:
        compiled(batch["input_ids"], batch["position_ids"])
    assert counter.frame_count == 1

    torch._dynamo.reset()
    counter.clear()
    schedule = LinearSchedule(8, 64, warmup_steps=10, max_distinct=3)
    for batch in SLWDataset(TOKENS, schedule, batch_size=2, extras=("position_ids",), total_steps=12):
        compiled(batch["input_ids"], batch["position_ids"])
    assert counter.frame_count == 3
    torch._dynamo.reset()


@pytest.mark.parametrize("labels", ["unshifted", "both"])
def test_every_tensor_of_a_flat_batch_is_memory_of_its_own(labels):
    clean = [lists(batch) for batch in batches(True, labels=labels)]
    found = []
    for batch in batches(True, labels=labels):
        for name in [name for name, value in batch.items() if isinstance(value, torch.Tensor)]:
            before = lists(batch)
            batch[name] += 1
            assert {key for key, value in lists(batch).items() if value != before[key]} == {name}
            batch[name] -= 1
        found.append(lists(batch))
        batch["input_ids"].zero_()
    assert found == clean
