"""Run ``zipsdk export`` as ``python -m export``, for a checkout that is not installed."""

import sys

from zipsdk.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "export")
    sys.exit(main())
