"""The benchmarks measure what they say: their forms of a step agree, and their counts are right."""

import dataclasses

import pytest
import torch

from benchmarks.common import TrainingStep, in_turn, products_per_token, random_network, table
from benchmarks.growth import markdown, with_section
from benchmarks.qat_switch import FORMS
from benchmarks.train_step import kept_for_backward
from components.gpt import GPTConfig
from components.optimizer import OptimizerConfig, build_optimizer
from tests.support import ROOT

# Wide enough for attention matrices to be quantized.
SMALL = GPTConfig(num_layers=2, model_dim=272, num_heads=4, num_kv_heads=2, bigram_vocab_size=64, bigram_dim=16)


def make_step(form: type[TrainingStep]) -> TrainingStep:
    network = random_network(SMALL)
    torch.manual_seed(1)
    return form(network, build_optimizer(network, OptimizerConfig()), 2, 32)


def test_every_form_of_the_switch_trains_alike() -> None:
    losses = {}
    for name, form in FORMS.items():
        step = make_step(form)
        for on in (False, True, True, False):
            step.switch(on)
            step()
            losses.setdefault(name, []).append(step.loss.item())
    first, *others = losses.values()
    for other in others:
        assert other == pytest.approx(first, abs=1e-5)


def test_every_form_of_the_switch_sees_quantized_weights() -> None:
    for form in FORMS.values():
        step = make_step(form)
        seen = []
        for on in (False, True):
            step.switch(on)
            step.forward()
            seen.append(step.loss.item())
            step.backward()
            step.optimizer.zero_grad()
        assert seen[0] != seen[1]


def test_products_per_token_of_a_hand_counted_network() -> None:
    config = GPTConfig(
        vocab_size=100,
        num_layers=1,
        model_dim=64,
        num_heads=2,
        num_kv_heads=1,
        mlp_mult=2,
        bigram_vocab_size=50,
        bigram_dim=16,
    )
    linear = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 2 * 64 * 128 + 16 * 64 + 64 * 100
    attention = 2 * 2 * 128 * 64 // 2  # scores and values over half of 128 positions
    assert products_per_token(config, 128) == 2 * linear + attention
    untied = dataclasses.replace(config, tie_embeddings=False)
    assert products_per_token(untied, 128) == 2 * linear + attention
    looped = dataclasses.replace(config, num_loops=2)  # the only layer three times; hash table and head once
    assert products_per_token(looped, 128) == 2 * (3 * linear - 2 * (16 * 64 + 64 * 100)) + 3 * attention


def test_kept_for_backward_grows_with_the_tokens_alone() -> None:
    network = random_network(SMALL)
    optimizer = build_optimizer(network, OptimizerConfig())
    one, two, four = (kept_for_backward(TrainingStep(network, optimizer, n, 32)) for n in (1, 2, 4))
    assert two - one > 32 * SMALL.model_dim * 4 * SMALL.num_layers
    assert four - two == 2 * (two - one)


def test_in_turn_calls_each_once_more_than_it_counts() -> None:
    calls: list[str] = []
    times = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert set(times) == {"a", "b"}


def test_table_lines_columns_up() -> None:
    assert table(("name", "x"), [("a", 1), ("long name", 100)]) == "name         x\na            1\nlong name  100"


def test_readme_section_is_replaced_and_nothing_else() -> None:
    before = (ROOT / "README.md").read_text()
    after = with_section(with_section(before, "old"), markdown(("x", "y"), [("1", "2")]))
    assert "| x | y |\n| --- | ---: |\n| 1 | 2 |\n<!-- end -->" in after
    assert "old\n<!-- end -->" not in after
    assert after.partition("<!-- benchmarks.growth")[0] == before.partition("<!-- benchmarks.growth")[0]
    assert after.partition("<!-- end -->")[2] == before.partition("<!-- end -->")[2]
