"""What only TensorBoard shows: the run's events as text, and the exported tensors as a table and as histograms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.tensorboard import SummaryWriter

from callbacks.common import Event, find, network_of
from callbacks.export import Export
from callbacks.storage_costs import StorageCosts
from callbacks.tensorboard_log import TensorBoardLog
from components.quantization import LARGEST_CODE


class Dashboard(Callback):
    """Write to TensorBoard what no other logger takes: text and histograms.

    It must be called after the export and the costs of storage.
    """

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """Show the event as text at the current step."""
        show_text(trainer, f"events/{event.tag}", event.sentence)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the float weights that were exported, their codes, and what storing them costs."""
        export = find(trainer, Export)
        for writer in _writers(trainer):
            for name, p in network_of(pl_module).named_parameters():
                if not p.numel():
                    continue  # such as the skips of a single layer, of which a histogram is an error
                writer.add_histogram(f"tensor_weights/{name}", p.detach().float().cpu(), trainer.global_step)
            for name, tensor in export.stored.items():
                if tensor.scales is not None:
                    largest = LARGEST_CODE[tensor.storage]
                    edges = np.arange(-largest - 1.5, largest + 1)  # one bin per code
                    writer.add_histogram(f"tensor_codes/{name}", tensor.values.cpu(), trainer.global_step, bins=edges)
            writer.add_text("tensors", _table(export, find(trainer, StorageCosts)), trainer.global_step)


def show_text(trainer: Trainer, tag: str, text: str) -> None:
    """Show a text, as Markdown, at the current step."""
    for writer in _writers(trainer):
        writer.add_text(tag, text, trainer.global_step)


def _writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """The writers of TensorBoard's logs; none on other ranks than 0."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLog))


def _table(export: Export, storage: StorageCosts) -> str:
    rows = [
        "| tensor | type | values | bytes in the file | relative error |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, cost in storage.costs.items():
        tensor = export.stored[name]
        rows.append(
            f"| {name} | {tensor.storage} | {tensor.values.numel():,} | {cost.num_bytes:,.0f} | "
            f"{cost.relative_error:.2e} |"
        )
    return "\n".join(rows)
