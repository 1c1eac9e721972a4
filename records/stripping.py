"""Sources without what only people and type checkers read, and without what nothing uses."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping

PLAIN_DECORATORS = ("property", "staticmethod", "classmethod", "abstractmethod", "contextmanager")
"""Decorators that do not look at annotations."""


def strip(source: str) -> str:
    """A module's source without comments, docstrings, its main guard, casts, and annotations that nobody looks at.

    Settings are read from the annotations of constructors and of the fields of classes, so these stay. The layout is
    that of `ast.unparse`, but for formatted strings, which newer versions of Python write in a way that 3.11 cannot
    read.
    """
    simpler = _Simpler(source)
    tree = simpler.visit(ast.parse(source))
    tree.body = [statement for statement in tree.body if not _is_main_guard(statement)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            _remove_annotations(node)
        for part in ("body", "orelse", "finalbody"):
            statements = getattr(node, part, None)
            if isinstance(statements, list):
                kept = [_plain(node, statement) for statement in statements if not is_bare_string(statement)]
                needs_one = part == "body" and not isinstance(node, ast.Module)
                setattr(node, part, kept or ([ast.Pass()] if needs_one else []))
    text = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    return re.sub(r"\b_F(\d+)_\b", lambda found: simpler.formatted[int(found[1])], text)


def shake(sources: Mapping[str, str], entered: str) -> dict[str, str]:
    """Remove functions, classes, constants and imported names that nothing else names, until none is left.

    What one module imports from another stays, even if it does not use it: its whole source may take its place.

    Args:
        sources: The modules by file.
        entered: Text that uses them from outside, such as a program's settings.
    """
    asked = {name for source in sources.values() for name in _imported_from_modules(source)}
    shaken = dict(sources)
    while True:
        before = dict(shaken)
        words = Counter(_words(entered) + [word for source in before.values() for word in _words(source)])
        for file, source in before.items():
            shaken[file] = _without_unused(file, source, words, asked)
        if shaken == before:
            return shaken


def is_bare_string(node: ast.AST) -> bool:
    """Whether a statement is a string by itself, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


class _Simpler(ast.NodeTransformer):
    """Leaves of ``cast(kind, value)`` the value, and puts a name in the place of each formatted string.

    Args:
        source: The module's source.

    Attributes:
        formatted: The formatted strings as the source has them, each on one line if it can be. A name holds its
            number in this list.
    """

    def __init__(self, source: str) -> None:
        assert not re.search(r"\b_F\d+_\b", source)
        self._source = source
        self.formatted: list[str] = []

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Keep the string's text."""
        text = ast.get_source_segment(self._source, node)
        assert text is not None
        self.formatted.append(text if '"""' in text else _on_one_line(text))
        return ast.Name(f"_F{len(self.formatted) - 1}_", ast.Load())

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace a call of ``cast``."""
        self.generic_visit(node)
        return node.args[1] if isinstance(node.func, ast.Name) and node.func.id == "cast" else node


def _on_one_line(text: str) -> str:
    """A string of several parts, each on its own line, with neighbors joined where both can be formatted."""
    first, *others = re.split(r"\n\s*", text)
    parts = [first]
    for part in others:
        both = [each if each[0] == "f" or set("{}") & set(each) else f"f{each}" for each in (parts[-1], part)]
        if all(each.startswith('f"') and each.endswith('"') for each in both):
            parts[-1:] = [both[0][:-1] + both[1][2:]]
        else:
            parts.append(part)
    line = " ".join(parts)
    assert ast.dump(ast.parse(line)) == ast.dump(ast.parse(f"({text})")), "as a comment between the parts would do"
    return line


def _remove_annotations(function: ast.FunctionDef) -> None:
    if not all(ast.unparse(decorator) in PLAIN_DECORATORS for decorator in function.decorator_list):
        return
    function.returns = None
    if function.name != "__init__":
        every = function.args
        for argument in [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]:
            if argument is not None:
                argument.annotation = None


def _plain(owner: ast.AST, statement: ast.stmt) -> ast.stmt:
    """An assignment without its annotation, unless that makes a field of a class."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None and not isinstance(owner, ast.ClassDef):
        return ast.Assign([statement.target], statement.value)
    return statement


def _without_unused(file: str, source: str, words: Counter[str], asked: set[str]) -> str:
    """A module without the definitions that nothing names, and without the imported names that it does not use.

    Args:
        file: The module's file.
        source: Its source.
        words: How often each word stands in all sources and in what enters them.
        asked: What modules import from each other, by full name.
    """
    module, own_words = file.removesuffix(".py").replace("/", "."), Counter(_words(source))
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        assert node.end_lineno is not None
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1
        here = Counter(_words("".join(lines[first : node.end_lineno])))
        name = _defined(node)
        if name is not None:
            if words[name] == here[name] and f"{module}.{name}" not in asked:
                del lines[first : node.end_lineno]
        elif isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            kept = [
                alias
                for alias in node.names
                if own_words[_bound(alias)] > here[_bound(alias)] or f"{module}.{_bound(alias)}" in asked
            ]
            if len(kept) < len(node.names):
                node.names = kept
                lines[first : node.end_lineno] = [ast.unparse(node) + "\n"] if kept else []
    return "".join(lines)


def _defined(statement: ast.stmt) -> str | None:
    """The name that a module's statement gives to a function, a class or a value that is not computed by a call."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return statement.name
    if isinstance(statement, ast.Assign) and not any(isinstance(node, ast.Call) for node in ast.walk(statement.value)):
        [target, *others] = statement.targets
        return target.id if isinstance(target, ast.Name) and not others else None
    return None


def _imported_from_modules(source: str) -> Iterator[str]:
    """The full names that a module imports from others."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _bound(alias: ast.alias) -> str:
    """The name that an import gives a module."""
    return alias.asname or alias.name.partition(".")[0]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
