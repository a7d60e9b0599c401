"""Faults, injected into real runs: ``python -m tests.faults`` (all, slow) or ``python -m tests.faults --small -k R3``.

What is promised is counted: for every step each rank's batch is a pure function of the source, the configuration and the
step; so tokens lost, delivered twice or changed by any fault are 0, and so are runs that hang.

    runs      a run that knows every token's place, what it must deliver, and a trainer with a ledger
    ledger    what was delivered, written down before it is used, and what is wrong with it
    zygote    processes that are forked from one that has imported torch already, and their remains
    tally     the counts of one row of the table
    kills     topology  workers  checkpoints  scale  machine  determinism  suites: the rows
"""
