"""The dataset: a source, a plan and an order, as a ``torch.utils.data.IterableDataset`` of finished batches.

    source   a store (random access) or a stream (in order)                stores, streams
    order    row r of the run is cut from lane r mod num_lanes             lanes + rows, or dealing + documents
    plan     length and rows of every step                                 schedules, plan
    batch    tensors with labels and extras                                batches

It decides which rows this rank and this worker make, and knows the position of the last batch it has handed out.

Read next: :mod:`slw_data.loader`, which most people use instead of a ``DataLoader``.
"""

from __future__ import annotations

import mmap
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from slw_data.arguments import choice, flag, given, integer, names, token_id
from slw_data.batch.building import EXTRAS, LABELS, Batch, BatchBuilder
from slw_data.batch.chunk import Chunk
from slw_data.batch.documents import MODES, DocumentRows
from slw_data.batch.rows import StoreRows
from slw_data.errors import DataError, ScheduleError, StateError
from slw_data.order.dealing import Snapshot
from slw_data.order.lanes import Lanes
from slw_data.plan import SequenceLengthPlan
from slw_data.plan.schedules import Schedule
from slw_data.ranks import coordinates
from slw_data.sources import Stores, open_source
from slw_data.state import Identity, Position, dump_state, parse_state

__all__ = ["SLWDataset"]

