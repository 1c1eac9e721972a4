"""The ladder's techniques against numbers of the public records' own functions: forward, gradients and training."""

from typing import Any

import numpy as np
import pytest
import torch

from components.muon import NEWTON_SCHULZ, POLAR_EXPRESS, Muon
from components.optimizer import OptimizerConfig, build_optimizer
from datamodules.shards import find_shards, open_shard
from datamodules.stream import SpanLoader, TokenStream
from tests.components.golden_networks import (
    LATE,
    MID,
    TOP,
    batch,
    late_network,
    mean_loss,
    mid_network,
    needs_late,
    needs_mid,
    needs_top,
    read_json,
)
from tests.support import SAMPLE, needs_sample


@needs_late
@pytest.mark.parametrize(("order", "looping"), [("plain", False), ("looped", True)])
def test_late_logits_loss_and_gradients(order: str, looping: bool) -> None:
    network = late_network(looping)
    arrays = np.load(LATE / "forward.npz")
    with torch.no_grad():
        logits = network.logits(batch(LATE)[0], 256)
    shown = torch.cat((logits[:, :32], logits[:, -8:]), dim=1).numpy()
    assert np.abs(shown - arrays[f"{order}_logits_first32_last8"]).max() < 1e-3
    loss = network(*batch(LATE)).mean()
    assert loss.item() == pytest.approx(float(arrays[f"{order}_mean_loss"]), abs=1e-4)
    loss.backward()
    golden = read_json(LATE, "forward_gradients.json")[order]["gradients"]
    assert golden.keys() == dict(network.named_parameters()).keys()
    for name, p in network.named_parameters():
        assert p.grad is not None
        total, squares = golden[name]
        assert p.grad.double().square().sum().item() == pytest.approx(squares, rel=1e-3), name
        assert p.grad.double().sum().item() == pytest.approx(total, rel=1e-3), name


@needs_late
@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ("xsa_off", {"xsa_last_n": 0}),
        ("xsa_last_2", {"xsa_last_n": 2}),
        ("parallel_off", {"parallel_from": None}),
        ("ln_scale_off", {"ln_scale": False}),
        ("rope_all_80_dims", {"rope_dims": 0}),
        ("skip_gates_absent", {"skip_gates": False}),
    ],
)
def test_late_loss_with_one_switch_off(switch: str, changed: dict[str, Any]) -> None:
    golden = read_json(LATE, "forward_gradients.json")["looped_loss_with_one_switch_off"]
    assert mean_loss(late_network(**changed), LATE) == pytest.approx(golden[switch], abs=1e-4)


@needs_late
@needs_sample
def test_the_rescaled_rotary_base_is_a_number_of_the_configuration() -> None:
    # At 4 times its training length the public script takes the base times 4^(16 / 14).
    [shard] = find_shards(SAMPLE / "datasets" / "fineweb10B_sp1024", "val")
    span = torch.from_numpy(open_shard(shard)[:1025].astype(np.int64)).unsqueeze(0)
    with torch.no_grad():
        loss = late_network(rope_base=48_760.0)(span[:, :-1], span[:, 1:]).mean().item()
    golden = read_json(LATE, "forward_gradients.json")["looped_mean_loss_one_sequence_of_1024_ntk"]
    assert loss == pytest.approx(golden, abs=1e-4)


@needs_mid
def test_mid_loss_without_the_value_embedding() -> None:
    golden = read_json(MID, "forward_gradients.json")["loss_with_one_switch_changed"]
    assert mean_loss(mid_network(), MID) == pytest.approx(golden["no_value_embedding"], abs=1e-4)


@needs_mid
def test_the_first_rung_s_loss() -> None:
    golden = read_json(MID, "forward_gradients.json")["earlier_scripts_same_weights"]
    [case] = [losses for name, losses in golden.items() if name.startswith("2026-03-21")]
    assert mean_loss(mid_network(mlp_leak=0.0, xsa_last_n=2), MID) == pytest.approx(case["mean_loss"], abs=1e-4)


def two_steps(start: np.ndarray, grads: np.ndarray, **settings: Any) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Muon([weight], momentum=0.95, weight_decay=0.095, **settings)
    for grad in grads:
        weight.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    return weight.detach()


