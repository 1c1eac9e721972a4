"""``python -m records.audit``."""

import sys

from components.command import run_command
from records.audit import main

if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
