"""``python -m components.generate FILE --prompt TEXT``: text that an exported model writes."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece
import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install

from components.command import run_command
from components.errors import UserError
from components.generation import Sampling, generate
from components.gpt import GPT, check_shapes, config_of, load_weights, shapes_of
from components.model_files import read_any_artifact
from components.quantization import load_state
from components.run_files import CONFIG_NAME
from components.tokenizer import load_tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def load_network(path: Path) -> GPT:
    """The network of an artifact, with its weights.

    Raises:
        UserError: as `read_any_artifact`, or the file does not describe its network.
    """
    artifact = read_any_artifact(path)
    if artifact.settings is None:
        raise UserError(
            f"{path} has the public format, which does not describe its network; score it with `python cli.py validate "
            "--artifact`, which takes the network from --model.*."
        )
    config = config_of(artifact.settings, str(path))
    weights = load_state(artifact.tensors)
    check_shapes(shapes_of(config), weights, str(path))  # before any memory is spent on a network
    network = GPT(config)
    load_weights(network, weights, str(path))
    return network.eval()


def find_tokenizer(artifact: Path) -> Path:
    """The tokenizer of an artifact's run: the only ``.model`` file beside it, or the one its ``config.yaml`` names.

    Raises:
        UserError: There is neither.
    """
    beside = list(artifact.parent.glob("*.model"))
    if len(beside) == 1:
        return beside[0]
    with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError):  # or no run's
        return Path(yaml.safe_load(artifact.with_name(CONFIG_NAME).read_text())["data"]["tokenizer_path"])
    raise UserError(
        f"There is no tokenizer beside {artifact}, and no {CONFIG_NAME} that names one; give it with --tokenizer."
    )


def decoded(tokenizer: sentencepiece.SentencePieceProcessor, ids: Iterable[int]) -> Iterator[str]:
    """Text as it becomes certain: a character of several byte tokens is held back until its last."""
    seen: list[int] = []
    shown = ""
    for token in ids:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith(INCOMPLETE):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(seen)[len(shown) :]


def continuations(
    network: GPT,
    tokenizer: sentencepiece.SentencePieceProcessor,
    prompt: str,
    max_tokens: int,
    sampling: Sampling,
    num_samples: int,
) -> Iterator[Iterator[str]]:
    """Texts that begin with the prompt, each streamed; the seed of each is one more than that of the one before.

    Args:
        network: Its vocabulary is the tokenizer's.
        tokenizer: Turns ids into text.
        prompt: The beginning; empty for the beginning of a document.
        max_tokens: The most tokens to add.
        sampling: How tokens are drawn.
        num_samples: The number of texts.
    """
    prompt_ids = [network.config.bos_id, *tokenizer.encode(prompt)]
    for number in range(num_samples):
        drawn = generate(network, prompt_ids, max_tokens, dataclasses.replace(sampling, seed=sampling.seed + number))
        # The prompt's ids go first, because a piece's leading space depends on what is before it.
        yield decoded(tokenizer, (token for part in (prompt_ids[1:], drawn) for token in part))


def main(arguments: Sequence[str]) -> None:
    """Write texts to the terminal.

    Raises:
        UserError: as `load_network` and `find_tokenizer`, or the tokenizer is not the network's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m components.generate", description="Let an exported model write text."
    )
    parser.add_argument("file", type=Path, help="an artifact, as a fit exports it")
    parser.add_argument("--prompt", default="", help="the text to continue (default: begin a document)")
    parser.add_argument("--tokenizer", type=Path, help="the .model file (default: the one of the artifact's run)")
    parser.add_argument("--max-tokens", type=_positive, default=200, help="the most tokens to add (%(default)s)")
    parser.add_argument(
        "--temperature", type=_not_negative, default=0.8, help="0 always takes the likeliest token (%(default)s)"
    )
    parser.add_argument(
        "--top-k", type=_positive, default=50, help="draw from this many likeliest tokens (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (%(default)s)")
    parser.add_argument("--num-samples", type=_positive, default=1, help="how many texts (%(default)s)")
    options = parser.parse_args(arguments)
    network = load_network(options.file)
    tokenizer = load_tokenizer(options.tokenizer or find_tokenizer(options.file), network.config.vocab_size)
    sampling = Sampling(options.temperature, options.top_k, options.seed)
    texts = continuations(network, tokenizer, options.prompt, options.max_tokens, sampling, options.num_samples)
    for number, text in enumerate(texts):
        print("---\n" if number else "", end="")
        for piece in text:
            print(piece, end="", flush=True)
        print()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return number


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
