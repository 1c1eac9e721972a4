"""Hessians of a network's products, against the late record's collector and identities of linear maps."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from components.calibration import collect_hessians
from components.gpt import GPT
from components.layers import JointLinear, Linear
from tests.components.golden_calibration import late_batches
from tests.components.golden_networks import LATE, late_network, needs_late
from tests.support import needs_compiler, needs_sample, random_ids, tiny_network

LOOPED = {"loop_start": 1, "loop_end": 1, "num_loops": 2}


def ids(seed: int = 0) -> torch.Tensor:
    return random_ids(2, 32, seed=seed)


@needs_late
@needs_sample
def test_the_late_records_hessians() -> None:
    golden = np.load(LATE / "hessians.npz")
    hessians = collect_hessians(late_network(), late_batches())
    for name in {entry.rpartition(".")[0] for entry in golden.files}:
        hessian = hessians[name].numpy()
        products = {
            "diag": hessian.diagonal(),
            "times_cos": hessian @ np.cos(np.arange(len(hessian), dtype=np.float32)),
        }
        for what, found in products.items():
            expected = golden[f"{name}.{what}"]
            assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected), (name, what)


def test_every_linear_layer_and_the_tied_table_have_one() -> None:
    network = tiny_network(**LOOPED)
    hessians = collect_hessians(network, [ids()])
    linears = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, Linear)}
    assert hessians.keys() == linears | {"tok_emb.weight"}
    for name, hessian in hessians.items():
        num_inputs = network.get_parameter(name).size(1)
        assert hessian.shape == (num_inputs, num_inputs)
        assert hessian.dtype == torch.float32
        assert torch.linalg.eigvalsh(hessian.double()).min() > -1e-3 * hessian.diagonal().max()


@pytest.mark.parametrize("tied", [True, False])
def test_the_heads_hessian_gives_the_energy_of_its_logits(tied: bool) -> None:
    # sum |W x|^2 = trace(W H W^T), and the softcap can be undone.
    network = tiny_network(tie_embeddings=tied)
    name = "tok_emb.weight" if tied else "lm_head.weight"
    hessians = collect_hessians(network, [ids()])
    weight, hessian = network.get_parameter(name).detach().double(), hessians[name].double()
    with torch.no_grad():
        logits = network.logits(ids(), 32).double()
    energy = (network.config.logit_softcap * torch.atanh(logits / network.config.logit_softcap)).square().sum()
    assert torch.allclose((weight @ hessian * weight).sum(), energy, rtol=1e-3)
    assert ("tok_emb.weight" in hessians) == tied


def test_a_looped_layer_sums_over_its_runs() -> None:
    network = tiny_network(**LOOPED)
    inputs: list[torch.Tensor] = []
    with network.blocks[1].mlp.fc.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0])):
        network.logits(ids(), 32)
    assert len(inputs) == 3
    expected = sum(torch.einsum("btc,btd->cd", x, x) for x in inputs)
    found = collect_hessians(network, [ids()])["blocks.1.mlp.fc.weight"]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_it_is_the_mean_over_batches() -> None:
    network = tiny_network()
    together = collect_hessians(network, [ids(0), ids(1), ids(2)])
    one_by_one = [collect_hessians(network, [ids(seed)]) for seed in range(3)]
    for name, hessian in together.items():
        mean = torch.stack([hessians[name] for hessians in one_by_one]).mean(0)
        assert torch.allclose(hessian, mean, rtol=1e-4, atol=1e-4 * mean.abs().max().item()), name


def test_no_inputs_outlive_their_batch() -> None:
    network = tiny_network()
    seen: list[weakref.ref[torch.Tensor]] = []

    def note(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(weakref.ref(arguments[0]))

    def batches() -> Iterator[torch.Tensor]:
        for seed in range(3):
            assert not any(reference() is not None for reference in seen)
            yield ids(seed)

    for module in network.modules():
        if isinstance(module, (Linear, JointLinear)):
            module.register_forward_pre_hook(note)
    collect_hessians(network, batches())
    assert len(seen) > 30


def test_sums_are_float32_under_autocast() -> None:
    network = tiny_network()
    plain = collect_hessians(network, [ids()])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = collect_hessians(network, [ids()])
    for name, hessian in rounded.items():
        assert hessian.dtype == torch.float32
        assert 0 < (hessian - plain[name]).norm() < 0.03 * plain[name].norm(), name
        # Products of bfloat16 numbers summed in float32: more digits than bfloat16 has.
        assert not torch.equal(hessian, hessian.bfloat16().float())


@needs_compiler
def test_a_compiled_network_is_run_eagerly_and_left_as_it_was() -> None:
    torch._dynamo.reset()
    network = tiny_network(num_layers=2)
    expected = collect_hessians(network, [ids()])
    network.compile(dynamic=False)
    with torch.no_grad():
        nats = network(ids(), ids(1))
        torch.compiler.set_stance("fail_on_recompile")
        found = collect_hessians(network, [ids(), ids()])
        assert torch.equal(network(ids(), ids(1)), nats)
    for name, hessian in found.items():
        assert torch.allclose(hessian, expected[name], rtol=1e-5, atol=1e-5 * hessian.abs().max().item()), name


def test_nothing_listens_any_more_even_after_an_error() -> None:
    def broken() -> Iterator[torch.Tensor]:
        yield ids()
        raise OSError("no more data")

    network = tiny_network()
    with pytest.raises(OSError, match="no more data"):
        collect_hessians(network, broken())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_calibration_without_a_batch_is_a_mistake_of_the_caller() -> None:
    network: GPT = tiny_network()
    with pytest.raises(AssertionError, match="there must be a batch"):
        collect_hessians(network, [])
