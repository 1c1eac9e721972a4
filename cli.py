"""The command line: ``python cli.py fit ...`` trains, exports and scores; ``python cli.py validate ...`` scores."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import lazy_instance
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks.averaging import Averaging
from callbacks.clock import Clock
from callbacks.common import callbacks_of, find, in_order, stage_of
from callbacks.export import Export
from callbacks.late_qat import LateQAT
from callbacks.loops import Loops
from callbacks.monitor import Monitor
from callbacks.progress import BudgetProgressBar
from callbacks.run_log import RunLog
from callbacks.schedule import Schedule
from callbacks.scoring import ValidationScore
from callbacks.signals import Signals
from callbacks.summary import RunSummary
from callbacks.warmup import CompileWarmup
from command_line.parser import Parser
from components.averages import Average, SnapshotMean
from components.errors import UserError
from components.gpt import GPTConfig, load_weights
from components.model_files import read_any_artifact
from components.quantization import Nearest, load_state
from components.scorer import Scorer, SlidingWindows
from components.scoring import ScoringConfig
from components.storage import RECIPE
from components.weights_file import read_weights
from datamodules.fineweb import FineWeb
from datamodules.tokenizer import load_tokenizer
from lightning_modules.gpt import GPTModule

PACKAGES = ("components", "callbacks", "datamodules", "lightning_modules")
"""Packages whose classes may be named without their module."""

DESCRIPTIONS = {
    "fit": "Train, quantize, export and score a network. Each behavior of a run has its own section of settings.",
    "validate": "Score a checkpoint, an exported file or float weights.",
}

CodeCounter = Callable[[str], int]
"""Counts the bytes of code submitted with an artifact, given the run's whole configuration as YAML."""


class GolfCLI(LightningCLI):
    """The commands ``fit`` and ``validate``; each behavior of a run has its own section of the configuration.

    Args:
        count_code: Counts the code submitted with an artifact.
        settings: As for LightningCLI.
    """

    def __init__(self, *, count_code: CodeCounter, **settings: Any) -> None:
        self.count_code = count_code
        super().__init__(**settings)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer methods that are commands, each with its arguments that are not options."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate")}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections that a person changes most; the trainer's long one comes last."""
        parser.add_lightning_class_args(FineWeb, "data")
        parser.add_lightning_class_args(GPTModule, "model")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add a section for each behavior, and link what sections share."""
        parser.add_lightning_class_args(CompileWarmup, "warmup")
        parser.add_lightning_class_args(Clock, "clock")
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
        """Parse, and refuse conflicting options and unusable checkpoints before anything is built."""
        _import_named_classes(args if isinstance(args, list) else sys.argv[1:])
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        given = [name for name in ("artifact", "weights", "ckpt_path") if config.get(name) is not None]
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} both name weights to score; give one of them.")
        last_weights = config.get("last_weights", False)
        if last_weights and given != ["ckpt_path"]:
            raise UserError("--last_weights true applies to a checkpoint; give one with --ckpt_path.")
        drops_average = config.averaging is None and not last_weights
        _check_checkpoint(config.ckpt_path, drops_average, may_score_last="last_weights" in config)

    def before_instantiate_classes(self) -> None:
        """Take the network's settings from the file to score, and refuse a machine that lacks what the run needs."""
        config = self.config[self.subcommand]
        _check_accelerator(config.trainer)
        _check_runs_folder(config.trainer)
        self.weights: dict[str, Tensor] | None = None
        settings = None
        if config.get("artifact") is not None:
            artifact = read_any_artifact(Path(config.artifact))
            settings, self.weights = artifact.settings, load_state(artifact.tensors)
        elif config.get("weights") is not None:
            found = read_weights(Path(config.weights))
            settings, self.weights = found.settings, found.weights
        if settings is not None:
            _check_network(settings, config.get("artifact") or config.get("weights"))
            for name, value in settings.items():
                config.model[name] = value
        _take_vocabulary(config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that have no section of their own, and sort all callbacks by stage."""
        config, init = self.config[self.subcommand], self.config_init[self.subcommand]
        added = [Signals(), ValidationScore(), Monitor()]
        if init.averaging is not None:
            added.append(Averaging(init.averaging, config.get("last_weights", False)))
        if init.trainer.enable_progress_bar is not False:
            added.append(BudgetProgressBar(refresh_rate=5))
        self.trainer_defaults["callbacks"] = [*added, RunLog(), RunSummary()]
        trainer = super().instantiate_trainer(**kwargs)
        callbacks = in_order(callbacks_of(trainer))
        assert all(stage_of(a) <= stage_of(b) for a, b in itertools.pairwise(callbacks))
        callbacks_of(trainer)[:] = callbacks
        return trainer

    def before_fit(self) -> None:
        """Give the export a counter of this configuration's code."""
        text = self._parser("fit").dump(self.config.fit, skip_none=False)
        find(self.trainer, Export).count_code = lambda: self.count_code(text)

    def before_validate(self) -> None:
        """Load the weights of the file to score."""
        if self.weights is not None:
            config = self.config.validate
            load_weights(self.model.network, self.weights, config.artifact or config.weights)

    def after_fit(self) -> None:
        """Fail if the result is too large to submit; everything is saved already."""
        excess = find(self.trainer, Export).excess()
        if excess:
            raise UserError(excess)


def _attribute(name: str) -> Callable[[object], Any]:
    return lambda owner: getattr(owner, name)


def _import_named_classes(words: list[str]) -> None:
    """Import the project's modules whose classes the command line or a configuration file names.

    The parser resolves the short names of imported classes only, and --help lists only those.
    """
    text = "\n".join(words)
    for word in words:
        path = Path(word.removeprefix("--config="))
        if path.suffix in (".yaml", ".yml") and path.is_file():
            text += path.read_text(errors="replace")
    named = set(re.findall(r"\w+", text))
    for package in PACKAGES:
        for file in sorted((Path(__file__).parent / package).glob("*.py")):
            classes = re.findall(r"^class (\w+)", file.read_text(), re.MULTILINE)
            if named.intersection(classes) or (classes and package == "components" and "help" in named):
                importlib.import_module(f"{package}.{file.stem}")


def _check_network(settings: dict[str, Any], source: str) -> None:
    try:
        GPTConfig(**settings)
    except TypeError as error:
        raise UserError(
            f"{source} describes a network that this program does not know ({error}); use the program that wrote it."
        ) from error


def _take_vocabulary(config: Any) -> None:
    """Fill in what the settings leave open from the tokenizer, and refuse a tokenizer of another vocabulary size."""
    tokenizer = load_tokenizer(config.data.tokenizer_path, config.model.vocab_size)
    config.model.vocab_size = len(tokenizer)
    if config.model.bos_id is None:
        config.model.bos_id = tokenizer.bos_id()


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
            f"The runs folder {folder} cannot be created or written to; set trainer.default_root_dir to a folder that "
            "can."
        )


