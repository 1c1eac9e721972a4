"""How every command of the project ends: an error its user can fix is one line, no traceback."""

import sys
from collections.abc import Callable

from components.errors import UserError, describe_os_error


def run_command(main: Callable[[], None]) -> None:
    """Run a command; an error that its user can fix becomes one line on standard error and exit code 1."""
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(describe_os_error(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
