"""``python -m zipsdk``: the same as the command ``zipsdk``."""

import sys

from zipsdk.cli import main

if __name__ == "__main__":
    sys.exit(main())
