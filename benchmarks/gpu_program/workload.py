"""What a run asks of a GPU: its network, the passes through it, and when each kind of step is taken."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install

from components.errors import UserError
from components.gpt import GPT, GPTConfig
from components.optimizer import OptimizerConfig
from components.quantization import Quantizer
from components.storage import StorageRule, keep_last_keys

PASSES = ("train", "loop", "qat", "val", "score", "ttt")
"""Training; training with the network's loop; under late QAT; validation in whole windows; sliding-window scoring;
training on what was scored."""

VALIDATION_IDS = {1024: 62_021_846, 4096: 45_508_608, 8192: 40_542_208}
"""Ids of the published validation split by size of the vocabulary."""


@dataclass(frozen=True)
class Pass:
    """One use of the network, compiled as one graph (two with the backward pass).

    Args:
        name: One of PASSES.
        num_sequences: Sequences in a batch.
        seq_len: Positions of a sequence.
        num_scored: Positions with a target, the last ones.
        looping: Whether the network's loop is on.
    """

    name: str
    num_sequences: int
    seq_len: int
    num_scored: int
    looping: bool

    @property
    def is_training(self) -> bool:
        """Whether there is a backward pass."""
        return self.name not in ("val", "score")


@dataclass(frozen=True)
class TrainingOnScored:
    """The settings of `ScoreFirstTraining`, whose module asks for packages that a CUDA build does without."""

    chunk_tokens: int
    epochs: int
    lr: float
    momentum: float
    batch_seqs: int


class Workload:
    """A run as its configuration files describe it.

    Args:
        files: Configuration files, each overriding the ones before.

    Raises:
        UserError: A file is not YAML, or the files together are not a complete run.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.name = "+".join(file.stem for file in files)
        self.settings: dict[str, Any] = {}
        for file in files:
            self.settings = _overridden(self.settings, _read(file))
        try:
            self.network_config = self._network_config()
            self._optimizer = self.settings["model"]["optimizer"]
            self._data, self._scoring = self.settings["data"], self.settings["scoring"]
            self.num_ranks = self.settings["trainer"]["devices"] * self.settings["trainer"].get("num_nodes", 1)
            self.clip = self.settings["trainer"]["gradient_clip_val"]
            self.seconds = self.settings["clock"]["max_seconds"] - self.settings["clock"]["reserve_seconds"]
            self.micro_batches = self._data["train_micro_batches"] // self.num_ranks
            self.training_on_scored = _training_on_scored(self.settings["scorer"])
            self._starts = {name: self.settings[name]["start_fraction"] for name in ("loops", "late_qat")}
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{', '.join(map(str, files))}: no complete run, for lack of {error}; give a complete configuration "
                "first, such as configs/record_10l.yaml, and overlays after it."
            ) from error

    def _network_config(self) -> GPTConfig:
        model = self.settings["model"]
        names = {field.name for field in fields(GPTConfig)} - {"vocab_size", "bos_id"}
        return GPTConfig(
            vocab_size=model["vocab_size"] or _vocab_size(self.settings["data"]["tokenizer_path"]),
            **{name: model[name] for name in names if name in model},
        )

    @property
    def phases(self) -> dict[str, float]:
        """Share of the training time by training pass."""
        loop = self._starts["loops"] if self.network_config.num_loops else 1.0
        qat = self._starts["late_qat"]
        shares = {"train": min(loop, qat), "loop": qat - min(loop, qat), "qat": 1.0 - qat}
        return {name: share for name, share in shares.items() if share > 0}

    @property
    def passes(self) -> list[str]:
        """The passes of the run."""
        return [*self.phases, "val", "score", *(["ttt"] if self.training_on_scored else [])]

    def describe(self, name: str) -> Pass:
        """Shapes of a pass, on the rank with the most to do.

        Raises:
            UserError: The run does not train on what it scores, and this is the pass that does.
        """
        has_loop = self.network_config.num_loops > 0
        if name == "ttt":
            seq_len = self._scoring["seq_len"]
            per_step = min(self._test_sequences(), self._scored().batch_seqs)
            return Pass(name, -(-per_step // self.num_ranks), seq_len, seq_len, has_loop)
        if name in ("val", "score"):
            seq_len = self._scoring["seq_len"]
            stride = self._scoring["val_stride"] or seq_len if name == "val" else self._scoring["stride"]
            return Pass(name, self._scoring["windows_per_batch"], seq_len, stride, has_loop)
        seq_len = self._data["train_seq_len"]
        tokens = self._data["train_batch_tokens"] // self._data["train_micro_batches"]
        looping = has_loop and (name == "loop" or (name == "qat" and self._starts["loops"] <= self._starts["late_qat"]))
        return Pass(name, tokens // seq_len, seq_len, seq_len, looping)

    def _scored(self) -> TrainingOnScored:
        if self.training_on_scored is None:
            raise UserError(f"{self.name} does not train on what it scores; leave ttt out of --passes.")
        return self.training_on_scored

    def _test_sequences(self) -> int:
        """Whole sequences of a scored chunk."""
        return self._scored().chunk_tokens // int(self._scoring["seq_len"])

    @property
    def num_test_steps(self) -> int | None:
        """Steps of training during the final score; None where the validation split has no known size."""
        if self.training_on_scored is None:
            return 0
        num_ids = VALIDATION_IDS.get(self.network_config.vocab_size)
        if num_ids is None:
            return None
        num_trained = -(-(num_ids - 1) // self.training_on_scored.chunk_tokens) - 1  # not on the last chunk
        steps_per_epoch = -(-self._test_sequences() // self.training_on_scored.batch_seqs)
        return num_trained * self.training_on_scored.epochs * steps_per_epoch

    @property
    def num_windows(self) -> int | None:
        """Windows of the final score; None for a vocabulary whose validation split has no known size."""
        num_ids = VALIDATION_IDS.get(self.network_config.vocab_size)
        if num_ids is None:
            return None
        return 1 + -(-(num_ids - 1 - self._scoring["seq_len"]) // self._scoring["stride"])

    def network(self) -> GPT:
        """The network on the meta device.

        Raises:
            UserError: It is to be fused and cannot be.
        """
        with torch.device("meta"):
            network = GPT(self.network_config)
        if self.settings["model"].get("fused_mlp"):
            network.fuse_mlps()
        return network

    def optimizer_config(self) -> OptimizerConfig:
        """Settings of the optimizers."""
        return OptimizerConfig(**self._optimizer)

    def set_faking(self, network: GPT, faking: bool) -> None:
        """Let the network see its weights as export stores them, or as they are."""
        network.disable_fake_quantization()
        if faking:
            export = self.settings["export"]
            rules = [StorageRule(**rule) for rule in export["storage"]]
            network.enable_fake_quantization([*keep_last_keys(export["keep_last_k_fp16"]), *rules], self._quantizer())

    def _quantizer(self) -> Quantizer:
        chosen = self.settings["export"]["quantizer"]
        module, _, name = chosen["class_path"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**chosen.get("init_args", {}))


def _training_on_scored(chosen: Mapping[str, Any]) -> TrainingOnScored | None:
    """The training of a configuration's scorer, if it does any."""
    if chosen["class_path"].rpartition(".")[2] != "ScoreFirstTraining":
        return None
    training = TrainingOnScored(**chosen.get("init_args", {}))
    return training if training.epochs else None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML; give a file such as configs/record_10l.yaml.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings; give a file such as configs/record_10l.yaml.")
    return content


def _overridden(settings: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of a later file, section by section."""
    result = dict(settings)
    for name, value in by.items():
        before = result.get(name)
        both = isinstance(value, dict) and isinstance(before, dict)
        result[name] = _overridden(before, value) if both else value  # type: ignore[arg-type] # a dict if both are
    return result


def _vocab_size(tokenizer_path: str) -> int:
    """The size that a published tokenizer's file name states, so that the file itself is not needed."""
    found = re.search(r"_(\d+)_", Path(tokenizer_path).name)
    if found is None:
        raise UserError(
            f"data.tokenizer_path {tokenizer_path} does not state the size of its vocabulary, as "
            "fineweb_1024_bpe.model does; set model.vocab_size in a configuration file."
        )
    return int(found[1])
