"""Entropy coding of bytes with given frequency tables: range asymmetric numeral systems (rANS), many lanes at a time.

Jarek Duda, "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of
arithmetic coding", https://arxiv.org/abs/1311.2540. Unlike Huffman codes, its codes take fractions of a bit, and the
table can change with every symbol at no cost.

Symbol i belongs to lane ``i % lanes``. Each lane is one coder, and one numpy operation advances all lanes by one
symbol. All arithmetic uses integers, so the same symbols give the same bytes on every machine.

Coded form, little-endian: the lanes' uint32 states at the decoder's start, then the uint16 words in the order the
decoder reads them. The decoder gets the number of symbols and the tables from elsewhere.
"""

import numpy as np
from numpy.typing import NDArray

PRECISION = 12
"""Every frequency table sums to ``2**PRECISION``."""

_TOTAL = 1 << PRECISION
_ALL_SYMBOLS = np.arange(256, dtype=np.uint8)
_LOWEST_STATE = 1 << 16  # states are in [2**16, 2**32) and shift 16 bits at a time
_SYMBOLS_PER_LANE = 32_768  # fewer lanes waste fewer starting bits, more take fewer steps


class CorruptStreamError(ValueError):
    """The coded bytes do not decode to the requested number of symbols."""


def frequency_table(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Counts [256] scaled to sum to ``2**PRECISION``, none of them to zero; all zero if all counts are."""
    total = int(counts.sum())
    if total == 0:
        return np.zeros(256, np.uint16)
    scaled = np.where(counts > 0, np.maximum((2 * counts * _TOTAL + total) // (2 * total), 1), 0)
    # Rounding leaves the sum slightly off; correcting the most frequent symbols costs least.
    while excess := int(scaled.sum()) - _TOTAL:
        scaled[scaled.argmax()] -= 1 if excess > 0 else -1
    return scaled.astype(np.uint16)


def encode(symbols: NDArray[np.uint8], tables: NDArray[np.uint16], table_of: NDArray[np.uint16]) -> bytes:
    """Code `symbols`.

    Args:
        symbols: uint8 [n].
        tables: uint16 [tables, 256], each row a frequency table.
        table_of: uint16 [n], the row of `tables` that codes each symbol; the symbol's frequency there is not zero.
    """
    lanes = _num_lanes(symbols.size)
    frequency = tables.ravel().astype(np.uint32)
    start = _starts(tables).ravel()
    largest = ((tables.ravel().astype(np.uint64) << (32 - PRECISION)) - 1).astype(np.uint32)
    states = np.full(lanes, _LOWEST_STATE, np.uint32)
    words: list[NDArray[np.uint16]] = []
    for first in reversed(range(0, symbols.size, lanes)):
        step = slice(first, first + lanes)
        entry = (table_of[step].astype(np.intp) << 8) | symbols[step]
        state = states[: entry.size]
        full = state > largest.take(entry)
        spilled = state[full]
        words.append(spilled.astype(np.uint16))
        state[full] = spilled >> 16
        entry_frequency = frequency.take(entry)
        quotient = state // entry_frequency
        # state = quotient * 2**PRECISION + state % frequency + start
        state += quotient * (_TOTAL - entry_frequency) + start.take(entry)
    words.reverse()
    return b"".join([states.astype("<u4").tobytes(), *(chunk.astype("<u2").tobytes() for chunk in words)])


def decode(coded: bytes, tables: NDArray[np.uint16], table_of: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The symbols, uint8 [n], that `encode` turned into `coded`.

    Args:
        coded: what `encode` returned.
        tables: the frequency tables that `encode` had.
        table_of: uint16 [n], as `encode` had it; its length is the number of symbols.

    Raises:
        CorruptStreamError: `coded` has the wrong length or a wrong final state, or a symbol's table is not a frequency
            table.
    """
    num_symbols = table_of.size
    lanes = _num_lanes(num_symbols)
    if len(coded) < 4 * lanes or len(coded) % 2:
        raise CorruptStreamError
    used = tables.sum(axis=1, dtype=np.int64) > 0
    if not used[table_of].all() or (tables[used].sum(axis=1, dtype=np.int64) != _TOTAL).any():
        raise CorruptStreamError
    compact = (np.cumsum(used) - 1).astype(np.intp)
    symbol_of_slot = np.concatenate([np.zeros(0, np.uint8), *(np.repeat(_ALL_SYMBOLS, row) for row in tables[used])])
    frequency = tables[used].ravel().astype(np.uint32)
    start = _starts(tables[used]).ravel()

    states = np.frombuffer(coded, "<u4", lanes).astype(np.uint32)
    words = np.frombuffer(coded, "<u2", offset=4 * lanes).astype(np.uint32)
    symbols = np.empty(num_symbols, np.uint8)
    taken = 0
    for first in range(0, num_symbols, lanes):
        step = slice(first, first + lanes)
        table = compact.take(table_of[step])
        state = states[: table.size]
        slot = state & (_TOTAL - 1)
        symbol = symbol_of_slot.take((table << PRECISION) | slot)
        symbols[step] = symbol
        entry = (table << 8) | symbol
        state >>= PRECISION
        state *= frequency.take(entry)
        state += slot - start.take(entry)
        empty = np.flatnonzero(state < _LOWEST_STATE)
        chunk = words[taken : taken + empty.size]
        if chunk.size < empty.size:
            raise CorruptStreamError
        state[empty] = (state[empty] << 16) | chunk
        taken += empty.size
    if taken < words.size or (states != _LOWEST_STATE).any():
        raise CorruptStreamError
    return symbols


def _num_lanes(num_symbols: int) -> int:
    return max(1, -(-num_symbols // _SYMBOLS_PER_LANE))


def _starts(tables: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Where each symbol's slots begin, [tables, 256]."""
    return (np.cumsum(tables, axis=1, dtype=np.uint32) - tables).astype(np.uint32)
