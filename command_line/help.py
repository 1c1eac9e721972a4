"""What ``python cli.py --help`` says, without importing what the commands need."""

import sys
from collections.abc import Sequence
from typing import NoReturn

HELP = """usage: cli.py {fit,validate} --config FILE [--config FILE ...] [--SECTION.SETTING VALUE ...]

Train a language model whose code and compressed weights fit in 16,000,000 bytes, and score it in bits per byte.

commands:
  fit         train, quantize, export and score a network
  validate    score a checkpoint, an exported file or float weights

examples:
  python cli.py fit --config configs/record_10l.yaml
      the record run: 8 GPUs, 600 seconds
  python cli.py fit --config configs/record_10l.yaml --config configs/laptop.yaml \\
      --data.path data/mine --data.tokenizer_path data/mine/tokenizer.model
      your own text on one CPU or one small GPU
  python cli.py validate --config configs/record_10l.yaml --artifact model.golf
      score an exported file

A later --config overrides an earlier one, and a setting on the command line overrides both.
`python cli.py fit --help` explains every setting, `python cli.py --print_completion shtab-bash` prints a script that
lets bash complete them; README.md says more."""


def show_help(words: Sequence[str]) -> NoReturn:
    """Print the help and end: with exit code 0 if it was asked for, else 2."""
    print(HELP, file=sys.stdout if words else sys.stderr)
    sys.exit(0 if words else 2)
