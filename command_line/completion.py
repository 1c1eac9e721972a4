"""Shell completion: what ``python cli.py --print_completion shtab-bash`` prints.

The script lists every option, so a shell completes them at once, without starting Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SCRIPT = "cli.py"
BASH = f"""
# cli.py is no command: complete what follows it, whatever runs it.
_golf_script() {{
  local index
  for ((index = 1; index < COMP_CWORD; index++)); do
    if [[ ${{COMP_WORDS[index]}} == {SCRIPT} || ${{COMP_WORDS[index]}} == */{SCRIPT} ]]; then
      COMP_WORDS=("${{COMP_WORDS[@]:index}}")
      COMP_CWORD=$((COMP_CWORD - index))
      _shtab_cli_py
      return
    fi
  done
}}

complete -o bashdefault -o default -F _golf_script python python3 torchrun
"""


def with_runners(script: str) -> str:
    """A bash script that completes ``cli.py``, made to complete ``python cli.py`` and ``torchrun cli.py`` as well."""
    return script + BASH


def remove_links(parser: argparse.ArgumentParser) -> None:
    """Take the links between settings out of a parser: for argparse they are options, with names of several words."""
    for each in (parser, *_subparsers(parser)):
        each._actions[:] = [a for a in each._actions if all(name.startswith("-") for name in a.option_strings)]


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action._name_parser_map.values()
