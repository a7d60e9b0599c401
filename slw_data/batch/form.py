"""Form: what a batch is to look like, checked once: mode, labels, columns, extras and the special token ids.

Read next: :mod:`slw_data.batch.chunk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slw_data.arguments import choice, flag, integer, names, token_id
from slw_data.batch.building import EXTRAS, LABELS

__all__ = ["MODES", "Form"]

MODES = ("stream", "segment", "truncate", "buckets", "pack")


@dataclass(frozen=True)
class Form:
    """The arguments of :class:`slw_data.SLWDataset` of these names. ValueError and TypeError where they make no sense."""

    mode: str = "stream"
    labels: str = "unshifted"
    columns: Sequence[str] = ("input_ids",)
    extras: Sequence[str] = ()
    vocab_size: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    preserve_eos: bool = False
    bos_id: int | None = None

    def __post_init__(self) -> None:
        vocabulary = None if self.vocab_size is None else integer("vocab_size", self.vocab_size, at_least=1)
        checked = {
            "mode": choice("mode", self.mode, MODES),
            "labels": choice("labels", self.labels, LABELS),
            "columns": names("columns", self.columns, None),
            "extras": names("extras", self.extras, EXTRAS),
            "vocab_size": vocabulary,
            "eos_id": token_id("eos_id", self.eos_id, vocabulary),
            "pad_id": token_id("pad_id", self.pad_id, vocabulary),
            "preserve_eos": flag("preserve_eos", self.preserve_eos),
            "bos_id": token_id("bos_id", self.bos_id, vocabulary),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if "input_ids" not in self.columns:
            raise ValueError(f"columns must hold 'input_ids', got {self.columns}")
        self._check_mode()

    @property
    def padded(self) -> bool:
        """Whether rows may hold padding."""
        return self.mode in ("segment", "truncate", "pack")

    @property
    def documents(self) -> bool:
        """Whether it matters where documents begin in a row."""
        return bool(set(self.extras) & {"position_ids", "document_ids", "cu_seq_lens"})

    def _check_mode(self) -> None:
        """Options that the mode has no use for, or that it lacks."""
        if not self.padded and (self.pad_id is not None or self.preserve_eos):
            raise ValueError(
                "pad_id is of modes 'segment', 'truncate' and 'pack', preserve_eos of 'truncate':"
                f" mode {self.mode!r} pads nothing"
            )
        if self.padded and self.pad_id is None:
            raise ValueError(f"mode={self.mode!r} pads rows, and needs pad_id: the id to pad with (such as eos_id)")
        if self.preserve_eos and self.mode != "truncate":
            raise ValueError(f"preserve_eos is of mode 'truncate', where tokens are discarded; mode is {self.mode!r}")
        if self.bos_id is not None and self.mode != "pack":
            raise ValueError(f"bos_id is of mode 'pack', where it begins each row; mode is {self.mode!r}: leave it out")