def relative_difference(start: np.ndarray, ours: torch.Tensor, golden: np.ndarray) -> float:
    """Norm of the difference of two updates over that of the golden one: the order of bfloat16 operations moves 4%."""
    return float(np.linalg.norm(ours.numpy() - golden) / np.linalg.norm(golden - start))


@needs_late
@pytest.mark.parametrize("shape", ["48x96", "96x48"])
@pytest.mark.parametrize(("case", "row_normalize"), [("plain", False), ("rownorm", True)])
def test_muon_with_and_without_row_normalization(case: str, row_normalize: bool, shape: str) -> None:
    golden = np.load(LATE / "muon_cases.npz")
    start, grads, after = (golden[f"{case}_{shape}.{part}"] for part in ("start", "grads", "after_two_steps"))
    assert relative_difference(start, two_steps(start, grads, lr=0.022, row_normalize=row_normalize), after) < 0.05
    assert relative_difference(start, two_steps(start, grads, lr=0.022, row_normalize=not row_normalize), after) > 0.1


@needs_top
@pytest.mark.parametrize("matrix", [0, 1])
@pytest.mark.parametrize("shape", ["48x96", "96x48"])
def test_muon_with_polar_express_coefficients(shape: str, matrix: int) -> None:
    golden = np.load(TOP / "muon_polar_express_cases.npz")
    start, after = golden[f"{shape}.start"][matrix], golden[f"{shape}.after_two_steps"][matrix]
    grads = golden[f"{shape}.grads"][:, matrix]
    settings = {"lr": 0.026, "row_normalize": True}
    assert relative_difference(start, two_steps(start, grads, coefficients=POLAR_EXPRESS, **settings), after) < 0.05
    other = two_steps(start, grads, coefficients=(NEWTON_SCHULZ,) * 5, **settings)
    assert relative_difference(start, other, after) > 0.1


@pytest.mark.slow
@needs_late
@needs_sample
def test_late_trajectory_into_the_loops_and_its_exponential_mean() -> None:
    golden = read_json(LATE, "trajectory.json")
    network = late_network()
    optimizer = build_optimizer(
        network,
        OptimizerConfig(
            matrix_lr=0.022,
            matrix_weight_decay=0.095,
            row_normalize=True,
            embedding_lr=0.03,
            embedding_weight_decay=0.085,
            scalar_lr=0.02,
            scalar_weight_decay=0.02,
        ),
    )
    batch_tokens = golden["batch_sequences"] * golden["seq_len"]
    stream = TokenStream(find_shards(SAMPLE / "datasets" / "fineweb10B_sp1024", "train"), 1024)
    batches = iter(SpanLoader(stream, 0, batch_tokens, micro_batches=1, seq_len=golden["seq_len"]))
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    for step, golden_loss, golden_norm, momentum, lr_scale, looping in golden["rows"]:
        network.looping = looping
        for group in optimizer.param_groups:
            group["lr"] = lr_scale * group["initial_lr"]
        optimizer.param_groups[0]["momentum"] = momentum
        loss = network(*next(batches)).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, p in network.named_parameters():
                average[name].mul_(0.9965).add_(p, alpha=1 - 0.9965)
        assert loss.item() == pytest.approx(golden_loss, abs=1e-3), step
        assert norm.item() == pytest.approx(golden_norm, rel=2e-2 if step == 7 else 1e-3), step

    ninth = next(batches)
    with torch.no_grad():
        loss = network(*ninth).mean().item()
        network.load_state_dict(average)
        averaged_loss = network(*ninth).mean().item()
    assert loss == pytest.approx(golden["loss_on_the_next_batch_after_8_steps"], abs=1e-3)
    assert averaged_loss == pytest.approx(golden["same_with_ema_weights"], abs=1e-3)
    for name, weight in average.items():
        total, squares = golden["ema_sums_after_8_steps"][name]
        assert weight.double().square().sum().item() == pytest.approx(squares, rel=1e-3), name
        assert weight.double().sum().item() == pytest.approx(total, rel=1e-3), name
