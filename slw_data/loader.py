"""The loader: iterates a dataset, and knows which batch was delivered last.

Chunks of batches are read ahead of their use, and cast to tensors one batch at a time when asked. The position moves
only when a batch is handed out, so what was read ahead and not delivered is read again, or waits for the next ``iter()``::

    num_workers=0, prefetch=0    chunk -> batches                 all when asked
    num_workers=0, prefetch=n    chunk -> queue -> batches        read in a thread; NumPy copies without the lock
    num_workers=n                chunk -> message -> batches      read in processes, many batches in one message

It is no ``torch.utils.data.DataLoader``: trainers re-wrap, re-shard or concatenate what they recognise as one, and pass
any other iterable through untouched. This is the last module on a batch's path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.context import BaseContext
from typing import Any

import torch

from slw_data.arguments import flag, integer
from slw_data.batch.building import Batch
from slw_data.batch.chunk import Chunk
from slw_data.dataset import SLWDataset
from slw_data.delivery.progress import Progress
from slw_data.delivery.reading import Direct, Threaded, Workers
from slw_data.delivery.sameness import watched
from slw_data.delivery.workers import Messages, check_workers, worker_options
from slw_data.errors import StateError, warn
from slw_data.order.position import Position
from slw_data.run import finished

__all__ = ["SLWLoader"]


class SLWLoader:
    """Iterate ``dataset``: ``for batch in SLWLoader(dataset): ...``, in any training loop.

    ``iter()`` continues where the state stands; :meth:`reset` starts over. ``len()`` is the number of batches of the whole
    run on this rank.

    Args:
        dataset: an :class:`SLWDataset`.
        num_workers: processes that read. From a store 0 is fastest: handing a batch over costs more than making it.
        prefetch: batches that a thread keeps ready without workers (at least; it makes some at once). 0: no thread.
        pin_memory: put the batches into page-locked memory where there is a GPU.
        prefetch_factor, persistent_workers, multiprocessing_context, timeout: of the worker processes, as in torch's
            ``DataLoader``; ``timeout`` in seconds. Persistent workers keep what they have read when a loop is left early.
        progress: show a progress bar on data-parallel rank 0 (needs tqdm).

    Iterating never moves the global random number generators.
    """

    def __init__(
        self,
        dataset: SLWDataset,
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        multiprocessing_context: str | BaseContext | None = None,
        timeout: float = 0,
        progress: bool = False,
    ) -> None:
        if not isinstance(dataset, SLWDataset):
            raise TypeError(f"dataset must be an SLWDataset, got {type(dataset).__name__}: wrap it, SLWDataset(source, ...)")
        self.dataset = dataset
        self.num_workers = integer("num_workers", num_workers, at_least=0)
        self.prefetch = integer("prefetch", prefetch, at_least=0)
        self.pin_memory, self.progress = flag("pin_memory", pin_memory), flag("progress", progress)
        options = worker_options(prefetch_factor, persistent_workers, multiprocessing_context, timeout)
        check_workers(dataset.run, self.num_workers, options)
        again = dataset.run.read_again(self.num_workers)
        if again is not None:
            warn(again)
        self._worker_options = options
        self._source: Direct | Threaded | Workers | None = None
        self._last: tuple[Position | Chunk, int] = dataset.position, 0
        self._loads, self._moved = dataset.loads, False  # once this loader has moved, what the dataset loads comes too late
        self._moves = self._iterators = 0
        self._warned = self._ended = False
        self._left: int | None = None

    # -- iteration ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        batches = self.dataset.num_batches
        if batches is None:
            raise TypeError("nobody can know how many batches a stream holds: give the dataset total_steps")
        return batches

    def __iter__(self) -> Iterator[Batch]:
        self.dataset.mark_read_elsewhere()
        return self._deliver(self._moves)

    def steps(self) -> Iterator[list[Batch]]:
        """The batches of each optimizer step as a list, for loops whose accumulation changes with the step.

        Where a state was saved inside a step, the first list has the rest of that step. Leave the loop between two lists:
        a list is read whole before it is handed out, and counts as delivered then.
        """
        batches: list[Batch] = []
        for batch in self:
            batches.append(batch)
            if self.position.batch == 0:
                yield batches
                batches = []

    def __getitem__(self, index: Any) -> Batch:
        raise TypeError(
            "an SLWLoader is iterated, not indexed: it is no dataset to put into a DataLoader, as Hugging Face's Trainer does."
            " Use SLWTrainer of slw_data.integrations.huggingface there, and the loader itself elsewhere"
        )

    def _open(self) -> Direct | Threaded | Workers:
        run = self.dataset.run
        run.ranks.check()
        if self.num_workers:
            messages = Messages(run, self.position, self.num_workers, self._worker_options)
            return Workers(messages, watched(run, run.received(self.position, messages)), run.build)
        chunks = watched(run, run.batches.chunks(self.position, 0, 1, None))
        return Threaded(chunks, run.build, self.prefetch) if self.prefetch else Direct(chunks, run.build)

    def _deliver(self, moves: int) -> Iterator[Batch]:
        """Batches from the position on, until they end or the loader is moved. Several iterators share what is read."""
        delivered, bar = False, Progress(self.dataset.run, self.position) if self.progress else None
        pin = self.pin_memory and torch.cuda.is_available()
        self._iterators += 1
        try:
            while True:
                if moves != self._moves:
                    raise StateError(
                        "the loader was reset, sought or loaded after this iterator was made: go on with iter(loader)"
                    )
                if self._moved and self._loads != self.dataset.loads:
                    raise StateError(
                        "the dataset has loaded a state that this loader does not see, as it has moved since it was made: load"
                        " it into the loader, loader.load_state_dict(state)"
                    )
                if self._source is None:
                    self._source = self._open()
                made = self._source.take()
                if made is None:
                    if self._source.alive:
                        break
                    self.close()  # this is a forked child: it reads for itself
                    continue
                batch = _pinned(made[2]) if pin else made[2]
                delivered, self._last = True, made[:2]
                if not self._moved:
                    self._loads, self._moved = self.dataset.loads, True
                yield batch
                if bar is not None:
                    bar.show(self.sequence_length, self.tokens_seen)
            self._ended, self._left = True, self._source.left
            self.close()
            if not delivered and not self._warned:
                self._warned = True
                warn(finished(self.step, self.dataset.source.name))
        except GeneratorExit:  # the loop was left: threads and persistent workers keep what they have read
            if self.num_workers and not self._worker_options["persistent_workers"] and self._iterators == 1:
                self.close()
            raise
        except BaseException:
            if moves == self._moves:
                self.close()
            raise
        finally:
            self._iterators -= 1
            if bar is not None:
                bar.close()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has, pickled or not: the position, and nothing that was read ahead."""
        return {**vars(self), "_source": None, "_last": (self.position, 0), "_iterators": 0}

    def close(self) -> None:
        """Give up what was read ahead, and end its thread or workers. The position stays, and ``iter()`` goes on."""
        if self._source is not None:
            self._last = self.position, 0
            self._source.close()
            self._source = None

    # -- position and state -------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where the run stands after the last delivered batch."""
        if not self._moved and self._loads != self.dataset.loads:
            return self.dataset.position  # loaded into the dataset after this loader was made
        last, index = self._last
        return last if isinstance(last, Position) else last.position(index)

    def state_dict(self) -> dict[str, Any]:
        """The state of the last delivered batch, a flat dict of plain values; see :mod:`slw_data.state`."""
        return self.dataset.run.state_at(self.position)

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        strict: bool = True,
        expected_step: int | None = None,
    ) -> None:
        """Continue where ``state_dict`` was saved, with any number of workers, from the next ``iter()`` on.

        For a store ``{"step": n}`` is enough. Of a divided stream (``num_shards``) give the states of all ranks as a list,
        unless this rank reads the same shards as the one that saved.

        Raises StateError, and changes nothing, if a field does not fit this run or ``expected_step`` (the trainer's own
        count) differs; ``strict=False`` only warns where the plan, the source or the order differ.
        """
        if expected_step is not None:
            expected_step = integer("expected_step", expected_step, at_least=0)
        at = self.dataset.run.parse(state_dict, strict=strict)
        if expected_step is not None and at.step != expected_step:
            raise StateError(f"the state is of step {at.step}, the trainer is at expected_step={expected_step}")
        self._move(at)

    def seek(self, step: int) -> None:
        """Continue with the first batch of optimizer step ``step``. At once for a store; a stream is read up to there."""
        self.close()  # what reads ahead must not read the source along with the search
        self._move(self.dataset.run.position_of(step))

    def reset(self) -> None:
        """Start over from step 0."""
        self._move(self.dataset.run.position_of(0))

    def _move(self, at: Position) -> None:
        self.close()
        self.dataset.mark_read_elsewhere()
        self._last = at, 0
        self._loads, self._moved = self.dataset.loads, True
        self._moves += 1
        self._warned = self._ended = False
        self._left = None

    # -- what to log --------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps whose batches are all delivered: the step of the next batch."""
        return self.position.step

    @property
    def sequence_length(self) -> int:
        """What the schedule wants of the last delivered batch (before the first: of the first): tokens in a row, and in mode
        "window" in a window; rows are longer there."""
        return self.dataset.run.sequence_length(self._last_step)

    @property
    def tokens_seen(self) -> int:
        """Tokens delivered by all ranks since the run began, without padding."""
        return self.dataset.run.identity.tokens(self.position)

    @property
    def epoch(self) -> int:
        """The pass over the source that is being read, from 0."""
        return self.dataset.run.identity.epoch(self.position)

    @property
    def tokens_left(self) -> int | None:
        """Tokens of all ranks that the end of the data leaves over; see :attr:`SLWDataset.tokens_left`. Of a stream, once
        this loader has met its end."""
        if self._left is None and (self.position.cursor is None or self._ended):
            return self.dataset.run.leftover(self.position)
        return self._left

    @property
    def tokens_discarded(self) -> int:
        """Tokens thrown away so far by mode "truncate", over all ranks (of a divided stream: by this one), in the steps that
        are delivered."""
        return self.dataset.run.discarded(self.position)

    @property
    def tokens_padded(self) -> int:
        """Padding so far, over all ranks (of a divided stream: of this one), in the steps that are delivered."""
        return self.dataset.run.padding(self.position)

    @property
    def _last_step(self) -> int:
        at = self.position
        return at.step if at.batch else max(at.step - 1, 0)

    def metrics(self) -> dict[str, int]:
        """What a training loop logs beside the loss: of the last delivered batch, and counted over the run."""
        counts = self.dataset.run.identity.counts(self.position)
        return {
            "slw/step": counts["step"],
            "slw/sequence_length": self.sequence_length,
            "slw/rows": self.dataset.plan.rows(self._last_step),
            "slw/tokens_seen": counts["tokens"],
            "slw/epoch": counts["epoch"],
        }

    def __repr__(self) -> str:
        ahead = f"num_workers={self.num_workers}" if self.num_workers else f"prefetch={self.prefetch}"
        return f"SLWLoader({self.dataset.plan!r} over {self.dataset.source.name}, {ahead}, at step {self.step})"


def _pinned(batch: Batch) -> Batch:
    return {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
