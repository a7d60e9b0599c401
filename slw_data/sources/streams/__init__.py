"""Streams: documents that can only be read in order, from any source, as blocks that can be resumed.

:func:`open_stream` finds the kind of a source. Every rank and worker reads the whole of it, so that order, end and
state are the same everywhere. The parts, in reading order: ``protocol`` (what a stream is), ``documents`` (an item
becomes arrays), ``text``, ``marks`` (fingerprints), ``blocks`` (arrays become blocks), ``items`` and ``iterables``
(sources of single items), ``huggingface``, ``shuffled``, ``opening``. Read ``protocol`` next.
"""

from slw_data.sources.streams.opening import open_stream
from slw_data.sources.streams.protocol import Block, Divisible, DocumentStream
from slw_data.sources.streams.shuffled import ShuffledStream

__all__ = ["Block", "Divisible", "DocumentStream", "ShuffledStream", "open_stream"]
