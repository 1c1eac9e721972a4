"""The command line: ``python cli.py fit ...`` trains, exports and scores; ``python cli.py validate ...`` scores."""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1:] in ([], ["-h"], ["--help"]):
    from command_line.help import show_help

    show_help(sys.argv[1:])  # before the imports of torch and Lightning, which take seconds

import dataclasses
import importlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install
from jsonargparse import lazy_instance
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from callbacks.attention import AttentionBackend
from callbacks.averaging import Averaging
from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.common import callbacks_of, find, in_order, stage_of
from callbacks.dashboard import Dashboard
from callbacks.export import Export
from callbacks.history import History, Layer
from callbacks.hyperparameters import Hyperparameters
from callbacks.late_qat import LateQAT
from callbacks.loops import Loops
from callbacks.monitor import Monitor
from callbacks.progress import BudgetProgressBar, ProgressLines, is_terminal
from callbacks.ranks import Ranks, end_children, leave, replace_observer, separate_restarts, speaks
from callbacks.run_folder import RunFolder, checkpoint_of_launch, is_restarted, last_checkpoint
from callbacks.run_log import RunLog
from callbacks.sample import Sample
from callbacks.schedule import Schedule
from callbacks.scoring import ValidationScore
from callbacks.signals import Signals, Stopped
from callbacks.summary import RunSummary
from callbacks.tensorboard_log import TensorBoardLog
from callbacks.warmup import CompileWarmup
from command_line.parser import Parser
from components.artifact import MAX_ELEMENTS
from components.averages import Average, SnapshotMean
from components.checkpoint_reading import read_checkpoint
from components.errors import LostRankError, UserError, describe_os_error
from components.gpt import GPTConfig, check_shapes, config_of, load_weights, shapes_of
from components.model_files import read_any_artifact
from components.noise import quiet_libraries
from components.quantization import Nearest, load_state
from components.scorer import Scorer, SlidingWindows
from components.scoring import ScoringConfig
from components.storage import RECIPE
from components.tokenizer import load_tokenizer
from components.weights_file import read_weights
from datamodules.fineweb import FineWeb
from datamodules.stream import check_batch
from lightning_modules.gpt import GPTModule

PACKAGES = ("components", "callbacks", "datamodules", "lightning_modules")
"""Packages whose classes may be named without their module."""

DESCRIPTIONS = {
    "fit": "Train, quantize, export and score a network. Each behavior of a run has its own section of settings.",
    "validate": "Score a checkpoint, an exported file or float weights.",
}

CHECKED_ALONE: dict[str, type] = {
    "attention": AttentionBackend,
    "warmup": CompileWarmup,
    "clock": Clock,
    "checkpoint": Checkpoints,
    "schedule": Schedule,
    "loops": Loops,
    "scoring": ScoringConfig,
}
"""Sections whose settings can be checked before anything is built, by making an object of them."""

LEAVE_SECONDS = 5.0
"""How long rank 0 waits for the processes that Lightning started, before it ends them."""

CodeCounter = Callable[[str], int]
"""Counts the bytes of code submitted with an artifact, given the run's whole configuration as YAML."""

ReportWriter = Callable[[Path], None]
"""Writes a readable report of a run, given its folder."""