def _check_checkpoint(path: str | None, drops_average: bool, may_score_last: bool) -> None:
    if path is None:
        return
    remedy = "give --ckpt_path a .ckpt file that a fit saved"
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint file {path}; {remedy}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many undocumented types on malformed bytes
        raise UserError(f"{path} is not a checkpoint or is damaged; {remedy}.") from error
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a fit; {remedy}.")
    average = checkpoint.get("callbacks", {}).get(Averaging.__qualname__)
    if average is not None and drops_average:
        otherwise = ", or --last_weights true to score the last weights" if may_score_last else ""
        raise UserError(
            f"{path} holds averaged weights, but the configuration has no averaging; give --averaging "
            f"{average['kind']}{otherwise}."
        )


def _count_packed(config: str) -> int:
    from records.script import compressed_bytes

    return compressed_bytes(config)


def main(args: list[str] | None = None, count_code: CodeCounter = _count_packed) -> GolfCLI:
    """Run a command; an error that the user can fix ends in one sentence and exit code 1.

    Args:
        args: The command and its options; those of the process if None.
        count_code: Counts the code submitted with an artifact; by default the packed script.
    """
    try:
        return GolfCLI(
            count_code=count_code,
            model_class=GPTModule,
            datamodule_class=FineWeb,
            parser_class=Parser,
            parser_kwargs={command: {"description": text} for command, text in DESCRIPTIONS.items()},
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=1337,
            auto_configure_optimizers=False,
            args=args,
        )
    except (UserError, MisconfigurationException) as error:
        sys.exit(f"error: {error}")
    except ValueError as error:
        # The parser wraps the error of a class if its setting may also be null.
        if not isinstance(error.__cause__, UserError):
            raise
        sys.exit(f"error: {error.__cause__}")


if __name__ == "__main__":
    main()
