"""The entropy coder: lossless, near the entropy, and safe against damaged streams."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import rans


def coded(seed: int, num_symbols: int, num_tables: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bytes]:
    """Symbols of skewed distributions, their tables, and their coded form."""
    generator = np.random.default_rng(seed)
    table_of = generator.integers(0, num_tables, num_symbols).astype(np.uint16)
    symbols = np.minimum(generator.geometric(0.02 + 0.9 * table_of / num_tables) - 1, 255).astype(np.uint8)
    counts = np.bincount(table_of.astype(np.int64) * 256 + symbols, minlength=256 * num_tables).reshape(-1, 256)
    tables = np.stack([rans.frequency_table(row) for row in counts])
    return symbols, tables, table_of, rans.encode(symbols, tables, table_of)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_symbols=st.integers(0, 3000), num_tables=st.integers(1, 20))
def test_decoding_gives_the_symbols_back(seed: int, num_symbols: int, num_tables: int) -> None:
    symbols, tables, table_of, data = coded(seed, num_symbols, num_tables)
    assert np.array_equal(rans.decode(data, tables, table_of), symbols)


def test_many_lanes_come_within_a_thousandth_of_the_entropy() -> None:
    num_symbols = 400_001  # 13 lanes, the last step of which is not full
    symbols, tables, table_of, data = coded(1, num_symbols, 3)
    counts = np.bincount(table_of.astype(np.int64) * 256 + symbols).astype(float)
    totals = np.bincount(table_of)[np.arange(counts.size) // 256]
    seen = counts > 0
    entropy_bytes = -(counts[seen] * np.log2(counts[seen] / totals[seen])).sum() / 8
    assert np.array_equal(rans.decode(data, tables, table_of), symbols)
    assert entropy_bytes < len(data) < 1.001 * entropy_bytes + 100


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=256, max_size=256))
def test_tables_sum_to_their_precision_and_keep_every_symbol(counts: list[int]) -> None:
    table = rans.frequency_table(np.array(counts, np.int64))
    assert table.sum() == (2**rans.PRECISION if any(counts) else 0)
    assert np.array_equal(table > 0, np.array(counts) > 0)


def test_one_symbol_costs_nothing() -> None:
    symbols = np.full(30_000, 7, np.uint8)
    tables = rans.frequency_table(np.bincount(symbols, minlength=256))[None]
    table_of = np.zeros(symbols.size, np.uint16)
    data = rans.encode(symbols, tables, table_of)
    assert len(data) == 4
    assert np.array_equal(rans.decode(data, tables, table_of), symbols)


@pytest.mark.parametrize(
    "damage", ["short", "long", "odd", "no state", "state", "last word", "empty table", "table's sum"]
)
def test_a_damaged_stream_is_refused(damage: str) -> None:
    _, tables, table_of, data = coded(2, 1000, 2)
    damaged = {
        "short": data[:-2],
        "long": data + bytes(2),
        "odd": data[:-1],
        "no state": data[:2],
        "state": bytes(4) + data[4:],
        "last word": data[:-2] + bytes([data[-2] ^ 1, data[-1]]),
    }.get(damage, data)
    if damage == "empty table":
        tables[1] = 0
    if damage == "table's sum":
        tables[1, 0] += 1
    with pytest.raises(rans.CorruptStreamError):
        rans.decode(damaged, tables, table_of)


@settings(deadline=None)
@given(position=st.integers(0, 10**9), flip=st.integers(1, 255))
def test_a_flipped_bit_is_refused_or_gives_other_symbols_of_the_same_number(position: int, flip: int) -> None:
    symbols, tables, table_of, data = coded(3, 300, 2)
    damaged = bytearray(data)
    damaged[position % len(data)] ^= flip
    with suppress(rans.CorruptStreamError):
        assert rans.decode(bytes(damaged), tables, table_of).shape == symbols.shape
