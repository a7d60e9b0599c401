"""Where: which token comes where.

    position             a place between two batches
    spans                where some rows lie, whatever the source: what every order gives
    permutation, lanes   rows of the run -> positions in a store
    store                batches of a step -> spans of a store; what lanes leave over, at the end
    dealing, documents   documents of a stream -> lanes -> spans
    diversity            how many documents a step holds

All of it is arithmetic on numbers: nothing here reads a token of a store, and nothing changes once it is made.

Read :mod:`slw_data.order.lanes` first; :mod:`slw_data.batch` comes next: what is made of the tokens.
"""
