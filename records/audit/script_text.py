"""What a script says without being run: its decompressed text and its settings.

Public scripts are variants of ``exec(lzma.decompress(base64.b85decode("...")))``. This project's scripts are modules
in plain text and in a compressed string. Both are unpacked by evaluating only those few calls here, on literals only.
"""

from __future__ import annotations

import ast
import base64
import bz2
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_TEXT = 4 << 20
"""Maximum characters in an unpacked script: in practice, 100 times what fits the challenge's cap."""
MAX_LAYERS = 4
Setting = bool | int | float | str


class Unreadable(Exception):  # noqa: N818
    """Why a script cannot be read by this Python."""


class NeedsNewerPythonError(Unreadable):
    """It uses syntax that this Python does not support but a newer one might."""


@dataclass(frozen=True)
class ScriptText:
    """A script as text.

    Attributes:
        texts: all of it, by location: "" for the file's own text, ``unpacked`` for what that executes, a module's
            name for a module that it contains.
        settings: values in the class Hyperparameters, or in this project's CONFIG, by dotted name.
        packed: whether this project packed it.
    """

    texts: Mapping[str, str]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    packed: bool = False


def read_script(source: bytes) -> ScriptText:
    """Read a script and anything that it would unpack.

    Raises:
        Unreadable: it is not Python, or not for this version, or what it unpacks is too large.
    """
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not UTF-8 ({error})") from error
    texts, trees, name = {"": text}, [_parse(text)], ""
    while len(texts) <= MAX_LAYERS and (inner := _executed(trees[-1])) is not None:
        name = f"{name}unpacked" if not name else f"{name} again"
        texts[name] = inner
        trees.append(_parse(inner))
    if modules := _modules(trees[-1]):
        for module in modules.values():
            _parse(module)
        return ScriptText({**texts, **modules}, _config_settings(trees[-1]), packed=True)
    return ScriptText(texts, _hyperparameters(trees[-1]))


def imported_names(text: str) -> set[str]:
    """The modules that a text's lines visibly import."""
    return {
        found.partition(".")[0] for found in re.findall(r"^[ \t]*(?:from|import)[ \t]+([\w.]+)", text, re.MULTILINE)
    }


def _parse(text: str) -> ast.Module:
    try:
        tree = ast.parse(text)
        compile(tree, "train_gpt.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        said = f"line {error.lineno}: {error.msg}"
        line = (text.splitlines() or [""])[min(error.lineno or 1, len(text.splitlines())) - 1]
        # Before 3.12, an f-string could not reuse its own quotes, and there was no type statement.
        newer = error.msg.startswith("f-string") or _NEWER_SYNTAX.search(line)
        if newer and sys.version_info < (3, 12):
            raise NeedsNewerPythonError(said) from error
        raise Unreadable(said) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"it cannot be compiled ({type(error).__name__}: {error})") from error
    return tree


_NEWER_SYNTAX = re.compile(r"""\b[rR]?[fF][rR]?['"]|^\s*type\s+\w+.*=|^\s*(?:async\s+)?(?:def|class)\s+\w+\[""")


