"""A technique that nobody knows: what a run shows of it, it shows by the protocol alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.common import Reporter, Variant, announce, network_of
from components.averages import SnapshotMean
from components.quantization import Nearest, StoredTensor
from components.storage import Storage


class Toy(Reporter):
    """Has a phase from a step on, and lists the forms of the network that were run before the first step.

    Args:
        from_step: The first step of its phase.
    """

    def __init__(self, from_step: int = 3) -> None:
        self.from_step = from_step
        self.applied = False
        self.started: int | None = None
        self.trained: list[tuple[bool, bool]] = []
        self.scored: list[tuple[bool, bool, int]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = network_of(pl_module)

        def note(_: Any, inputs: tuple[Tensor, Tensor]) -> None:
            if network.training:
                self.trained.append((self.applied, network.is_faking))
            else:
                self.scored.append((self.applied, network.is_faking, len(inputs[0])))

        self._hook = network.register_forward_pre_hook(note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.started is None and trainer.global_step == self.from_step:
            self.started = trainer.global_step
            announce(trainer, "toy", f"the toy began at step {self.started}")

    def phase(self, trainer: Trainer) -> str | None:
        return None if self.started is None else "toy phase"

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        return {"toy/on": float(self.started is not None)}

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        return {"toy_start_step": self.started}

    def missed(self, trainer: Trainer) -> list[str]:
        return ["the toy never ended"]

    def describe(self, trainer: Trainer) -> list[str]:
        return ["A toy was played with."]

    def variants(self, trainer: Trainer, pl_module: LightningModule) -> Sequence[Variant]:
        return (Variant("the toy", self._apply, scored=True),)

    @contextmanager
    def _apply(self) -> Iterator[None]:
        self.applied = True
        try:
            yield
        finally:
            self.applied = False


class Undeclared(Callback):
    """Says nothing of its stage."""


class OtherMean(SnapshotMean):
    """An average of another kind."""


class Zeros(Nearest):
    """Stores nothing but zeros."""

    def quantize_all(self, matrices: Mapping[str, Tensor], storages: Mapping[str, Storage]) -> dict[str, StoredTensor]:
        return super().quantize_all({name: 0 * matrix for name, matrix in matrices.items()}, storages)