class GolfCLI(LightningCLI):
    """The commands ``fit`` and ``validate``; each behavior of a run has its own section of the configuration.

    Args:
        count_code: Counts the code submitted with an artifact.
        signals: Ends the run when the process is told to.
        write_report: Writes a report of a finished run; None for no report.
        settings: As for LightningCLI.
    """

    def __init__(
        self, *, count_code: CodeCounter, signals: Signals, write_report: ReportWriter | None, **settings: Any
    ) -> None:
        self.count_code = count_code
        self.signals = signals
        self.write_report = write_report
        super().__init__(**settings)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer methods that are commands, each with its arguments that are not options.

        ``weights_only`` is none, so that no configuration can ask for a checkpoint's code to be run.
        """
        commands = LightningCLI.subcommands()
        return {name: {*commands[name], "weights_only"} for name in ("fit", "validate")}

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
        """Parse, and refuse conflicting options and unusable checkpoints before anything is built."""
        self.command = args if isinstance(args, list) else sys.argv[1:]
        _import_named_classes(self.command)
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        _check_text(config)
        given = [name for name in ("artifact", "weights", "ckpt_path") if config.get(name) is not None]
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} both name weights to score; give one of them.")
        last_weights = config.get("last_weights", False)
        if last_weights and given != ["ckpt_path"]:
            raise UserError("--last_weights true applies to a checkpoint; give one with --ckpt_path.")
        if not self._goes_on_from_last():
            self._check_checkpoint()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def before_instantiate_classes(self) -> None:
        """Take the network's settings from the file to score, and refuse what cannot be built or run.

        The file's shapes are compared with the network's before any memory is spent on a network.
        """
        config = self.config[self.subcommand]
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
            config_of(settings, config.get("artifact") or config.get("weights"))
            for name, value in settings.items():
                config.model[name] = value
        _check_settings(config, for_training=self.subcommand == "fit")
        shapes = shapes_of(_network_settings(config))
        if self.weights is not None:
            check_shapes(shapes, self.weights, config.get("artifact") or config.get("weights"))
        _check_size(sum(map(math.prod, shapes.values())))
        self._choose_checkpoint()
        if self._leaves_nothing():
            self.save_config_callback = None

    def _choose_checkpoint(self) -> None:
        """Find the checkpoint of a run that torchrun has restarted, or that ``--ckpt_path last`` asks for."""
        if self.subcommand != "fit":
            return
        config = self.config.fit
        runs = Path(config.trainer.default_root_dir or ".")
        saved = checkpoint_of_launch(runs, self._whole_config()) if is_restarted() else None
        if saved is not None:
            rank_zero_info(f"torchrun has restarted this run: it goes on from {saved}.")
        elif self._goes_on_from_last():
            saved = last_checkpoint(runs, self._whole_config())
        if saved is not None:
            config.ckpt_path = str(saved)
            self._check_checkpoint()

    def _goes_on_from_last(self) -> bool:
        return self.config.subcommand == "fit" and self.config.fit.ckpt_path == "last"

    def _leaves_nothing(self) -> bool:
        """Whether to write no folder: a ``validate`` without a runs folder only prints."""
        return self.config.subcommand == "validate" and self.config.validate.trainer.default_root_dir is None

    def _check_checkpoint(self) -> None:
        config = self.config[self.config.subcommand]
        drops_average = config.averaging is None and not config.get("last_weights", False)
        _check_checkpoint(config.ckpt_path, drops_average, may_score_last="last_weights" in config)

    def _whole_config(self) -> dict[str, Any]:
        """The fit's configuration as its ``config.yaml`` holds it."""
        return yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_none=False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that have no section of their own, and sort all callbacks by stage."""
        config, init = self.config[self.subcommand], self.config_init[self.subcommand]
        added = [self.signals, Ranks(), ValidationScore(), Sample(), Monitor(), Hyperparameters(), Dashboard()]
        if init.averaging is not None:
            added.append(Averaging(init.averaging, config.get("last_weights", False)))
        shows_progress, on_terminal = init.trainer.enable_progress_bar is not False, is_terminal()
        if shows_progress:
            added.append(BudgetProgressBar(refresh_rate=5) if on_terminal else ProgressLines())
        if not self._leaves_nothing():
            checkpoint = config.ckpt_path if self.subcommand == "fit" else None
            added += [RunLog(), RunSummary(), History(self.command, self._layers(), checkpoint and Path(checkpoint))]
        self.trainer_defaults["callbacks"] = added
        replace_observer()
        separate_restarts()
        settings = {
            "logger": self._loggers(init.trainer),
            "enable_progress_bar": shows_progress and on_terminal,
            # Lightning's table has one row, the network. RunLog says how large it is.
            "enable_model_summary": bool(init.trainer.enable_model_summary),
        }
        trainer = super().instantiate_trainer(**{**settings, **kwargs})
        callbacks = in_order(callbacks_of(trainer))
        assert all(stage_of(a) <= stage_of(b) for a, b in itertools.pairwise(callbacks))
        callbacks_of(trainer)[:] = callbacks
        return trainer

    def _layers(self) -> list[Layer]:
        """The program's default settings and each configuration file's, later ones over earlier ones."""
        parser = self._parser(self.config.subcommand)
        defaults = yaml.safe_load(parser.dump(parser.get_defaults(), skip_none=False))
        layers = [("defaults", defaults)]
        inline = (
            word.removeprefix("--config=") for word in self.command if word.startswith("--config=") and "\n" in word
        )
        for path in self.config[self.config.subcommand].config or []:
            name, text = ("the script", next(inline)) if path is None else (str(path), path.get_content())
            layers.append((name, yaml.safe_load(text)))
        return layers

    def _loggers(self, trainer: Any) -> list[Logger] | bool:
        """The run's own folder, TensorBoard's log in it, and the loggers that the user lists; ``false`` for no log."""
        if self._leaves_nothing():
            return False
        folder = RunFolder(Path(trainer.default_root_dir or "."))
        if trainer.logger is False:
            return [folder]
        listed = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        return [folder, TensorBoardLog(folder), *(logger for logger in listed if isinstance(logger, Logger))]

    def before_fit(self) -> None:
        """Give the export a counter of this configuration's code, and the loggers the configuration."""
        text = self._parser("fit").dump(self.config.fit, skip_none=False)
        find(self.trainer, Hyperparameters).settings = yaml.safe_load(text)
        find(self.trainer, Export).count_code = lambda: self.count_code(text)

    def before_validate(self) -> None:
        """Load the weights of the file to score."""
        if self.weights is not None:
            config = self.config.validate
            load_weights(self.model.network, self.weights, config.artifact or config.weights)

    def after_fit(self) -> None:
        """Leave a report, and fail if the result is too large to submit; everything is saved already."""
        self._report()
        excess = find(self.trainer, Export).excess()
        if excess:
            raise UserError(excess)

    def after_validate(self) -> None:
        """Leave a report."""
        if not self._leaves_nothing():
            self._report()

    def _report(self) -> None:
        folder = find(self.trainer, History).folder
        if self.write_report is None or folder is None:
            return
        try:
            self.write_report(folder)
        except OSError as error:
            rank_zero_warn(
                f"The run has no report ({describe_os_error(error)}); make room and run python -m records.report "
                f"{folder}."
            )


