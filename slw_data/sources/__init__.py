"""What: token ids, in stores (at any position) and streams (in order).

    stores, streams   the two kinds, and opening them
    opening           which kind a thing is
    ids               the rule for token ids
    paths             names of columns, also within columns

Read :mod:`slw_data.sources.stores` first; :mod:`slw_data.batch` comes next.
"""

from slw_data.sources.opening import Stores, open_source

__all__ = ["Stores", "open_source"]
