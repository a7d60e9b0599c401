"""Text as documents: an item is tokenized where it is read.

A digest of text is taken before tokenizing, so that skipping to a saved position costs no tokenizing. Reading is
repeated by every rank and worker; where that is too dear, tokenize once into a store instead. Read ``marks`` next.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slw_data.errors import DataError
from slw_data.sources.paths import value_at
from slw_data.sources.streams.documents import Arrays, TokenDocuments

BATCH_LETTERS = 1 << 20  # after so many the texts that were read are tokenized: lists of ids take 10 times their memory


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
            item = value_at(item, self.text_column, f"item {index}")
        if item is None:
            raise DataError(f"the text of item {index} is None: drop it, or give an empty text")
        if not isinstance(item, str):
            raise TypeError(f"the text of item {index} is a {type(item).__name__}; with a tokenizer, documents are str")
        return item

    def tokens(self, picked: Any, index: int) -> Arrays:
        """The tokens of a text, one array per column."""
        encode = self.tokenizer if callable(self.tokenizer) else self.tokenizer.encode
        return self._arrays(encode(picked) if picked else None, index)

    def rows(self, items: Iterable[Any], first: int) -> Iterator[Arrays]:
        """The arrays of consecutive items; of a fast tokenizer, those of many texts at once."""
        many = batch_encoder(self.tokenizer, self.columns)
        if many is None:
            yield from super().rows(items, first)
            return
        texts, letters = list[str](), 0
        for index, item in enumerate(items, first):
            texts.append(self.pick(item, index))
            letters += len(texts[-1])
            if letters >= BATCH_LETTERS:
                yield from self._encoded(many, texts, index + 1 - len(texts))
                texts, letters = [], 0
                first = index + 1
        yield from self._encoded(many, texts, first)

    def _encoded(self, many: "BatchEncoder", texts: list[str], first: int) -> Iterator[Arrays]:
        encoded = iter(many([text for text in texts if text]))
        return (self._arrays(next(encoded) if text else None, index) for index, text in enumerate(texts, first))

    def _arrays(self, encoded: Any, index: int) -> Arrays:
        """One array per column of what a tokenizer gave; None: of an empty text."""
        if encoded is None:
            encoded = dict.fromkeys(("input_ids", *self.columns), ())
        if isinstance(encoded, Mapping):
            where = f"the tokenizer's result for item {index}"
            keys = ["input_ids" if column == self.ids else column for column in self.columns]
            encoded = {path: value_at(encoded, key, where) for path, key in zip(self.paths, keys, strict=True)}
        arrays: Arrays = super().pick(getattr(encoded, "ids", encoded), index)
        return arrays


BatchEncoder = Callable[[list[str]], Iterable[Any]]


def batch_encoder(tokenizer: Any, columns: tuple[str, ...]) -> BatchEncoder | None:
    """What gives for many texts exactly what ``tokenizer`` gives for each, of a fast one of ``tokenizers`` or ``transformers``
    itself; None for any other, and for one that pads texts to the longest among them."""
    library = type(tokenizer).__module__.split(".")[0]
    if library == "tokenizers" and hasattr(tokenizer, "encode_batch_fast"):  # which leaves out the offsets
        many_texts: BatchEncoder = tokenizer.encode_batch_fast
        return many_texts if tokenizer.padding is None else None
    if library == "transformers" and getattr(tokenizer, "is_fast", False):
        unused = {f"return_{key}": False for key in ("attention_mask", "token_type_ids") if key not in columns}

        def many(texts: list[str]) -> Iterator[dict[str, Any]]:
            encoded = tokenizer(texts, **unused)
            return (dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True))

        return lambda texts: many(texts) if texts else ()
    return None
