"""The command line, ``slw-data`` or ``python -m slw_data``: look at plans, stores and batches without training.

    command       the parser, the four commands, exit statuses, one line for each error
    plan  plot  inspect  check        one command each
    faults        what ``check`` looks for
    arguments     plan arguments, from the command line and from a configuration file
    configs       configuration files: our own, Composer's, DeepSpeed's
    reading       paths as stores, block by block, with a progress bar
    tokenizers    ids as text

Read next: :mod:`slw_data.cli.command`.
"""

from slw_data.cli.command import main

__all__ = ["main"]
