"""What is left of sources that only a machine reads."""

import ast

from records.script import needed_files
from records.stripping import is_bare_string, shake, strip
from tests.support import ROOT

SOURCE = '''"""What the module is."""

import os

LIMIT: int = 3
"""What the limit is."""


class Settings:  # a comment
    """Settings.

    Args:
        size: The size, in bytes.
    """

    kind: str = "é" if LIMIT else "e"; other: int

    def __init__(self, size: int, *rest: str) -> None:
        """Keep it."""
        self.text: str = "# not a comment"

    def nothing(self) -> None:
        """Only say so."""

    @property
    def twice(self) -> "tuple[int, ...]": return 2

    @registered
    def looked_at(self, size: int) -> None:
        é: dict[str, int] = {"é": size}; return é


def plain(
    first: int, /, second: "str | None" = None, *many: int, third: float = 1.5, **others: str
) -> list[int]:
    text: str = """a

    b"""
    later: int
    print(
        f"{others['a']!r:>{first}} it's "
        "é, and "
        f'{cast(int, first)}'.upper()
    )
    return cast(list[int], [first])


if __name__ == "__main__":
    Settings(1)
'''

STRIPPED = """
import os
LIMIT = 3

class Settings:
    kind: str = 'é' if LIMIT else 'e'
    other: int

    def __init__(self, size: int, *rest: str):
        self.text = '# not a comment'

    def nothing(self):
        pass

    @property
    def twice(self):
        return 2

    @registered
    def looked_at(self, size: int) -> None:
        é = {'é': size}
        return é

def plain(first, /, second=None, *many, third=1.5, **others):
    text = 'a\\n\\n    b'
    later: int
    print(f"{others['a']!r:>{first}} it's é, and " f'{cast(int, first)}'.upper())
    return [first]
"""


def test_stripping_keeps_the_code_and_the_types_of_settings() -> None:
    assert strip(SOURCE).split() == STRIPPED.split()  # unparse's blank lines may change


def test_stripping_does_not_change_any_module() -> None:
    for file in needed_files():
        source = (ROOT / file).read_text()
        assert ast.dump(_bare(ast.parse(strip(source)))) == ast.dump(_bare(ast.parse(source))), file


class _Uncast(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        return node.args[1] if ast.unparse(node.func) == "cast" else node


def _bare(tree: ast.Module) -> ast.Module:
    """A module without docstrings, annotations, casts and its main guard."""
    _Uncast().visit(tree)
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.unparse(n.test))]
    for node in ast.walk(tree):
        for name in ("returns", "annotation"):
            if hasattr(node, name):
                setattr(node, name, None)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                ast.Assign([n.target], n.value) if isinstance(n, ast.AnnAssign) and n.value is not None else n
                for n in body
                if not is_bare_string(n) and not isinstance(n, ast.Pass)
            ]
    return tree


def test_unused_definitions_are_removed_until_none_is_left() -> None:
    sources = {
        "cli.py": "import a\ndef main():\n    a.used()\n",
        "a.py": "def used():\n    return used\n@decorated\ndef unused():\n    return helper(ONE)\ndef helper(): ...\n"
        "ONE = 1\n",
    }
    assert shake(sources, "cli.main()") == {**sources, "a.py": "def used():\n    return used\n"}
    assert "def unused" in shake(sources, "cli.main()\nclass_path: a.unused")["a.py"]


def test_unused_imports_are_removed_but_not_what_whole_modules_import() -> None:
    sources = {
        "package/a.py": "from __future__ import annotations\nfrom b import (\n    one,\n    two as zwei,\n)\nzwei(1)\n",
        "b.py": "import os\nimport io as stream\nfrom c import three\ndef one(): ...\ndef two(n): return stream\n",
        "c.py": "from package.a import zwei\ndef three(): ...\ndef four(): ...\n",
    }
    assert shake(sources, "") == {
        "package/a.py": "from __future__ import annotations\nfrom b import two as zwei\nzwei(1)\n",
        "b.py": "import io as stream\ndef one(): ...\ndef two(n): return stream\n",
        "c.py": "def three(): ...\n",
    }


def test_a_kernel_keeps_the_annotations_that_its_compiler_reads() -> None:
    stripped = strip((ROOT / "components" / "fused_mlp.py").read_text())
    assert stripped.count(": tl.constexpr") == 5
