"""Text from a model: the cache is exact under every setting, and sampling does what its settings say."""

from collections import Counter
from typing import Any

import pytest
import torch

from components.generation import Cache, Sampling, generate
from components.gpt import GPT
from tests.components.test_gpt_settings import each_setting
from tests.support import random_ids, tiny_network

GREEDY = Sampling(temperature=0)


def small_vocabulary() -> GPT:
    return tiny_network(vocab_size=32, model_dim=32, num_layers=2, bos_id=1)


def after(network: GPT, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return network.logits(torch.tensor([ids]), 1)[0, -1]


@each_setting
@pytest.mark.parametrize("parts", [[20], [1] * 20, [5, 1, 1, 3, 10], [2, 9, 9]])
def test_reading_a_text_in_parts_gives_the_logits_of_reading_it_at_once(
    settings: dict[str, Any], parts: list[int]
) -> None:
    network, ids = tiny_network(**settings), random_ids(2, 20)
    ids[0, 7] = ids[1, 0] = network.config.bos_id
    cache = Cache(network, 20)
    seen = []
    with torch.no_grad():
        whole = network.logits(ids, 20)
        for part in parts:
            seen.append(network.logits(ids[:, : cache.num_positions + part], part, cache))
    torch.testing.assert_close(torch.cat(seen, dim=1), whole, atol=1e-4, rtol=0)


def test_the_static_gate_that_stops_at_documents_and_the_plain_order_are_exact_too() -> None:
    network = tiny_network(num_layers=4, loop_start=1, loop_end=2, num_loops=2, smear_across_documents=False)
    network.looping = False
    ids = random_ids(1, 12)
    ids[0, 5] = network.config.bos_id
    cache = Cache(network, 12)
    with torch.no_grad():
        whole = network.logits(ids, 12)
        seen = [network.logits(ids[:, : n + 1], 1, cache) for n in range(12)]
    torch.testing.assert_close(torch.cat(seen, dim=1), whole, atol=1e-4, rtol=0)


def test_without_temperature_each_token_is_the_likeliest_of_the_full_forward_pass() -> None:
    network = tiny_network()
    text = [1, 5, 9]
    for token in generate(network, [1, 5, 9], 12, GREEDY):
        assert token == int(after(network, text).argmax())
        text.append(token)
    assert len(text) == 15


def test_the_text_is_the_seeds() -> None:
    network = small_vocabulary()
    first, again, other = (list(generate(network, [1, 2, 3], 30, Sampling(seed=seed))) for seed in (3, 3, 4))
    assert first == again != other


def test_tokens_are_drawn_with_their_probability_among_the_likeliest() -> None:
    network = small_vocabulary()
    logits = after(network, [1, 2, 3])
    logits[network.config.bos_id] = -torch.inf  # ends the text
    expected = torch.softmax(logits.topk(3).values / 2.0, dim=0)
    draws = Counter(
        token
        for seed in range(2000)
        for token in generate(network, [1, 2, 3], 1, Sampling(temperature=2.0, top_k=3, seed=seed))
    )
    ids = logits.topk(3).indices.tolist()
    assert set(draws) == set(ids)
    shares = torch.tensor([draws[token] / draws.total() for token in ids])
    torch.testing.assert_close(shares, expected, atol=0.05, rtol=0)  # over four standard deviations


def test_a_text_ends_where_the_model_begins_another_document() -> None:
    network = small_vocabulary()
    tokens = list(generate(network, [1, 2, 3], 8, GREEDY))
    ending = small_vocabulary()
    object.__setattr__(ending.config, "bos_id", tokens[4])
    stop = tokens.index(tokens[4])
    assert list(generate(ending, [1, 2, 3], 8, GREEDY)) == tokens[:stop]


def test_a_text_may_be_longer_than_the_positions_reserved_so_far() -> None:
    network = tiny_network(num_layers=1)
    network.reserve_positions(8)
    assert len(list(generate(network, [1, 2], 20, GREEDY))) == 20
