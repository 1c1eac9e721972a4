"""The text that the model writes at each validation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.clock import Clock
from callbacks.run_folder import RunFolder
from callbacks.sample import NEW_TOKENS, Sample
from callbacks.tensorboard_log import TensorBoardLog
from cli import main
from components.generation import Sampling, generate
from components.run_files import RUNS_NAME
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import small_module, trainer_of
from tests.support import NARROW, FinishedRun, fit_arguments

PROMPT = [5, 6, 7]


class Words:
    """A tokenizer whose every piece is a word: its number."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def trainer_with(**settings: Any) -> SimpleNamespace:
    data = SimpleNamespace(tokenizer=Words(), validation_prompt=lambda num_tokens: PROMPT[:num_tokens])
    return trainer_of(datamodule=data, **settings)


@pytest.fixture
def module() -> GPTModule:
    module = small_module()
    module.network.reserve_positions(128)
    return module.eval()


def texts_in(folder: Path) -> dict[int, str]:
    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.Tensors("sample/text_summary")
    return {event.step: b"".join(event.tensor_proto.string_val).decode() for event in found}


def test_it_continues_the_validation_text_with_a_fixed_seed(module: GPTModule, tmp_path: Path) -> None:
    log = TensorBoardLog(RunFolder(tmp_path))
    trainer, sample = trainer_with(loggers=[log], global_step=4), Sample()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    sample.on_validation_epoch_end(trainer, module)
    assert torch.equal(torch.random.get_rng_state(), before)  # training's own draws stay what they were
    expected = Words().decode(list(generate(module.network, PROMPT, NEW_TOKENS, Sampling())))
    assert len(expected.split()) == NEW_TOKENS
    assert sample.summary(trainer) == {"sample": f" {expected}"}
    log.finalize("success")
    [(step, text)] = texts_in(tmp_path / RUNS_NAME / "version_0").items()
    assert step == 4
    given, continued = text.split("Continued:")
    assert "    5 6 7" in given
    assert continued.split() == expected.split()
    assert all(line.startswith("    ") for line in continued.strip("\n").splitlines())  # Markdown leaves it alone


def test_it_stays_within_the_positions_that_graphs_were_compiled_for(module: GPTModule) -> None:
    module.network.rotary_cos = module.network.rotary_cos[:16]
    module.network.rotary_sin = module.network.rotary_sin[:16]
    sample = Sample()
    sample.on_validation_epoch_end(trainer_with(), module)
    assert sample.text is not None
    assert len(sample.text.split()) == 16 - len(PROMPT)
    assert len(module.network.rotary_cos) == 16


@pytest.mark.parametrize(
    "settings",
    [{"is_global_zero": False}, {"sanity_checking": True}, {"state": SimpleNamespace(fn=TrainerFn.VALIDATING)}],
)
def test_only_rank_0_of_a_fit_writes(settings: dict[str, Any], module: GPTModule) -> None:
    sample = Sample()
    sample.on_validation_epoch_end(trainer_with(**settings), module)
    assert sample.summary(trainer_with()) == {}


def test_a_run_shows_one_at_each_validation(finished_run: FinishedRun) -> None:
    assert list(texts_in(finished_run.logs)) == [6, 12]


def test_the_clock_stands_still_meanwhile(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[tuple[float, float]] = []
    write = Sample._write

    def timed(self: Sample, trainer: Any, pl_module: Any) -> tuple[str, str]:
        [clock] = [callback for callback in trainer.callbacks if isinstance(callback, Clock)]
        before = clock._read()
        written = write(self, trainer, pl_module)
        readings.append((before, clock._read()))
        return written

    monkeypatch.setattr(Sample, "_write", timed)
    main(fit_arguments(data_folder, tmp_path, **NARROW, **{"trainer.max_steps": 6}))
    [(before, after)] = readings
    assert before == after  # a running clock has moved on