CLI = TypeVar("CLI", bound=GolfCLI)


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


def _check_text(config: Any) -> None:
    """Refuse text that can be in no file's name, which a configuration file can hold."""
    for name, value in config.items():
        if isinstance(value, str):
            try:
                impossible = b"\0" in os.fsencode(value)
            except UnicodeEncodeError:
                impossible = True
            if impossible:
                raise UserError(
                    f"{name} is {value!r}, which holds a character that no file's name can have; remove it."
                )


def _network_settings(config: Any) -> GPTConfig:
    return GPTConfig(**{field.name: config.model[field.name] for field in dataclasses.fields(GPTConfig)})


def _check_settings(config: Any, for_training: bool) -> None:
    """Fill in the vocabulary, and name everything that is wrong, so that one start shows it all.

    Raises:
        UserError: The machine, the tokenizer or a section cannot be as set.
    """
    checks: list[Callable[[], object]] = [
        lambda: _check_accelerator(config.trainer),
        lambda: _take_vocabulary(config),
        lambda: config.model.bos_id is None or _network_settings(config),  # its vocabulary may be unknown
    ]
    checks += [partial(part, **config[section].as_dict()) for section, part in CHECKED_ALONE.items()]
    if for_training:
        checks.append(lambda: _check_step(config))
    problems = [problem for check in checks if (problem := _problem_of(check))]
    if len(problems) > 1:
        numbered = (f"({number}) {problem.removesuffix('.')}" for number, problem in enumerate(problems, start=1))
        raise UserError(f"{len(problems)} things are wrong: {'; '.join(numbered)}.")
    if problems:
        raise UserError(problems[0])


def _check_step(config: Any) -> None:
    data, devices = config.data, config.trainer.devices
    world_size = devices * config.trainer.num_nodes if isinstance(devices, int) and devices > 0 else 1
    if data.train_seq_len > 0 and data.train_micro_batches > 0:
        check_batch(data.train_batch_tokens, data.train_micro_batches, data.train_seq_len, world_size)


def _problem_of(check: Callable[[], object]) -> str | None:
    try:
        check()
    except UserError as error:
        return str(error)
    return None


def _check_size(num_values: int) -> None:
    if num_values > MAX_ELEMENTS:
        raise UserError(
            f"The network has {num_values:,} values and an artifact holds {MAX_ELEMENTS:,} at most; make "
            "model.model_dim, model.num_layers or a table smaller."
        )


def _take_vocabulary(config: Any) -> None:
    """Fill in what the settings leave open from the tokenizer, and refuse a tokenizer of another vocabulary size."""
    tokenizer = load_tokenizer(config.data.tokenizer_path, config.model.vocab_size)
    config.model.vocab_size = len(tokenizer)
    if config.model.bos_id is None:
        config.model.bos_id = tokenizer.bos_id()


