"""What holds for the network under every setting of it, the two layer orders, and the settings that are refused."""

import itertools
import re
from typing import Any

import pytest
import torch

from components.errors import UserError
from components.gpt import GPT, MAX_SIZE, GPTConfig, shapes_of
from components.layers import rms_norm
from components.optimizer import parameter_groups
from tests.components.support import at_most_a_gibibyte_more
from tests.support import needs_compiler, random_ids, tiny_network

LOOP = {"num_layers": 5, "loop_start": 1, "loop_end": 2, "num_loops": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "exclusive attention": {"xsa_last_n": 2},
    "partial rotary": {"rope_dims": 8},
    "norm scale": {"ln_scale": True},
    "leak": {"mlp_leak": 0.5},
    "gated skips": {"skip_gates": True},
    "loop": LOOP,
    "loop of the last layers": {"loop_start": 1, "loop_end": 2, "num_loops": 1},
    "loop of the only layer": {"num_layers": 1, "num_loops": 2},
    "parallel": {"parallel_from": 1},
    "no smear": {"smear": "none"},
    "content smear": {"smear": "content"},
    "attention gate": {"gate_width": 12},
    "all at once": {
        **LOOP,
        **{"xsa_last_n": 5, "rope_dims": 8, "ln_scale": True, "mlp_leak": 0.5, "skip_gates": True, "parallel_from": 2},
        **{"smear": "content", "gate_width": 12, "bigram_vocab_size": 0},
    },
}
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


@each_setting
def test_every_parameter_is_trained_and_no_later_id_changes_a_loss(settings: dict[str, Any]) -> None:
    network, ids, targets = tiny_network(**settings).double(), random_ids(2, 16), random_ids(2, 16, seed=1)
    ids[0, 3] = network.config.bos_id
    nats = network(ids, targets)
    nats.mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    for position in (9, 15):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 1024
        after = network(changed, targets)
        torch.testing.assert_close(after[:, :position], nats[:, :position])
        assert (after[:, position] - nats[:, position]).abs().min() > 1e-5


@each_setting
@pytest.mark.parametrize("num_scored", [1, 5, 15])
def test_scoring_only_the_last_positions_is_exact(settings: dict[str, Any], num_scored: int) -> None:
    network, ids, targets = tiny_network(**settings).double(), random_ids(2, 16), random_ids(2, 16, seed=1)
    every, last = network(ids, targets)[:, -num_scored:], network(ids, targets[:, -num_scored:])
    torch.testing.assert_close(last, every)  # what remains is float32's softcap and cross-entropy


@each_setting
def test_every_parameter_is_in_an_optimizer_group_and_gates_are_scalars(settings: dict[str, Any]) -> None:
    groups = parameter_groups(tiny_network(**settings))
    network = tiny_network(**settings)
    names = {id(p): name for name, p in network.named_parameters()}
    scalars = {names[id(p)] for p in parameter_groups(network)["scalars"]}
    assert sum(map(len, groups.values())) == len(names)
    assert {name for name in names.values() if "gate" in name or name.startswith(("skip", "smear"))} <= scalars


