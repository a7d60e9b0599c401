"""Naive oracles: what a plan, a batch, a lane and a dealt document are, said with lists and loops.

Nothing here knows the library. A run is nested lists ``[step][micro-batch][rank][row]``; a row is a list of ``length``
tokens and those that follow them (for labels), with None where there is no token.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, getcontext
from fractions import Fraction
from math import floor

Row = list[int | None]
Run = list[list[list[list[Row]]]]
Shapes = Sequence[Sequence[int]]  # (length, rows of one batch, ...) of each step, as naive_plan gives it

getcontext().prec = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


# -- schedules --------------------------------------------------------------------------------------------------------


def sine(x: Decimal) -> Decimal:
    """The Taylor series, to 60 digits: no schedule formula is tested with its own inverse."""
    total, term, n = Decimal(0), x, 1
    while abs(term) > Decimal(10) ** -58:
        total, term, n = total + term, -term * x * x / ((n + 1) * (n + 2)), n + 2
    return total


def naive_value(kind: str, low: int, high: int, t: int, duration: int, degree: float = 2) -> Fraction | Decimal:
    """The length before rounding, at ``t`` of ``duration``, by the formula of the table; 60 digits."""
    if duration == 0 or t >= duration:
        return Fraction(high)
    p = Decimal(t) / duration
    if kind in ("linear", "doubling"):
        return low + Fraction((high - low) * t, duration)
    if kind == "root":
        return low + (high - low) * (p ** (1 / Decimal(degree)) if t else Decimal(0))
    if kind == "sine":
        return low + (high - low) * sine(PI * p / 2)
    if kind == "cosine":
        return low + (high - low) * (1 - sine(PI / 2 - PI * p)) / 2
    if kind == "exponential":
        return low * (Decimal(high) / low) ** p
    raise ValueError(kind)


def naive_lengths(kind: str, low: int, high: int, t: int, duration: int, multiple: int, degree: float = 2) -> set[int]:
    """The rounded length; two of them only where the exact value is within 1e-9 of a multiple."""
    value = naive_value(kind, low, high, t, duration, degree)
    if kind == "doubling" and t < duration:
        length = low
        while 2 * length <= value:
            length *= 2
        return {length}
    if isinstance(value, Fraction):
        return {floor(value / multiple) * multiple}
    near = Decimal("1e-9")
    return {max(low, min(high, int((value + e) / multiple) * multiple)) for e in (-near, near)}


# -- plans ------------------------------------------------------------------------------------------------------------


def naive_plan(
    schedule: Callable[[int], int],
    *,
    total_steps: int,
    batch_size: int | None = None,
    tokens_per_batch: int | None = None,
    grad_accum_steps: int = 1,
    world_size: int = 1,
    by_tokens: bool = False,
) -> list[tuple[int, int, int]]:
    """``(length, rows of one batch, tokens of all ranks before it)`` of each step.

    ``by_tokens``: ``schedule`` is a function of the tokens delivered before the step, not of the step.
    """
    steps, before = [], 0
    for step in range(total_steps):
        length = int(schedule(before if by_tokens else step))
        rows = batch_size if batch_size is not None else tokens_per_batch // length
        steps.append((length, rows, before))
        for _ in range(grad_accum_steps):
            for _ in range(world_size):
                before += rows * length
    return steps


StepFunction = tuple[str, Callable[[int], int]]  # "steps" or "tokens": what it is a function of


def naive_joint(
    length: StepFunction,
    size: StepFunction,
    accumulation: StepFunction,
    *,
    steps: int,
    world_size: int = 1,
    budget: bool = False,
) -> list[tuple[int, int, int, int, int]]:
    """``(length, rows of a batch, batches of a rank, rows before, tokens before)`` of each step, where all may change: each is
    asked with the step, or with the tokens that all ranks have delivered before it. ``budget``: ``size`` is in tokens."""
    found, rows_before, before = [], 0, 0
    for step in range(steps):
        now, many, batches = (f(step if unit == "steps" else before) for unit, f in (length, size, accumulation))
        rows = many // now if budget else many
        found.append((now, rows, batches, rows_before, before))
        for _ in range(batches):
            for _ in range(world_size):
                rows_before += rows
                before += rows * now
    return found


# -- order of a store -------------------------------------------------------------------------------------------------


def naive_permutation(size: int, seed: int, epoch: int) -> list[int]:
    """The order of ``size`` blocks: six rounds of a Feistel network over the least 4^k that holds them, walked on until the
    value is below ``size`` again."""
    half = 1
    while 4**half < size:
        half += 1
    digest = hashlib.blake2b(repr((seed, epoch)).encode(), digest_size=48).digest()
    keys = [int.from_bytes(digest[8 * k : 8 * k + 8], "little") for k in range(6)]

    def once(value: int) -> int:
        left, right = value // 2**half, value % 2**half
        for key in keys:
            mixed = (right + key) * 0x9E3779B97F4A7C15 % 2**64
            mixed = (mixed ^ mixed // 2**32) * 0xD6E8FEB86659FD93 % 2**64
            left, right = right, left ^ mixed // 2 ** (64 - half)
        return left * 2**half + right

    found = []
    for value in range(size):
        value = once(value)
        while value >= size:
            value = once(value)
        found.append(value)
    return found


def naive_lane_positions(
    num_tokens: int, num_lanes: int, blocks: int, orders: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The store positions of every lane, one list each, over ``len(orders)`` epochs.

    ``blocks`` blocks belong to each lane in an epoch; ``orders[epoch]`` is the order of all of them. Block b of the
    order goes to lane b mod num_lanes; what the blocks leave over is dealt evenly, one run of neighbours to each lane.
    """
    size = num_tokens // num_lanes // blocks
    lanes: list[list[int]] = [[] for _ in range(num_lanes)]
    for order in orders:
        assert sorted(order) == list(range(blocks * num_lanes))
        for b, block in enumerate(order):
            lanes[b % num_lanes] += range(block * size, (block + 1) * size)
        position = blocks * num_lanes * size
        for lane in range(num_lanes):
            share = num_tokens // num_lanes + (1 if lane < num_tokens % num_lanes else 0)
            while share > blocks * size:
                lanes[lane].append(position)
                position, share = position + 1, share - 1
        assert position == num_tokens
    return lanes