def _check_accelerator(trainer: Any) -> None:
    """Refuse a device that is not there; leave an Apple GPU alone, which cannot compute in float64.

    Source: https://docs.pytorch.org/docs/stable/notes/mps.html. Scores and quantized weights need float64.
    """
    if trainer.accelerator == "mps":
        raise UserError(
            "trainer.accelerator is mps, and Apple's GPUs have no float64, which scores and quantization need; set it "
            "to cpu."
        )
    if trainer.accelerator == "auto" and torch.backends.mps.is_available():
        trainer.accelerator = "cpu"
        rank_zero_info("Running on the CPU: Apple's GPUs have no float64, which scores and quantization need.")
    if trainer.accelerator not in ("gpu", "cuda"):
        return
    if not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator asks for a GPU and this machine has none; add, after the run's own, --config "
            "configs/laptop.yaml for a small network in ten minutes, or --config configs/cpu.yaml for the same one."
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
    checkpoint = read_checkpoint(Path(path))
    average = checkpoint["callbacks"].get(Averaging.__qualname__)
    if average is not None and drops_average:
        otherwise = ", or --last_weights true to score the last weights" if may_score_last else ""
        raise UserError(
            f"{path} holds averaged weights, but the configuration has no averaging; give --averaging "
            f"{average['kind']}{otherwise}."
        )


def _count_packed(config: str) -> int:
    from records.script import compressed_bytes

    return compressed_bytes(config)


def _write_report(folder: Path) -> None:
    from records.report import write_report

    write_report([folder])


def main(
    args: list[str] | None = None,
    count_code: CodeCounter = _count_packed,
    write_report: ReportWriter | None = _write_report,
) -> GolfCLI:
    """Run ``fit`` or ``validate``; see `run_cli`.

    Args:
        args: The command and its options; those of the process if None.
        count_code: Counts the code submitted with an artifact; by default the packed script.
        write_report: Writes a report of a finished run; None for no report.
    """
    return run_cli(GolfCLI, args, SaveConfigCallback, count_code, write_report)


def run_cli(
    cli_class: type[CLI],
    args: list[str] | None,
    save_config: type[SaveConfigCallback] | None,
    count_code: CodeCounter = _count_packed,
    write_report: ReportWriter | None = None,
) -> CLI:
    """Run a command line; an error that the user can fix ends in one sentence and exit code 1.

    Args:
        cli_class: The command line.
        args: The command and its options; those of the process if None.
        save_config: Saves the configuration in the run's log folder; None if the command leaves none.
        count_code: Counts the code submitted with an artifact; by default the packed script.
        write_report: Writes a report of a finished run; None for no report.
    """
    quiet_libraries()
    signals = Signals()
    with signals.handled():
        try:
            return cli_class(
                count_code=count_code,
                signals=signals,
                write_report=write_report,
                model_class=GPTModule,
                datamodule_class=FineWeb,
                parser_class=Parser,
                parser_kwargs={name: {"description": DESCRIPTIONS[name]} for name in cli_class.subcommands()},
                save_config_callback=save_config,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=1337,
                auto_configure_optimizers=False,
                args=args,
            )
        except Stopped as stopped:
            if stopped.sentence is not None and speaks():
                print(f"\n{stopped.sentence}", file=sys.stderr, flush=True)  # below a progress bar
            end_children(LEAVE_SECONDS)
            leave(stopped.code)  # at once: with torch loaded, the interpreter takes seconds to end by itself
        except LostRankError as error:
            if speaks():
                print(f"error: {error}", file=sys.stderr)
            leave(1)
        except (UserError, MisconfigurationException) as error:
            _fail(str(error))
        except OSError as error:
            _fail(describe_os_error(error))
        except ValueError as error:
            # The parser wraps the error of a class if its setting may also be null or a list.
            known = (UserError, ModuleNotFoundError)
            reason = next((cause for cause in _causes(error) if isinstance(cause, known)), None)
            if reason is None:
                raise
            if isinstance(reason, UserError):
                _fail(str(reason))
            said = " ".join(str(reason).split())
            _fail(
                f"A class that the settings name needs a package that is not installed ({said}); install it, or leave "
                "the class out."
            )


def _fail(sentence: str) -> NoReturn:
    """End with an error's sentence, unless another rank has said what ends the run."""
    is_said = speaks()
    end_children(LEAVE_SECONDS)
    sys.exit(f"error: {sentence}" if is_said else 1)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the one it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


if __name__ == "__main__":
    main()
