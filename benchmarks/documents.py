"""Tokens per second of each mode, over a Hugging Face store and over streams: ``python -m benchmarks.documents``.

Beside them, in turn with them: the same source merely *iterated*, in the largest pieces that it gives, and other packers that
are installed (``peers.txt``), each on the rows that it has prepared. Million tokens per second, padding not counted; the
median over the rounds. Batches are made and not looked at, without a thread that reads ahead. About ten minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks.corpus import Corpus, write_corpus
from benchmarks.peers import PEERS
from benchmarks.timing import above_zero, per_item, table
from slw_data import BucketSchedule, ConstantSchedule, SLWDataset, SLWLoader

SHAPES = ((16, 8), (16, 64), (16, 1024), (512, 8))
MODES = ("stream", "segment", "truncate", "pack", "buckets", "window")
STREAMED = ("stream", "segment", "truncate", "pack")
PACKERS = ("group_texts", "group_texts_streaming", "trl", "grain")
LARGEST = 1 << 16  # documents of a list

Shapes = Sequence[tuple[int, int]]


def loader(source: Any, mode: str, rows: int, length: int, workers: int = 0, **options: Any) -> SLWLoader:
    """Batches without an end."""
    if mode in ("segment", "truncate", "pack"):
        options["pad_id"] = 0
    if mode == "window":
        options["extras"] = ("window_ids",)
    schedule = BucketSchedule([length]) if mode == "buckets" else ConstantSchedule(length)
    dataset = SLWDataset(source, schedule, batch_size=rows, total_steps=10**9, mode=mode, labels="none", **options)
    return SLWLoader(dataset, prefetch=0, num_workers=workers)


def tokens(batches: SLWLoader) -> Iterator[int]:
    """Of documents in each batch."""
    for batch in batches:
        mask = batch.get("attention_mask")
        yield batch["input_ids"].numel() if mask is None else int(mask.sum())


def density(batches: Callable[[], SLWLoader], some: int = 200) -> float:
    """Tokens of documents in a batch, on average."""
    return float(np.mean([count for count, _ in zip(tokens(batches()), range(some), strict=False)]))


def rates(
    ours: Mapping[str, Callable[[], SLWLoader]],
    others: Mapping[str, tuple[Callable[[], Iterator[Any]], float]],
    seconds: float,
    rounds: int,
) -> dict[str, float]:
    """Million tokens per second of each; of the others an item holds so many tokens."""
    held = {name: density(made) for name, made in ours.items()} | {name: many for name, (_, many) in others.items()}
    making = {name: partial(iter_of, made) for name, made in ours.items()} | {name: made for name, (made, _) in others.items()}
    took = per_item(making, seconds=seconds, rounds=rounds)
    return {name: held[name] / median(times) / 1e6 for name, times in took.items()}


def iter_of(made: Callable[[], SLWLoader]) -> Iterator[Any]:
    return iter(made())


def over_a_store(corpus: Corpus, seconds: float, rounds: int, shapes: Shapes) -> str:
    """Each mode over documents that ``Dataset.save_to_disk`` wrote."""
    store = datasets.load_from_disk(corpus.documents)
    ours = {
        f"{mode}, {'shuffled' if shuffle else 'in order'}": partial(loader, store, mode, shuffle=shuffle)
        for mode in MODES
        for shuffle in (False, True)
    }
    merely = store.with_format("numpy")
    many = len(corpus.tokens()) / len(merely)
    found: dict[str, list[str]] = {}
    for rows, length in shapes:
        others: dict[str, tuple[Callable[[], Iterator[Any]], float]] = {
            "documents, merely iterated": (partial(endless, merely), many)
        }
        for name, peer in PEERS.items():
            if peer.module in PACKERS and peer.version is not None:
                peer.imported.prepare(corpus, length)
                others[name] = partial(peer.batches, corpus, rows, length), rows * length
        made = {name: partial(one, rows, length) for name, one in ours.items()}
        for name, rate in rates(made, others, seconds, rounds).items():
            found.setdefault(name, []).append(f"{rate:.3g}")
    head = ["over a Hugging Face store", *(f"{rows} x {length:,}" for rows, length in shapes)]
    return table(head, [[name, *cells] for name, cells in found.items()])


def endless(source: Any) -> Iterator[Any]:
    while True:
        yield from source


def texts(corpus: Corpus) -> list[str]:
    """Words for the tokens, document by document, a third as many letters as an id has bits."""
    values, offsets = corpus.tokens(), corpus.offsets()
    words = [f"w{i:03d}" for i in range(512)]
    return [" ".join(words[t] for t in values[a:b]) for a, b in pairwise(offsets)]


def tokenizer() -> Any:
    """A fast one, of the words of :func:`texts`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({f"w{i:03d}": i for i in range(512)}, unk_token="w000"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def sources(corpus: Corpus, folder: Path) -> dict[str, tuple[Any, dict[str, Any], Callable[[], Iterator[Any]]]]:
    """Streams of the corpus: each with options, and what merely iterates it, document by document or in Arrow batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets, values = corpus.offsets(), corpus.tokens()
    arrays = [values[a:b].astype(np.int64) for a, b in pairwise(offsets)][:LARGEST]
    column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values.astype(np.int32)))
    written = texts(corpus)
    for part in range(4):
        pq.write_table(pa.table({"input_ids": column[part::4]}), folder / f"ids_{part}.parquet")
        pq.write_table(pa.table({"text": written[part::4]}), folder / f"text_{part}.parquet")

    def parquet(name: str) -> Any:
        files = sorted(str(path) for path in folder.glob(f"{name}_*.parquet"))
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)

    ids, text = parquet("ids"), parquet("text")
    return {
        "lists": ([array.tolist() for array in arrays], {}, lambda: cycle(arrays)),
        "NumPy documents": (arrays, {}, lambda: cycle(arrays)),
        "Parquet": (ids, {}, partial(endless, ids.with_format("arrow"))),
        "Parquet, tokenizer": (text, {"text_column": "text", "tokenizer": tokenizer()}, partial(endless, text)),
    }


def over_streams(corpus: Corpus, folder: Path, seconds: float, rounds: int, shapes: Shapes) -> str:
    """Some modes over streams; with workers each of them reads half of the shards."""
    lines = []
    many = len(corpus.tokens()) / (len(corpus.offsets()) - 1)
    for kind, (source, options, merely) in sources(corpus, folder).items():
        found: dict[str, list[str]] = {}
        for rows, length in shapes:
            made = {mode: partial(loader, source, mode, rows, length, **options) for mode in STREAMED}
            made["stream, one worker"] = partial(loader, source, "stream", rows, length, 1, num_shards=2, **options)
            made["stream, two workers"] = partial(loader, source, "stream", rows, length, 2, num_shards=2, **options)
            others = {"documents, merely iterated": (merely, many)}
            for name, rate in rates(made, others, seconds, rounds).items():
                found.setdefault(name, []).append(f"{rate:.3g}")
        lines += [[f"{kind}: {name}", *cells] for name, cells in found.items()]
    return table(["over a stream", *(f"{rows} x {length:,}" for rows, length in shapes)], lines)


def report(count: int, seconds: float, rounds: int, most: int | None = None) -> None:
    """Print both tables, of a corpus of so many tokens, in the first ``most`` shapes."""
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = write_corpus(folder / "corpus", count, counted=False)
        print(over_a_store(corpus, seconds, rounds, SHAPES[:most]), flush=True)
        print()
        print(over_streams(corpus, folder, seconds, rounds, SHAPES[:most]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=above_zero(int), default=8_000_000, help="of the corpus")
    parser.add_argument("--seconds", type=above_zero(float), default=0.5, help="of each measurement")
    parser.add_argument("--rounds", type=above_zero(int), default=3, help="of which the median counts")
    options = parser.parse_args()
    report(options.tokens, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