def naive_batches(
    lanes: Sequence[Sequence[int]],
    shapes: Shapes,
    *,
    grad_accum_steps: int = 1,
    world_size: int = 1,
    look: int = 0,
    rest: bool = False,
) -> Run:
    """Row r of the run is cut from lane r mod ``len(lanes)``. Ends before the first step that some lane cannot fill.

    With ``rest`` it goes on there: what the lanes have left is joined in their order, and rows are cut from that one after
    the other, until it cannot fill a step. Stream order is ``naive_batches([tokens], ...)``.
    """
    taken, r, run = [0] * len(lanes), 0, []
    for length, rows, *_ in shapes:
        needed = rows * grad_accum_steps * world_size
        mine = Counter(row % len(lanes) for row in range(r, r + needed))
        for lane in range(len(lanes)):
            if taken[lane] + mine[lane] * length > len(lanes[lane]) and rest:
                lanes = [[token for tokens, start in zip(lanes, taken, strict=True) for token in tokens[start:]]]
                taken, rest = [0], False
                break
        step: list[list[list[Row]]] = []
        for _ in range(grad_accum_steps):
            step.append([])
            for _ in range(world_size):
                step[-1].append([])
                for _ in range(rows):
                    lane = r % len(lanes)
                    row = list(lanes[lane][taken[lane] : taken[lane] + length + look])
                    if len(row) < length:
                        return run
                    step[-1][-1].append([*row, *[None] * (length + look - len(row))])
                    taken[lane], r = taken[lane] + length, r + 1
        run.append(step)
    return run


def naive_rows(lanes: Sequence[Sequence[int]], steps: Iterable[tuple[int, int]], *, look: int, rest: bool) -> list[list[Row]]:
    """The rows of each step, given as ``(length, rows of all ranks)``, as in :func:`naive_batches`."""
    shapes = [(length, rows) for length, rows in steps]
    run = naive_batches(lanes, shapes, look=look, rest=rest)
    return [batches[0][0] for batches in run]


# -- order of a stream ------------------------------------------------------------------------------------------------


