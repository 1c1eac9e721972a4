"""``fit`` and ``validate`` for people: short names of classes, and mistakes that are named before anything is built."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from callbacks.progress_bar import BudgetProgressBar, is_terminal
from command_line import checks
from command_line.bare import BareCLI
from command_line.classes import import_named_classes
from command_line.parser import Parser


class HelpfulCLI(BareCLI):
    """The commands, with help for those who type their settings.

    Args:
        settings: As for BareCLI.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(parser_class=Parser, **settings)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, knowing the project's classes by their short names, and refuse a checkpoint that cannot be used."""
        self.command = args if isinstance(args, list) else sys.argv[1:]
        import_named_classes(self.command)
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        checks.check_text(config)
        if not (self.config.subcommand == "fit" and config.ckpt_path == "last"):  # still to be found
            self._check_checkpoint()

    def before_instantiate_classes(self) -> None:
        """Refuse a runs folder, a network or a checkpoint found only now that cannot be used."""
        config = self.config[self.subcommand]
        given = config.ckpt_path
        checks.check_runs_folder(config.trainer)
        super().before_instantiate_classes()
        checks.check_size(config)
        if config.ckpt_path != given:
            self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        config = self.config[self.config.subcommand]
        drops_average = config.averaging is None and not config.get("last_weights", False)
        checks.check_checkpoint(config.ckpt_path, drops_average, may_score_last="last_weights" in config)

    def progress(self) -> Callback:
        """A bar where it can be redrawn, and lines elsewhere."""
        return BudgetProgressBar(refresh_rate=5) if is_terminal() else super().progress()

    def settle(self) -> None:
        """Name everything that is wrong, not only what cannot be filled in."""
        checks.check_settings(self.config[self.subcommand], for_training=self.subcommand == "fit")
