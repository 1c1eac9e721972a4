"""Places in a script that a reviewer should read, found by reading its text.

Nothing here decides: names can be anything, and what looks harmless need not be. Five questions that invalid entries
were closed for, each with the lines that bear on it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

_VALIDATION = re.compile(r"(^|_)val(id|idation)?(_|$)", re.IGNORECASE)
_EXPORT = re.compile(r"quanti[sz]e|export|serializ|torch\.save|write_artifact", re.IGNORECASE)
_SCORES = re.compile(r"eval|valid|score|load|len|print|log", re.IGNORECASE)
_LOADS = re.compile(r"load.*val|val.*load", re.IGNORECASE)
_VALIDATION_DOCUMENTS = re.compile(r"val\w*[-_]docs|docs\w*[-_]val")
_SPLIT_DOCUMENTS = 50_000
"""Documents of the validation split."""
_MAX_PLACES = 8
PLAIN_SCORER = "components.scorer.SlidingWindows"
"""The scorer that only scores."""


@dataclass(frozen=True)
class Hint:
    """A line to look at.

    Attributes:
        question: which of `QUESTIONS` it bears on.
        place: the line, and in what part of the script where it has several.
        why: what is there.
    """

    question: str
    place: str
    why: str


Found = Iterator[tuple[int, str]]


def read_hints(texts: Mapping[str, str], settings: Mapping[str, object]) -> list[Hint]:
    """All hints in a script's texts, by where each stands, and in its settings."""
    hints = []
    if settings.get("model.smear_across_documents") is True and settings.get("model.smear") != "none":
        hints.append(Hint("gate across documents", "CONFIG", "smear_across_documents is true"))
    scorer = str(settings.get("scorer.class_path", PLAIN_SCORER))
    if scorer != PLAIN_SCORER:
        hints.append(Hint("trained before scored", "CONFIG", f"the scorer is {scorer}"))
    for part, text in texts.items():
        tree = ast.parse(text)
        for question, search in QUESTIONS.items():
            for line, why in sorted(set(search(tree)))[:_MAX_PLACES]:
                hints.append(Hint(question, f"{part} line {line}".strip(), why))
    return hints


def validation_before_export(tree: ast.Module) -> Found:
    """Whether validation data is read before the model is exported, and what is done with it."""
    for function in _functions(tree):
        exports = [call.lineno for call in _calls(function) if _EXPORT.search(_name(call))]
        for call in _calls(function):
            if not exports or call.lineno >= min(exports):
                continue
            given = [name for argument in _arguments(call) for name in _names(argument) if _VALIDATION.search(name)]
            if _LOADS.search(_name(call)):
                yield call.lineno, f"validation data is read by {_name(call)}, before the export in line {min(exports)}"
            elif given and not _SCORES.search(_name(call)):
                yield call.lineno, f"{_name(call)} is given {given[0]}, before the export in line {min(exports)}"


def trained_before_scored(tree: ast.Module) -> Found:
    """Whether test-time training trains on what it has not scored yet."""
    for function in _functions(tree):
        used = set(_names(function))
        if not ("ttt" in function.name.lower() or any(_VALIDATION.search(name) for name in used)):
            continue
        trains = [call.lineno for call in _calls(function) if _name(call).endswith(".backward")]
        scores = [node.lineno for node in ast.walk(function) if isinstance(node, ast.AugAssign) and _is_sum(node)]
        if trains and any("train" in name and "loader" in name for name in used) and "ttt" not in function.name.lower():
            continue  # the training loop itself, which validates now and then
        if trains and (not scores or min(trains) < min(scores)):
            yield (
                min(trains),
                f"{function.name} trains here and adds up its score "
                + (f"in line {min(scores)}, later" if scores else "nowhere that can be seen"),
            )
        elif trains:
            yield (
                min(trains),
                f"{function.name} trains here, after it scored in line {min(scores)}: on the same targets?",
            )


def scored_twice(tree: ast.Module) -> Found:
    """Whether a target has more than one score to choose from."""
    for function in _functions(tree):
        for call in _calls(function):
            least = _name(call).split(".")[-1] in ("min", "minimum", "amin")
            scored = [name for argument in _arguments(call) for name in _names(argument) if _is_score(name)]
            if least and scored:
                yield call.lineno, f"{_name(call)} chooses among {', '.join(sorted(set(scored)))}"
        for loop in ast.walk(function):
            if isinstance(loop, ast.For) and re.search(
                r"pass|epoch|repeat|round", ast.unparse(loop.target) + ast.unparse(loop.iter)
            ):
                for node in ast.walk(loop):
                    if isinstance(node, ast.AugAssign) and _is_sum(node) and _VALIDATION.search(function.name + "_"):
                        yield (
                            node.lineno,
                            f"the score is added up in each {ast.unparse(loop.target)} of line {loop.lineno}",
                        )


def gate_across_documents(tree: ast.Module) -> Found:
    """Whether a gate mixes in the token before without looking whether a document starts between them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and "smear" in node.name.lower():
            names = {name.lower() for name in _names(node)}
            if not any(re.search(r"bos|doc|mask|cu_seq|boundar", name) for name in names):
                yield node.lineno, f"{node.name} names no start of a document"


def validation_in_training(tree: ast.Module) -> Found:
    """Whether validation documents are in the training split."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            yield from _training_files(node.lineno, name, node.value)
            if _VALIDATION_DOCUMENTS.search(name):
                yield from _other_counts(node.lineno, name, node.value)
        elif isinstance(node, ast.Call) and _name(node).endswith("add_argument") and node.args:
            flag = ast.unparse(node.args[0])
            for word in node.keywords:
                if word.arg == "default" and _VALIDATION_DOCUMENTS.search(flag):
                    yield from _other_counts(node.lineno, flag, word.value)


def _training_files(line: int, name: str, value: ast.expr) -> Found:
    """A pattern of training files that validation shards match."""
    for text in _constants(value):
        training = "train" in name and "file" in name and isinstance(text, str)
        if training and "train" not in str(text) and re.search(r"val|\*", str(text)):
            yield line, f"{name} is {text!r}"


def _other_counts(line: int, name: str, value: ast.expr) -> Found:
    for count in _constants(value):
        if type(count) is int and count != _SPLIT_DOCUMENTS:
            yield line, f"{name} is {count:,} where the split has {_SPLIT_DOCUMENTS:,} documents"


def _constants(node: ast.expr) -> list[object]:
    return [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)]


QUESTIONS: dict[str, Callable[[ast.Module], Found]] = {
    "validation before export": validation_before_export,
    "trained before scored": trained_before_scored,
    "more than one score": scored_twice,
    "gate across documents": gate_across_documents,
    "validation in training": validation_in_training,
}


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(word.value for word in call.keywords)]


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func) if isinstance(call.func, ast.Name | ast.Attribute) else ""


def _names(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr
        elif isinstance(inner, ast.arg):
            yield inner.arg


def _is_score(name: str) -> bool:
    return re.search(r"nll|loss|bpb|score", name, re.IGNORECASE) is not None


def _is_sum(node: ast.AugAssign) -> bool:
    return isinstance(node.op, ast.Add) and any(_is_score(name) for name in _names(node.target))