def naive_draw(key: tuple[int, ...], place: int, count: int) -> int:
    """SplitMix64 with whole numbers."""
    mask = 2**64 - 1
    state = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    state = (state + (place + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) & mask
    return ((state ^ state >> 31) * count) >> 64


def naive_buffer(docs: Iterable[Sequence[int]], size: int, key: tuple[int, ...]) -> list[Sequence[int]]:
    """A list of waiting documents: the drawn one goes, the last one takes its place, and the next one read is added."""
    source, waiting, found = [doc for doc in docs if len(doc)], [], []
    while source or waiting:
        while source and len(waiting) < size:
            waiting.append(source.pop(0))
        slot = naive_draw(key, len(found), len(waiting))
        found.append(waiting[slot])
        waiting[slot] = waiting[-1]
        waiting.pop()
    return found


def naive_dealing(
    documents: Iterable[Sequence[int]],
    shapes: Shapes,
    *,
    num_lanes: int = 1,
    grad_accum_steps: int = 1,
    world_size: int = 1,
    mode: str = "stream",
    preserve_eos: bool = False,
) -> tuple[Run, int]:
    """Documents (those of all passes, one after the other) are dealt to lanes as these run dry, row by row.

    "stream": a lane that cannot fill its row takes the next documents, and the token after a row is the first one of its
    lane's next row; where the steps end, their last length holds on. "segment": an empty lane takes a document, and a row
    never goes beyond it. "truncate": every row takes a document and drops its rest.
    Returns the run, whose rows have ``length + 1`` tokens, and how many tokens were read and neither delivered nor
    dropped by "truncate" when the data ended (0 if the steps ended first). Ends before the first step that cannot be
    filled.
    """
    source = iter([list(document) for document in documents if len(document)])
    lanes: list[list[int]] = [[] for _ in range(num_lanes)]
    cut: list[list[Row]] = [[] for _ in range(num_lanes)]
    r, run, used, dealt = 0, [], 0, 0

    def filled(lane: list[int], length: int) -> bool:
        nonlocal dealt
        while len(lane) < (length if mode == "stream" else 1):
            document = next(source, None)
            if document is None:
                return False
            dealt += len(document)
            lane += document
        return True

    def next_row(length: int) -> Row | None:
        nonlocal r, used
        lane, before = lanes[r % num_lanes], cut[r % num_lanes]
        if not filled(lane, length):
            return None
        row: Row = lane[:length] if mode == "stream" else lane[: length + 1]
        if mode == "truncate" and preserve_eos and len(lane) > length:
            row = [*lane[: length - 1], lane[-1]]
        gone = len(lane) if mode == "truncate" else min(length, len(lane))
        del lane[:gone]
        r, used = r + 1, used + gone
        before.append(row)
        return row

    def steps() -> tuple[Run, int]:
        for length, rows, *_ in shapes:
            step: list[list[list[Row]]] = []
            used_before = used
            for _ in range(grad_accum_steps):
                step.append([])
                for _ in range(world_size):
                    step[-1].append([])
                    for _ in range(rows):
                        row = next_row(length)
                        if row is None:
                            return run, dealt - used_before
                        step[-1][-1].append(row)
            run.append(step)
        for lane in range(r, r + num_lanes):
            filled(lanes[lane % num_lanes], length)
        return run, 0

    run, left = steps()
    if mode == "stream":
        for rows, rest in zip(cut, lanes, strict=True):
            firsts = [row[0] for row in rows[1:]] + rest[:1]
            for row, first in zip(rows, firsts, strict=False):
                row.append(first)
    for step, (length, *_) in zip(run, shapes, strict=False):
        for row in rows_of([step]):
            row += [None] * (length + 1 - len(row))
    return run, left


def naive_circle(
    documents: Iterable[Sequence[int]],
    shapes: Shapes,
    *,
    num_lanes: int = 1,
    grad_accum_steps: int = 1,
    world_size: int = 1,
    mode: str = "segment",
    preserve_eos: bool = False,
) -> tuple[Run, int, int]:
    """Rows of one document each, from documents in the order in which they are opened (those of all passes).

    "segment": ``num_lanes`` documents are open; a row is what fits of the first, which then goes to the end of the queue. One
    that has ended is replaced when its turn comes, and where there is none to replace it the queue gets shorter.
    "truncate": a row is the beginning of the next document.
    Returns the run, whose rows have ``length + 1`` tokens, the tokens left over when the data ended before the steps (0 if the
    steps ended first), and those discarded.
    """
    waiting = [list(document) for document in documents if len(document)]
    queue: list[list[int]] = [[] for _ in range(num_lanes)]
    run, discarded = [], 0
    for length, rows, *_ in shapes:
        before = sum(map(len, waiting)) + sum(map(len, queue))
        step: list[list[list[Row]]] = [[[] for _ in range(world_size)] for _ in range(grad_accum_steps)]
        dropped = 0
        for micro in step:
            for rank in micro:
                while len(rank) < rows:
                    if not queue or (mode == "truncate" and not waiting):
                        return run, before, discarded
                    document = queue.pop(0)
                    if not document and not waiting:
                        continue
                    document = document or waiting.pop(0)
                    row: Row = document[: length + 1]
                    rest = document[length:]
                    if mode == "truncate":
                        if preserve_eos and rest:
                            row = [*document[: length - 1], document[-1]]
                        dropped, rest = dropped + len(rest), []
                    rank.append(row + [None] * (length + 1 - len(row)))
                    queue.append(rest)
        discarded += dropped
        run.append(step)
    return run, 0, discarded


def naive_pieces(documents: Iterable[Sequence[int]], lengths: Sequence[int]) -> dict[int, list[Row]]:
    """For each length its pieces, in the documents' order, each with the token after it in its document, or None."""
    buckets: dict[int, list[Row]] = {length: [] for length in lengths}
    for doc in documents:
        at = 0
        for length in sorted(lengths, reverse=True):
            while len(doc) - at >= length:
                buckets[length].append([*doc[at : at + length], doc[at + length] if at + length < len(doc) else None])
                at += length
    return buckets


def naive_best_fit(fragments: Sequence[Sequence[int]], room: int) -> list[list[list[int]]]:
    """Rows of ``room`` tokens, each a list of pieces of fragments: those that one fills, in their order, then those that rests
    and short fragments are put into, the longest first, each where least room remains, the first of such rows. In a row
    pieces stand as their fragments do."""
    full, rests = [], []
    for number, fragment in enumerate(fragments):
        rest = list(fragment)
        while len(rest) >= room:
            full.append([rest[:room]])
            rest = rest[room:]
        if rest:
            rests.append((number, rest))
    rows: list[list[tuple[int, list[int]]]] = []
    for number, rest in sorted(rests, key=lambda pair: -len(pair[1])):
        best = None
        for row in rows:
            left = room - sum(len(piece) for _, piece in row)
            if left >= len(rest) and (best is None or left < room - sum(len(piece) for _, piece in best)):
                best = row
        if best is None:
            best = []
            rows.append(best)
        best.append((number, rest))
    return full + [[piece for _, piece in sorted(row)] for row in rows]


def naive_packing(
    windows: Iterable[Sequence[Sequence[int]]],
    shapes: Shapes,
    *,
    order: Callable[[int, int], Sequence[int]],
    lead: int = 0,
    grad_accum_steps: int = 1,
    world_size: int = 1,
) -> list[list[list[list[list[list[int]]]]]]:
    """A run whose rows are lists of pieces of documents. A window's documents are packed for the length of the row that is
    next; where the length is another one, tokens of it that were not delivered are packed anew, each run of them a fragment.

    ``order(window, rows)``: the order in which its rows are delivered. ``lead``: tokens of a row that are not documents'.
    """
    source, number = iter(windows), -1
    fragments: list[list[int]] = []
    rows: list[list[list[int]]] = []
    now, run = 0, []

    def packed(fragments: list[list[int]], length: int) -> list[list[list[int]]]:
        found = naive_best_fit(fragments, length - lead)
        return [found[i] for i in order(number, len(found))]

    for length, many, *_ in shapes:
        step: list[list[list[list[list[int]]]]] = [[[] for _ in range(world_size)] for _ in range(grad_accum_steps)]
        for micro in step:
            for rank in micro:
                while len(rank) < many:
                    if not rows:
                        window = next(source, None)
                        if window is None:
                            return run
                        number, fragments = number + 1, [list(document) for document in window]
                        rows, now = packed(fragments, length), length
                    elif now != length:
                        waiting = {token for row in rows for piece in row for token in piece}
                        parts = []
                        for fragment in fragments:
                            for there, some in itertools.groupby(fragment, waiting.__contains__):
                                if there:
                                    parts.append(list(some))
                        fragments = parts
                        rows, now = packed(fragments, length), length
                    rank.append(rows.pop(0))
        run.append(step)
    return run


def naive_packed(
    rows: Sequence[Sequence[Sequence[int]]],
    length: int,
    *,
    columns: dict[str, Callable[[int], int]],
    after: dict[int, int],
    labels: str = "unshifted",
    extras: Sequence[str] = (),
    pad_id: int = 0,
    bos_id: int | None = None,
    step: int = 0,
) -> dict[str, list]:
    """A batch of such rows as nested lists. ``after``: the token that follows another one in its document."""
    target = columns.get("labels", columns["input_ids"])
    names = ("labels", "shift_labels", "attention_mask", "position_ids", "document_ids", *columns)
    found: dict[str, list] = {name: [[] for _ in rows] for name in names}
    for number, row in enumerate(rows):
        cells: list[tuple[int, int | None]] = [(0, None)] if bos_id is not None else []  # the piece, and the token
        cells += [(i, token) for i, piece in enumerate(row) for token in piece]
        filled, position = len(cells), 0
        cells += [(cells[-1][0], None)] * (length - filled)
        for at, (piece, token) in enumerate(cells):
            first, bos = at > 0 and cells[at - 1][0] != piece, at == 0 and bos_id is not None
            position = 0 if first or at == 0 else position + 1
            cell = {name: 0 if token is None else column(token) for name, column in columns.items() if name != "labels"}
            cell["attention_mask"], cell["position_ids"], cell["document_ids"] = int(at < filled), position, piece
            if bos:
                cell["input_ids"] = bos_id
                cell["labels"] = bos_id if "labels" not in columns else -100
                cell["shift_labels"] = target(row[0][0])
            elif token is None:
                cell["input_ids"], cell["labels"], cell["shift_labels"] = pad_id, -100, -100
            else:
                cell["labels"] = -100 if first else target(token)
                cell["shift_labels"] = target(after[token]) if token in after else -100
            for name, value in cell.items():
                found[name][number].append(value)
    chosen = {"unshifted": ["labels"], "both": ["labels", "shift_labels"]}.get(labels, [])
    others = [name for name in columns if name not in ("input_ids", "labels")]
    batch = {name: found[name] for name in ["input_ids", *chosen, "attention_mask", *others]}
    if labels == "shifted":
        batch["labels"] = found["shift_labels"]
    named = {name: found[name] for name in ("position_ids", "document_ids")} | {"step": [step for _ in rows]}
    return {**batch, **{name: named[name] for name in extras}}


def rows_of(run: Run) -> list[Row]:
    """All rows of a run in their order: micro-batch by micro-batch, rank by rank."""
    return [row for step in run for micro in step for rank in micro for row in rank]


def batches_of(run: Run, rank: int) -> list[list[Row]]:
    """The batches that one rank sees, one after the other."""
    return [micro[rank] for step in run for micro in step]


# -- batches ----------------------------------------------------------------------------------------------------------


def naive_tensors(
    rows: Sequence[Row],
    length: int,
    *,
    columns: dict[str, Callable[[int], int]],
    labels: str = "unshifted",
    pad_id: int | None = None,
    extras: Sequence[str] = (),
    begins: Callable[[int, int], bool] = lambda before, place: False,
    step: int = 0,
) -> dict[str, list]:
    """A batch as nested lists. Rows hold places and one more for labels; ``columns`` says what is at a place.

    ``pad_id`` is given where rows may be padded; ``begins(before, place)`` says whether a document begins at ``place``,
    which follows ``before`` in its row.
    """

    def read(rows: Sequence[Row], column: Callable[[int], int], nothing: int | None) -> list[list[int | None]]:
        return [[nothing if place is None else column(place) for place in row] for row in rows]

    here, after = [row[:length] for row in rows], [row[1 : length + 1] for row in rows]
    target = columns.get("labels", columns["input_ids"])
    batch: dict[str, list] = {"input_ids": read(here, columns["input_ids"], pad_id)}
    if labels in ("unshifted", "both"):
        batch["labels"] = read(here, target, -100)
    if labels in ("shifted", "both"):
        batch["labels" if labels == "shifted" else "shift_labels"] = read(after, target, -100)
    if pad_id is not None:
        batch["attention_mask"] = [[int(place is not None) for place in row] for row in here]
    for name in columns:
        if name not in ("input_ids", "labels"):
            batch[name] = read(here, columns[name], 0)
    positions, numbers = [], []
    for row in here:
        position, number = [0], [0]
        for before, place in itertools.pairwise(row):
            new = place is not None and begins(before, place)
            position.append(0 if new else position[-1] + 1)
            number.append(number[-1] + (1 if new else 0))
        positions.append(position)
        numbers.append(number)
    named = {"position_ids": positions, "document_ids": numbers, "step": [step for _ in rows]}
    return {**batch, **{name: named[name] for name in extras}}
