"""The errors that a user can fix."""


class UserError(ValueError):
    """Something outside the program is wrong, and its user can fix it.

    The message is one sentence: what is wrong, where (the file or setting), and what to do. Commands print it
    without a traceback and exit with a nonzero code.
    """


class LostRankError(UserError):
    """Another rank of the run is gone or does not answer, so nothing that all ranks do together can be done anymore."""


def describe_os_error(error: OSError) -> str:
    """What the system refused, and for which file."""
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