_STREAM_MESSAGE = 16  # batches of a stream that a worker sends at once: each carries its position, so all count


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
        shuffle: for stores: permute blocks of the store, anew in each epoch, and deal them to lanes.
        seed: of the permutations.
        num_lanes: readers that the rows of a batch are dealt to. Default: 1, or with ``shuffle`` the rows of a whole
            step at the longest length.
        mode: "stream": documents are joined and cut every ``length`` tokens. "segment": a row never holds two documents;
            the rest of the row is padded. "truncate": one row for each document, the rest of it is discarded.
        labels: "unshifted": a copy of input_ids, for models that shift inside (Hugging Face). "shifted": the token after
            each, also across the cut. "both": ``labels`` and ``shift_labels``. "none". If "labels" is one of the columns,
            they are made from it.
        columns: parallel per-token columns to deliver, input_ids among them.
        extras: any of "position_ids" (from 0 in each row and in each document of it), "document_ids" (0, 1, ... in each
            row), "step" (the optimizer step, one for each row), "cu_seq_lens" (the batch as one row of tokens_per_batch
            tokens for variable-length attention; see :mod:`slw_data.batch.flat`).
        vocab_size: check that all token ids are below it.
        eos_id: the token that ends a document, where the source does not know its documents.
        pad_id: fills rows in modes "segment" and "truncate" (attention_mask 0, label -100).
        preserve_eos: in mode "truncate", keep the document's last token as the row's last.
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
        mode: str = "stream",
        labels: str = "unshifted",
        columns: Sequence[str] = ("input_ids",),
        extras: Sequence[str] = (),
        vocab_size: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        preserve_eos: bool = False,
        sharded: bool = False,
        dp_rank: int | None = None,
        dp_world_size: int | None = None,
        mesh: Any = None,
    ) -> None:
        super().__init__()
        self.mode, self.labels = choice("mode", mode, MODES), choice("labels", labels, LABELS)
        self.columns, self.extras = names("columns", columns, None), names("extras", extras, EXTRAS)
        if "input_ids" not in self.columns:
            raise ValueError(f"columns must hold 'input_ids', got {self.columns}")
        self.shuffle, self.sharded, preserve_eos = (
            flag(name, value)
            for name, value in (("shuffle", shuffle), ("sharded", sharded), ("preserve_eos", preserve_eos))
        )
        self.seed = integer("seed", seed, at_least=0)
        self.vocab_size = None if vocab_size is None else integer("vocab_size", vocab_size, at_least=1)
        self.eos_id, self.pad_id = (token_id(n, x, self.vocab_size) for n, x in (("eos_id", eos_id), ("pad_id", pad_id)))
        _check_mode(mode, shuffle=self.shuffle, pad_id=self.pad_id, preserve_eos=preserve_eos)
        self.epochs = None if epochs is None else integer("epochs", epochs, at_least=1)
        self._explicit_ranks = any(x is not None for x in (dp_rank, dp_world_size, mesh))
        self.dp_rank, self.dp_world_size = coordinates(dp_rank, dp_world_size, mesh)  # the mesh itself cannot be pickled
        self.source = open_source(source, self.columns, mode=mode, vocab_size=self.vocab_size, eos_id=self.eos_id)
        shape = {"batch_size": batch_size, "tokens_per_batch": tokens_per_batch, "grad_accum_steps": grad_accum_steps}
        self.plan = self._make_plan(schedule_or_plan, shape, total_steps, total_tokens)
        self._check_source()
        flat = self._tokens_of_flat_rows()
        self._builder = BatchBuilder(labels, self.columns, self.extras, self.plan.grad_accum_steps, mode != "stream", flat)
        self._cut_by(num_lanes, preserve_eos)
        self._at = self._begin = Position(0, None if self._stores else Snapshot())
        self._phase: int | None = None
        # Set by workers, seen by the parent. Memory without a file: one would be left in /dev/shm by a process that is killed.
        self._read_elsewhere = torch.frombuffer(mmap.mmap(-1, 1), dtype=torch.uint8)

    # -- construction -------------------------------------------------------------------------------------------------

    @property
    def _stores(self) -> Stores | None:
        """The stores that are read by arithmetic: those of mode "stream"."""
        return self.source if isinstance(self.source, Stores) else None

    def _make_plan(
        self, wanted: Any, shape: dict[str, Any], total_steps: int | None, total_tokens: int | None
    ) -> SequenceLengthPlan:
        ends = {"total_steps": total_steps, "total_tokens": total_tokens, "epochs": self.epochs}
        if sum(value is not None for value in ends.values()) > 1:
            raise ScheduleError(f"give at most one of total_steps, total_tokens and epochs, got {given(ends)}")
        if isinstance(wanted, SequenceLengthPlan):
            plan = self._check_plan(wanted, shape, total_steps, total_tokens)
        else:
            tokens = total_tokens
            if self._stores is not None and total_steps is None and total_tokens is None:
                tokens = (self.epochs or 1) * self._tokens_of_all_ranks()
            world = self.dp_world_size
            plan = SequenceLengthPlan(wanted, **shape, world_size=world, total_steps=total_steps, total_tokens=tokens)
        self._bounded = total_steps is None and total_tokens is None and not (wanted is plan and plan.total_steps)
        if not self._bounded and plan.total_steps == 0:
            raise ScheduleError(
                f"total_tokens={plan._total_tokens}: {plan._total_tokens} tokens are fewer than the {plan.tokens(0)} of the"
                f" first step, {plan.global_rows(0)} rows x {plan.length(0)}: give more, or a smaller batch"
            )
        if self._bounded:
            self.epochs = self.epochs or 1
            if self._stores is not None:
                plan = plan.ending_at(self.epochs * self._tokens_of_all_ranks())
        return plan

    def _check_plan(
        self, plan: SequenceLengthPlan, shape: dict[str, Any], total_steps: int | None, total_tokens: int | None
    ) -> SequenceLengthPlan:
        beside = {**shape, "total_steps": total_steps, "total_tokens": total_tokens}
        if beside["grad_accum_steps"] == 1:
            del beside["grad_accum_steps"]
        if given(beside):
            raise ScheduleError(f"a plan has its own batch shape and end: leave out {given(beside)}")
        if plan.world_size != self.dp_world_size:
            raise ScheduleError(
                f"the plan is of world_size={plan.world_size}, this run has {self.dp_world_size} data-parallel ranks:"
                f" write SequenceLengthPlan(..., world_size={self.dp_world_size})"
            )
        if plan.total_steps is not None and self.epochs is not None:
            raise ScheduleError(f"the plan ends after {plan.total_steps} steps: leave out epochs={self.epochs}")
        return plan

    def _tokens_of_all_ranks(self) -> int:
        assert self._stores is not None
        return self._stores.num_tokens * (self.dp_world_size if self.sharded else 1)

    def _check_source(self) -> None:
        if self.sharded and self._bounded:
            raise ValueError("sharded=True needs total_steps: no rank can know where the others' data ends")
        if isinstance(self.source, Stores):
            return
        if self.shuffle:
            raise ValueError("shuffle=True permutes a store; shuffle a stream at its source, or save it as a store first")
        if self.source.sharded is not None and not self.sharded:
            raise ValueError(
                f"{self.source.name} is already split (rank {self.source.sharded[0]} of {self.source.sharded[1]}), and ranks"
                " share one stream here: pass the whole dataset, or sharded=True with total_steps"
            )
        if self.source.passes is not None and self.dp_world_size > 1 and not self.sharded:
            raise DataError(f"{self.source.name} is one-shot, and each rank must read it all: pass a callable or a list")
        if self.source.not_exact is not None:
            warnings.warn(f"this run cannot be resumed exactly: {self.source.not_exact}", stacklevel=3)
        str(self.source.fingerprint)  # may read some documents: now, and not beside a thread that reads

    def _tokens_of_flat_rows(self) -> int | None:
        if "cu_seq_lens" not in self.extras:
            return None
        if self.mode != "stream":
            raise ValueError(f"'cu_seq_lens' joins rows without padding, and mode={self.mode!r} pads them: use mode='stream'")
        if self.plan.tokens_per_batch is None:
            raise ValueError(
                f"'cu_seq_lens' gives flat rows of a constant number of tokens, and batch_size={self.plan.batch_size} lets it"
                " grow with the length: write tokens_per_batch=... instead"
            )
        return self.plan.tokens_per_batch

    def _cut_by(self, num_lanes: int | None, preserve_eos: bool) -> None:
        """Choose who cuts rows: arithmetic over a store, or documents that are dealt."""
        lanes = None if num_lanes is None else integer("num_lanes", num_lanes, at_least=1)
        local = self.plan.of_one_rank() if self.sharded else self.plan
        rank = 0 if self.sharded else self.dp_rank
        documents = bool(set(self.extras) & {"position_ids", "document_ids", "cu_seq_lens"})
        self._rows: StoreRows | DocumentRows
        if isinstance(self.source, Stores):
            order = self._lanes(self.source, lanes, local)
            self._rows = StoreRows(
                self.source.columns,
                local,
                order,
                rank=rank,
                epochs=self.epochs if self._bounded else None,
                parts=self._builder.parts,
                documents=documents,
                eos_id=self.eos_id,
                vocab_size=self.vocab_size,
            )
            self._order = order.fingerprint
            if self._bounded:
                self._end_with(order)
            if documents and "document_ids" in self.extras and self.eos_id is None:
                self._check_documents(self.source)
            return
        self._rows = DocumentRows(
            self.source,
            local,
            rank,
            lanes or 1,
            self.mode,
            self.columns,
            self.epochs if self._bounded else None,
            self._builder.parts,
            documents,
            self.pad_id,
            preserve_eos,
            self.vocab_size,
        )
        self._order = f"mode={self.mode!r}, preserve_eos={preserve_eos}, num_lanes={lanes or 1}"

    def _check_documents(self, source: Stores) -> None:
        if source.columns["input_ids"].documents is None:
            raise ValueError(f"document_ids need documents, and {source.name} knows none: pass eos_id")

    def _lanes(self, source: Stores, num_lanes: int | None, plan: SequenceLengthPlan) -> Lanes:
        longest = getattr(plan.schedule, "max_length", None) or max(plan.lengths, default=plan.length(0))
        if num_lanes is None:
            rows = (plan.batch_size or plan.tokens_per_batch // longest) * plan.grad_accum_steps * plan.world_size  # type: ignore[operator]
            num_lanes = min(rows, source.num_tokens) if self.shuffle else 1
        return Lanes(source.num_tokens, num_lanes=num_lanes, shuffle=self.shuffle, seed=self.seed, max_length=longest)

    def _end_with(self, lanes: Lanes) -> None:
        """End the plan before the first step that some lane has too few tokens for."""
        assert self.epochs is not None
        local = self._rows.plan
        steps = local.total_steps or 0
        if lanes.num_lanes > 1:
            steps = bisect_left(range(steps), True, key=lambda step: lanes.ended(local, step + 1, self.epochs or 1))
        if steps == 0:
            rows, length = self.plan.global_rows(0), self.plan.length(0)
            raise DataError(
                f"{self.source.name} has {lanes.num_tokens} tokens, too few for the first step of {rows} rows x {length}:"
                " use a smaller batch, fewer lanes, or total_steps to read it again and again"
            )
        self.plan = self.plan.ending_at(self.plan.tokens_before(steps))
        self._rows.plan = self.plan.of_one_rank() if self.sharded else self.plan

    # -- what is known of the run -------------------------------------------------------------------------------------

    @property
    def num_batches(self) -> int | None:
        """Batches that this rank delivers in the whole run; None where nobody can know it."""
        steps = self.plan.total_steps
        return None if steps is None else steps * self.plan.grad_accum_steps

    @property
    def tokens_left(self) -> int | None:
        """Tokens of all ranks that the end of the data leaves over: fewer than a step takes, with one lane. Several lanes
        end when the first of them does. For a stream it is known once this object has met the end; None before, and
        for a run that ends by its plan."""
        if isinstance(self._rows, StoreRows):
            return self.tokens_left_at(self._at)
        return self._rows.left if self._bounded else None

    def tokens_left_at(self, end: Position) -> int | None:
        """:attr:`tokens_left` of a run that has ended at ``end``."""
        if not self._bounded or self.epochs is None:
            return None
        if isinstance(self._rows, StoreRows):
            return self.epochs * self._tokens_of_all_ranks() - (self.plan.total_tokens or 0)
        return self._rows.leftover(end.snapshot or Snapshot()) if self._rows.left is None else self._rows.left

    @property
    def tokens_discarded(self) -> int:
        """Tokens thrown away so far by mode "truncate", over all ranks, in the steps that this object has delivered."""
        return self._at.snapshot.discarded if self._at.snapshot is not None else 0

    @cached_property
    def identity(self) -> Identity:
        """What a state of this run must agree with."""
        stores = self._stores
        vocabulary = "" if self.vocab_size is None else f", vocabulary of {self.vocab_size}"
        return Identity(
            plan=self.plan,
            source=self.source.fingerprint + vocabulary,
            order=self._order,
            num_tokens=None if stores is None else stores.num_tokens,
            shard=(self.dp_rank, self.dp_world_size) if self.sharded else None,
            padded=self.mode != "stream",
            num_lanes=self._rows.lanes.num_lanes if isinstance(self._rows, StoreRows) else self._rows.num_lanes,
        )

    # -- iteration ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on; in a ``DataLoader`` worker, every ``num_workers``-th of them."""
        info = get_worker_info()
        if info is None:
            self._read_elsewhere.zero_()
            return self._iterate(self._at, 0, 1, None)
        self.mark_read_elsewhere()
        phase = info.id if self._phase is None else self._phase
        return self._iterate(self._at, phase, info.num_workers, 1)

    def _iterate(self, at: Position, worker: int, num_workers: int, size: int | None) -> Iterator[Batch]:
        for chunk in self.chunks(at, worker, num_workers, size):
            for i, batch in enumerate(self._builder.build(chunk)):
                self._at = self.position_after(chunk, i)
                self._phase = num_workers - 1 if num_workers > 1 else None  # this worker's next batch is so much further
                yield batch

    def chunks(self, at: Position, worker: int = 0, num_workers: int = 1, size: int | None = None) -> Iterator[Chunk]:
        """What ``worker`` of ``num_workers`` makes from ``at`` on: each ``num_workers``-th chunk of ``size`` batches."""
        if get_worker_info() is None:
            self.check_ranks()
        if isinstance(self._rows, StoreRows):
            return self._rows.chunks(at.number, self.num_batches, worker, num_workers, size)
        if num_workers > 1 or get_worker_info() is not None:
            self.check_workers(num_workers)
        return self._rows.chunks(at.number, self.num_batches, worker, num_workers, size, at.snapshot or Snapshot())

    @property
    def message_size(self) -> int | None:
        """Batches in a worker's message; None: as many as a chunk should have."""
        return None if isinstance(self._rows, StoreRows) else _STREAM_MESSAGE

    def build(self, chunk: Chunk) -> Iterator[Batch]:
        """The batches of a chunk."""
        return self._builder.build(chunk)

    @staticmethod
    def position_after(chunk: Chunk, i: int) -> Position:
        """Where the run stands once batch ``i`` of ``chunk`` is delivered."""
        return Position(chunk.numbers[i] + 1, *(chunk.after[i] if chunk.after else (None, None)))

    def check_workers(self, num_workers: int) -> None:
        """DataError if the source cannot be read by worker processes."""
        if num_workers and not isinstance(self.source, Stores) and self.source.passes is not None:
            raise DataError(
                f"{self.source.name} is one-shot and serves one process, not {num_workers} workers:"
                " pass a callable that returns a fresh iterator, or use num_workers=0"
            )

    def check_ranks(self) -> None:
        """ValueError if the process group has changed since the dataset was made."""
        if not self._explicit_ranks and coordinates(None, None) != (self.dp_rank, self.dp_world_size):
            now = coordinates(None, None)
            raise ValueError(
                f"the dataset was made on rank {self.dp_rank} of {self.dp_world_size}, this process is now {now[0]} of"
                f" {now[1]}: make it after torch.distributed.init_process_group, or pass dp_rank and dp_world_size"
            )

    def set_epoch(self, epoch: int) -> None:
        """ValueError: only those call it who would deal or batch again, as Accelerate's and the Trainer's loaders do."""
        raise ValueError(
            f"set_epoch({epoch}) was called, as a prepared DataLoader does; it would batch these batches again, or deal them to"
            " other ranks. They are finished, and of this rank: pass SLWLoader(dataset), which accelerator.prepare leaves as it"
            " is, and instead of Trainer use SLWTrainer of slw_data.integrations.huggingface. Passes are counted without it"
        )

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
        state = self.state_at(self._at)
        if info is not None:
            state["worker_phase"] = info.id if self._phase is None else self._phase
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> None:
        """Continue where ``state_dict`` was saved, from the next ``iter()`` on.

        Raises StateError, and changes nothing, if any field does not fit this run; ``strict=False`` only warns where the
        plan, the source or the order differ.
        """
        state = dict(state_dict)
        phase = state.pop("worker_phase", None)
        if (phase is not None) != (get_worker_info() is not None) and phase:
            raise StateError(
                f"worker_phase={phase} marks the state of one DataLoader worker: load it through a StatefulDataLoader with as"
                " many workers, or save the state of an SLWLoader, which fits any number"
            )
        self._at, self._phase = self.parse(state, strict=strict), phase

    def state_at(self, at: Position) -> dict[str, Any]:
        """The state at a position."""
        self._check_exact()
        return dump_state(self.identity, at)

    def parse(self, state: Mapping[str, Any], *, strict: bool = True) -> Position:
        """The position that a state describes, checked against this run."""
        self._check_exact()
        return parse_state(self.identity, state, strict=strict)

    def position_of(self, step: int) -> Position:
        """The position where ``step`` begins. A store's is arithmetic; a stream is read up to it."""
        step = integer("step", step, at_least=0)
        total = self.plan.total_steps
        if total is not None and step > total:
            raise StateError(f"step must be at most total_steps={total}, got {step}")
        number = step * self.plan.grad_accum_steps
        if isinstance(self._rows, StoreRows) or step == 0:
            return Position(number, self._begin.snapshot)
        return Position(number, *self._rows.skip_to(step))

    def _check_exact(self) -> None:
        if not isinstance(self.source, Stores) and self.source.not_exact is not None:
            raise StateError(f"this run cannot be resumed exactly: {self.source.not_exact}")


def _check_mode(mode: str, *, shuffle: bool, pad_id: int | None, preserve_eos: bool) -> None:
    """ValueError for options that ``mode`` has no use for, or that it lacks."""
    if mode == "stream" and (pad_id is not None or preserve_eos):
        raise ValueError("pad_id and preserve_eos are of modes 'segment' and 'truncate': mode 'stream' pads nothing")
    if mode != "stream" and pad_id is None:
        raise ValueError(f"mode={mode!r} pads rows, and needs pad_id: the id to pad with (such as eos_id)")
    if mode != "stream" and shuffle:
        raise ValueError(f"shuffle=True permutes blocks of tokens; in mode={mode!r} shuffle the documents instead")
    if preserve_eos and mode != "truncate":
        raise ValueError(f"preserve_eos is of mode 'truncate', where tokens are discarded; mode is {mode!r}")
