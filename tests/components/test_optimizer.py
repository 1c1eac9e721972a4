"""The composite optimizer: the golden trajectory, its groups, and a resume that changes nothing."""

import copy
import json

import pytest
import torch
from torch import nn

from components.gpt import GPT
from components.layers import Embedding, Linear
from components.optimizer import CompositeOptimizer, OptimizerConfig, build_optimizer, parameter_groups
from components.quantization import Nearest
from components.storage import RECIPE, keep_last_keys
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
            network.enable_fake_quantization((*keep_last_keys(1), *RECIPE), Nearest())
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
    tables = {"tok_emb.weight", "bigram.embed.weight"}
    assert {name for name, group in groups.items() if group == "embeddings"} == tables
    matrices = {name for name, p in network.named_parameters() if name.endswith(".weight")} - tables
    assert {name for name, group in groups.items() if group == "matrices"} == matrices
    assert groups["skip_weights"] == groups["blocks.1.resid_mix"] == groups["bigram.scale"] == "scalars"


def test_untied_embeddings_have_their_own_rates() -> None:
    network = tiny_network(tie_embeddings=False)
    optimizer = build_optimizer(network, OptimizerConfig())
    assert group_of(optimizer, network)["lm_head.weight"] == "head"
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert settings == {
        "matrices": (0.025, 0.04),
        "embeddings": (0.6, 0.01),
        "scalars": (0.02, 0.01),
        "head": (0.008, 0.0),
    }


class Part(nn.Module):
    """A part of a network whose scales say that they are in some group."""

    def __init__(self, **optimizer_groups: str) -> None:
        super().__init__()
        self.optimizer_groups = optimizer_groups
        self.gain = nn.Parameter(torch.ones(3))
        self.offset = nn.Parameter(torch.zeros(3))


def test_a_part_places_its_own_parameters_at_any_depth() -> None:
    part, table, matrix, head = Part(gain="scalars", offset="head"), Embedding(4, 3), Linear(3, 3), Linear(3, 3, "head")
    groups = parameter_groups(nn.ModuleList([nn.Sequential(part, table), matrix, head]))
    assert {name: [id(p) for p in params] for name, params in groups.items()} == {
        "matrices": [id(matrix.weight)],
        "embeddings": [id(table.weight)],
        "scalars": [id(part.gain)],
        "head": [id(part.offset), id(head.weight)],
    }


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_each_parameter_is_in_exactly_one_group(tie_embeddings: bool) -> None:
    network = tiny_network(tie_embeddings=tie_embeddings)
    placed = sorted(id(p) for params in parameter_groups(network).values() for p in params)
    assert placed == sorted(id(p) for p in network.parameters())


def test_a_parameter_that_nobody_placed_is_refused() -> None:
    with pytest.raises(
        AssertionError, match=r"^1\.offset is in no optimizer group: name one in Part\.optimizer_groups"
    ):
        parameter_groups(nn.Sequential(Linear(3, 3), Part(gain="scalars")))
    network = tiny_network()
    network.add_module("table", nn.Embedding(4, 3))  # torch's own knows nothing of groups
    with pytest.raises(AssertionError, match=r"^table\.weight is in no optimizer group"):
        build_optimizer(network, OptimizerConfig())


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"^Part\.optimizer_groups names gains, which is none of matrices, embedd"):
        parameter_groups(Part(gain="gains", offset="scalars"))


def test_a_parameter_of_two_modules_is_refused() -> None:
    table, head = Embedding(4, 3), Linear(3, 4, "head")
    head.weight = table.weight
    with pytest.raises(AssertionError, match="two modules share a parameter"):
        parameter_groups(nn.Sequential(table, head))


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
