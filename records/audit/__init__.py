"""``python -m records.audit FOLDER``: what a reviewer checks by hand, as a table with a verdict a line."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Audit the folder that the command line names, and exit with 1 if a check failed.

    Raises:
        UserError: the folder, the data or the baseline cannot be read.
    """
    # Here, since the audit's children import modules of this package and not torch with them.
    from records.audit.command import run

    run(arguments)
