"""``fit`` and ``validate`` as a record's script has them: without what only shows a run to people."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install
from jsonargparse import lazy_instance
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from callbacks.attention import AttentionBackend
from callbacks.averaging import Averaging
from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.common import callbacks_of, find, in_order, stage_of
from callbacks.export import Export
from callbacks.late_qat import LateQAT
from callbacks.loops import Loops
from callbacks.monitor import Monitor
from callbacks.progress import ProgressLines
from callbacks.ranks import Ranks, replace_observer, separate_restarts
from callbacks.run_folder import RunFolder, checkpoint_of_launch, is_restarted, last_checkpoint
from callbacks.run_log import RunLog
from callbacks.schedule import Schedule
from callbacks.scoring import ValidationScore
from callbacks.signals import Signals
from callbacks.summary import RunSummary
from callbacks.warmup import CompileWarmup
from components.averages import Average, SnapshotMean
from components.errors import UserError
from components.gpt import GPTConfig, check_shapes, config_of, load_weights, shapes_of
from components.model_files import read_any_artifact
from components.quantization import Nearest, load_state
from components.scorer import Scorer, SlidingWindows
from components.scoring import ScoringConfig
from components.storage import RECIPE
from components.tokenizer import load_tokenizer
from components.weights_file import read_weights
from datamodules.fineweb import FineWeb
from lightning_modules.gpt import GPTModule

CodeCounter = Callable[[str], int]
"""Counts the bytes of code submitted with an artifact, given the run's whole configuration as YAML."""


