"""How: threads and processes that read ahead, files that keep a state, and agreement over ranks.

Read :mod:`slw_data.delivery.reading` first; :mod:`slw_data.loader` comes next.
"""
