"""How many bytes of text each token represents: the denominator of bits per byte.

Mean loss is not comparable across vocabularies, because larger pieces are harder to predict; bits per byte is.
"""

from dataclasses import dataclass

import sentencepiece
import torch
from torch import Tensor

SPACE_MARK = "\u2581"


@dataclass(frozen=True)
class ByteTable:
    """Bytes by token id; made by `token_byte_table`. All three tensors have shape [vocab_size]."""

    piece_bytes: Tensor
    """int64: UTF-8 bytes of the piece without its leading space."""
    starts_with_space: Tensor
    """int64: 1 if the piece has a leading space, else 0."""
    keeps_space_after: Tensor
    """int64: 1 if the next piece's leading space is text, 0 after control, unknown and unused tokens."""

    def to(self, device: torch.device) -> "ByteTable":
        """The same table on a device."""
        return ByteTable(
            self.piece_bytes.to(device), self.starts_with_space.to(device), self.keeps_space_after.to(device)
        )

    def target_bytes(self, previous_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Bytes of each target given the token before it, int64 of the ids' shape.

        Args:
            previous_ids: integer ids of any shape, on the table's device.
            target_ids: the ids right after them, of the same shape.
        """
        spaces = self.starts_with_space[target_ids] * self.keeps_space_after[previous_ids]
        return self.piece_bytes[target_ids] + spaces


def token_byte_table(tokenizer: sentencepiece.SentencePieceProcessor) -> ByteTable:
    """Build the byte table of a tokenizer.

    A piece counts its UTF-8 bytes, and its leading U+2581 one byte if it is a space in the text. A byte-fallback piece
    counts 1; a control, unknown or unused token counts 0.
    """
    vocab_size = len(tokenizer)
    piece_bytes, starts_with_space, keeps_space_after = (torch.zeros(vocab_size, dtype=torch.int64) for _ in range(3))
    for token_id in range(vocab_size):
        if tokenizer.IsControl(token_id) or tokenizer.IsUnknown(token_id) or tokenizer.IsUnused(token_id):
            continue
        keeps_space_after[token_id] = 1
        if tokenizer.IsByte(token_id):
            piece_bytes[token_id] = 1
            continue
        piece = tokenizer.IdToPiece(token_id)
        starts_with_space[token_id] = int(piece.startswith(SPACE_MARK))
        # A later mark (in tokenizers with whitespace pieces) is also decoded as one space.
        piece_bytes[token_id] = len(piece.removeprefix(SPACE_MARK).replace(SPACE_MARK, " ").encode())
    return ByteTable(piece_bytes, starts_with_space, keeps_space_after)
