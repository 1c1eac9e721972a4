"""The LightningModule: what it makes of a batch, of a checkpoint and of its settings."""

import copy
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn

from components.errors import UserError
from components.optimizer import OptimizerConfig
from components.scorer import ScoringPass, SlidingWindows
from components.scoring import WindowLoader
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import small_module, trainer_of
from tests.support import TINY, bytes_by_id, random_ids


def test_a_training_step_is_the_mean_cross_entropy_of_the_next_tokens() -> None:
    module = small_module()
    inputs, targets = random_ids(2, 16, seed=1), random_ids(2, 16, seed=2)
    loss = module.training_step((inputs, targets), 0)
    logits = module.network.logits(inputs, 16)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    ("settings", "shows"), [({}, False), ({"progress_bar_callback": Mock()}, True), ({"is_global_zero": False}, False)]
)
def test_a_validation_step_makes_the_pass_that_is_its_batch(settings: dict[str, Any], shows: bool) -> None:
    module = small_module()
    module.trainer = trainer_of(**settings)
    scoring_pass = Mock(spec=ScoringPass)
    assert module.validation_step(scoring_pass, 0) is scoring_pass.run.return_value
    scoring_pass.run.assert_called_once_with(module.network, shows)


def test_a_fused_mlp_is_refused_on_a_cpu() -> None:
    module = small_module(fused_mlp=True, model_dim=128, mlp_mult=2.0)
    module.trainer = trainer_of(datamodule=Mock(longest_sequence=16))
    with pytest.raises(UserError, match=r"model\.fused_mlp needs a CUDA GPU"):
        module.setup("fit")
    module.setup("validate")  # a score does not depend on the kernel


def test_a_checkpoint_says_what_a_network_is_and_not_how_it_is_run() -> None:
    assert not {"compile", "fused_mlp"} & small_module().hparams.keys()
    assert "model_dim" in small_module(model_dim=128).hparams


def test_a_validation_scores_every_target_of_the_text_once() -> None:
    module = small_module().eval()
    module.trainer = trainer_of()
    ids = random_ids(41)
    windows = WindowLoader(
        ids,
        bytes_by_id(torch.ones(1024, dtype=torch.int64)),
        seq_len=40,
        stride=40,
        windows_per_batch=1,
        device=torch.device("cpu"),
    )
    score = module.validation_step(ScoringPass(windows, SlidingWindows(), ""), 0)
    logits = module.network.logits(ids[None, :-1], 40)[0]
    assert score.loss == pytest.approx(F.cross_entropy(logits, ids[1:]).item(), rel=1e-6)
    assert (score.num_tokens, score.num_bytes) == (40, 40)


def checkpoint_at(step: int, accumulation: int) -> dict[str, Any]:
    """A checkpoint in the form of Lightning's, after so many steps of so many micro-batches."""
    batches = step * accumulation
    counts = {"ready": batches, "started": batches, "processed": batches, "completed": batches}
    progress = {"current": dict(counts), "total": dict(counts), "is_last_batch": False}
    return {"global_step": step, "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}


@pytest.mark.parametrize(("before", "now"), [(4, 8), (8, 4), (8, 8), (8, 1)])
def test_a_resumed_run_counts_the_micro_batches_that_its_own_ranks_would_have_made(before: int, now: int) -> None:
    module = small_module()
    module.trainer = trainer_of(accumulate_grad_batches=now)
    checkpoint = checkpoint_at(5, accumulation=before)
    module.on_load_checkpoint(checkpoint)
    assert checkpoint == checkpoint_at(5, accumulation=now)


def test_a_batch_that_was_under_way_at_the_checkpoint_stays_under_way() -> None:
    # Lightning saves after a step within the batch's own hooks: it is processed and not yet completed.
    module = small_module()
    module.trainer = trainer_of(accumulate_grad_batches=8)
    checkpoint = checkpoint_at(5, accumulation=4)
    counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    counts["current"]["completed"] -= 1
    counts["total"]["completed"] -= 1
    module.on_load_checkpoint(checkpoint)
    assert counts["current"] == {"ready": 40, "started": 40, "processed": 40, "completed": 39}


@pytest.mark.parametrize("attached", [False, True])
def test_a_checkpoint_that_is_only_scored_is_left_as_it_is(attached: bool) -> None:
    module = small_module()
    if attached:
        module.trainer = trainer_of(accumulate_grad_batches=8, state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    checkpoint = checkpoint_at(5, accumulation=4)
    before = copy.deepcopy(checkpoint)
    module.on_load_checkpoint(checkpoint)
    assert checkpoint == before


def test_the_optimizer_has_the_configured_rates_and_every_parameter() -> None:
    module = GPTModule(optimizer=OptimizerConfig(matrix_lr=0.5, scalar_lr=0.25), bos_id=1, **TINY)
    groups = module.configure_optimizers().param_groups
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"matrices": 0.5, "embeddings": OptimizerConfig().embedding_lr, "scalars": 0.25}
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))


def test_compiling_changes_no_name_of_a_checkpoint() -> None:
    # Not by monkeypatch, which deletes the entry when it is undone.
    with torch._dynamo.config.patch(optimize_ddp=True):
        compiled = small_module(compile=True)  # nothing is compiled before the first batch
        assert compiled.network._compiled_call_impl is not None
        assert compiled.state_dict().keys() == small_module().state_dict().keys()
        # One graph for the whole network, as the warm-up compiles it, not one for each of DDP's buckets.
        assert torch._dynamo.config.optimize_ddp is False


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.num_layers is 0"):
        GPTModule(bos_id=1, **{**TINY, "num_layers": 0})
