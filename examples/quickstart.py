"""The main job on real text, with nothing to download: a warmup from 8 to 1024 tokens, stopped in the middle, continued
exactly in a new loader, and compared with the run that was never stopped. Nothing is trained: where a training loop
would use a batch, this file takes its digest.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from corpus import EOS, VOCAB_SIZE, build_corpus

from slw_data import LinearSchedule, SLWDataset, SLWLoader, open_tokens

ROWS = 16
SCHEDULE = LinearSchedule(8, 1024, warmup_fraction=0.3)  # by 8 tokens at a time, over the first 30% of the steps


def make_dataset(path: Path) -> SLWDataset:
    """Everything that decides which token comes when: the source, the schedule, the batch shape and the order."""
    tokens = open_tokens(path, dtype="uint16")
    return SLWDataset(tokens, SCHEDULE, batch_size=ROWS, shuffle=True, labels="shifted", vocab_size=VOCAB_SIZE)


def consume(loader: SLWLoader, digest: Any, until: int | None = None) -> None:
    """Take every batch up to step ``until``, or to the end. This is where a model would be trained."""
    for batch in loader:
        for name, tensor in batch.items():  # input_ids and labels, int64 of shape (16, length)
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy())
        if loader.step == until:
            break


def stop_and_continue(path: Path, workers: int, at: int) -> tuple[str, float]:
    """The digest of a run that is stopped before step ``at``, and the seconds from there to its next batch."""
    digest, saved = hashlib.blake2b(), path.with_name("state.json")
    loader = SLWLoader(make_dataset(path), num_workers=workers)
    consume(loader, digest, until=at)
    saved.write_text(json.dumps(loader.state_dict()))  # beside the model's checkpoint

    started = time.perf_counter()
    loader = SLWLoader(make_dataset(path), num_workers=0)  # another number of workers: it does not matter
    loader.load_state_dict(json.loads(saved.read_text()), expected_step=at)
    consume(loader, digest, until=at + 1)
    seconds = time.perf_counter() - started
    consume(loader, digest)  # a loop that was left goes on with the next batch
    return digest.hexdigest(), seconds


def documents_per_batch(path: Path, *, shuffle: bool) -> float:
    """From how many documents a batch of 16 rows x 8 tokens is drawn: the mean over all batches of that length."""
    ends = np.fromfile(path, dtype="uint16") == EOS
    numbers = np.cumsum(ends, dtype=np.int32) - ends  # each token is replaced by the number of its document
    dataset = SLWDataset(numbers, SCHEDULE, batch_size=ROWS, shuffle=shuffle)
    batches = islice(SLWLoader(dataset), dataset.plan.stages[0].stop)
    return float(np.mean([np.unique(batch["input_ids"].numpy()).size for batch in batches]))


def run(folder: Path, workers: int, max_tokens: int | None) -> bool:
    """The whole demonstration; False if a token was lost or came twice."""
    path, num_documents = build_corpus(folder / "stdlib.bin", max_tokens=max_tokens)
    dataset, digest = make_dataset(path), hashlib.blake2b()
    bar = importlib.util.find_spec("tqdm") is not None
    loader = SLWLoader(dataset, num_workers=workers, progress=bar)
    consume(loader, digest)
    middle = len(loader) // 2
    continued, seconds = stop_and_continue(path, workers, middle)

    started = time.perf_counter()
    delivered = sum(batch["input_ids"].numel() for batch in SLWLoader(make_dataset(path)))
    speed = delivered / (time.perf_counter() - started)
    in_file, left = path.stat().st_size // 2, dataset.tokens_left or 0
    lost = in_file - delivered - left
    equal = digest.hexdigest() == continued
    stream, shuffled = (documents_per_batch(path, shuffle=shuffle) for shuffle in (False, True))
    table = {
        "tokens, documents in the source": f"{in_file:,}, {num_documents:,}",
        "steps, distinct lengths": f"{len(loader):,}, {len(dataset.plan.lengths)}",
        "tokens delivered": f"{delivered:,}",
        "tokens left over at the end": f"{left:,}",
        "tokens thrown away": f"{lost:,}",
        "documents in a batch of 16 x 8": f"{stream:.2f} in stream order, {shuffled:.2f} with shuffle=True",
        "tokens per second, no workers": f"{speed:,.0f}",
        "stopped and continued at": f"step {middle:,}, of length {dataset.plan.length(middle)}",
        "seconds until the next batch": f"{seconds:.3f}",
        "digests equal": "yes" if equal else "NO",
    }
    print(*(f"{name:<34}{value}" for name, value in table.items()), sep="\n")
    return equal and lost == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the corpus and the state (default: a temporary one)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes before the stop (default: 2)")
    parser.add_argument("--max-tokens", type=int, help="a smaller corpus (default: the whole standard library)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not run(folder, options.workers, options.max_tokens):
            raise SystemExit("the continued run differs from the uninterrupted one, or tokens were lost")


if __name__ == "__main__":
    main()
