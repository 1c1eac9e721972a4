"""A few short texts that an exported model writes, the same for the same file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.generate import continuations, find_tokenizer, load_network
from components.generation import Sampling
from components.tokenizer import load_tokenizer

PROMPTS = ("The", "If you want to", "")
"""An empty prompt lets the model begin a document."""
MAX_TOKENS = 60
SAMPLING = Sampling()


@dataclass(frozen=True)
class Sample:
    """A text: what was given, and what the model added."""

    prompt: str
    continuation: str


def write_samples(artifact: Path) -> list[Sample]:
    """Let an exported model continue each of the prompts.

    Raises:
        UserError: The file cannot be read, or there is no tokenizer for it.
    """
    network = load_network(artifact)
    tokenizer = load_tokenizer(find_tokenizer(artifact), network.config.vocab_size)
    samples = []
    for prompt in PROMPTS:
        [text] = continuations(network, tokenizer, prompt, MAX_TOKENS, SAMPLING, num_samples=1)
        written = "".join(text)
        samples.append(Sample(prompt, written.removeprefix(prompt)))
    return samples
