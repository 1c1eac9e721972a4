"""The command line: ``python cli.py fit ...`` trains, exports and scores; ``python cli.py validate ...`` scores."""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1:] in ([], ["-h"], ["--help"]):
    from command_line.help import show_help

    show_help(sys.argv[1:])  # before the imports of torch and Lightning, which take seconds

from pathlib import Path

import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from callbacks.common import find
from callbacks.dashboard import Dashboard
from callbacks.history import History, Layer
from callbacks.hyperparameters import Hyperparameters
from callbacks.run_folder import RunFolder
from callbacks.sample import Sample
from callbacks.storage_costs import StorageCosts
from callbacks.tensorboard_log import TensorBoardLog
from command_line.bare import CodeCounter
from command_line.helpful import HelpfulCLI
from command_line.run import run_cli
from components.errors import describe_os_error
from records.script import compressed_bytes


class GolfCLI(HelpfulCLI):
    """``fit`` and ``validate`` with all that shows a run to people: TensorBoard, text from the model, and a report.

    Args:
        settings: As for BareCLI.
    """

    def observers(self) -> list[Callback]:
        """Text that the model writes, what loggers show of a run, and the history from which its report is drawn."""
        config = self.config[self.subcommand]
        checkpoint = config.ckpt_path if self.subcommand == "fit" else None
        history = History(self.command, self._layers(), checkpoint and Path(checkpoint))
        return [Sample(), Hyperparameters(self._whole_config()), StorageCosts(), Dashboard(), history]

    def loggers(self, folder: RunFolder) -> list[Logger]:
        """TensorBoard's log, in the run's folder."""
        return [TensorBoardLog(folder)]

    def after_fit(self) -> None:
        """Leave a report, whatever the result's size."""
        self._report()
        super().after_fit()

    def after_validate(self) -> None:
        """Leave a report, and say the score."""
        if not self._leaves_nothing():
            self._report()
        super().after_validate()

    def _layers(self) -> list[Layer]:
        """The program's default settings and each configuration file's, later ones over earlier ones."""
        parser = self._parser(self.config.subcommand)
        defaults = yaml.safe_load(parser.dump(parser.get_defaults(), skip_none=False))
        given = self.config[self.config.subcommand].config or []
        files = [path for path in given if path is not None]  # None stands for text on the command line
        return [("defaults", defaults), *((str(path), yaml.safe_load(Path(path).read_text())) for path in files)]

    def _report(self) -> None:
        from records.report import write_report  # takes a while to import, and a run that fails needs none

        folder = find(self.trainer, History).folder
        if folder is None:
            return
        try:
            write_report([folder])
        except OSError as error:
            rank_zero_warn(
                f"The run has no report ({describe_os_error(error)}); mend that and run python -m records.report "
                f"{folder}."
            )


def main(args: list[str] | None = None, count_code: CodeCounter = compressed_bytes) -> GolfCLI:
    """Run ``fit`` or ``validate``; see `run_cli`.

    Args:
        args: The command and its options; those of the process if None.
        count_code: Counts the code submitted with an artifact; by default the packed script.
    """
    return run_cli(GolfCLI, args, count_code)


if __name__ == "__main__":
    main()
