"""Form: what a batch is to look like, checked once: mode, labels, columns, extras and the special token ids.

Read next: :mod:`slw_data.batch.chunk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slw_data.arguments import choice, flag, integer, names, token_id
from slw_data.batch.building import EXTRAS, LABELS
from slw_data.batch.chunk import NEXT

__all__ = ["MODES", "Form"]

MODES = ("stream", "segment", "truncate", "buckets", "pack", "window")
_OF_WINDOWS = ("window_ids", "position_ids", "cu_seq_lens")  # extras that tell windows apart
_OF_FLAT = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")  # what flat rows bring along


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
    max_documents: int | str | None = None
    flat_multiple_of: int = 1
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
            "max_documents": _most(self.max_documents),
            "flat_multiple_of": integer("flat_multiple_of", self.flat_multiple_of, at_least=1),
            "bos_id": token_id("bos_id", self.bos_id, vocabulary),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if "input_ids" not in self.columns:
            raise ValueError(f"columns must hold 'input_ids', got {self.columns}")
        self._check_names()
        self._check_mode()
        self._check_flat()

    @property
    def order(self) -> str:
        """The mode whose order rows have: windows are cut in rows of mode "stream"."""
        return "stream" if self.mode == "window" else self.mode

    @property
    def lead(self) -> int:
        """Tokens at the beginning of each row that are none of the source."""
        return 0 if self.bos_id is None else 1

    @property
    def flat(self) -> bool:
        """Whether a batch is one row."""
        return "cu_seq_lens" in self.extras

    @property
    def padded(self) -> bool:
        """Whether rows may hold padding."""
        return self.mode in ("segment", "truncate", "pack")

    @property
    def documents(self) -> bool:
        """Whether it matters where documents begin in a row."""
        return bool(set(self.extras) & {"position_ids", "document_ids", "cu_seq_lens"})

    @property
    def parts(self) -> dict[str, tuple[str, int]]:
        """What has to be read: for each name a column, and how many tokens further on."""
        target = "labels" if "labels" in self.columns else "input_ids"
        parts = {name: (name, 0) for name in self.columns}
        if self.labels in ("unshifted", "both"):
            parts["labels"] = (target, 0)
        if self.labels in ("shifted", "both"):
            parts[NEXT] = (target, 1)
        return parts

    def _check_names(self) -> None:
        """Columns that the batch would have twice."""
        made = dict.fromkeys((*self.extras, *(_OF_FLAT if self.flat else ())), f"extras={self.extras}")
        if self.labels == "both":
            made["shift_labels"] = "labels='both'"
        if self.padded and not self.flat:
            made["attention_mask"] = f"mode={self.mode!r}"
        for name in self.columns:
            if name in made:
                raise ValueError(
                    f"{name!r} is one of columns={self.columns}, and a batch with {made[name]} makes its own: leave it out"
                    " there, or give the column another name"
                )

    def _check_mode(self) -> None:
        """Options that the mode has no use for, or that it lacks."""
        if not self.padded and ((self.pad_id is not None and not self.flat) or self.preserve_eos):
            raise ValueError(
                "pad_id is of modes 'segment', 'truncate' and 'pack' and of 'cu_seq_lens', preserve_eos of 'truncate':"
                f" mode {self.mode!r} pads nothing"
            )
        if self.padded and self.pad_id is None:
            raise ValueError(f"mode={self.mode!r} pads rows, and needs pad_id: the id to pad with (such as eos_id)")
        if self.preserve_eos and self.mode != "truncate":
            raise ValueError(f"preserve_eos is of mode 'truncate', where tokens are discarded; mode is {self.mode!r}")
        if self.bos_id is not None and self.mode != "pack":
            raise ValueError(f"bos_id is of mode 'pack', where it begins each row; mode is {self.mode!r}: leave it out")
        if self.mode == "window" and not set(self.extras) & set(_OF_WINDOWS):
            raise ValueError(
                f"mode='window' changes masks alone, and extras={self.extras} tell no windows apart: write"
                " extras=('window_ids',), or 'position_ids' or 'cu_seq_lens'"
            )
        if self.mode != "window" and "window_ids" in self.extras:
            raise ValueError(f"'window_ids' number the windows of a row: write mode='window', got mode={self.mode!r}")

    def _check_flat(self) -> None:
        """Options of flat rows without these, and what cannot be one."""
        if self.flat and self.mode in ("segment", "truncate"):
            raise ValueError(f"'cu_seq_lens' joins full rows, and mode={self.mode!r} pads them: use mode='pack' or 'stream'")
        if not self.flat and (self.max_documents is not None or self.flat_multiple_of > 1):
            raise ValueError(
                f"max_documents={self.max_documents} and flat_multiple_of={self.flat_multiple_of} are of flat rows: write"
                " extras=('cu_seq_lens',), or leave them out"
            )


def _most(value: int | str | None) -> int | str | None:
    """A number of sequences, or "plan" where it is to be found."""
    if value is None or (isinstance(value, str) and value == "plan"):
        return value
    return integer("max_documents (or 'plan')", value, at_least=1)
