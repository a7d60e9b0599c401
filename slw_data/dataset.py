"""The dataset: a run, as a ``torch.utils.data.IterableDataset`` of finished batches.

    source   a store (random access) or a stream (in order)                sources
    plan     length and rows of every step                                 plan
    order    row r of the run is cut from lane r mod num_lanes             order
    form     tensors with labels and extras                                batch

It knows the position of the last batch that it has handed out itself.

Read next: :mod:`slw_data.loader`, which most people use instead of a ``DataLoader``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from slw_data.batch.building import Batch
from slw_data.batch.form import Form
from slw_data.errors import StateError, warn
from slw_data.order.position import Position
from slw_data.plan import SequenceLengthPlan
from slw_data.plan.schedules import Schedule
from slw_data.plan.windows import Windows, rows_of
from slw_data.ranks import Ranks
from slw_data.run import Shuffle, drawn, finished, open_run, plan_of
from slw_data.sources import open_source

__all__ = ["SLWDataset"]


_BATCHED_AGAIN = (
    "set_epoch({}) was called, as a prepared DataLoader does; it would batch these batches again, or deal them to other ranks."
    " They are finished, and of this rank: pass SLWLoader(dataset), which accelerator.prepare leaves as it is, and instead of"
    " Trainer use SLWTrainer of slw_data.integrations.huggingface. Passes are counted without it"
)
_BEGUN_AGAIN = (
    "this run has been read to its end by DataLoader workers, and is read once more from where it began, its short rows first:"
    " make the dataset anew for another run, or one with epochs=... or total_steps=... for a longer one"
)


class SLWDataset(IterableDataset[Batch]):
    """Batches of ``source`` at the sequence length that the schedule wants at each step.

    Iterate it through :class:`slw_data.SLWLoader`, or through ``DataLoader(dataset, batch_size=None)``. Each batch is a
    dict of fresh int64 tensors of shape ``(rows, length)``: ``input_ids``, ``labels``, further columns and extras.

    Args:
        source: a store: ``.bin``/``.npy`` path or list of paths, 1-D integer array or tensor, Hugging Face ``Dataset``,
            ``save_to_disk`` folder, a mapping from column names to these, or what :func:`~slw_data.open_tokens` returns;
            or a stream: Hugging Face ``IterableDataset``, iterable of documents, callable that returns a fresh iterator,
            or what :func:`~slw_data.open_stream` returns.
        schedule_or_plan: a schedule (any callable step -> int), with the arguments of :class:`SequenceLengthPlan`
            beside it; or such a plan.
        batch_size, tokens_per_batch, grad_accum_steps, total_steps, total_tokens: see :class:`SequenceLengthPlan`.
        epochs: passes over the source (default 1). Give at most one of total_steps, total_tokens and epochs; with
            either of the first two the source is read again as often as needed.
        shuffle: for stores: permute blocks of the store, anew in each epoch, and deal them to lanes; in modes "segment" and
            "truncate" whole documents; in mode "pack" these, and the rows of each window.
        seed: of the permutations and draws.
        num_lanes: readers that rows are dealt to, one after the other. Default: 1; with ``shuffle`` so many that batches are
            as good as random rows, which depends on the store alone (:func:`slw_data.order.lanes.open_lanes`).
        num_shards: divide a stream into so many parts, each read by one rank and, there, by one worker; or, in mode "pack",
            the documents of a store, each part packed by one rank. Every step takes as many rows from each, so ``num_shards``
            divides the rows of a step, and any number of ranks that divides it delivers the same run. Needs total_steps or
            total_tokens: a part that ends begins its next pass by itself.
        shuffle_buffer: for streams: so many documents wait, and a random one of them is next. Each shard has a buffer of its
            own. A state keeps the numbers of those that wait, so resuming is exact, and reads again from the oldest of them.
        mode: "stream": documents are joined and cut every ``length`` tokens. "segment": a row never holds two documents;
            the rest of the row is padded. "truncate": one row for each document, the rest of it is discarded. "buckets": a
            store's documents are cut into pieces of the run's lengths, the longest first, and a step takes its rows from the
            pieces of its length, without padding (:class:`slw_data.BucketSchedule`). "pack": rows of several whole documents,
            put together by best fit, with a little padding; only documents that are longer than a row are cut
            (:mod:`slw_data.order.packing`). None is a context for the next: no label leads from one to another.
            "window": rows are those of mode "stream" at the schedule's largest length, at every step, and the scheduled length
            is a window that extras cut them into, for masks (SkyLadder, arXiv 2503.15450). ``plan`` and all counts are of the
            rows; labels are those of mode "stream". A schedule that is only a callable needs an attribute ``max_length``.
        labels: "unshifted": a copy of input_ids, for models that shift inside (Hugging Face). "shifted": the token after
            each, also across the cut. "both": ``labels`` and ``shift_labels``. "none". If "labels" is one of the columns,
            they are made from it.
        columns: parallel per-token columns to deliver, input_ids among them.
        column: where the source has the input_ids: a column of a Hugging Face dataset or of documents that are mappings, or a
            field in one, as ``"meta.ids"``.
        text_column, tokenizer, append_eos: of documents that are read in order, see :func:`~slw_data.open_stream`. With a
            tokenizer a ``Dataset`` and a list of str are texts, which are tokenized as they are read.
        extras: any of "position_ids" (from 0 in each row and in each document of it), "document_ids" (0, 1, ... in each
            row), "step" (the optimizer step, one for each row), "window_ids" (in mode "window": 0, 1, ... in each row;
            position_ids begin anew in each window too), "cu_seq_lens" (the batch as one row of tokens_per_batch
            tokens for variable-length attention; see :mod:`slw_data.batch.flat`).
        vocab_size: check that all token ids are below it.
        eos_id: the token that ends a document, where the source does not know its documents.
        pad_id: fills rows in modes "segment", "truncate" and "pack" (attention_mask 0, label -100), and flat rows (there 0
            without it).
        preserve_eos: in mode "truncate", keep the document's last token as the row's last.
        max_documents: with "cu_seq_lens", bounds for so many sequences in every batch: rows, windows and documents in them, and
            what is left over of the flat row. Those that a batch has not are empty, and max_length is one number for each
            stage. A batch with more is a DataError. "plan": the most that a batch of the run has on any rank, with padding one
            more. Of a store they are counted before anything is read, in about 2 s for each million rows and documents; with
            ``eos_id`` all tokens are read once. Of a stream nobody knows them: write a number.
        flat_multiple_of: with "cu_seq_lens", pad each sequence to a multiple of so many tokens, such as ``2 * cp_size`` for
            context parallelism. Where all are multiples already (lengths and tokens_per_batch are, and no document begins
            within a row), nothing is padded. Else give max_documents: a flat row has tokens_per_batch + max_documents *
            (flat_multiple_of - 1) tokens, rounded up to a multiple.
        bos_id: in mode "pack", the token that each row begins with; the length counts it. Other columns have 0 there.
        sharded: each rank's source is its own part of the data. Needs total_steps.
        dp_rank, dp_world_size: data-parallel coordinates; tensor-, pipeline- and context-parallel peers share them.
            Default: those of ``torch.distributed`` if it is initialised, else 0 of 1.
        mesh: instead of these two: the data-parallel dimension of a ``DeviceMesh``, such as ``device_mesh["dp"]``.

    Raises:
        DataError: a source with other things than token ids, or too few of them.
        ScheduleError: an impossible schedule or batch shape.
        ValueError, TypeError: arguments that contradict each other, or of a wrong kind; each message says what to write.
    """

    def __init__(
        self,
        source: Any,
        schedule_or_plan: Schedule | SequenceLengthPlan,
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        grad_accum_steps: int = 1,
        total_steps: int | None = None,
        total_tokens: int | None = None,
        epochs: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        num_lanes: int | None = None,
        num_shards: int = 1,
        shuffle_buffer: int | None = None,
        mode: str = "stream",
        labels: str = "unshifted",
        columns: Sequence[str] = ("input_ids",),
        column: str = "input_ids",
        text_column: str | None = None,
        tokenizer: Any = None,
        append_eos: int | None = None,
        extras: Sequence[str] = (),
        vocab_size: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        preserve_eos: bool = False,
        max_documents: int | str | None = None,
        flat_multiple_of: int = 1,
        bos_id: int | None = None,
        sharded: bool = False,
        dp_rank: int | None = None,
        dp_world_size: int | None = None,
        mesh: Any = None,
    ) -> None:
        super().__init__()
        form = Form(
            mode, labels, columns, extras, vocab_size, eos_id, pad_id, preserve_eos, max_documents, flat_multiple_of, bos_id
        )
        order = Shuffle(shuffle, seed, num_lanes, num_shards, shuffle_buffer)
        ranks = Ranks.of(dp_rank, dp_world_size, mesh, sharded)
        reading = {"column": column, "text_column": text_column, "tokenizer": tokenizer, "append_eos": append_eos}
        opened = open_source(source, form.columns, form.order, form.vocab_size, form.eos_id, **reading)
        opened = order.over(opened)
        shape = {"batch_size": batch_size, "tokens_per_batch": tokens_per_batch, "grad_accum_steps": grad_accum_steps}
        ends = {"total_steps": total_steps, "total_tokens": total_tokens, "epochs": epochs}
        wanted, ends = drawn(schedule_or_plan, shape, ends, opened, ranks, form.mode)
        rows = rows_of(wanted) if form.mode == "window" else wanted
        plan, passes = plan_of(rows, shape, ends, opened, ranks, form.order == "stream")
        windows = Windows.of(wanted, plan) if form.mode == "window" else None
        self.mode, self.labels, self.columns, self.extras = form.mode, form.labels, form.columns, form.extras
        self.run = open_run(opened, plan, passes, form, order, ranks, windows)
        self._at, self._ended = self.run.batches.order.begin, False
        self._left: int | None = None
        self._phase: int | None = None
        self._begin: tuple[Position, int | None] | None = None  # in a worker: where each loop begins, unless a state is loaded
        self._begun = False
        self.loads = 0  # how often a state was loaded, for loaders that were made before
        # Set by workers, seen by the parent. Memory without a file: one would be left in /dev/shm by a process that is killed.
        shared = torch.frombuffer(mmap.mmap(-1, 2), dtype=torch.uint8)
        self._read_elsewhere, self._finished_elsewhere = shared[:1], shared[1:]

    # -- what is known of the run -------------------------------------------------------------------------------------

    @property
    def plan(self) -> SequenceLengthPlan:
        """The shape of every step. It ends where the run does, if that is known."""
        return self.run.plan

    @property
    def source(self) -> Any:
        """The opened source."""
        return self.run.source

    @property
    def dp_rank(self) -> int:
        return self.run.ranks.rank

    @property
    def dp_world_size(self) -> int:
        return self.run.ranks.world

    @property
    def sharded(self) -> bool:
        return self.run.ranks.sharded

    @property
    def num_batches(self) -> int | None:
        """Batches that this rank delivers in the whole run; None where nobody can know it."""
        return self.run.num_batches

    @property
    def tokens_left(self) -> int | None:
        """Tokens of all ranks that the end of the data leaves over: fewer than a step takes. For a stream it is known once
        this object has met the end, and with several lanes may be more; None before, and for a run that ends by its plan."""
        if self._at.cursor is None:
            return self.run.leftover(self._at)
        return self._left

    @property
    def tokens_discarded(self) -> int:
        """Tokens thrown away so far by mode "truncate", over all ranks (of a divided stream: by this one), in the steps that
        this object has delivered."""
        return self.run.discarded(self._at)

    @property
    def tokens_padded(self) -> int:
        """Padding so far, over all ranks (of a divided stream: of this one), in the steps that this object has delivered: of
        modes "segment", "truncate" and "pack"."""
        return self.run.padding(self._at)

    def describe(self) -> str:
        """The stages as a table, in mode "window" the windows as another, and below them the order: how many documents a step
        and 100 steps hold, and what is left over at the end. Nothing is read for it. Of a store without an index of documents,
        places are counted instead."""
        left = self.run.leftover(self._at) if self._at.cursor is None else None
        end = "" if left is None else f"; {left:,} tokens are left over at the end"
        windows = "" if self.run.windows is None else f"{self.run.windows.describe()}\n"
        return f"{self.plan.describe()}\n{windows}{self.run.batches.describe()}{end}"

    # -- iteration ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on; in a ``DataLoader`` worker, every ``num_workers``-th of them."""
        info = get_worker_info()
        if info is None:
            self.run.ranks.check()
            self._read_elsewhere.zero_()
            self._finished_elsewhere.zero_()
            if self._ended:
                warn(
                    "this dataset has been iterated to its end, so iterating it again yields nothing: make it anew, or iterate"
                    " an SLWLoader, whose reset() starts over",
                )
            return self._iterate(self._at, 0, 1, None)
        self.mark_read_elsewhere()
        self.run.check_workers(info.num_workers)
        begin = self._keep_begin()
        if self._begun:  # a persistent worker has made more batches than were delivered, and nobody tells it how many
            self._at, self._phase = begin
        self._begun = True
        if info.id == 0 and self._finished_elsewhere.item():
            warn(_BEGUN_AGAIN)
        phase = info.id if self._phase is None else self._phase
        return self._iterate(self._at, phase, info.num_workers, 1)

    def _iterate(self, at: Position, worker: int, num_workers: int, size: int | None) -> Iterator[Batch]:
        chunks, ended, some = self.run.batches.chunks(at, worker, num_workers, size), self._ended, False
        while True:
            try:
                chunk = next(chunks)
            except StopIteration as end:
                self._ended, self._left = num_workers == 1, end.value
                in_worker = get_worker_info() is not None
                self._finished_elsewhere.fill_(in_worker)
                if not (some or ended or worker or (in_worker and at.step)):  # a worker may have nothing left to read
                    warn(finished(at.step, self.source.name))
                return
            some = True
            for i, batch in enumerate(self.run.build(chunk)):
                self._at = chunk.position(i)
                self._phase = num_workers - 1 if num_workers > 1 else None  # this worker's next batch is so much further
                yield batch

    def _keep_begin(self) -> tuple[Position, int | None]:
        if self._begin is None:
            self._begin = self._at, self._phase
        return self._begin

    def set_epoch(self, epoch: int) -> None:
        """ValueError: only those call it who would deal or batch again, as Accelerate's and the Trainer's loaders do."""
        raise ValueError(_BATCHED_AGAIN.format(epoch))

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where this object stands, after the last batch that it has handed out itself."""
        return self._at

    def mark_read_elsewhere(self) -> None:
        """From now on something else knows which batch was delivered last."""
        self._read_elsewhere.fill_(1)

    def state_dict(self) -> dict[str, Any]:
        """The state of the last batch that this object has handed out; see :mod:`slw_data.state` for its keys.

        StateError where other processes or an :class:`SLWLoader` do the reading (ask the loader), and for a source that
        cannot be read again exactly.
        """
        info = get_worker_info()
        if info is None and self._read_elsewhere.item():
            raise StateError(
                "this dataset is read by DataLoader workers or by an SLWLoader, so the object here does not know which batch"
                " was delivered last: use loader.state_dict() of an SLWLoader (or of torchdata's StatefulDataLoader)"
            )
        state = self.run.state_at(self._at)
        if info is not None:
            state["worker_phase"] = info.id if self._phase is None else self._phase
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, strict: bool = True
    ) -> None:
        """Continue where ``state_dict`` was saved, from the next ``iter()`` on; of a divided stream the states of all ranks.

        Raises StateError, and changes nothing, if any field does not fit this run; ``strict=False`` only warns where the
        plan, the source or the order differ.
        """
        state, info, phase = state_dict, get_worker_info(), None
        if isinstance(state, Mapping):
            state = dict(state)
            phase = state.pop("worker_phase", None)
        workers = 0 if info is None else info.num_workers
        if phase is not None and (type(phase) is not int or not 0 <= phase < workers):
            raise StateError(
                f"worker_phase={phase} marks the state of one DataLoader worker, and there are {workers} here: load it through"
                " a StatefulDataLoader with as many workers, or save the state of an SLWLoader, which fits any number"
            )
        if info is None and self._read_elsewhere.item():
            raise StateError(
                "this dataset is read by DataLoader workers or by an SLWLoader, which would not see the state: load it into the"
                " loader, loader.load_state_dict(state)"
            )
        at = self.run.parse(state, strict=strict)
        if info is not None:
            self._keep_begin()
        self._at, self._phase, self._ended, self._begun = at, phase, False, False
        self._finished_elsewhere.zero_()
        self.loads += 1