def steps_of(network: GPT) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Which block each step of a forward pass ran, what it was given, and what it gave."""
    steps = []
    hooks = [
        block.register_forward_hook(lambda _, given, out, i=i: steps.append((i, given[0], out)))
        for i, block in enumerate(network.blocks)
    ]
    network.logits(random_ids(1, 8), 8)
    for hook in hooks:
        hook.remove()
    return steps


def test_a_network_with_a_loop_runs_it_until_it_is_told_not_to() -> None:
    network = tiny_network(**LOOP)
    assert network.looping
    assert [layer for layer, _, _ in steps_of(network)] == [0, 1, 2, 1, 2, 1, 2, 3, 4]
    network.looping = False
    assert [layer for layer, _, _ in steps_of(network)] == [0, 1, 2, 3, 4]
    assert not tiny_network().looping


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("looping", "num_skips"), [(False, 2), (True, 4)])
def test_skips_join_the_halves_of_either_order_in_reverse(looping: bool, num_skips: int, gated: bool) -> None:
    network = tiny_network(**LOOP, skip_gates=gated)
    network.looping = looping
    steps = steps_of(network)
    assert network.skip_weights.shape == (4, 64)  # of the longer order, whichever runs
    for j in range(num_skips):
        stream, skip = steps[num_skips + j - 1][2], network.skip_weights[j] * steps[num_skips - 1 - j][2]
        joined = stream + skip
        if gated:
            share = torch.sigmoid(network.skip_gates[j])
            joined = share * stream + (1 - share) * skip
        torch.testing.assert_close(steps[num_skips + j][1], joined)
    for (_, _, before), (_, given, _) in itertools.pairwise(steps[2 * num_skips - 1 :]):
        assert torch.equal(given, before)  # no skip is left for the last step


def test_the_content_smear_stands_before_the_first_norm() -> None:
    network, ids = tiny_network(smear="content", bigram_vocab_size=0), random_ids(1, 8)
    expected = rms_norm(network.smear(network.tok_emb(ids), ids))
    torch.testing.assert_close(steps_of(network)[0][1], expected)


def test_scales_by_depth_are_of_the_layer_and_not_of_the_step() -> None:
    network = tiny_network(**LOOP, ln_scale=True)
    assert [block.norm_scale for block in network.blocks] == pytest.approx([1, 2**-0.5, 3**-0.5, 0.5, 5**-0.5])
    assert {block.norm_scale for block in tiny_network().blocks} == {1.0}


def test_the_last_layers_are_exclusive_and_the_later_ones_parallel() -> None:
    network = tiny_network(num_layers=4, xsa_last_n=3, parallel_from=2)
    assert [block.attn.exclusive for block in network.blocks] == [False, True, True, True]
    assert [block.parallel for block in network.blocks] == [False, False, True, True]


@needs_compiler
def test_compiled_both_orders_equal_eager_and_switching_needs_no_further_graph() -> None:
    smaller = {"num_layers": 2, "loop_start": 0, "loop_end": 0, "num_loops": 1, "parallel_from": 1}
    network = tiny_network(**{**SETTINGS["all at once"], "xsa_last_n": 2, **smaller})
    ids, targets = random_ids(2, 32), random_ids(2, 32, seed=1)

    def plain_loss_looped_loss_and_gradients() -> list[torch.Tensor]:
        network.looping = False
        with torch.no_grad():
            plain = network(ids, targets).mean()
        network.looping = True
        network.zero_grad()
        looped = network(ids, targets).mean()
        looped.backward()
        return [plain, looped.detach(), *(p.grad.clone() for p in network.parameters())]

    eager = plain_loss_looped_loss_and_gradients()
    assert (eager[0] - eager[1]).abs() > 1e-3
    network.compile(dynamic=False, fullgraph=True)
    torch.testing.assert_close(plain_loss_looped_loss_and_gradients(), eager, atol=1e-5, rtol=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(plain_loss_looped_loss_and_gradients(), eager, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_keeps_the_loss_under_every_setting_at_once() -> None:
    network = tiny_network(**SETTINGS["all at once"])
    ids, targets = random_ids(2, 32), random_ids(2, 32, seed=1)
    exact = network(ids, targets).mean()
    with torch.autocast("cpu", torch.bfloat16):
        nats = network(ids, targets)
    assert nats.mean().item() == pytest.approx(exact.item(), abs=0.05)


R1: dict[str, Any] = {
    **{"num_layers": 11, "bigram_vocab_size": 2048, "xsa_last_n": 4, "rope_dims": 16, "rope_base": 22_082.0},
    "ln_scale": True,
}
R2: dict[str, Any] = {
    **{"vocab_size": 4096, "num_layers": 11, "mlp_mult": 4.0, "bigram_vocab_size": 0, "smear": "none"},
    **{"xsa_last_n": 11, "rope_dims": 16, "ln_scale": True, "mlp_leak": 0.5, "skip_gates": True, "qk_gain_init": 4.0},
}
R3 = {**R2, "vocab_size": 8192, "loop_start": 4, "loop_end": 5, "num_loops": 2}
R4 = {**R3, "loop_start": 3, "parallel_from": 7, "qk_gain_init": 5.25}
GATES = {**R4, "gate_width": 12, "smear": "content", "logit_softcap": 15.0}


@pytest.mark.parametrize(
    ("settings", "num_parameters"),
    [(R1, 26_829_913), (R2, 33_844_312), (R3, 35_943_512), (R4, 35_944_536), (GATES, 35_945_605)],
)
def test_each_rung_has_the_published_parameters(settings: dict[str, Any], num_parameters: int) -> None:
    with torch.device("meta"):
        network = GPT(GPTConfig(**settings))
    assert sum(p.numel() for p in network.parameters()) == num_parameters


def test_a_network_is_described_by_what_it_is_made_of() -> None:
    assert GPTConfig().describe() == (
        "10 blocks of width 512, 8 query and 4 key/value heads, MLP 3 times as wide, U-Net skips, SmearGate, a hash "
        "table of 4,096 token pairs, 128 wide; a vocabulary of 1,024 pieces"
    )
    assert GPTConfig(**GATES).describe() == (
        "11 blocks of width 512, 8 query and 4 key/value heads, MLP 4 times as wide, gated U-Net skips, SmearGate by "
        "content, layers 3 to 5 run 3 times, attention and MLP in parallel from layer 7, exclusive self attention in "
        "the last 11 layers, gated attention heads, positions in 16 of 64 channels of a head, norms scaled by depth, "
        "an activation that leaks 0.5; a vocabulary of 8,192 pieces"
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rope_dims": 18}, "model.rope_dims is 18; set it to an even number of the 16 channels of a head"),
        ({"rope_dims": 7}, "model.rope_dims is 7; set it to an even number"),
        ({"rope_dims": -2}, "model.rope_dims is -2; set it to an even number"),
        ({"xsa_last_n": 5}, "model.xsa_last_n is 5; set it from 0 to the 4 layers"),
        ({"xsa_last_n": -1}, "model.xsa_last_n is -1; set it from 0 to the 4 layers"),
        ({"mlp_leak": -0.1}, "model.mlp_leak is -0.1; set it from 0 to 1"),
        ({"mlp_leak": float("nan")}, "model.mlp_leak is nan; set it to a finite number"),
        ({"rope_base": float("nan")}, "model.rope_base is nan; set it to a finite number"),
        ({"logit_softcap": float("inf")}, "model.logit_softcap is inf; set it to a finite number"),
        ({"qk_gain_init": 1e39}, "model.qk_gain_init is 1e+39; set it to a finite number"),
        ({"mlp_mult": 10**400}, "set it to a finite number"),
        ({"mlp_mult": True}, "model.mlp_mult is True; set it to a finite number"),
        ({"mlp_mult": "3"}, "model.mlp_mult is '3'; set it to a finite number"),
        ({"num_layers": 2.0}, "model.num_layers is 2.0; set it to a whole number"),
        ({"num_layers": True}, "model.num_layers is True; set it to a whole number"),
        ({"num_layers": None}, "model.num_layers is None; set it to a whole number"),
        ({"num_loops": "many"}, "model.num_loops is 'many'; set it to a whole number"),
        ({"parallel_from": 1.0}, "model.parallel_from is 1.0; set it to a whole number"),
        ({"tie_embeddings": 1}, "model.tie_embeddings is 1; set it to true or false"),
        ({"ln_scale": None}, "model.ln_scale is None; set it to true or false"),
        ({"output_proj_init": "one"}, "model.output_proj_init is 'one'; set it to one of zero, scaled"),
        ({"smear": None}, "model.smear is None; set it to one of static, content, none"),
        ({"vocab_size": 10**9}, "model.vocab_size is 1,000,000,000; set it to at most 1,048,576"),
        ({"model_dim": 10**9}, "model.model_dim is 1,000,000,000; set it to at most 1,048,576"),
        ({"bigram_vocab_size": 10**9}, "model.bigram_vocab_size is 1,000,000,000; set it to at most 1,048,576"),
        ({"bigram_dim": 10**9}, "model.bigram_dim is 1,000,000,000; set it to at most 1,048,576"),
        ({"mlp_mult": 1e6}, "model.mlp_mult 1000000.0 times model.model_dim 64 is 64,000,000 channels; make it 1 to"),
        ({"mlp_mult": 1e-6}, "model.mlp_mult 1e-06 times model.model_dim 64 is 0 channels; make it 1 to 1,048,576"),
        ({"bos_id": -2}, "model.bos_id is -2; set it to an id below model.vocab_size 1024, or to -1"),
        ({"bos_id": 10**30}, "set it to an id below model.vocab_size 1024"),
        ({"parallel_from": 4}, "model.parallel_from is 4; set it to a layer from 0 to 3, or to null for none"),
        ({"parallel_from": -1}, "model.parallel_from is -1; set it to a layer from 0 to 3"),
        ({"gate_width": -1}, "model.gate_width is -1; set it from 0, for no gates, to model.model_dim 64"),
        ({"gate_width": 65}, "model.gate_width is 65; set it from 0, for no gates, to model.model_dim 64"),
        ({"smear": "content", "smear_width": 0}, "model.smear_width is 0; set it from 1 to model.model_dim 64"),
        ({"smear": "content", "smear_width": 65}, "model.smear_width is 65; set it from 1 to model.model_dim 64"),
        ({"smear": "both"}, "model.smear is 'both'; set it to one of static, content, none"),
        ({"num_loops": -1}, "model.num_loops is -1; set it to 0 for no loop, or above"),
        (
            {"num_loops": 1, "loop_start": 2, "loop_end": 1},
            "model.loop_end 1 is before model.loop_start 2; set it to the last of the layers that are run again",
        ),
        (
            {"num_loops": 1, "loop_start": 2, "loop_end": 4},
            "model.loop_start 2 to model.loop_end 4 goes beyond layers 0 to 3; loop layers that the network has",
        ),
        ({"num_loops": 1, "loop_start": -1, "loop_end": 1}, "model.loop_start -1 to model.loop_end 1 goes beyond"),
        (
            {"num_loops": 10**9, "loop_start": 1, "loop_end": 2},
            "model.num_layers 4 and model.num_loops 1000000000 make 2,000,000,004 steps through the layers; make it at "
            "most 1,024",
        ),
        ({"num_layers": 10**9}, "make 1,000,000,000 steps through the layers; make it at most 1,024"),
    ],
)
def test_settings_that_cannot_be_built_are_refused_in_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        GPTConfig(**{"num_layers": 4, "model_dim": 64, "num_heads": 4, "num_kv_heads": 2, **settings})


def test_the_shapes_of_any_network_are_known_without_its_memory() -> None:
    # 1,024 layers of a million channels would take 20 PB.
    with at_most_a_gibibyte_more():
        shapes = shapes_of(GPTConfig(num_layers=1024, model_dim=MAX_SIZE, mlp_mult=1))
    assert shapes["blocks.1023.mlp.fc.weight"] == (MAX_SIZE, MAX_SIZE)


@each_setting
def test_the_shapes_foretold_are_the_networks_own(settings: dict[str, Any]) -> None:
    network = tiny_network(**settings)
    assert shapes_of(network.config) == network.shapes()


def test_a_loop_that_is_off_may_name_any_layers() -> None:
    assert GPTConfig(num_layers=2, loop_start=3, loop_end=5).layer_order(looping=True) == ([0], [1])
