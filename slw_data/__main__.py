"""``python -m slw_data``: the command line of :mod:`slw_data.cli`."""

import sys

from slw_data.cli import main

if __name__ == "__main__":
    sys.exit(main())
