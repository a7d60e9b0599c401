"""Form: from tokens to the tensors of a batch.

    chunk       some batches of one shape, in the source's own dtype
    rows        cut from a store;   documents   cut from a stream
    building    tensors, labels, extras;   flat   as one row of constant size

Read :mod:`slw_data.batch.chunk` first; :mod:`slw_data.dataset` comes next.
"""