def _executed(tree: ast.Module) -> str | None:
    """The text that a module's own ``exec`` would run, if known without running anything."""
    names: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            names |= {alias.asname or alias.name: _Module(alias.name) for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names |= {a.asname or a.name: _MODULES.get(f"{statement.module}.{a.name}") for a in statement.names}
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names[statement.targets[0].id] = _value(statement.value, names)
        elif isinstance(statement, ast.Expr) and _is_exec(statement.value):
            assert isinstance(statement.value, ast.Call)
            text = _value(statement.value.args[0], names)
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            return text if isinstance(text, str) else None
    return None


def _is_exec(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "exec" and bool(node.args)


@dataclass(frozen=True)
class _Module:
    name: str


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of an expression of literals, decoders and decompressors; None for any other."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names.get(node.id)
        case ast.List():
            return [_value(element, names) for element in node.elts]
        case ast.Dict():
            return {_value(k, names): _value(v, names) for k, v in zip(node.keys, node.values, strict=True) if k}
        case ast.Attribute():
            owner = _value(node.value, names)
            if isinstance(owner, _Module):
                return _MODULES.get(f"{owner.name}.{node.attr}")
            return _METHODS.get(node.attr, lambda value: None)(owner)
        case ast.Call(func=ast.Name(id="compile"), args=[first, *_]):
            return _value(first, names)
        case ast.Call():
            function = _value(node.func, names)
            if not callable(function):
                return None
            arguments = [_value(argument, names) for argument in node.args]
            keywords = {word.arg: _value(word.value, names) for word in node.keywords if word.arg}
            try:
                return function(*arguments, **keywords)
            except (TypeError, ValueError, lzma.LZMAError, zlib.error, OSError, EOFError):
                return None
    return None


def _limited(make: Callable[..., Any]) -> Callable[..., bytes]:
    """A decompressor that stops at `MAX_TEXT`."""

    def decompress(data: bytes, *arguments: Any, **keywords: Any) -> bytes:
        text: bytes = make(*arguments, **keywords).decompress(data, MAX_TEXT + 1)
        if len(text) > MAX_TEXT:
            raise Unreadable(f"it unpacks to more than {MAX_TEXT:,} bytes")
        return text

    return decompress


def _lzma(format: int = lzma.FORMAT_AUTO, memlimit: int | None = None, filters: Any = None) -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=format, filters=filters)


_MODULES: dict[str, Any] = {
    **{f"base64.{name}": getattr(base64, name) for name in ("b64decode", "b85decode", "a85decode", "b32decode")},
    **{f"lzma.{name}": getattr(lzma, name) for name in dir(lzma) if name.startswith(("FORMAT_", "FILTER_"))},
    "lzma.decompress": _limited(_lzma),
    "zlib.decompress": _limited(zlib.decompressobj),
    "bz2.decompress": _limited(bz2.BZ2Decompressor),
}
_METHODS: dict[str, Callable[[Any], Any]] = {
    "decode": lambda value: (lambda *a, **k: value.decode(errors="replace")) if isinstance(value, bytes) else None,
    "encode": lambda value: (lambda *a, **k: value.encode()) if isinstance(value, str) else None,
}


def _modules(tree: ast.Module) -> dict[str, str]:
    """The modules that this project's script contains; empty for any other script."""
    readable: dict[str, str] = {}
    packed = None
    for statement in tree.body:
        match statement:
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(id="READABLE"), slice=ast.Constant(value=str(file)))]
            ):
                readable[file] = str(_value(statement.value, {}))
            case ast.Assign(targets=[ast.Name(id="PACKED")], value=ast.Constant(value=str(text))):
                packed = text
    if not packed:
        return readable
    try:
        archive = _MODULES["bz2.decompress"](base64.b85decode("".join(packed.split()))).decode()
    except (ValueError, OSError, EOFError) as error:
        raise Unreadable(f"its PACKED modules cannot be unpacked ({error})") from error
    return readable | {name: text for name, _, text in (part.partition("\n") for part in archive.split("\0"))}


def _config_settings(tree: ast.Module) -> dict[str, Setting]:
    """The plain values in the sections of a packed script's CONFIG; a class's arguments as its section's own."""
    import yaml  # type: ignore[import-untyped] # imported here: only this project's scripts need it

    text = next(
        (
            statement.value.value
            for statement in tree.body
            if isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id == "CONFIG"
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        ),
        "",
    )
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Unreadable("its CONFIG is no YAML") from error
    if not isinstance(config, dict):
        return {}
    return {
        f"{section}.{name}": value
        for section, values in config.items()
        if isinstance(values, dict)
        for name, value in {**values, **_arguments(values)}.items()
        if isinstance(value, Setting)
    }


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    found = values.get("init_args")
    return found if isinstance(found, dict) else {}


def _hyperparameters(tree: ast.Module) -> dict[str, Setting]:
    """The values in the class Hyperparameters, unless overridden by environment variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "Hyperparameters":
            settings: dict[str, Setting] = {}
            for statement in node.body:
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
                value = _default(statement.value, settings) if targets and statement.value is not None else None  # type: ignore[attr-defined]
                if isinstance(value, Setting):
                    settings |= {target.id: value for target in targets if isinstance(target, ast.Name)}
            return settings
    return {}


def _default(node: ast.expr, settings: Mapping[str, Setting]) -> Any:
    """A literal, an earlier setting, an environment lookup's default, or one of these converted."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return settings.get(node.id)
        case ast.UnaryOp(op=ast.USub()):
            value = _default(node.operand, settings)
            return -value if isinstance(value, int | float) else None
        case ast.Call(func=ast.Name(id="int" | "float" | "bool" | "str" as name), args=[inner]):
            value = _default(inner, settings)
            try:
                return None if value is None else {"int": int, "float": float, "bool": bool, "str": str}[name](value)
            except (ValueError, OverflowError):
                return None
        case ast.Call(func=ast.Attribute(attr="get" | "getenv"), args=[_, default]):
            return _default(default, settings)
    return None
