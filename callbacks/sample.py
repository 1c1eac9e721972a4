"""A piece of text that the model writes at each validation, so that a person sees what its score means."""

from __future__ import annotations

import textwrap
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import Reporter, Stage, data_of, network_of
from callbacks.dashboard import show_text
from components.attention import BACKENDS, only_backends
from components.generation import Sampling, generate

PROMPT_TOKENS = 24
"""How much of the validation text the model is given."""

NEW_TOKENS = 60
"""The most tokens that it adds."""

LINE_WIDTH = 100


class Sample(Reporter):
    """Let the model continue the beginning of the validation text at each validation of a fit, with a fixed seed.

    Rank 0 writes it in float32 while the clock is paused; the others wait for its next step.
    """

    stage = Stage.OBSERVER

    def __init__(self) -> None:
        super().__init__()
        self.text: str | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, and show it as text."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not trainer.is_global_zero:
            return
        prompt, self.text = self._write(trainer, pl_module)
        show_text(trainer, "sample", f"Given:\n\n{_block(prompt)}\n\nContinued:\n\n{_block(self.text)}")

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """What it wrote last."""
        return {} if self.text is None else {"sample": self.text}

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> tuple[str, str]:
        """The prompt, and what the model made of it."""
        network, data = network_of(pl_module), data_of(trainer)
        # Longer sequences than the warm-up's would replace tables that the compiled graph holds.
        room = len(network.rotary_cos)
        prompt_ids = data.validation_prompt(min(PROMPT_TOKENS, room // 2))
        with only_backends(list(BACKENDS)):
            new_ids = list(generate(network, prompt_ids, min(NEW_TOKENS, room - len(prompt_ids)), Sampling()))
        prompt, whole = data.tokenizer.decode(prompt_ids), data.tokenizer.decode([*prompt_ids, *new_ids])
        return prompt, whole[len(prompt) :]


def _block(text: str) -> str:
    """Text as a block that Markdown leaves alone, in lines that fit on a screen."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, LINE_WIDTH) or [""]]
    return textwrap.indent("\n".join(lines) or "(nothing: the document ends here)", "    ", lambda line: True)
