"""Train a SentencePiece tokenizer with the published export's options, and check the ids of a text against one."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from components.errors import UserError
from components.files import written_beside

ENOUGH_IDS = 10_000
"""Any text this long uses its whole range of ids: SentencePiece gives single letters the last ids."""
MAX_DOCUMENT_BYTES = 1 << 26
"""The largest allowed document, which bounds memory. The trainer uses every document up to this size."""


def check_vocabulary(ids: NDArray[np.integer], vocab_size: int, where: Path) -> None:
    """Reject a long text that never uses the upper half of its vocabulary: a smaller one made it.

    Args:
        ids: Token ids of a text, shape [num_ids].
        vocab_size: Pieces of the tokenizer that supposedly made them.
        where: Folder of the shards.

    Raises:
        UserError: A text of at least `ENOUGH_IDS` has all its ids in the lower half of the vocabulary.
    """
    if len(ids) >= ENOUGH_IDS and (largest := int(ids.max())) < vocab_size // 2:
        raise UserError(
            f"the validation shards in {where} use no id above {largest} of a vocabulary of {vocab_size}, so that "
            "another tokenizer made them: give the tokenizer that the shards were made with"
        )


def train_tokenizer(documents: Iterable[bytes], vocab_size: int, path: Path | str) -> None:
    """Train and write a byte-pair-encoding SentencePiece model with the published model's options.

    The same documents (UTF-8 texts) give the same bytes on every machine. One option differs from the published model:
    its training skipped documents over 4,192 bytes; this one skips none.

    Raises:
        UserError: a vocabulary of `vocab_size` pieces is too large for the text, too small for its characters, or does
            not fit in two-byte ids.
    """
    smallest, largest = 4 + 256 + 1, 1 << 16
    if not smallest <= vocab_size <= largest:
        raise UserError(
            f"a vocabulary cannot have {vocab_size} pieces: choose --vocab-size from {smallest} (4 special pieces, "
            f"256 bytes and one more) to {largest} (what ids of two bytes can number)"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.999,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            hard_vocab_limit=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=MAX_DOCUMENT_BYTES,
            minloglevel=2,
        )
        num_pieces = len(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))
    except RuntimeError as error:
        if too_small := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                f"a vocabulary of {vocab_size} pieces has no room for the text's characters: choose --vocab-size "
                f"{too_small[1]} or larger"
            ) from error
        raise UserError(f"no tokenizer could be trained on this text ({error}): give more text") from error
    if num_pieces != vocab_size:
        raise UserError(
            f"the text yields only {num_pieces} of the {vocab_size} pieces of the vocabulary: "
            f"give more text or --vocab-size {num_pieces}"
        )
    with written_beside(Path(path)) as scratch:
        scratch.write_bytes(model.getvalue())
