"""Break the library one line at a time, and see whether the tests notice: ``python -m tests.mutants``.

Each fault is put into a copy of the project, and the tests beside it run there until one fails. A fault that no test
notices is printed as SURVIVED, and the exit status is 1. Slow: a minute or so a fault; ``-k TEXT`` picks some.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIME_LIMIT = 1200  # seconds for one run of the tests; the whole suite takes about six minutes

# (fault, file, line as it is, line as it becomes, tests that run first)
FAULTS = [
    (
        "a state of a step is taken by other ranks within it",
        "order/divided.py",
        'if at.batch and kept["world"] != self.world:',
        "if False:",
        "divided",
    ),
    (
        "shards of several states are mixed",
        "order/divided.py",
        "if checksum != _mark(mark, number, kept):",
        "if False:",
        "divided",
    ),
    (
        "workers leave a shard out",
        "batch/divided.py",
        "first, stop = (k * len(numbers) // num_workers",
        "first, stop = (k * (len(numbers) - 1) // num_workers",
        "divided",
    ),
    (
        "a rank goes on at the beginning of its step",
        "batch/divided.py",
        "begin, before = at.batch, at.cursor",
        "begin, before = 0, at.cursor",
        "divided",
    ),
    (
        "each rank reads the first shards",
        "run.py",
        "mine = range(ranks.rank * count // ranks.world, (ranks.rank + 1) * count // ranks.world)",
        "mine = range(count // ranks.world)",
        "divided",
    ),
    (
        "what waits is not what was drawn",
        "sources/streams/shuffled.py",
        "numbers[slot], arrays[slot] = numbers[-1], arrays[-1]",
        "arrays[slot] = arrays[-1]",
        "shuffle_buffer",
    ),
    (
        "a buffer is read again too late",
        "sources/streams/shuffled.py",
        "oldest = min([self.read, *waiting])",
        "oldest = self.read",
        "shuffle_buffer",
    ),
    (
        "workers may read other documents",
        "delivery/sameness.py",
        "if digest != mark.digest:",
        "if False:",
        "sameness",
    ),
    # what is delivered, and where the run stands then
    (
        "state frozen after a resume",
        "loader.py",
        "delivered, self._last = True, made[:2]",
        "delivered = True",
        "resume",
    ),
    (
        "what is read ahead counts as delivered",
        "batch/chunk.py",
        "Position(*place(self.stage, self.numbers[i] + 1))",
        "Position(*place(self.stage, self.numbers[-1] + 1))",
        "resume",
    ),
    (
        "what is read ahead of a stream counts as delivered",
        "batch/chunk.py",
        "return self.after[i] if",
        "return self.after[-1] if",
        "resume",
    ),
    (
        "position is one batch behind",
        "batch/chunk.py",
        "Position(*place(self.stage, self.numbers[i] + 1))",
        "Position(*place(self.stage, self.numbers[i]))",
        "resume",
    ),
    ("stale iterators go on", "loader.py", "if moves != self._moves:", "if False:", "resume"),
    ("a store begins its step anew", "batch/stored.py", "0, (at.step, at.batch), self", "0, (at.step, 0), self", "resume"),
    (
        "a stream begins its step anew",
        "order/documents.py",
        "begun = at.batch * order.plan",
        "begun = 0 * order.plan",
        "resume",
    ),
    (
        "within a step a stream stands at its end",
        "order/documents.py",
        "row = self.plan.rows_before(at.step)",
        "row = self.plan.rows_before(at.step + (at.batch > 0))",
        "resume",
    ),
    (
        "padded tokens are one micro-batch behind",
        "order/documents.py",
        "tokens = delivered + np.cumsum(",
        "tokens = delivered + 0 * np.cumsum(",
        "dataset_streams",
    ),
    (
        "a stream is read a step too little",
        "order/documents.py",
        "self.reader(self.begin), self.plan.rows_before(step)",
        "self.reader(self.begin), self.plan.rows_before(step - 1)",
        "resume",
    ),
    (
        "rows within a step are not counted",
        "state.py",
        "rows = self.plan.rows_before(at.step) + self.rows_within(at)",
        "rows = self.plan.rows_before(at.step)",
        "resume",
    ),
    ("a place within a micro-batch is taken", "state.py", "    if rest:\n", "    if False:\n", "resume"),
    ("a step is handed out before it is whole", "loader.py", "if self.position.batch == 0:", "if True:", "growing_batches"),
    ("a step is handed out with those before", "loader.py", "                batches = []\n", "", "growing_batches"),
    ("a thread goes on after close", "delivery/reading.py", "while self._thread.is_alive():", "while False:", "shared_state"),
    ("a loader does not see what its dataset loads", "dataset.py", "self.loads += 1", "self.loads += 0", "shared_state"),
    (
        "a loader that has moved lets its dataset load",
        "loader.py",
        "self.dataset.mark_read_elsewhere()\n        self._last",
        "self._last",
        "loops_again",
    ),
    (
        "a state that comes too late is passed over",
        "loader.py",
        "if self._moved and self._loads",
        "if False and self._loads",
        "loops_again",
    ),
    ("a worker that lives on begins where it has read to", "dataset.py", "if self._begun:", "if False:", "loops_again"),
    (
        "a copy of a loader begins anew",
        "loader.py",
        '"_last": (self.position, 0), "_iterators"',
        '"_last": (Position(), 0), "_iterators"',
        "shared_state",
    ),
    (
        "a forked child ends its parent's workers",
        "delivery/reading.py",
        "_of_parents.append(self._messages)",
        "pass",
        "shared_state",
    ),
    # documents
    (
        "carry off by one",
        "order/cutting.py",
        "places[short], left[short] = begin - left[short],",
        "places[short], left[short] = begin - left[short] + 1,",
        "dataset_streams",
    ),
    (
        "a lane is dealt to before it runs dry",
        "order/cutting.py",
        "short = np.flatnonzero(left < length)",
        "short = np.flatnonzero(left <= length)",
        "dealing",
    ),
    (
        "no label waits for the lane's next row",
        "order/cutting.py",
        "waiting.follow[waiting.at] = start",
        "pass",
        "dealing",
    ),
    (
        "an error overtakes a label",
        "order/documents.py",
        "return count if self.window.failure is None else self.known_rows(count)",
        "return count",
        "dealing",
    ),
    (
        "the schedule is asked beyond the run",
        "order/documents.py",
        "self._step if total is None else min(self._step, total - 1)",
        "self._step",
        "dealing",
    ),
    (
        "a batch overtakes the error of another worker",
        "delivery/workers.py",
        "if chunk.first == self._next:",
        "if True:",
        "loader",
    ),
    (
        "an error met early is forgotten",
        "order/dealing.py",
        "self.failure = error",
        "pass",
        "dealing",
    ),
    (
        "a begun document is forgotten",
        "order/cutting.py",
        "lanes[begun, 0], lanes[begun, 1] = numbers,",
        "lanes[begun, 0], lanes[begun, 1] = -1,",
        "resume",
    ),
    (
        "the oldest document is not the one to read from",
        "order/cutting.py",
        "oldest = int(numbers.min())",
        "oldest = int(numbers.max())",
        "resume",
    ),
    (
        "epoch lost",
        "order/dealing.py",
        "self._epoch, self._barren, self._begins = self._epoch + 1, True, True",
        "self._barren, self._begins = True, True",
        "dealing",
    ),
    (
        "a source with one position serves two",
        "sources/streams/turns.py",
        "if mine != self._number:",
        "if False:",
        "loops_again",
    ),
    # who makes which batch
    (
        "worker stride off",
        "batch/stored.py",
        "if number % num_workers == worker:",
        "if number % (num_workers + 1) == worker:",
        "loader",
    ),
    (
        "workers all read everything",
        "batch/stored.py",
        "if number % num_workers == worker:",
        "if True:",
        "dataset_ranks",
    ),
    ("ranks swapped", "order/store.py", "* world + rank) * rows", "* world + world - 1 - rank) * rows", "rows"),
    (
        "every rank is rank 0 of a stream",
        "order/documents.py",
        "values.reshape(shape)[:, rank].ravel() for",
        "values.reshape(shape)[:, 0].ravel() for",
        "dataset_ranks",
    ),
    # labels and extras
    (
        "labels not moved across the cut",
        "batch/form.py",
        'parts[NEXT] = (target, 1)',
        'parts[NEXT] = (target, 0)',
        "dataset",
    ),
    (
        "labels are the inputs of several lanes",
        "batch/reading.py",
        "blocks[column][:, shift : shift + width]",
        "blocks[column][:, :width]",
        "rows",
    ),
    (
        "padding is a target",
        "batch/building.py",
        "target.astype(np.int64), IGNORE)",
        "target.astype(np.int64), 0)",
        "dataset_streams",
    ),
    ("a label crosses flat rows", "batch/flat.py", "part[:, :, 0] = IGNORE", "pass", "flat"),
    (
        "position ids run on over documents",
        "batch/building.py",
        "np.where(self._begins(chunk), column, 0)",
        "np.where(self._begins(chunk), 0, 0)",
        "dataset",
    ),
    (
        "only the first run of a chunk jumps",
        "batch/reading.py",
        "return np.concatenate([run[jumps], run[span]]),",
        "return np.concatenate([0 * run[jumps], run[span]]),",
        "rows",
    ),
    # windows, and flat rows of fixed shapes
    (
        "windows are no sequences",
        "batch/building.py",
        "begins |= np.arange(chunk.length) % self._windows(chunk) == 0",
        "pass",
        "window",
    ),
    ("the first window holds on", "batch/building.py", "[self.windows.at(step) for", "[self.windows.at(0) for", "window"),
    ("a window changes within a step", "plan/windows.py", "plan.step_at(tokens - 1) + 1", "plan.step_at(tokens)", "window"),
    ("a window may be longer than a row", "plan/windows.py", "if window > self.length:", "if False:", "window"),
    ("rows grow with the windows", "dataset.py", 'rows_of(wanted) if form.mode == "window" else', "", "window"),
    ("one sequence too many is joined", "batch/flat.py", "> self.most)", "> self.most + 1)", "fixed_shapes"),
    ("what follows padding is a target", "batch/flat.py", "rooms[:-1] > sizes[:-1]", "rooms[:-1] < sizes[:-1]", "fixed_shapes"),
    ("the rest is no sequence", "batch/flat.py", "axis=(1, 2)) + rest", "axis=(1, 2))", "fixed_shapes"),
    ("the rest may be longer than the longest", "batch/flat.py", ", self.tokens - used)", ", 0)", "fixed_shapes"),
    ("batches pad into each other", "batch/flat.py", "batch * self.tokens + before", "batch + before", "fixed_shapes"),
    ("a document with a window counts twice", "batch/shapes.py", "window[batch] > 0", "window[batch] >= 0", "fixed_shapes"),
    (
        "a document counts for another batch",
        "batch/shapes.py",
        "spans.width if spans.by_lane",
        "spans.width if False",
        "fixed_shapes",
    ),
    ("places that come twice count twice", "batch/shapes.py", "prepend=-1) > 0", "prepend=-1) >= 0", "fixed_shapes"),
    ("other ranks are not counted", "batch/shapes.py", "range(order.plan.world_size)", "range(1)", "fixed_shapes"),
    ("the rest is not counted", "batch/shapes.py", "windows) + rest(stage))", "windows))", "fixed_shapes"),
    (
        "lanes that jump are not counted",
        "order/store.py",
        "return not self.lanes.in_order or tokens is None or",
        "return",
        "fixed_shapes",
    ),
    ("padding has no room", "batch/shapes.py", "budget + (most or 0) * (multiple - 1)", "budget", "fixed_shapes"),
    ("what is even is padded", "batch/shapes.py", "(documents or bool(uneven))", "True", "fixed_shapes"),
    ("pieces that go on are jumps", "order/spans.py", "if not goes_on.any():", "if True:", "shared_state"),
    (
        "a second piece is put over the first",
        "batch/reading.py",
        "out[run, at : at + size] = store",
        "out[run, :size] = store",
        "rows",
    ),
    (
        "rows of several lanes in the order of the lanes",
        "batch/chunk.py",
        ".transpose(1, 2, 0, 3)",
        ".transpose(1, 0, 2, 3)",
        "rows",
    ),
    (
        "a run in order goes on beyond the store",
        "order/store.py",
        "if start + width <= self.lanes.num_tokens:",
        "if True:",
        "rows",
    ),
    # the lanes of a store
    ("the data has no end", "order/store.py", "if self.epochs is not None and look:", "if False:", "rows"),
    (
        "a token that is not there is a label",
        "batch/reading.py",
        "chunk.valid_next = valid[:, 1:]",
        "pass",
        "dataset",
    ),
    ("one order for all epochs", "order/lanes.py", "(self.seed, epoch))", "(self.seed, 0))", "lanes"),
    (
        "the tail of an epoch is lost",
        "order/lanes.py",
        "lanes * self.tail + np.minimum",
        "0 * self.tail + np.minimum",
        "lanes",
    ),
    (
        "lanes forget a change of length",
        "order/lanes.py",
        "base = base + (before.length - stage.length)",
        "base = base + 0 * (before.length - stage.length)",
        "lanes",
    ),
    ("twice as many lanes by default", "order/lanes.py", "isqrt(num_tokens) // 4", "isqrt(num_tokens) // 2", "lanes"),
    (
        "a lane by default is one block however long",
        "order/lanes.py",
        "blocks = max(1, num_tokens // num_lanes // _WHOLE)",
        "blocks = 1",
        "lanes",
    ),
    (
        "lanes by default follow the batch",
        "run.py",
        "source.num_tokens, shuffle.num_lanes,",
        "source.num_tokens, shuffle.num_lanes or (plan.global_rows(0) if shuffle.shuffle else None),",
        "dataset",
    ),
    # the rest
    ("the rest begins a step late", "order/store.py", "True, key=too_few)", "True, key=too_few) + 1", "rows"),
    (
        "the rest begins a step early",
        "order/store.py",
        "step = bisect_left(range(self.plan.total_steps or 0), True, key=too_few)",
        "step = max(0, bisect_left(range(self.plan.total_steps or 0), True, key=too_few) - 1)",
        "rows",
    ),
    ("the rest is bounded by whole lanes", "order/store.py", "np.cumsum(ends - delivered)", "np.cumsum(ends)", "rows"),
    ("the rest is read from its lanes' beginnings", "order/store.py", "rest.delivered[lanes] + low", "low", "rows"),
    (
        "the rest begins anew in each stage",
        "order/store.py",
        "begin = stage.tokens_before - self.plan.tokens_before(rest.step) + (rows",
        "begin = (rows",
        "rows",
    ),
    (
        "a row of the rest has no next token",
        "order/store.py",
        "self._in_rest(rest, stage, starts, width + look)",
        "self._in_rest(rest, stage, starts, width)",
        "rows",
    ),
    (
        "a chunk goes on into the rest",
        "batch/stored.py",
        "stop if limit is None else min(stop, limit)",
        "stop",
        "rows",
    ),
    (
        "the epoch of the rest is that of its lane",
        "order/store.py",
        "if self.rest is not None and step >= self.rest.step:",
        "if False:",
        "loops_again",
    ),
    ("a state forgets that it is in the rest", "state.py", '"rest": self.order.rest_at(at),', '"rest": None,', "state"),
    ("the rest begins with its first step's state", "order/store.py", "> (self.rest", ">= (self.rest", "state"),
    ("one pass is counted of what is left", "order/store.py", "self.epochs * self.lanes.num", "self.lanes.num", "dataset"),
    ("a document in two pieces counts twice", "order/diversity.py", "np.maximum(first, seen + 1)", "first", "diversity"),
    # documents of a store
    ("one order of documents for all passes", "order/circle.py", "(self.seed, epoch))", "(self.seed, 0))", "circle"),
    ("a circle is saved unturned", "order/circle.py", "-1), -self._turn)", "-1), 0)", "circle"),
    ("describe() forgets the rest", "order/diversity.py", "if (order.rest is not None and", "if (False and", "diversity"),
    ("a finished run in workers is not seen", "dataset.py", "fill_(in_worker", "fill_(False", "loops"),
    ("the last documents are not opened", "order/circle.py", "(~kept)[:documents]] = True", "(~kept)[:0]] = True", "circle"),
    ("what is skipped does not count", "order/circle.py", "+= held + opened -", "+= 0 *", "circle"),
    ("a step that cannot be filled is begun", "order/circle.py", "(left // each + begun) //", "1 + left //", "circle"),
    ("a label beyond its document", "order/circle.py", "np.minimum(left, width)", "np.full(len(run), width)", "circle"),
    ("other workers' rows are not passed over", "batch/stored.py", "self.order.skip(stage, there, reader)", "pass", "circle"),
    ("padding is read over", "batch/reading.py", "if spans.filled is not None and whole.any():", "if False:", "circle"),
    ("a chunk is read again from its end", "order/circle.py", "batch, reader.before))", "batch, reader.opened))", "circle"),
    ("documents found in windows only", "sources/stores/documents.py", "+ start + 1)", "+ 1)", "circle"),
    ("buckets share one permutation", "order/buckets.py", "* len(self.buckets.lengths) + bucket", "", "buckets"),
    ("a piece begins before the longer ones", "order/buckets.py", "starts += (end -", "starts += 0 * (end -", "buckets"),
    ("a bucket gives a step too many", "order/buckets.py", "steps = (self.epochs *", "steps = 1 + (self.epochs *", "buckets"),
    ("rows of former stages come again", "order/buckets.py", "stage.rows_before - before.rows_before", "0", "buckets"),
    ("a draw is not told of the last", "plan/drawn.py", "int(where[n - 1]) + 1", "int(where[n - 1]) + 2", "buckets"),
    ("items go where most room is", "order/packing.py", "= bisect_left(left, size << shift)", "= len(left) - 1", "packing"),
    ("short items are packed first", "order/packing.py", "np.argsort(-sizes", "np.argsort(sizes", "packing"),
    ("pieces stay apart", "order/packing.py", "| (places[1:] != places[:-1] + sizes[:-1])", "| True", "packing"),
    ("one order of rows for all windows", "order/packed.py", "*divmod(number, self.in_pass)) if", "0, 0) if", "packing"),
    ("a window used up is the cursor", "order/packed.py", "if taken == rows.count:\n", "if False:\n", "packing"),
    ("former lengths are lost", "order/packed.py", "_before = self._at(rows, self._taken, 0).rows", "_before = ()", "packing"),
    ("filled rows are counted as one", "order/packing.py", "+ some] += filled", "+ some] += 1", "packing"),
    ("a label leads to the next document", "batch/building.py", "chunk.valid & ~chunk.starts", "chunk.valid", "packing"),
    ("a label after the last token", "order/packed.py", "sizes - 1 + follows + begins", "sizes + begins", "packing"),
    ("bos is no context", "order/packed.py", "& (lead > 0)", "& False", "packing"),
    (
        "padding is of the last document",
        "batch/building.py",
        "begins |= _padding_begins(chunk)",
        "pass",
        "packing",
    ),
    ("bos counts as padding", "state.py", "if self.begun:", "if False:", "packing"),
    ("a window goes on in the next pass", "order/packed_stream.py", "min([wanted, *others])", "wanted", "packing"),
    ("half a window is packed", "order/packed_stream.py", "else begin\n", "else documents.known.stop\n", "packing"),
    ("a window begins with its block", "order/packed_stream.py", "lead, cursor.next)", "lead, cursor.first)", "packing"),
    ("parts of a store are the same", "order/circle.py", "* self.parts + self.part", "* self.parts", "packing"),
    ("parts have as many documents as the store", "order/circle.py", "(self.whole - self.part)", "(self.whole)", "packing"),
    # the plan
    (
        "rounding to the nearest rung",
        "plan/schedules.py",
        "-(-(length - self.min_length) * duration //",
        "((length - self.min_length) * duration //",
        "schedules",
    ),
    ("the warmup ends a step late", "plan/schedules.py", "if step >= duration or", "if step > duration or", "schedules"),
    (
        "a fraction is one of all steps but the last",
        "plan/schedules.py",
        "round(self.warmup_fraction * total_steps)",
        "round(self.warmup_fraction * (total_steps - 1))",
        "plan",
    ),
    (
        "a fraction of a run of tokens is of a step more",
        "plan/layout.py",
        "return held(steps) <= steps",
        "return held(steps) < steps",
        "plan",
    ),
    (
        "rows not rounded down",
        "plan/stages.py",
        "shape = (length, size // length if",
        "shape = (length, -(-size // length) if",
        "plan",
    ),
    (
        "accumulation left out of a step's tokens",
        "plan/timeline.py",
        "return length * rows * accumulation * self.world_size",
        "return length * rows * self.world_size",
        "plan",
    ),
    (
        "accumulation left out of a step's rows",
        "plan/timeline.py",
        "return rows * accumulation * self.world_size",
        "return rows * self.world_size",
        "plan",
    ),
    ("batches before a step are steps", "plan/timeline.py", "held * self._layout.shapes[number][2]", "held", "plan_joint"),
    ("a part of the data counts as the whole", "plan/plan.py", "_parts=self._parts * self.world_size", "_parts=1", "plan"),
    (
        "rows before a change of rows are the new ones",
        "plan/stages.py",
        "rows = held * last_rows * last_accumulation",
        "rows = held * shape[1] * last_accumulation",
        "plan",
    ),
    (
        "batches before a change of accumulation are the new ones",
        "plan/stages.py",
        "rows = held * last_rows * last_accumulation",
        "rows = held * last_rows * accumulation",
        "plan_joint",
    ),
    (
        "a change of rows alone is no stage",
        "plan/stages.py",
        "shape == self.shapes[-1]:",
        "length == self.shapes[-1][0]:",
        "plan_joint",
    ),
    (
        "the nearer of two changes is passed over",
        "plan/layout.py",
        "min(following), tokens + (min(following) - step)",
        "max(following), tokens + (max(following) - step)",
        "plan_joint",
    ),
    ("a change by tokens is a step late", "plan/stages.py", "(tokens - at) // each", "(tokens - at) // each + 1", "plan"),
    (
        "a change by tokens is a step early beside a callable",
        "plan/reading.py",
        "source.at(s, tokens) if",
        "source.at(s, tokens + each) if",
        "plan_joint",
    ),
    (
        "a plan that is read on counts its tokens anew",
        "plan/reading.py",
        "tokens = self._tokens_read() if self.starts else 0",
        "tokens = 0",
        "plan_joint",
    ),
    # what a state must agree with
    ("a past ignores lengths", "plan/stages.py", "self.open[:2] == (length, rows)", "self.open[1] == rows", "plan_joint"),
    ("a past ignores rows", "plan/stages.py", "self.open[:2] == (length, rows)", "self.open[0] == length", "plan_joint"),
    (
        "a past does not say how long its stages were",
        "plan/stages.py",
        "Past(_digest(self.digest, *self.open),",
        "Past(_digest(self.digest, *self.open[:2]),",
        "plan_joint",
    ),
    ("a past leaves the open step out", "plan/timeline.py", "at_least=0) + (batch > 0)", "at_least=0)", "state"),
    (
        "a past is one of micro-batches",
        "plan/timeline.py",
        "rows * accumulation * self._layout.shape",
        "rows * self._layout.shape",
        "resume",
    ),
    ("another run's state is taken", "state.py", "if strict or other_rank or", "if other_rank or", "state"),
    ("a damaged state is taken", "state.py", 'if not _equal(state["checksum"], checksum):', "if False:", "state"),
    ("a run in the rest gets other epochs", "state.py", ' or "rest" in differing or not', " or not", "state"),
    ("a stream goes on from version 1", "state.py", "if keys is KEYS_1 and identity", "if False and identity", "state"),
    # processes, files and ranks
    ("half a message is awaited for long", "delivery/workers.py", "1 + (timeout or LOOKS", "9 + (timeout or LOOKS", "loader"),
    ("a torn state file is taken", "delivery/checkpoint.py", 'if found["sha256"] != digest:', "if False:", "checkpoint"),
    ("a state does not reach the disk", "delivery/checkpoint.py", "os.fsync(file)", "pass", "checkpoint"),
    ("a failed save leaves its file", "delivery/checkpoint.py", "os.unlink(temporary)", "pass", "checkpoint"),
    ("ranks that differ agree", "delivery/agreement.py", "if len(ranks) == 1:", "if ranks:", "agreement"),
    ("a rank fails alone", "delivery/agreement.py", "failure, own = error, {", "raise; failure, own = error, {", "agreement"),
    # beside the data
    ("a text is a flag", "arguments.py", "if not isinstance(value, (bool, np.bool_)):", "if value is None:", "fuzz"),
    ("ids above the vocabulary pass", "sources/ids.py", "if int(unsigned.max()) < limit:", "if True:", "dataset"),
    ("the rate follows steps", "training.py", "return fn(plan.tokens_before(step))", "return fn(step)", "training"),
    ("the rate follows the lengths", "training.py", "plan.batch(step) / first", "plan.tokens(step) / first", "growing_batches"),
    ("DeepSpeed a step late", "compat.py", "float(step + 1) / total", "float(step) / total", "compat"),
    (
        "Megatron a step late",
        "compat.py",
        "-(-(threshold - rows) // (kept[-1] * share))",
        "(threshold - rows) // (kept[-1] * share) + 1",
        "growing_batches",
    ),
    (
        "a cut batch shares the caller's memory",
        "functional.py",
        "value.clone(memory_format=torch.contiguous_format)",
        "value.contiguous()",
        "functional",
    ),
    ("a warmup that fluctuates is found", "tuning.py", "durations[beyond - 1]", "durations[beyond % len(durations)]", "tuning"),
]


def run(fault: tuple[str, str, str, str, str], folder: Path) -> str:
    _, file, line, broken, first = fault
    for name in ("slw_data", "tests", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    path = folder / "slw_data" / file
    text = path.read_text(encoding="utf-8")
    if text.count(line) != 1:
        return f"STALE: the line is there {text.count(line)} times"
    path.write_text(text.replace(line, broken), encoding="utf-8")
    for tests in (sorted(map(str, (folder / "tests").glob(f"test_{first}*.py"))), [str(folder / "tests")]):
        outcome = red(tests, folder)
        if outcome:
            return outcome
    return "SURVIVED"


def red(tests: list[str], folder: Path) -> str | None:
    """What became of the tests: killed where one failed, and by which; None where all passed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder)}  # for processes that the tests start: the library as it is broken
    options = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        output, _ = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "killed (it hangs)"
    if process.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S*?(test_\w+\.py::\w+)", output, re.MULTILINE)
    if failed:  # pytest-xdist stops with 2, pytest alone with 1
        return f"killed by {failed[1]}"
    return f"BROKEN: pytest ended with {process.returncode}, and no test failed\n{output[-2000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-k", default="", help="only faults whose name holds this text")
    chosen = [fault for fault in FAULTS if parser.parse_args().k in fault[0]]
    outcomes = []
    for fault in chosen:
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(run(fault, Path(folder)))
        print(f"{fault[0]:<52} {outcomes[-1]}", flush=True)
    killed = sum(outcome.startswith("killed") for outcome in outcomes)
    print(f"{len(outcomes)} faults, {killed} killed, {len(outcomes) - killed} not")
    return int(killed < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
