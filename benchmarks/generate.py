"""Tokens a second with and without kept keys and values: ``python -m benchmarks.generate``.

Both ways continue the same text greedily with the record's network, in turn, until it has 512 tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.common import device, in_turn, random_network, save, table
from components.generation import Sampling, generate
from components.gpt import GPT, GPTConfig

NUM_TOKENS = 512
GREEDY = Sampling(temperature=0)


def cached(network: GPT, prompt: list[int], num_new: int) -> list[int]:
    """The continuation, as the project's command writes it."""
    return list(generate(network, prompt, num_new, GREEDY))


@torch.inference_mode()
def plain(network: GPT, prompt: list[int], num_new: int) -> list[int]:
    """The continuation, with a whole forward pass for each token."""
    text = list(prompt)
    for _ in range(num_new):
        text.append(int(network.logits(torch.tensor([text], device=device()), 1)[0, -1].argmax()))
    return text[len(prompt) :]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--tokens", type=int, default=16, help="tokens to add (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way (%(default)s)")
    options = parser.parse_args()
    network = random_network(GPTConfig()).eval()
    assert network.config.bos_id >= 0
    prompt = torch.randint(2, 1024, (NUM_TOKENS - options.tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    ways: dict[str, Callable[[], object]] = {
        "whole forward pass a token": lambda: plain(network, prompt, options.tokens),
        "kept keys and values": lambda: cached(network, prompt, options.tokens),
        "of these, reading the prompt": lambda: cached(network, prompt, 1),
    }
    assert cached(network, prompt, options.tokens) == plain(network, prompt, options.tokens)
    times = in_turn(ways, options.repeats)
    plain_time, cached_time, reading = times.values()
    plain_rate, cached_rate = options.tokens / plain_time, (options.tokens - 1) / (cached_time - reading)
    print(table(("way", "seconds"), [(name, f"{time:.3f}") for name, time in times.items()]))
    print(f"tokens a second after the prompt: {cached_rate:.1f} instead of {plain_rate:.1f}")
    rates = {"plain_tokens_per_second": plain_rate, "cached_tokens_per_second": cached_rate}
    save("generate", {"text_tokens": NUM_TOKENS, "new_tokens": options.tokens, **rates})


if __name__ == "__main__":
    main()
