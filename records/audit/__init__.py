"""``python -m records.audit FOLDER``: what a reviewer checks by hand, as a table, one verdict per line."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Audit the folder given on the command line and exit with 1 if a check failed.

    Raises:
        UserError: the folder, the data or the baseline cannot be read.
    """
    # Imported here because the audit's children import this package and must not import torch.
    from records.audit.command import run

    run(arguments)
