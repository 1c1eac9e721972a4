"""Loading a tokenizer."""

from pathlib import Path

import pytest

from components.errors import UserError
from components.tokenizer import load_tokenizer
from tests.support import SAMPLE, needs_sample

PUBLISHED = SAMPLE / "tokenizers/fineweb_1024_bpe.model"


@needs_sample
def test_load_published() -> None:
    tokenizer = load_tokenizer(PUBLISHED, vocab_size=1024)
    assert tokenizer.Decode(tokenizer.Encode("It depends.")) == "It depends."


@needs_sample
def test_another_vocabulary_size() -> None:
    with pytest.raises(UserError, match=r"fineweb_1024_bpe\.model has 1024 pieces where 2048 are configured"):
        load_tokenizer(PUBLISHED, vocab_size=2048)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer at .*gone\.model"):
        load_tokenizer(tmp_path / "gone.model", vocab_size=1024)


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(100)])
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.model is not a SentencePiece model or is damaged"):
        load_tokenizer(path, vocab_size=1024)
