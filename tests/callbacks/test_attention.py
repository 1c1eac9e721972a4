"""Which implementation computes attention is the configuration's choice, and a run says which one it was."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.attention import AttentionBackend
from callbacks.common import Event
from components.attention import BACKENDS
from components.errors import UserError
from components.scoring import ScoringConfig
from tests.callbacks.support import small_module, trainer_of
from tests.support import FinishedRun, summary_of

USES = ("training", "scoring", "the last block's scoring")


class Listener:
    def __init__(self) -> None:
        self.heard: list[Event] = []

    def on_event(self, trainer: Any, event: Event) -> None:
        self.heard.append(event)


def trainer_with(*callbacks: Any) -> SimpleNamespace:
    data = SimpleNamespace(train_seq_len=32, scoring=ScoringConfig(seq_len=32, stride=8))
    return trainer_of(callbacks, datamodule=data)


@pytest.mark.parametrize(("backends", "chosen"), [(["cudnn", "flash", "math"], "flash"), (["cudnn", "math"], "math")])
def test_the_first_backend_that_supports_the_shapes_is_chosen_and_named(backends: list[str], chosen: str) -> None:
    callback, listener, module = AttentionBackend(backends), Listener(), small_module()
    trainer = trainer_with(callback, listener)
    callback.setup(trainer, module, "fit")
    callback.on_train_start(trainer, module)
    callback.teardown(trainer, module, "fit")
    assert callback.summary(trainer) == {"attention_backends": dict.fromkeys(USES, chosen)}
    [event] = listener.heard
    assert event.sentence.startswith(f"attention: {chosen} in training")


def test_the_choice_ends_with_the_run() -> None:
    callback, module = AttentionBackend(["math"]), small_module()
    before = module.network.blocks[0].attn.backend(32, 32, torch.float32)
    callback.setup(trainer_with(), module, "fit")
    assert module.network.blocks[0].attn.backend(32, 32, torch.float32) == "math" != before
    callback.teardown(trainer_with(), module, "fit")
    assert module.network.blocks[0].attn.backend(32, 32, torch.float32) == before


def test_backends_that_cannot_run_here_are_an_error() -> None:
    callback, module = AttentionBackend(["cudnn"]), small_module()
    callback.setup(trainer_with(), module, "fit")
    try:
        with pytest.raises(UserError, match=r"attention\.backends cudnn supports training on this machine; add math"):
            callback.on_train_start(trainer_with(callback), module)
    finally:
        callback.teardown(trainer_with(), module, "fit")


@pytest.mark.parametrize(("backends", "named"), [(["flash", "quick"], "flash, quick"), ([], "empty")])
def test_backends_that_do_not_exist_are_refused(backends: list[str], named: str) -> None:
    with pytest.raises(UserError, match=rf"attention\.backends is {named}; give at least one of {', '.join(BACKENDS)}"):
        AttentionBackend(backends)


def test_a_run_says_at_its_start_and_in_its_summary_what_computes_attention(finished_run: FinishedRun) -> None:
    [line] = [line for line in (finished_run.logs / "train.log").read_text().splitlines() if "attention" in line]
    chosen: dict[str, str] = summary_of(Path(finished_run.folder))["attention_backends"]
    assert chosen.keys() == set(USES)
    assert line == f"attention: {', '.join(f'{backend} in {use}' for use, backend in chosen.items())}"
