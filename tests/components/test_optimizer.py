"""The composite optimizer: the golden trajectory, its groups, and a resume that changes nothing."""

import copy
import json

import pytest
import torch

from components.gpt import GPT
from components.optimizer import CompositeOptimizer, OptimizerConfig, build_optimizer
from datamodules.shards import find_shards
from datamodules.stream import SpanLoader, TokenStream
from tests.support import GOLDEN, SAMPLE, golden_network, needs_golden, needs_sample, random_ids, tiny_network


@needs_golden
@needs_sample
def test_golden_trajectory() -> None:
    golden = json.loads((GOLDEN / "trajectory.json").read_text())
    network = golden_network("init.safetensors")
    optimizer = build_optimizer(network, OptimizerConfig())
    stream = TokenStream(find_shards(SAMPLE / "datasets" / "fineweb10B_sp1024", "train"), 1024)
    batch_tokens = golden["batch_sequences"] * golden["seq_len"]
    batches = iter(SpanLoader(stream, 0, batch_tokens, micro_batches=1, seq_len=golden["seq_len"]))
    for (_, golden_loss, golden_norm, momentum, _, qat), (input_ids, target_ids) in zip(
        golden["rows"], batches, strict=False
    ):
        if qat:
            network.enable_fake_quantization(keep_last_k_fp16=1)
        optimizer.param_groups[0]["momentum"] = momentum
        loss = network(input_ids, target_ids).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        assert loss.item() == pytest.approx(golden_loss, abs=5e-3)
        assert norm.item() == pytest.approx(golden_norm, rel=0.01)
    for name, p in network.named_parameters():
        _, golden_squares = golden["param_sums"][name]
        assert p.detach().double().square().sum().item() == pytest.approx(golden_squares, rel=0.02), name


def group_of(optimizer: CompositeOptimizer, network: GPT) -> dict[str, str]:
    names = {id(p): name for name, p in network.named_parameters()}
    return {names[id(p)]: group["name"] for group in optimizer.param_groups for p in group["params"]}


def test_every_parameter_is_in_the_recipe_s_group() -> None:
    network = tiny_network()
    groups = group_of(build_optimizer(network, OptimizerConfig()), network)
    assert groups.keys() == dict(network.named_parameters()).keys()
    assert {name for name, group in groups.items() if group == "tables"} == {"tok_emb.weight", "bigram.embed.weight"}
    assert groups["bigram.proj.weight"] == groups["blocks.0.mlp.fc.weight"] == "matrices"
    assert groups["skip_weights"] == groups["blocks.1.resid_mix"] == groups["bigram.scale"] == "controls"


def test_untied_embeddings_have_their_own_rates() -> None:
    network = tiny_network(tie_embeddings=False)
    optimizer = build_optimizer(network, OptimizerConfig())
    assert group_of(optimizer, network)["lm_head.weight"] == "head"
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert settings == {
        "matrices": (0.025, 0.04),
        "tables": (0.6, 0.01),
        "controls": (0.02, 0.01),
        "head": (0.008, 0.0),
    }


def train(network: GPT, optimizer: CompositeOptimizer, steps: range) -> None:
    for step in steps:
        network(random_ids(2, 16, seed=step), random_ids(2, 16, seed=100 + step)).mean().backward()
        optimizer.param_groups[0]["momentum"] = 0.9 + 0.01 * step
        optimizer.step()
        optimizer.zero_grad()


def test_resume_from_a_state_dict_changes_nothing() -> None:
    network = tiny_network()
    optimizer = build_optimizer(network, OptimizerConfig())
    train(network, optimizer, range(3))
    resumed = copy.deepcopy(network)
    resumed_optimizer = build_optimizer(resumed, OptimizerConfig())
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(network, optimizer, range(3, 6))
    train(resumed, resumed_optimizer, range(3, 6))
    for p, q in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_closure_runs_once_and_a_schedule_reaches_the_children() -> None:
    network = tiny_network()
    optimizer = build_optimizer(network, OptimizerConfig())
    network(random_ids(1, 8), random_ids(1, 8)).mean().backward()
    before = [p.detach().clone() for p in network.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    calls = []
    assert optimizer.step(lambda: calls.append(torch.is_grad_enabled()) or 1.5) == 1.5
    assert calls == [True]
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
