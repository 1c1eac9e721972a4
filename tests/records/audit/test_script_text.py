"""Scripts read and not run: each text would leave a mark if it were executed."""

import base64
import bz2
import lzma
import zlib
from pathlib import Path

import pytest

from records.audit import script_text
from records.audit.script_text import NeedsNewerPythonError, Unreadable, imported_names, read_script

INNER = """import os


class Hyperparameters:
    seed = int(os.environ.get("SEED", 1337))
    vocab_size = int(os.environ.get("VOCAB_SIZE", "8192"))
    lr: float = float(os.getenv("LR", 0.02))
    tied = bool(int(os.environ.get("TIED", "1")))
    path = os.environ.get("DATA", "./data")
    same = vocab_size
    low = -1.5
    run_id = os.environ.get("RUN", str(uuid.uuid4()))
    files = os.path.join(path, "x")


raise SystemExit("it was executed")
"""
SETTINGS = {
    **{"seed": 1337, "vocab_size": 8192, "lr": 0.02, "tied": True, "path": "./data", "same": 8192, "low": -1.5},
}
RAW = [{"id": lzma.FILTER_LZMA2}]


def packed(data: bytes) -> str:
    return repr(base64.b85encode(data).decode())


@pytest.mark.parametrize(
    "wrapper",
    [
        # The spellings that public records use: raw LZMA2, .xz, and others on the way.
        "import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("
        + packed(lzma.compress(INNER.encode(), lzma.FORMAT_RAW, filters=RAW))
        + '),format=L.FORMAT_RAW,filters=[{"id":L.FILTER_LZMA2}]))\n',
        f"import lzma,base64\nexec(lzma.decompress(base64.b85decode({packed(lzma.compress(INNER.encode()))})))\n",
        "from zlib import decompress as d\nfrom base64 import b85decode\nx = "
        f"{packed(zlib.compress(INNER.encode()))}\nexec(d(b85decode(x)).decode('utf-8'))\n",
        "import bz2,base64\nexec(compile(bz2.decompress(base64.b85decode("
        + packed(bz2.compress(INNER.encode()))
        + ")),'t','exec'))\n",
        f"exec({INNER!r})\n",
    ],
    ids=["raw", "xz", "zlib", "bz2", "plain"],
)
def test_what_a_script_unpacks_is_read_as_text(wrapper: str) -> None:
    text = read_script(wrapper.encode())
    assert list(text.texts) == ["", "unpacked"]
    assert text.texts["unpacked"] == INNER
    assert text.settings == SETTINGS
    assert not text.packed


def test_layers_are_unpacked_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = INNER
    for _ in range(20):
        wrapped = f"exec({wrapped!r})\n"[: script_text.MAX_TEXT]
        if len(wrapped) > 100_000:
            break
    assert len(read_script(wrapped.encode()).texts) <= script_text.MAX_LAYERS + 1


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script_text, "MAX_TEXT", 1000)
    bomb = packed(lzma.compress(bytes(1_000_000)))
    with pytest.raises(Unreadable, match="unpacks to more than 1,000 bytes"):
        read_script(f"import lzma,base64\nexec(lzma.decompress(base64.b85decode({bomb})))\n".encode())


def test_what_is_not_made_of_literals_is_left_alone(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    read = read_script(f"exec(open({str(mark)!r}, 'w').write('x'))\nexec(__import__('os').getcwd())\n".encode())
    assert list(read.texts) == [""]
    assert not mark.exists()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (b"x = (", "line 1: '\\(' was never closed"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"x = 1\0", "null"),
        (b"(" * 10_000, "too many nested|cannot be compiled"),
        (b"x = " + b"-" * 100_000 + b"1", "cannot be compiled|too complex|recursion"),
        (b"READABLE = {}\nREADABLE['a.py'] = 'def'\n", "invalid syntax"),
        (b"READABLE = {}\nREADABLE['a.py'] = ''\nPACKED = 'xx'\n", "PACKED modules cannot be unpacked"),
        (b"READABLE = {}\nREADABLE['a.py'] = ''\nCONFIG = '['\n", "CONFIG is no YAML"),
    ],
)
def test_what_cannot_be_read_is_said(source: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read_script(source)


@pytest.mark.parametrize("source", ['x = f"{"a"}"\n', "type X = int\n", "def f[T](x: T): ...\n", "f'{\nx}'\n"])
def test_syntax_of_newer_pythons_is_told_from_mistakes(source: str) -> None:
    try:
        compile(source, "", "exec")
    except SyntaxError:
        with pytest.raises(NeedsNewerPythonError):
            read_script(source.encode())
    else:
        pytest.skip("this Python knows it")


def test_imports_are_told_from_lines() -> None:
    assert imported_names("import a.b\n  from c import d\nfrom .e import f\nx = 'import g'\nimport h as i\n") >= {
        "a",
        "c",
        "h",
    }
    assert "g" not in imported_names("x = 'import g'\n")
