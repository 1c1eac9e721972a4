"""Mixed-precision export at the end of a fit: the artifact file, and the score of its contents."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from callbacks.clock import Clock
from callbacks.common import Reporter, Stage, announce, data_of, find, network_of
from callbacks.scoring import score_result, score_summary
from components.artifact import MAX_BYTES, MAX_FILE_BYTES, parse_artifact, write_artifact
from components.compression import require_zstandard
from components.errors import UserError
from components.files import read_user_file
from components.gpt import GPT, GPTConfig
from components.quantization import Nearest, Quantizer, StoredTensor, load_state, store
from components.scoring import Score
from components.storage import RECIPE, StorageRule, assign, keep_last_keys
from components.weight_coding import coded_sizes
from components.weights_file import write_weights

WEIGHTS_SUFFIX = ".safetensors"


class Export(Reporter):
    """Write the weights as an artifact, score them as floats, read the file back, and score its contents.

    The second score is the run's result. The float weights are also saved, as a ``.safetensors`` file beside the
    artifact, and the network has them again afterward.

    Args:
        keep_last_k_fp16: Number of last blocks whose key projections are stored in float16, never quantized.
        filename: The artifact's name in the run's log folder.
        storage: How each weight is stored; the first matching rule applies.
        quantizer: Rounds the weights that are quantized.
        spare_folder: Where the float weights go if the run's folder does not take them; null for the system's folder
            for temporary files.
    """

    stage = Stage.EXPORT
    count_code: Callable[[], int]
    """Counts the bytes of code submitted with the artifact; set by the program that knows what that code is."""

    def __init__(
        self,
        keep_last_k_fp16: int = 1,
        filename: str = "model.golf",
        storage: Sequence[StorageRule] = RECIPE,
        quantizer: Quantizer = Nearest(),
        spare_folder: str | None = None,
    ) -> None:
        super().__init__()
        if keep_last_k_fp16 < 0:
            raise UserError(f"export.keep_last_k_fp16 is {keep_last_k_fp16}; set a number of blocks, 0 for none.")
        if Path(filename).suffix in ("", WEIGHTS_SUFFIX):
            raise UserError(
                f"export.filename is {filename}; give it a suffix other than {WEIGHTS_SUFFIX}, which belongs to "
                "the float weights."
            )
        self.filename = filename
        self.rules: Sequence[StorageRule] = (*keep_last_keys(keep_last_k_fp16), *storage)
        self.quantizer = quantizer
        self.spare_folder = spare_folder
        self.float_score: Score | None = None
        self.score: Score | None = None
        self._facts: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to train a model that could not be exported.

        Raises:
            UserError: zstandard is not installed, or a weight has no storage rule.
        """
        if stage == TrainerFn.FITTING:
            require_zstandard()
            assign(network_of(pl_module).shapes(), self.rules)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the artifact, score the float weights, and score what the artifact holds."""
        pl_module.to(trainer.strategy.root_device)  # the trainer's teardown has moved it to the CPU
        network = network_of(pl_module)
        float_state = {name: p.detach().clone() for name, p in network.named_parameters()}
        self._calibrate(trainer, network)
        stored = self._store(network)
        path = self.artifact_path(trainer)
        data, facts, error = b"", {}, None
        if trainer.is_global_zero:
            try:
                data = self._write(trainer, path, float_state, stored, network.config)
                facts = {"artifact": str(path), **self._sizes(len(data))}
            except UserError as caught:
                error = caught
        # Every rank gets the file's bytes, since another node may not see this one's disk, and any error, since the
        # other ranks would otherwise wait forever.
        data, facts, error = trainer.strategy.broadcast((data, facts, error))
        if error is not None:
            raise error
        # Only now the scores, which may take minutes: a signal then leaves the artifact behind.
        done = f"{path} is whole, but not scored; score it with validate --artifact {path}"
        self.float_score, _ = score_result(trainer, pl_module, "scoring float weights", done)
        artifact = parse_artifact(data, path)
        assert artifact.settings == dataclasses.asdict(network.config), "it must describe the network it holds"
        network.load_state_dict(load_state(artifact.tensors))
        self.score, seconds = score_result(trainer, pl_module, "scoring the artifact", done)
        network.load_state_dict(float_state)
        self._facts = {**facts, "eval_time_seconds": seconds}
        self._announce(trainer, self.float_score, self.score)

    def _calibrate(self, trainer: Trainer, network: GPT) -> None:
        """Let the quantizer see the weights to export at work on training data, in the precision of validations."""
        num_batches = self.quantizer.calibration_batches
        if num_batches:
            started = time.perf_counter()
            with trainer.precision_plugin.val_step_context():
                self.quantizer.calibrate(network, data_of(trainer).calibration_batches(num_batches))
            seconds = time.perf_counter() - started
            find(trainer, Clock).charge(seconds)
            announce(
                trainer, "export", f"calibrated on {num_batches} micro-batches of training data in {seconds:.3f} s"
            )

    @torch.no_grad()
    def _store(self, network: GPT) -> dict[str, StoredTensor]:
        """The weights as the artifact will hold them, the same on every rank."""
        rules = assign(network.shapes(), self.rules)
        storages = {name: rule.kind for name, rule in rules.items()}
        return store(dict(network.named_parameters()), storages, self.quantizer)

    def _write(
        self,
        trainer: Trainer,
        path: Path,
        float_state: Mapping[str, Tensor],
        stored: Mapping[str, StoredTensor],
        config: GPTConfig,
    ) -> bytes:
        """Write the artifact and the float weights, log the tensors, and read the artifact's bytes back."""
        settings = dataclasses.asdict(config)
        try:
            write_artifact(path, settings, stored, self.rules)
            write_weights(path.with_suffix(WEIGHTS_SUFFIX), settings, float_state)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            reason = f"The export to {path.parent} failed ({error.__cause__.strerror})"
            raise UserError(f"{reason}; {self._save_elsewhere(path, settings, float_state)}.") from error
        _log_tensors(trainer, float_state, stored)
        return read_user_file(path, MAX_FILE_BYTES)

    def _save_elsewhere(self, path: Path, settings: dict[str, Any], float_state: Mapping[str, Tensor]) -> str:
        """Save the float weights in the spare folder; returns what became of them and what to do, as a clause."""
        remedy = "make room and give the same command with --ckpt_path last"
        try:
            folder = Path(tempfile.mkdtemp(prefix="golf-", dir=self.spare_folder))
            spare = folder / path.with_suffix(WEIGHTS_SUFFIX).name
            write_weights(spare, settings, float_state)
        except (OSError, UserError):
            where = self.spare_folder or tempfile.gettempdir()
            return f"the float weights could not be saved in {where} (export.spare_folder) either; {remedy}"
        return f"the float weights are in {spare} (export.spare_folder chooses the place); to export them, {remedy}"

    def _sizes(self, bytes_model: int) -> dict[str, int]:
        bytes_code = self.count_code()
        return {"bytes_model": bytes_model, "bytes_code": bytes_code, "bytes_total": bytes_model + bytes_code}

    def _announce(self, trainer: Trainer, before: Score, after: Score) -> None:
        facts = self._facts
        for sentence in (
            f"exported {facts['bytes_model']} bytes, with code {facts['bytes_code']} bytes "
            f"{facts['bytes_total']} bytes",
            f"float weights val_loss {before.loss:.8f} val_bpb {before.bits_per_byte:.8f}",
            f"artifact val_loss {after.loss:.8f} val_bpb {after.bits_per_byte:.8f} scored in "
            f"{facts['eval_time_seconds']:.3f} s",
        ):
            announce(trainer, "export", sentence)
        rank_zero_info(
            f"Exported {facts['artifact']}: {facts['bytes_model']:,} bytes, {after.bits_per_byte:.4f} bits per byte "
            f"({before.bits_per_byte:.4f} before export)."
        )

    def artifact_path(self, trainer: Trainer) -> Path:
        """Where the artifact goes, the same path on every rank."""
        assert trainer.log_dir is not None
        return Path(trainer.log_dir) / self.filename

    def excess(self) -> str | None:
        """A sentence saying by how much artifact and code exceed the cap; None if they do not."""
        total = self._facts.get("bytes_total", 0)
        if total <= MAX_BYTES:
            return None
        return (
            f"{self._facts['artifact']} and the code take {total:,} bytes, {total - MAX_BYTES:,} over the cap of "
            f"{MAX_BYTES:,}; everything is saved, but make the network smaller to submit it."
        )

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The result, the score before export, and the file's size."""
        if self.score is None or self.float_score is None:
            return {}
        return {
            **score_summary(self.score),
            "pre_quant_val_loss": self.float_score.loss,
            "pre_quant_val_bpb": self.float_score.bits_per_byte,
            **self._facts,
        }

    def describe(self, trainer: Trainer) -> list[str]:
        """How weights are stored."""
        stored: dict[str, list[str]] = {}
        for rule in self.rules:
            stored.setdefault(rule.storage, []).append(rule.names)
        listed = "; ".join(f"{storage}: {', '.join(names)}" for storage, names in stored.items())
        return [f"Stored by {type(self.quantizer).__name__} rounding, entropy-coded ({listed})."]


def _log_tensors(trainer: Trainer, state: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> None:
    """Log each tensor's type, size and relative quantization error to TensorBoard, as scalars and as a table."""
    rows = [
        "| tensor | type | values | bytes in the file | relative error |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    metrics = {}
    for (name, tensor), num_bytes in zip(stored.items(), coded_sizes(list(stored.values())), strict=True):
        weight = state[name].float()
        error = ((tensor.dequantize().to(weight.device) - weight).norm() / weight.norm().clamp_min(1e-30)).item()
        metrics[f"export_error/{name}"] = error
        metrics[f"export_bytes/{name}"] = num_bytes
        rows.append(f"| {name} | {tensor.storage} | {weight.numel():,} | {num_bytes:,.0f} | {error:.2e} |")
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("export/tensors", "\n".join(rows), trainer.global_step)
        logger.save()
