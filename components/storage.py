"""How each weight is stored: an ordered list of rules, the same for late QAT, export and the artifact's settings.

The first rule that matches a tensor applies. There is no catch-all, by design: a large tensor that no rule matches is
an error before a run begins, not a surprise in its file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal

from components.errors import UserError

LARGEST_FLOAT16_TENSOR = 65_536
"""The recipe keeps tensors of at most this many elements in float16."""

MAX_PATTERN = 200
"""The longest name pattern, in characters."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")


class Storage(StrEnum):
    """How an artifact holds a tensor: quantized per output row, or as float16."""

    INT5 = "int5"
    INT6 = "int6"
    INT7 = "int7"
    INT8 = "int8"
    FLOAT16 = "float16"


@dataclass(frozen=True)
class StorageRule:
    """How tensors with certain names and sizes are stored.

    Args:
        names: Pattern of parameter names, where * matches any text; block numbers may be counted from the end, as
            in blocks.-1.attn.c_k.weight for the last block.
        storage: How such a tensor is stored. Quantized ones are stored per row, so they must be matrices.
        at_most: The rule applies to tensors of at most this many elements; 0 for no limit.
        qat: Whether forward passes see the stored values once late QAT has begun.
    """

    names: str
    storage: Literal["int5", "int6", "int7", "int8", "float16"]
    at_most: int = 0
    qat: bool = False

    def __post_init__(self) -> None:
        """Reject a rule that is meaningless.

        Raises:
            UserError: The pattern is empty or too long, the size is negative, or float16 is to be faked.
        """
        if not 1 <= len(self.names) <= MAX_PATTERN:
            raise UserError(
                f"A storage rule has a name pattern of {len(self.names)} characters; use 1 to {MAX_PATTERN}."
            )
        if self.at_most < 0:
            raise UserError(
                f"The storage rule for {self.names} has at_most {self.at_most}; set it to 0 for any size or to a "
                "number of elements."
            )
        if self.qat and self.kind is Storage.FLOAT16:
            raise UserError(
                f"The storage rule for {self.names} asks late QAT to fake float16, which trains as it is; set qat to "
                "false."
            )

    @property
    def kind(self) -> Storage:
        """How such a tensor is stored."""
        return Storage(self.storage)

    def fits(self, name: str, num_blocks: int, num_elements: int) -> bool:
        """Whether the rule matches a tensor of this name and size in a network of this many blocks."""
        if self.at_most and num_elements > self.at_most:
            return False
        from_the_end = _BLOCK.sub(lambda found: f"blocks.{int(found[1]) - num_blocks}.", name)
        return fnmatchcase(name, self.names) or fnmatchcase(from_the_end, self.names)


RECIPE = (
    StorageRule("*", "float16", at_most=LARGEST_FLOAT16_TENSOR),
    StorageRule("tok_emb.weight", "float16"),
    StorageRule("bigram.*.weight", "int8"),
    StorageRule("lm_head.weight", "int8"),
    StorageRule("blocks.*.mlp.*.weight", "int5", qat=True),
    StorageRule("blocks.*.attn.*.weight", "int6", qat=True),
)
"""The recipe's rules: tables are rounded only at export; block matrices train as they will be stored.

They are the default for every network, so they may name parts that a network lacks; no other rule may.
"""


def keep_last_keys(num_blocks: int) -> tuple[StorageRule, ...]:
    """Rules, to go first, that keep the key projections of the last ``num_blocks`` blocks in float16."""
    return tuple(StorageRule(f"blocks.-{i}.attn.c_k.weight", "float16") for i in range(1, num_blocks + 1))


def assign(shapes: Mapping[str, Sequence[int]], rules: Iterable[StorageRule]) -> dict[str, StorageRule]:
    """The rule that each tensor is stored by.

    Args:
        shapes: Each tensor's shape by its name in the network.
        rules: The rules; the first match applies.

    Raises:
        UserError: No rule matches a tensor, or one quantizes a tensor that is not a matrix.
    """
    rules = tuple(rules)
    num_blocks = _num_blocks(shapes)
    chosen = {}
    for name, shape in shapes.items():
        num_elements = math.prod(shape)
        rule = next((rule for rule in rules if rule.fits(name, num_blocks, num_elements)), None)
        if rule is None:
            raise UserError(
                f"No storage rule names {name}, a tensor of {num_elements:,} elements; add one for it to "
                "export.storage."
            )
        if rule.kind is not Storage.FLOAT16 and len(shape) != 2:
            raise UserError(
                f"The storage rule for {rule.names} stores {name} as {rule.storage} rows, but its shape is "
                f"{list(shape)}; put a float16 rule for it first in export.storage."
            )
        chosen[name] = rule
    return chosen


def refuse_idle_rules(shapes: Mapping[str, Sequence[int]], rules: Iterable[StorageRule]) -> None:
    """Reject a rule that matches no tensor, by its name and size; only the recipe's own may.

    Args:
        shapes: Each tensor's shape by its name in the network.
        rules: The rules.

    Raises:
        UserError: A rule matches nothing.
    """
    num_blocks = _num_blocks(shapes)
    for rule in rules:
        matches = (rule.fits(name, num_blocks, math.prod(shape)) for name, shape in shapes.items())
        if rule not in RECIPE and not any(matches):
            size = f" of at most {rule.at_most:,} elements" if rule.at_most else ""
            raise UserError(
                f"The storage rule for {rule.names} matches no weight{size} of this network; correct or remove it in "
                "export.storage."
            )


def _num_blocks(names: Iterable[str]) -> int:
    return 1 + max((int(found[1]) for name in names if (found := _BLOCK.match(name))), default=-1)
