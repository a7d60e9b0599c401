"""What every store must do, said with lists: the reference that the tests of stores share."""

import random
import struct
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

DTYPES = ("uint8", "int8", "uint16", ">u2", "int16", "int32", ">i4", "uint32", "int64", "uint64")
MEGATRON_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}

token_lists = st.lists(st.integers(0, 127), min_size=1, max_size=60)
document_lists = st.lists(st.lists(st.integers(0, 127), max_size=9), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**32)


def joined(lists):
    return [token for tokens in lists for token in tokens]


def offsets_of(lists):
    """Document offsets, empty documents skipped."""
    offsets = [0]
    for tokens in lists:
        if tokens:
            offsets.append(offsets[-1] + len(tokens))
    return offsets


def assert_reads_like(store, tokens, seed=0):
    """Compare ``read`` and ``gather`` at random windows with slices of the list ``tokens``."""
    rng, total = random.Random(seed), len(tokens)
    assert len(store) == total
    for start, stop in [(0, total), (0, 0), (total, total)] + [
        sorted(rng.choices(range(total + 1), k=2)) for _ in "abc"
    ]:
        found = store.read(start, stop)
        assert found.tolist() == tokens[start:stop]
        assert found.dtype == store.dtype and found.dtype.isnative and found.flags.writeable
    for length in (1, total, rng.randint(1, total)):
        starts = [rng.randint(0, total - length) for _ in range(rng.choice((0, 1, 2, 9, 40)))]
        for dtype in (store.dtype, np.int64):
            around = np.full((len(starts), length + 3), 99).astype(dtype)
            untouched = around.copy()
            out = around[:, 2 : 2 + length]
            store.gather(np.array(starts, np.int64), length, out)
            assert out.tolist() == [tokens[start : start + length] for start in starts]
            untouched[:, 2 : 2 + length] = out
            assert (around == untouched).all(), "gather wrote beside out"


def write_raw(path: Path, tokens, dtype="uint16") -> Path:
    path.write_bytes(np.array(tokens, dtype).tobytes())
    return path


def write_megatron(prefix: Path, sequences, dtype="uint16", documents=None, **changes) -> Path:
    """A Megatron pair, field by field with ``struct``; ``changes`` replaces fields by wrong ones."""
    itemsize = np.dtype(dtype).itemsize
    lengths = [len(tokens) for tokens in sequences]
    pointers = [sum(lengths[:number]) * itemsize for number in range(len(lengths))]
    documents = list(range(len(sequences) + 1)) if documents is None else documents
    fields = {"magic": b"MMIDIDX\x00\x00", "version": 1, "code": MEGATRON_CODES[dtype], "lengths": lengths}
    fields |= {"pointers": pointers, "documents": documents, "modes": b""} | changes
    counts = changes.get("counts", (len(fields["lengths"]), len(fields["documents"])))
    index = fields["magic"] + struct.pack("<QBQQ", fields["version"], fields["code"], *counts)
    for letter, field in (("i", "lengths"), ("q", "pointers"), ("q", "documents")):
        index += struct.pack(f"<{len(fields[field])}{letter}", *fields[field])
    Path(f"{prefix}.idx").write_bytes(index + fields["modes"])
    write_raw(Path(f"{prefix}.bin"), joined(sequences), dtype)
    return Path(f"{prefix}.bin")
