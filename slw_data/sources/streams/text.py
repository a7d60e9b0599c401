"""Text as documents: an item is tokenized where it is read.

A digest of text is taken before tokenizing, so that skipping to a saved position costs no tokenizing. Reading is
repeated by every rank and worker; where that is too dear, tokenize once into a store instead. Read ``marks`` next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slw_data.errors import DataError
from slw_data.sources.streams.documents import Arrays, TokenDocuments, column_of


@dataclass(frozen=True)
class TextDocuments(TokenDocuments):
    """Reads plain strings, or mappings with a text column, through ``tokenizer``.

    ``tokenizer`` is called with the text, or has ``encode``. It gives token ids, or a mapping with ``"input_ids"`` (and
    the further ``columns``, if there are any). An empty text is an empty document: the tokenizer does not see it.
    """

    tokenizer: Any
    text_column: str

    def pick(self, item: Any, index: int) -> Any:
        """The text of an item."""
        if isinstance(item, Mapping):
            item = column_of(item, self.text_column, f"item {index}")
        if item is None:
            raise DataError(f"the text of item {index} is None: drop it, or give an empty text")
        if not isinstance(item, str):
            raise TypeError(f"the text of item {index} is a {type(item).__name__}; with a tokenizer, documents are str")
        return item

    def tokens(self, picked: Any, index: int) -> Arrays:
        """The tokens of a text, one array per column."""
        encode = self.tokenizer if callable(self.tokenizer) else self.tokenizer.encode
        encoded = encode(picked) if picked else dict.fromkeys(("input_ids", *self.columns), ())
        if isinstance(encoded, Mapping):
            where = f"the tokenizer's result for item {index}"
            keys = ["input_ids" if column == self.ids else column for column in self.columns]
            encoded = {c: column_of(encoded, key, where) for c, key in zip(self.columns, keys, strict=True)}
        arrays: Arrays = super().pick(getattr(encoded, "ids", encoded), index)
        return arrays
