"""Form: from tokens to the tensors of a batch.

    form               what a batch is to look like
    chunk              some batches of one shape, in the source's own dtype
    reading            spans of a source -> chunk: the one place where tokens are read
    stored, streamed   the chunks of a run, from a store or a stream
    building, flat     tensors, labels, extras; as one row of constant size
    shapes             of what size all flat rows of a run are

Read :mod:`slw_data.batch.chunk` first; :mod:`slw_data.run` comes next.
"""
