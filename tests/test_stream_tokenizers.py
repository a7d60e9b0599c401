"""Fast tokenizers are called for many texts at once, and give exactly what they give for each."""

import itertools
import random

import numpy as np
import pytest
import tokenizers
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from slw_data.errors import DataError
from slw_data.sources.streams import huggingface, open_stream, text

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "naïve", "żółć", "日本語", "🙂", "x_y=2"]


def some_texts(count=60, seed=0):
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(12))) for _ in range(count)]
    return [*texts, "", " ", "\n\t", "a" * 500, "", "\u0000", "é" * 40]


def trained(template=True):
    """A byte-pair encoding of the words, which begins and ends each text with a token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(some_texts(200, seed=1), trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tokenizer


def truncating():
    tokenizer = trained()
    tokenizer.enable_truncation(7)
    return tokenizer


def padding():
    tokenizer = trained()
    tokenizer.enable_padding(pad_id=3, pad_token="<pad>")
    return tokenizer


def padding_to_a_length():
    tokenizer = trained()
    tokenizer.enable_padding(pad_id=3, pad_token="<pad>", length=9)
    return tokenizer


def of_transformers(**options):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained(), unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", **options
    )


class Mine(transformers.PreTrainedTokenizerFast):
    def __call__(self, text, **options):
        assert isinstance(text, str), "a tokenizer of somebody else is given one text at a time"
        return super().__call__(text, **options)


TOKENIZERS = {
    "tokenizers": (trained, True),
    "without special tokens": (lambda: trained(template=False), True),
    "truncating": (truncating, True),
    "padding to the longest": (padding, False),
    "padding to a length": (padding_to_a_length, False),
    "transformers": (of_transformers, True),
    "transformers, with a short model": (lambda: of_transformers(model_max_length=5), True),
    "transformers, the left side": (lambda: of_transformers(truncation_side="left", padding_side="left"), True),
    "a class of one's own": (lambda: Mine(tokenizer_object=trained(), unk_token="<unk>"), False),
    "a function": (lambda: trained().encode, False),
}


def one_by_one(tokenizer, texts):
    """The oracle: a call for each text that is not empty."""
    encode = tokenizer if callable(tokenizer) else tokenizer.encode
    found = [encode(each) for each in texts if each]
    return [list(one.ids if hasattr(one, "ids") else one["input_ids"]) for one in found]


def documents_in(block, column="input_ids"):
    flat = block.read(column, 0, int(block.offsets[-1])).tolist()
    return [flat[a:b] for a, b in itertools.pairwise(block.offsets.tolist())]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_ids_of_many_texts_are_those_of_each(monkeypatch, kind, mapped):
    make, is_fast = TOKENIZERS[kind]
    calls = []

    def counted(tokenizer, columns):
        found = original(tokenizer, columns)
        return found and (lambda texts: calls.append(len(texts)) or found(texts))

    original = text.batch_encoder
    monkeypatch.setattr(text, "batch_encoder", counted)
    monkeypatch.setattr(text, "BATCH_LETTERS", 150)
    monkeypatch.setattr(huggingface, "BATCH_ROWS", 50)
    texts = some_texts()
    source = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    source = source.map(lambda row: row) if mapped else source
    blocks = list(open_stream(source, tokenizer=make()).blocks(0))
    expected = [ids for ids in one_by_one(make(), texts) if ids]
    assert [document for block in blocks for document in documents_in(block)] == expected
    assert (len(calls) > 4 and max(calls) > 3) == is_fast
    for number, block in enumerate(blocks):
        rest = [d for b in open_stream(source, tokenizer=make()).blocks(0, block.position) for d in documents_in(b)]
        assert rest == [d for b in blocks[number:] for d in documents_in(b)]


def test_further_columns_of_a_fast_tokenizer_are_those_of_each_text():
    texts, tokenizer = some_texts(20), of_transformers()
    source = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    stream = open_stream(source, tokenizer=tokenizer, columns=("attention_mask", "input_ids"))
    (block,) = stream.blocks(0)
    for column in stream.columns:
        assert documents_in(block, column) == [list(tokenizer(each)[column]) for each in texts if each]


def test_an_item_without_the_asked_column_is_named_after_several_calls(monkeypatch):
    monkeypatch.setattr(text, "BATCH_LETTERS", 2)

    def many(texts):
        return [{"input_ids": [1]} if each != "z" else {} for each in texts]

    monkeypatch.setattr(text, "batch_encoder", lambda tokenizer, columns: many)
    source = Dataset.from_dict({"text": ["a", "", "b", "c", "d", "", "z"]}).to_iterable_dataset()
    with pytest.raises(KeyError, match="the tokenizer's result for item 6 has no column 'input_ids'"):
        list(open_stream(source, tokenizer=len).blocks(0))


def test_a_text_that_is_none_among_many_is_named():
    source = Dataset.from_dict({"text": ["a", None, "b"]}).to_iterable_dataset()
    with pytest.raises(DataError, match="the text of item 1 is None"):
        list(open_stream(source, tokenizer=trained()).blocks(0))


def test_texts_of_which_none_is_left_give_no_document():
    source = Dataset.from_dict({"text": ["", ""]}).to_iterable_dataset()
    for tokenizer in (trained(), of_transformers()):
        assert list(open_stream(source, tokenizer=tokenizer).blocks(0)) == []
    assert np.sum([len(ids) for ids in one_by_one(trained(), ["", ""])]) == 0


def test_a_wrapper_of_a_tokenizer_gives_its_own_ids():
    wrapped = tokenizers.ByteLevelBPETokenizer()
    wrapped.train_from_iterator(some_texts(100), vocab_size=300, show_progress=False)
    source = Dataset.from_dict({"text": some_texts()}).to_iterable_dataset()
    (block,) = open_stream(source, tokenizer=wrapped).blocks(0)
    assert documents_in(block) == one_by_one(wrapped, some_texts())
