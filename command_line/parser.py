"""The parser of the commands: a short usage, no abbreviated options, and errors that name the nearest option."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from command_line.completion import remove_links, with_runners

set_parsing_settings(add_print_completion_argument=True)

_UNKNOWN = re.compile(r"unrecognized arguments: (?P<option>--\S+)|does not accept option '(?P<key>[^']+)'")

_NO_CLASS = re.compile(r'Parser key "(?P<key>[^"]+)":.*Expected a dot import path string: (?P<name>\S+)', re.DOTALL)
_WRONG_TYPE = re.compile(
    r'Parser key "(?P<key>[^"]+)":\s*Expected a <class \'(?P<kind>\w+)\'>. Got value: (?P<value>.*)'
)


class Parser(LightningArgumentParser):
    """As LightningArgumentParser, whose usage would list each of more than a hundred options.

    Args:
        settings: as for LightningArgumentParser.
    """

    def __init__(self, **settings: Any) -> None:
        # An abbreviation would be a second name, whose meaning changes when an option is added.
        super().__init__(allow_abbrev=False, **settings)

    def format_usage(self) -> str:
        """One line; ``--help`` lists the options."""
        return f"usage: {_command(self)} --config FILE [--config FILE ...] [--SECTION.SETTING VALUE ...]\n"

    def format_help(self, *arguments: Any) -> str:
        """The short usage, then all options."""
        self.usage = self.format_usage().removeprefix("usage: ").strip()
        return str(super().format_help(*arguments))

    def get_completion_script(self, completion_type: str, **settings: Any) -> str:
        """A script that completes the command line in a shell; the parser cannot be used afterward."""
        remove_links(self)
        script: str = super().get_completion_script(completion_type, **settings)
        return with_runners(script) if completion_type == "shtab-bash" else script

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program with one sentence and exit code 2, naming the nearest option where one is unknown."""
        parser = getattr(ex, "subcommand_parser", None) or self
        print(f"error: {_sentence(message, parser)}", file=sys.stderr)
        sys.exit(2)


def _command(parser: argparse.ArgumentParser) -> str:
    return parser.prog.replace(" [options]", "")


def _sentence(message: str, parser: argparse.ArgumentParser) -> str:
    if found := _UNKNOWN.search(message):
        name = found["key"] or found["option"].removeprefix("--").split("=")[0]
        return f"There is no setting {name}; {_advice(name, parser)}."
    if found := _NO_CLASS.search(message):
        return f"There is no class {found['name']} for {found['key']}; {_command(parser)} --help lists the classes."
    if found := _WRONG_TYPE.search(message):
        return f"{found['key']} is {found['value']}, which is not of type {found['kind']}; correct it."
    return f"{_joined(message)} (see {_command(parser)} --help)"


def _joined(message: str) -> str:
    """The parser's list of what it tried, as one line."""
    return "; ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -")).replace(":;", ":")


def _advice(name: str, parser: argparse.ArgumentParser) -> str:
    known = [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]}" if nearest else f"{_command(parser)} --help lists them"
