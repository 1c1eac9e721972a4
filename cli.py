"""The command line: ``python cli.py fit ...`` trains, exports and scores; ``python cli.py validate ...`` scores."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.averaging import SnapshotAveraging
from callbacks.clock import Clock
from callbacks.common import find
from callbacks.export import Export
from callbacks.late_qat import LateQAT
from callbacks.monitor import Monitor
from callbacks.progress import BudgetProgressBar
from callbacks.run_log import RunLog
from callbacks.schedule import Schedule
from callbacks.scoring import SlidingWindowScore
from callbacks.summary import RunSummary
from callbacks.warmup import CompileWarmup
from components.artifact import Artifact, load_state
from components.errors import UserError
from components.gpt import GPTConfig
from components.public_artifact import read_any_artifact
from components.scoring import ScoringConfig
from datamodules.fineweb import FineWeb
from lightning_modules.gpt import GPTModule


class GolfCLI(LightningCLI):
    """``fit`` and ``validate``, each behavior of a run a section of its own."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods that are commands, and their arguments that are not options."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks in the order in which a run must call them, and what they share."""
        parser.add_lightning_class_args(CompileWarmup, "warmup")
        parser.add_lightning_class_args(Clock, "clock")
        parser.add_lightning_class_args(Schedule, "schedule")
        parser.add_lightning_class_args(LateQAT, "late_qat")
        parser.add_lightning_class_args(SnapshotAveraging, "averaging")
        parser.add_lightning_class_args(Export, "export")
        parser.add_class_arguments(ScoringConfig, "scoring")
        parser.link_arguments("scoring", "data.scoring", apply_on="instantiate")
        parser.link_arguments("model.vocab_size", "data.vocab_size")
        parser.link_arguments("export.keep_last_k_fp16", "late_qat.keep_last_k_fp16")

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Give ``validate`` alone the option to score an exported file."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self._parser("validate").add_argument(
            "--artifact", type=str | None, default=None, help="Exported file to score, instead of a checkpoint."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse a checkpoint that is none before its settings are read."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        if config.get("artifact") is not None and config.ckpt_path is not None:
            raise UserError("--artifact and --ckpt_path both name weights to score; give one of them.")
        _check_checkpoint(config.ckpt_path)

    def before_instantiate_classes(self) -> None:
        """Let an artifact say what network it holds, and refuse a machine that lacks what the run asks for."""
        config = self.config[self.subcommand]
        _check_accelerator(config.trainer)
        _check_runs_folder(config.trainer)
        self.artifact: Artifact | None = None
        if config.get("artifact") is None:
            return
        self.artifact = read_any_artifact(Path(config.artifact))
        settings = self.artifact.settings or {}
        try:
            GPTConfig(**settings)  # type: ignore[arg-type]
        except TypeError as error:
            raise UserError(
                f"{config.artifact} describes a network that this program does not know ({error}); use the program "
                "that wrote it."
            ) from error
        for name, value in settings.items():
            config.model[name] = value
        config.data.vocab_size = config.model.vocab_size

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that have nothing to set, after those that they report on."""
        bar = (
            []
            if self.config_init[self.subcommand].trainer.enable_progress_bar is False
            else [BudgetProgressBar(refresh_rate=5)]
        )
        self.trainer_defaults["callbacks"] = [SlidingWindowScore(), Monitor(), *bar, RunLog(), RunSummary()]
        return super().instantiate_trainer(**kwargs)

    def before_validate(self) -> None:
        """Load the artifact's weights."""
        if self.artifact is None:
            return
        try:
            self.model.network.load_state_dict(load_state(self.artifact.tensors))
        except RuntimeError as error:
            raise UserError(
                f"The network of the configuration is not the one in {self.config.validate.artifact}; "
                f"give the model settings that it was trained with."
            ) from error

    def after_fit(self) -> None:
        """Fail, with everything saved, where the result may not be submitted."""
        excess = find(self.trainer, Export).excess()
        if excess:
            raise UserError(excess)


def _check_accelerator(trainer: Any) -> None:
    if trainer.accelerator not in ("gpu", "cuda"):
        return
    if not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator asks for a GPU and this machine has none; add --config configs/cpu.yaml, after the "
            "run's own, to run on the CPU."
        )
    num_gpus = torch.cuda.device_count()
    if isinstance(trainer.devices, int) and trainer.devices > num_gpus:
        raise UserError(
            f"trainer.devices asks for {trainer.devices} GPUs and this machine has {num_gpus}; set it to a number that "
            "divides data.train_micro_batches, or add --config configs/one_gpu.yaml, after the run's own."
        )


def _check_runs_folder(trainer: Any) -> None:
    folder = Path(trainer.default_root_dir or ".")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"The runs folder {folder} cannot be made or written to; set trainer.default_root_dir to one that can."
        )


def _check_checkpoint(path: str | None) -> None:
    if path is None:
        return
    remedy = "give --ckpt_path a .ckpt file that a fit saved"
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint file {path}; {remedy}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what torch.load raises on malformed bytes is not documented, and is many things
        raise UserError(f"{path} is not a checkpoint or is damaged; {remedy}.") from error
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a fit; {remedy}.")


def main(args: list[str] | None = None) -> GolfCLI:
    """Run a command; what a user can mend ends in one sentence and exit code 1."""
    try:
        return GolfCLI(
            GPTModule,
            FineWeb,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=1337,
            auto_configure_optimizers=False,
            args=args,
        )
    except (UserError, MisconfigurationException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