class BareCLI(LightningCLI):
    """The commands ``fit`` and ``validate``; each behavior of a run has its own section of the configuration.

    A run trains, survives, logs and sums itself up, which is what a record takes. Subclasses add observers and loggers.

    Args:
        count_code: Counts the code submitted with an artifact.
        signals: Ends the run when the process is told to.
        settings: As for LightningCLI.
    """

    def __init__(self, *, count_code: CodeCounter, signals: Signals, **settings: Any) -> None:
        self.count_code = count_code
        self.signals = signals
        super().__init__(**settings)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer methods that are commands, each with its arguments that are not options.

        ``weights_only`` is not an option, so that no configuration can have a checkpoint's code run. ``verbose`` would
        print a table of what the trainer itself logs, which is nothing.
        """
        commands = LightningCLI.subcommands()
        return {name: {*commands[name], "weights_only", "verbose"} for name in ("fit", "validate")}

    def observers(self) -> list[Callback]:
        """Callbacks that only show the run to people, in the order in which they are called."""
        return []

    def progress(self) -> Callback:
        """What tells how far a run is."""
        return ProgressLines()

    def loggers(self, folder: RunFolder) -> list[Logger]:
        """Loggers that every run has, beside those that the settings list.

        Args:
            folder: The run's folder.
        """
        return []

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections that a person changes most; the trainer's long one comes last."""
        parser.add_lightning_class_args(FineWeb, "data")
        parser.add_lightning_class_args(GPTModule, "model")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add a section for each behavior, and link what sections share."""
        parser.add_lightning_class_args(AttentionBackend, "attention")
        parser.add_lightning_class_args(CompileWarmup, "warmup")
        parser.add_lightning_class_args(Clock, "clock")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(Schedule, "schedule")
        parser.add_lightning_class_args(Loops, "loops")
        parser.add_lightning_class_args(LateQAT, "late_qat")
        parser.add_argument(
            "--averaging",
            type=Average | None,
            default=lazy_instance(SnapshotMean),
            help="How the weights are averaged over the run: a class and its settings, or null for no averaging.",
        )
        parser.add_lightning_class_args(Export, "export")
        parser.add_class_arguments(ScoringConfig, "scoring")
        parser.add_subclass_arguments(
            Scorer,
            "scorer",
            default=lazy_instance(SlidingWindows),
            help="How the run's result is scored: a class and its settings.",
        )
        parser.set_defaults(
            {
                "export.storage": [dataclasses.asdict(rule) for rule in RECIPE],
                "export.quantizer": lazy_instance(Nearest),
            }
        )
        for source in ("scoring", "scorer"):
            parser.link_arguments(source, f"data.{source}", apply_on="instantiate")
        for what in ("rules", "quantizer"):
            parser.link_arguments("export", f"late_qat.{what}", _attribute(what), apply_on="instantiate")
        parser.add_lightning_class_args(Trainer, "trainer")

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Give ``validate`` the options that choose which weights to score."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        parser = self._parser("validate")
        parser.add_argument(
            "--artifact", type=str | None, default=None, help="Exported file to score, instead of a checkpoint."
        )
        parser.add_argument(
            "--weights", type=str | None, default=None, help="Float weights to score, a .safetensors file."
        )
        parser.add_argument(
            "--last_weights",
            type=bool,
            default=False,
            help="Score a checkpoint's last weights, not their average over the run.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse options that contradict each other."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        given = [name for name in ("artifact", "weights", "ckpt_path") if config.get(name) is not None]
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} both name weights to score; give one of them.")
        if config.get("last_weights", False) and given != ["ckpt_path"]:
            raise UserError("--last_weights true applies to a checkpoint; give one with --ckpt_path.")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def before_instantiate_classes(self) -> None:
        """Take the network's settings from the file to score, and choose the checkpoint to go on from.

        The file's shapes are compared with the network's before any memory is spent on a network.
        """
        config = self.config[self.subcommand]
        self.weights: dict[str, Tensor] | None = None
        settings = None
        if config.get("artifact") is not None:
            artifact = read_any_artifact(Path(config.artifact))
            settings, self.weights = artifact.settings, load_state(artifact.tensors)
        elif config.get("weights") is not None:
            found = read_weights(Path(config.weights))
            settings, self.weights = found.settings, found.weights
        if settings is not None:
            config_of(settings, config.get("artifact") or config.get("weights"))
            for name, value in settings.items():
                config.model[name] = value
        self.settle()
        if self.weights is not None:
            shapes = shapes_of(network_settings(config))
            check_shapes(shapes, self.weights, config.get("artifact") or config.get("weights"))
        self._choose_checkpoint()
        if self._leaves_nothing():
            self.save_config_callback = None

    def settle(self) -> None:
        """Fill in what the settings leave open.

        Raises:
            UserError: It cannot be known.
        """
        take_vocabulary(self.config[self.subcommand])

    def _choose_checkpoint(self) -> None:
        """Find the checkpoint of a run that torchrun has restarted, or that ``--ckpt_path last`` asks for."""
        if self.subcommand != "fit":
            return
        config = self.config.fit
        runs = Path(config.trainer.default_root_dir or ".")
        saved = checkpoint_of_launch(runs, self._whole_config()) if is_restarted() else None
        if saved is not None:
            rank_zero_info(f"torchrun has restarted this run: it goes on from {saved}.")
        elif config.ckpt_path == "last":
            saved = last_checkpoint(runs, self._whole_config())
        if saved is not None:
            config.ckpt_path = str(saved)

    def _leaves_nothing(self) -> bool:
        """Whether to write no folder: a ``validate`` without a runs folder only prints."""
        return self.config.subcommand == "validate" and self.config.validate.trainer.default_root_dir is None

    def _whole_config(self) -> dict[str, Any]:
        """The command's configuration as its ``config.yaml`` holds it."""
        return yaml.safe_load(self._config_text())

    def _config_text(self) -> str:
        return self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that have no section of their own, and sort all callbacks by stage."""
        config, init = self.config[self.subcommand], self.config_init[self.subcommand]
        added: list[Callback] = [self.signals, Ranks(), ValidationScore(), Monitor()]
        if init.averaging is not None:
            added.append(Averaging(init.averaging, config.get("last_weights", False)))
        progress = None if init.trainer.enable_progress_bar is False else self.progress()
        if progress is not None:
            added.append(progress)
        if not self._leaves_nothing():
            added += [RunLog(), RunSummary(), *self.observers()]
        self.trainer_defaults["callbacks"] = added
        replace_observer()
        separate_restarts()
        settings = {
            "logger": self._loggers(init.trainer),
            "enable_progress_bar": isinstance(progress, ProgressBar),
            # Lightning's table has one row, the network. RunLog says how large it is.
            "enable_model_summary": bool(init.trainer.enable_model_summary),
        }
        trainer = super().instantiate_trainer(**{**settings, **kwargs})
        callbacks = in_order(callbacks_of(trainer))
        assert all(stage_of(a) <= stage_of(b) for a, b in itertools.pairwise(callbacks))
        callbacks_of(trainer)[:] = callbacks
        return trainer

    def _loggers(self, trainer: Any) -> list[Logger] | bool:
        """The run's own folder, the loggers of every run, and those that the user lists; ``false`` for no log."""
        if self._leaves_nothing():
            return False
        folder = RunFolder(Path(trainer.default_root_dir or "."))
        if trainer.logger is False:
            return [folder]
        listed = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        return [folder, *self.loggers(folder), *(logger for logger in listed if isinstance(logger, Logger))]

    def before_fit(self) -> None:
        """Give the export a counter of this configuration's code."""
        text = self._config_text()
        find(self.trainer, Export).count_code = lambda: self.count_code(text)

    def before_validate(self) -> None:
        """Load the weights of the file to score."""
        if self.weights is not None:
            config = self.config.validate
            load_weights(self.model.network, self.weights, config.artifact or config.weights)

    def after_validate(self) -> None:
        """Say the score."""
        score = find(self.trainer, ValidationScore).score
        assert score is not None
        if self.trainer.is_global_zero:
            print(
                f"{score.bits_per_byte:.6f} bits per byte, {score.loss:.6f} nats per token, {score.num_tokens:,} tokens"
            )

    def after_fit(self) -> None:
        """Fail if the result is too large to submit; everything is saved already."""
        excess = find(self.trainer, Export).excess()
        if excess:
            raise UserError(excess)


def take_vocabulary(config: Any) -> None:
    """Fill in what a command's settings leave open from the tokenizer.

    Raises:
        UserError: The tokenizer cannot be read, or its vocabulary has another size.
    """
    tokenizer = load_tokenizer(config.data.tokenizer_path, config.model.vocab_size)
    config.model.vocab_size = len(tokenizer)
    if config.model.bos_id is None:
        config.model.bos_id = tokenizer.bos_id()


def network_settings(config: Any) -> GPTConfig:
    """The network that a command's settings describe.

    Raises:
        UserError: It cannot be built.
    """
    return GPTConfig(**{field.name: config.model[field.name] for field in dataclasses.fields(GPTConfig)})


def _attribute(name: str) -> Callable[[object], Any]:
    return lambda owner: getattr(owner, name)
