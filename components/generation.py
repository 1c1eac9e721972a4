"""Text from a model, one token at a time, with the keys and values of earlier tokens kept.

Shape suffixes: B sequences, T positions, V vocabulary, K key/value heads, D head width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.gpt import GPT


class StepCache:
    """Keys and values of one step of a forward pass; a layer that is run twice has two.

    Args:
        max_positions: The most positions it can hold.
    """

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions
        self.num_positions = 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def extend(self, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Add the next positions' keys and values; returns those of all positions so far."""
        if self._kept is None:
            batch, heads, _, width = k_BKTD.shape
            shape = (batch, heads, self.max_positions, width)
            self._kept = (k_BKTD.new_empty(shape), v_BKTD.new_empty(shape))
        start, self.num_positions = self.num_positions, self.num_positions + k_BKTD.size(2)
        assert self.num_positions <= self.max_positions, "more positions than the cache was made for"
        for kept, new in zip(self._kept, (k_BKTD, v_BKTD), strict=True):
            kept[:, :, start : self.num_positions] = new
        keys, values = self._kept
        return keys[:, :, : self.num_positions], values[:, :, : self.num_positions]


class Cache:
    """What forward passes over a growing text need not compute again.

    Args:
        network: The network that will read the text.
        max_positions: The most tokens the text will have.

    Attributes:
        steps: A cache for each step of a forward pass.
    """

    def __init__(self, network: GPT, max_positions: int) -> None:
        encoder, decoder = network.config.layer_order(network.looping)
        self.steps = [StepCache(max_positions) for _ in (*encoder, *decoder)]

    @property
    def num_positions(self) -> int:
        """Tokens read so far."""
        return self.steps[0].num_positions


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw from this many likeliest tokens; None draws from all.
        seed: Seed of the draws.
    """

    temperature: float = 0.8
    top_k: int | None = 50
    seed: int = 0


@torch.inference_mode()
def generate(network: GPT, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Iterator[int]:
    """Continue a text, until the model begins another document.

    Args:
        network: In float32, on the device to run on.
        prompt_ids: The text so far, at least one id.
        max_tokens: The most tokens to add.
        sampling: How each is drawn; the same settings give the same text on the same machine.

    Yields:
        Token ids, each as soon as it is drawn.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    max_positions = len(prompt_ids) + max_tokens
    if max_positions > len(network.rotary_cos):
        network.reserve_positions(max_positions)
    cache = Cache(network, max_positions)
    ids_BT = torch.tensor([prompt_ids], device=network.tok_emb.weight.device)
    for _ in range(max_tokens):
        token = _draw(network.logits(ids_BT, 1, cache)[0, -1].cpu(), sampling, generator)
        if token == network.config.bos_id:
            return
        yield token
        ids_BT = torch.cat((ids_BT, ids_BT.new_tensor([[token]])), dim=1)


def _draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    likeliest, ids = logits_V.topk(min(sampling.top_k or len(logits_V), len(logits_V)))
    shares = torch.softmax(likeliest / sampling.temperature, dim=0)
    return int(ids[torch.multinomial(shares, 1, generator=generator)])
