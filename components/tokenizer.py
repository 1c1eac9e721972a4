"""Load a SentencePiece tokenizer."""

from pathlib import Path

import sentencepiece

from components.errors import UserError


def load_tokenizer(path: Path | str, vocab_size: int | None = None) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model with `vocab_size` pieces, or any number if that is None.

    Raises:
        UserError: the file is missing, is not a SentencePiece model, or has a different vocabulary size.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no tokenizer at {path}: give the .model file that the shards were made with, "
            "which `python -m datamodules.download` and `python -m datamodules.prepare` put beside them"
        )
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} is not a SentencePiece model or is damaged: download or train it again") from error
    if vocab_size is not None and len(tokenizer) != vocab_size:
        raise UserError(
            f"tokenizer {path} has {len(tokenizer)} pieces where {vocab_size} are configured: "
            "set the vocabulary size to the tokenizer's or give the tokenizer that the shards were made with"
        )
    return tokenizer
