"""How every command of the project ends: what its user can mend is one line, without a traceback."""

import sys
from collections.abc import Callable

from components.errors import UserError


def run_command(main: Callable[[], None]) -> None:
    """Run a command; what its user can mend becomes one line on standard error and exit code 1, without a traceback."""
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
