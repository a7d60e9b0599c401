"""Where: which token comes where.

    permutation  of the blocks of a store
    lanes        rows of the run -> positions in a store
    dealing      documents of a stream -> lanes

Read :mod:`slw_data.order.lanes` first; :mod:`slw_data.batch` comes next: what is made of the tokens.
"""
