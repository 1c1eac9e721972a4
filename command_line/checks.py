"""What is checked of the settings before anything is built, each mistake as one sentence."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from callbacks.attention import AttentionBackend
from callbacks.averaging import Averaging
from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.loops import Loops
from callbacks.schedule import Schedule
from callbacks.warmup import CompileWarmup
from command_line.bare import network_settings, take_vocabulary
from components.artifact import MAX_ELEMENTS
from components.checkpoint_reading import read_checkpoint
from components.errors import UserError
from components.gpt import shapes_of
from components.scoring import ScoringConfig
from datamodules.stream import check_batch

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


def check_settings(config: Any, for_training: bool) -> None:
    """Fill in the vocabulary, and name everything that is wrong, so that one start shows it all.

    Args:
        config: The settings of a command.
        for_training: Whether the command trains.

    Raises:
        UserError: The machine, the tokenizer or a section cannot be as set.
    """
    checks: list[Callable[[], object]] = [
        lambda: check_accelerator(config.trainer),
        lambda: take_vocabulary(config),
        lambda: config.model.bos_id is None or network_settings(config),  # its vocabulary may be unknown
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


def check_text(config: Any) -> None:
    """Refuse text that can be in no file's name, which a configuration file can hold.

    Raises:
        UserError: A setting holds such text.
    """
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


def check_size(config: Any) -> None:
    """Refuse a network that no artifact could hold, before any memory is spent on it.

    Raises:
        UserError: It has too many values.
    """
    num_values = sum(map(math.prod, shapes_of(network_settings(config)).values()))
    if num_values > MAX_ELEMENTS:
        raise UserError(
            f"The network has {num_values:,} values and an artifact holds {MAX_ELEMENTS:,} at most; make "
            "model.model_dim, model.num_layers or a table smaller."
        )


def check_runs_folder(trainer: Any) -> None:
    """Refuse a runs folder that no run could write to.

    Raises:
        UserError: It cannot be created or written to.
    """
    folder = Path(trainer.default_root_dir or ".")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"The runs folder {folder} cannot be created or written to; set trainer.default_root_dir to a folder that "
            "can."
        )


def check_checkpoint(path: str | None, drops_average: bool, may_score_last: bool) -> None:
    """Refuse a checkpoint that cannot be read, or whose average would be lost.

    Args:
        path: The checkpoint; None if there is none.
        drops_average: Whether the settings have no place for an average.
        may_score_last: Whether the command can score the last weights instead.

    Raises:
        UserError: It cannot be used.
    """
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


def check_accelerator(trainer: Any) -> None:
    """Refuse a device that is not there; leave an Apple GPU alone, which cannot compute in float64.

    Source: https://docs.pytorch.org/docs/stable/notes/mps.html. Scores and quantized weights need float64.

    Raises:
        UserError: The machine lacks what the settings ask for.
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
