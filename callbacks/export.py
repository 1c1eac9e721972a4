"""Mixed-precision export at fit end: the artifact file, and the score of what stands in it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from callbacks.common import data_of, network_of
from callbacks.scoring import score_summary
from components.artifact import (
    MAX_BYTES,
    load_state,
    parse_artifact,
    read_user_file,
    require_zstandard,
    store_state,
    write_artifact,
)
from components.errors import UserError
from components.gpt import GPTConfig
from components.quantization import StoredTensor
from components.scoring import Score, score
from components.weight_coding import coded_sizes

SOURCES = ("cli.py", "callbacks", "components", "datamodules", "lightning_modules")


class Export(Callback):
    """Score the float weights, write them as an artifact, read the file back, and score what it holds.

    The second score is the run's result. The network has its float weights again afterward.

    Args:
        keep_last_k_fp16: Key projections of so many last blocks are stored in float16 and never quantized.
        filename: The artifact's name in the run's log folder.
    """

    def __init__(self, keep_last_k_fp16: int = 1, filename: str = "model.golf") -> None:
        super().__init__()
        if keep_last_k_fp16 < 0:
            raise UserError(f"export.keep_last_k_fp16 is {keep_last_k_fp16}; set a number of blocks, 0 for none.")
        self.keep_last_k_fp16 = keep_last_k_fp16
        self.filename = filename
        self.float_score: Score | None = None
        self.score: Score | None = None
        self._facts: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to train what could not be exported.

        Raises:
            UserError: zstandard is not installed.
        """
        if stage == TrainerFn.FITTING:
            require_zstandard()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score, write, read back, score."""
        pl_module.to(trainer.strategy.root_device)  # the trainer's teardown has moved it to the CPU
        network = network_of(pl_module)
        float_state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.float_score, _ = self._score(trainer, pl_module, "scoring float weights")
        path = self.artifact_path(trainer)
        data, error = b"", None
        if trainer.is_global_zero:
            try:
                data = self._write(trainer, path, float_state, network.config)
            except UserError as caught:
                error = caught
        # The file's own bytes go to every rank, since another node need not see this one's disk; and so does what
        # went wrong, or the other ranks would wait for ever.
        data, error = trainer.strategy.broadcast((data, error))
        if error is not None:
            raise error
        artifact = parse_artifact(data, path)
        assert artifact.settings == dataclasses.asdict(network.config), "it must describe the network that it holds"
        network.load_state_dict(load_state(artifact.tensors))
        self.score, seconds = self._score(trainer, pl_module, "scoring the artifact")
        network.load_state_dict(float_state)
        self._facts = {"artifact": str(path), "eval_time_seconds": seconds, **sizes(len(data))}
        rank_zero_info(
            f"Exported {path}: {self._facts['bytes_model']:,} bytes, {self.score.bits_per_byte:.4f} bits per byte "
            f"({self.float_score.bits_per_byte:.4f} before export)."
        )

    def _write(self, trainer: Trainer, path: Path, float_state: dict[str, Tensor], config: GPTConfig) -> bytes:
        """Write the artifact, show its tensors, and read back what stands on the disk."""
        stored = store_state(float_state, config.num_layers, self.keep_last_k_fp16)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_artifact(path, dataclasses.asdict(config), stored)
        _log_tensors(trainer, float_state, stored)
        return read_user_file(path)

    def artifact_path(self, trainer: Trainer) -> Path:
        """Where the artifact goes, the same path on every rank."""
        assert trainer.log_dir is not None
        return Path(trainer.log_dir) / self.filename

    def excess(self) -> str | None:
        """A sentence by how much artifact and code are over the cap, if they are."""
        total = self._facts.get("bytes_total", 0)
        if total <= MAX_BYTES:
            return None
        return (
            f"{self._facts['artifact']} and the code take {total:,} bytes, {total - MAX_BYTES:,} over the cap of "
            f"{MAX_BYTES:,}; everything is saved, but make the network smaller to submit it."
        )

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """What the run summary says of the export."""
        if self.score is None or self.float_score is None:
            return {}
        return {
            **score_summary(self.score),
            "pre_quant_val_loss": self.float_score.loss,
            "pre_quant_val_bpb": self.float_score.bits_per_byte,
            **self._facts,
        }

    def _score(self, trainer: Trainer, pl_module: LightningModule, progress: str) -> tuple[Score, float]:
        started = time.perf_counter()
        data = data_of(trainer)
        windows = data.windows(data.scoring.stride)
        bar = progress if trainer.is_global_zero and trainer.progress_bar_callback is not None else None
        pl_module.eval()
        with trainer.precision_plugin.val_step_context():
            result = score(network_of(pl_module), windows, bar)
        return result, time.perf_counter() - started


def sizes(bytes_model: int) -> dict[str, int]:
    """Bytes of the artifact, of the sources that a fit and a validate need, and of both."""
    root = Path(__file__).parents[1]
    files = [
        file for name in SOURCES for file in ([root / name] if name.endswith(".py") else (root / name).glob("*.py"))
    ]
    bytes_code = sum(file.stat().st_size for file in files)
    return {"bytes_model": bytes_model, "bytes_code": bytes_code, "bytes_total": bytes_model + bytes_code}


def _log_tensors(trainer: Trainer, state: dict[str, Tensor], stored: dict[str, StoredTensor]) -> None:
    """Show each tensor's type, size and relative quantization error in TensorBoard, as numbers and as a table."""
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
