"""Mixed-precision export at the end of a fit: the artifact file, and the score of its contents."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from callbacks.clock import Clock
from callbacks.common import Reporter, Stage, announce, data_of, find, log_metrics, network_of
from callbacks.scoring import score_as_validation, score_result, score_summary, shows_progress
from components.artifact import MAX_BYTES, MAX_FILE_BYTES, Artifact, parse_artifact, write_artifact
from components.compression import require_zstandard
from components.errors import UserError
from components.files import read_user_file
from components.gpt import GPT
from components.quantization import Nearest, Quantizer, StoredTensor, load_state, store
from components.scoring import Score
from components.storage import RECIPE, StorageRule, assign, keep_last_keys, refuse_idle_rules
from components.weights_file import write_weights

WEIGHTS_SUFFIX = ".safetensors"

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Written:
    """An artifact that was written and read back.

    Attributes:
        artifact: what stands in the file.
        num_bytes: the file's length.
    """

    artifact: Artifact
    num_bytes: int


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
        self.keep_last_k_fp16 = keep_last_k_fp16
        self.filename = filename
        self.rules: Sequence[StorageRule] = (*keep_last_keys(keep_last_k_fp16), *storage)
        self.quantizer = quantizer
        self.spare_folder = spare_folder
        self.float_score: Score | None = None
        self.score: Score | None = None
        self.stored: Mapping[str, StoredTensor] = {}
        """The weights as the artifact holds them, once they are quantized."""
        self._facts: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to train a model that could not be exported; see `check`."""
        if stage == TrainerFn.FITTING:
            self.check(network_of(pl_module))

    def check(self, network: GPT) -> None:
        """Reject a network that could not be exported in this way.

        Raises:
            UserError: zstandard is not installed, a weight has no storage rule, or a rule has no weight.
        """
        require_zstandard()
        if self.keep_last_k_fp16 > network.config.num_layers:
            raise UserError(
                f"export.keep_last_k_fp16 is {self.keep_last_k_fp16} and the network has "
                f"{network.config.num_layers} blocks; set it to at most that."
            )
        assign(network.shapes(), self.rules)
        refuse_idle_rules(network.shapes(), self.rules)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the float weights, write the artifact, score the float weights, and score what the artifact holds."""
        pl_module.to(trainer.strategy.root_device)  # the trainer's teardown has moved it to the CPU
        network = network_of(pl_module)
        self.stored = self.quantize(trainer, network)
        path = self.artifact_path(trainer)
        _on_rank_zero(trainer, lambda: self._save_floats(path, network))
        written = self.write(trainer, network, self.stored, path)
        bytes_code = _on_rank_zero(trainer, self.count_code)
        # Only now the scores, which may take minutes: a signal then leaves the artifact behind.
        self.float_score, _ = score_result(trainer, pl_module, "scoring float weights", not_scored(path))
        with exported_weights(network, written.artifact):
            self.score, seconds = score_result(trainer, pl_module, "scoring the artifact", not_scored(path))
            exported = score_as_validation(trainer, pl_module, "comparing the artifact")
        self._facts = {
            "exported_bpb": exported.bits_per_byte,
            "artifact": str(path),
            "bytes_model": written.num_bytes,
            "bytes_code": bytes_code,
            "bytes_total": written.num_bytes + bytes_code,
            "eval_time_seconds": seconds,
        }
        log_metrics(
            trainer,
            {
                "result/bits_per_byte": self.score.bits_per_byte,
                "result/loss": self.score.loss,
                "result/exported": exported.bits_per_byte,
            },
        )
        self._announce(trainer, self.float_score, self.score)

    @torch.no_grad()
    def quantize(self, trainer: Trainer, network: GPT, calibrated: Quantizer | None = None) -> dict[str, StoredTensor]:
        """The weights as the artifact will hold them, the same on every rank; calibrates the quantizer if needed.

        Args:
            trainer: The run.
            network: The network.
            calibrated: A quantizer that was calibrated on these weights, to share its calibration if possible.

        Raises:
            UserError: A weight cannot be stored, or the training data for the calibration cannot be read.
        """
        is_shared = calibrated is not None and self.quantizer.share_calibration(calibrated)
        if self.quantizer.calibration_batches and not is_shared:
            self._calibrate(trainer, network)
        storages = {name: rule.kind for name, rule in assign(network.shapes(), self.rules).items()}
        return store(dict(network.named_parameters()), storages, self.quantizer)

    def write(self, trainer: Trainer, network: GPT, stored: Mapping[str, StoredTensor], path: Path) -> Written:
        """Write the artifact on rank 0, and read it back on every rank.

        Raises:
            UserError: The file cannot be written.
        """
        settings = dataclasses.asdict(network.config)

        def write() -> bytes:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_artifact(path, settings, stored, self.rules)
            return read_user_file(path, MAX_FILE_BYTES)

        # Every rank gets the file's bytes, since another node may not see this one's disk.
        data = _on_rank_zero(trainer, write)
        artifact = parse_artifact(data, path)
        assert artifact.settings == settings, "it must describe the network it holds"
        return Written(artifact, len(data))

    def _calibrate(self, trainer: Trainer, network: GPT) -> None:
        """Let the quantizer see the weights to export at work on training data, in the precision of validations."""
        num_batches = self.quantizer.calibration_batches
        started = time.perf_counter()
        batches = tqdm(
            data_of(trainer).calibration_batches(num_batches),
            desc="calibrating",
            total=math.ceil(num_batches / trainer.world_size),
            disable=not shows_progress(trainer),
            leave=False,
            unit="batch",
        )
        with trainer.precision_plugin.val_step_context():
            self.quantizer.calibrate(network, batches)
        seconds = time.perf_counter() - started
        clock = find(trainer, Clock)
        clock.charge(seconds)
        words = f"calibrated on {num_batches} micro-batches of training data in {seconds:.3f} s"
        announce(trainer, "export", f"{words}, elapsed {clock.elapsed:.3f} s")

    def _save_floats(self, path: Path, network: GPT) -> None:
        """Write the float weights beside the artifact or in the spare folder.

        Raises:
            UserError: Only the spare folder took them, or not even that.
        """
        floats = dict(network.named_parameters())
        settings = dataclasses.asdict(network.config)
        try:
            write_weights(path.with_suffix(WEIGHTS_SUFFIX), settings, floats)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            reason = f"The export to {path.parent} failed ({error.__cause__.strerror})"
            raise UserError(f"{reason}; {self._save_elsewhere(path, settings, floats)}.") from error

    def _save_elsewhere(self, path: Path, settings: dict[str, Any], floats: Mapping[str, Tensor]) -> str:
        """Save the float weights in the spare folder; returns what became of them and what to do, as a clause."""
        remedy = "make room and give the same command with --ckpt_path last"
        try:
            folder = Path(tempfile.mkdtemp(prefix="golf-", dir=self.spare_folder))
            spare = folder / path.with_suffix(WEIGHTS_SUFFIX).name
            write_weights(spare, settings, floats)
        except (OSError, UserError):
            where = self.spare_folder or tempfile.gettempdir()
            return f"the float weights could not be saved in {where} (export.spare_folder) either; {remedy}"
        return f"the float weights are in {spare} (export.spare_folder chooses the place); to export them, {remedy}"

    def _announce(self, trainer: Trainer, before: Score, after: Score) -> None:
        facts = self._facts
        for sentence in (
            f"exported {facts['bytes_model']} bytes, with code {facts['bytes_code']} bytes "
            f"{facts['bytes_total']} bytes",
            f"float weights val_loss {before.loss:.8f} val_bpb {before.bits_per_byte:.8f}",
            f"artifact val_loss {after.loss:.8f} val_bpb {after.bits_per_byte:.8f} scored in "
            f"{facts['eval_time_seconds']:.3f} s",
            *data_of(trainer).scorer.describe(),
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
        """How weights are stored, and what the scorer did other than scoring."""
        stored: dict[str, list[str]] = {}
        for rule in self.rules:
            stored.setdefault(rule.storage, []).append(rule.names)
        listed = "; ".join(f"{storage}: {', '.join(names)}" for storage, names in stored.items())
        return [
            f"Stored by {type(self.quantizer).__name__} rounding, entropy-coded ({listed}).",
            *data_of(trainer).scorer.describe(),
        ]


def not_scored(path: Path) -> str:
    """What to tell the user of an artifact whose scoring a signal has ended, as a clause."""
    return f"{path} is whole, but not scored; score it with validate --artifact {path}"


@contextmanager
def exported_weights(network: GPT, artifact: Artifact) -> Iterator[None]:
    """A context in which a network has the weights of its artifact."""
    floats = {name: p.detach().clone() for name, p in network.named_parameters()}
    network.load_state_dict(load_state(artifact.tensors))
    yield
    network.load_state_dict(floats)


def _on_rank_zero(trainer: Trainer, work: Callable[[], Result]) -> Result:
    """Do something on rank 0 and return its result on every rank.

    A UserError is raised on every rank, since the others would otherwise wait forever.
    """
    result: Result | UserError | None = None
    if trainer.is_global_zero:
        try:
            result = work()
        except UserError as caught:
            result = caught
    result = trainer.strategy.broadcast(result)
    if isinstance(result, UserError):
        raise result
    return cast(Result, result)
