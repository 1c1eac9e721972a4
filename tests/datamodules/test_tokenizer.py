from pathlib import Path

import numpy as np
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from components.errors import UserError
from components.tokenizer import load_tokenizer
from datamodules.tokenizer import ENOUGH_IDS, check_vocabulary, train_tokenizer
from tests.support import SAMPLE, needs_sample

PUBLISHED = SAMPLE / "tokenizers/fineweb_1024_bpe.model"


def test_a_long_text_that_never_uses_half_of_the_vocabulary_is_refused() -> None:
    ids = np.full(ENOUGH_IDS, 5, dtype=np.uint16)
    with pytest.raises(UserError, match=r"validation shards in data use no id above 5 of a vocabulary of 12"):
        check_vocabulary(ids, 12, Path("data"))
    check_vocabulary(ids, 11, Path("data"))  # 5 is in the upper half
    check_vocabulary(ids[1:], 12, Path("data"))  # too short to tell


@needs_sample
def test_training_uses_the_published_options(tmp_path: Path) -> None:
    documents = [b"It depends: 2024 kettles, h\xc3\xa9 and the \xef\xbc\xa1 of the thing. " * 9]
    train_tokenizer(documents, 300, tmp_path / "tokenizer.model")
    published, trained = ModelProto(), ModelProto()
    published.ParseFromString(PUBLISHED.read_bytes())
    trained.ParseFromString((tmp_path / "tokenizer.model").read_bytes())
    for spec in (published.trainer_spec, trained.trainer_spec):
        spec.ClearField("model_prefix")
        spec.ClearField("vocab_size")
        spec.ClearField("max_sentence_length")
    assert trained.trainer_spec == published.trainer_spec
    for spec in (published.normalizer_spec, trained.normalizer_spec):
        spec.ClearField("precompiled_charsmap")  # follows SentencePiece's version of Unicode
    assert trained.normalizer_spec == published.normalizer_spec
    assert [(piece.piece, piece.type) for piece in trained.pieces[:260]] == [
        (piece.piece, piece.type) for piece in published.pieces[:260]
    ]


def test_long_documents_are_learned_from(tmp_path: Path) -> None:
    documents = [b"kettle " * 100, b"zyzzyva " * 1000]
    train_tokenizer(documents, 280, tmp_path / "tokenizer.model")
    assert "\u2581zyzzyva" in load_tokenizer(tmp_path / "tokenizer.model", 280).Encode("zyzzyva zyzzyva", out_type=str)
