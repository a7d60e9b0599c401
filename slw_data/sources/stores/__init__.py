"""Stores: the tokens of one column, at any position at once, whatever they lie in.

:func:`open_tokens` makes a :class:`TokenStore` of files, arrays and Hugging Face datasets; :func:`check_parallel` makes
sure that several of them can be cut at the same places. Imports go down this list::

    opening      what kind of source is it
    checks       dtype, ids, equal columns
    arrow  arrays  npy  megatron     where tokens lie in each kind
    files        mapped, watched, few open at once
    pieces       the one implementation of a store
    windows  fingerprints  protocol

Read :mod:`slw_data.sources.stores.protocol` next: what a store promises, and how to write your own.
"""

from slw_data.sources.stores.checks import check_parallel
from slw_data.sources.stores.opening import open_tokens
from slw_data.sources.stores.protocol import TokenStore

__all__ = ["TokenStore", "check_parallel", "open_tokens"]
