"""Bytes of text by token: the published tokenizer's, against the text that it decodes to."""

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from components.byte_counts import token_byte_table
from tests.support import SAMPLE, needs_sample

pytestmark = needs_sample


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(SAMPLE / "tokenizers" / "fineweb_1024_bpe.model"))


def test_the_sample_counts_the_bytes_of_its_decoded_text(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    ids = np.fromfile(SAMPLE / "datasets/fineweb10B_sp1024/fineweb_val_000000.bin", "<u2", offset=1024)
    stream = torch.from_numpy(ids.astype(np.int64))
    target_bytes = token_byte_table(tokenizer).target_bytes(stream[:-1], stream[1:])
    assert target_bytes.shape == (131_071,)
    assert target_bytes.sum().item() == 315_257
    assert target_bytes.sum().item() == len(tokenizer.Decode(ids.tolist()).encode())


def test_each_kind_of_piece_counts_its_bytes(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    bos, the, byte, dash = (tokenizer.PieceToId(piece) for piece in ("<s>", "\u2581the", "<0x41>", "\u2014"))
    unknown = tokenizer.unk_id()
    ids = torch.tensor([bos, the, the, bos, byte, the, dash, unknown, the, bos])
    assert token_byte_table(tokenizer).target_bytes(ids[:-1], ids[1:]).tolist() == [3, 4, 0, 1, 4, 3, 0, 3, 0]


@example(documents=["a \u2581\u2581 b\0\t\n  c\u3000\ud7a4", " ", "\ufeff\u2581"])
@given(documents=st.lists(st.text(max_size=60), max_size=5))
def test_documents_count_the_bytes_of_their_decoded_text(
    tokenizer: sentencepiece.SentencePieceProcessor, documents: list[str]
) -> None:
    encoded = [tokenizer.Encode(document) for document in documents]
    ids = [token_id for document in encoded for token_id in (tokenizer.bos_id(), *document)]
    decoded_bytes = sum(len(tokenizer.Decode(document).encode()) for document in encoded)
    target_bytes = token_byte_table(tokenizer).target_bytes(
        *(torch.tensor(part, dtype=torch.int64) for part in (ids[:-1], ids[1:]))
    )
    assert target_bytes.sum().item() == decoded_bytes
