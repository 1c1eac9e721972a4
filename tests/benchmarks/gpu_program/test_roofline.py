"""The roofline's arithmetic by hand-worked cases on a chip with round figures."""

import dataclasses

import pytest

from benchmarks.gpu_program import chips
from benchmarks.gpu_program.chips import CHIPS, LAUNCH, AttentionRate
from benchmarks.gpu_program.program import Attention, Kernel, Other, Product, Program
from benchmarks.gpu_program.roofline import (
    POWER_INSTRUCTIONS,
    TRIGONOMETRY_INSTRUCTIONS,
    all_reduce_seconds,
    kernel_seconds,
    product_seconds,
    program_times,
    update_seconds,
)

ROUND = dataclasses.replace(
    CHIPS["H100"],
    num_sms=100,
    clock=1e9,
    peak_products=1e15,
    peak_copy=1e12,
    peak_link=1e11,
    attention={"cudnn": AttentionRate(1e14, 5e13), "flash": AttentionRate(2e14, 1e14)},
)


def kernel(**changes: object) -> Kernel:
    return dataclasses.replace(Kernel("k", 1, 0, 0, 0, 0, False, ""), **changes)  # type: ignore[arg-type]


def test_a_product_takes_the_longest_of_its_operations_its_bytes_and_a_launch() -> None:
    assert product_seconds(1e12, 0, ROUND) == pytest.approx(1e-3 / chips.PRODUCT_SHARE)
    assert product_seconds(1e12, 0, ROUND, at_ceiling=True) == pytest.approx(1e-3 / chips.PRODUCT_CEILING_SHARE)
    assert product_seconds(1e6, 1e9, ROUND) == pytest.approx(1e-3 / chips.COPY_SHARE)
    assert product_seconds(1, 1, ROUND) == LAUNCH


def test_a_kernel_takes_its_bytes_and_what_its_functions_exceed_them_by() -> None:
    assert kernel_seconds(kernel(bytes=10**9), ROUND) == (pytest.approx(1e-3 / chips.COPY_SHARE), 0.0)
    # 1e8 elements with two sines and a power each, at 100 x 4 x 32 instructions a nanosecond.
    evaluated = 1e8 * (2 * TRIGONOMETRY_INSTRUCTIONS + POWER_INSTRUCTIONS) / (chips.ISSUE_SHARE * 12_800e9)
    costly = kernel(elements=10**8, trigonometry=2, powers=1, bytes=9 * 10**8)
    assert kernel_seconds(costly, ROUND) == (pytest.approx(1e-3), pytest.approx(max(0, evaluated - 1e-3)))
    assert kernel_seconds(dataclasses.replace(costly, elements=10**7), ROUND)[1] == 0.0


def test_a_program_is_the_sum_of_its_calls() -> None:
    program = Program(
        kernels=(kernel(launches=3, bytes=9 * 10**8), kernel(launches=2)),
        products=(Product((1, 1, 1), 4, 66 * 10**10, 0),),
        attention=(Attention(False, 2, 10**11), Attention(True, 1, 10**11)),
        others=(Other("sort", 1, 9 * 10**8), Other("sum", 3, 8)),
    )
    times = program_times(program, ROUND, "cudnn")
    assert times.products == pytest.approx(4e-3)
    assert times.attention == pytest.approx(2e-3 + 2e-3)
    assert times.elementwise == pytest.approx(3e-3 + 2 * LAUNCH + 1e-3 + 3 * LAUNCH)
    assert times.recomputed == 0
    assert times.total == pytest.approx(sum(dataclasses.astuple(times)))
    assert program_times(program, ROUND, "flash").attention == pytest.approx(2e-3)
    assert (times + times).attention == 2 * times.attention


def test_an_update_is_the_sum_of_its_operators() -> None:
    call = {"launches": 1, "operations": 0, "bytes": 0}
    calls = [{**call, "launches": 10}, {**call, "operations": 66 * 10**10}, {**call, "bytes": 9 * 10**8}]
    assert update_seconds(calls, ROUND) == pytest.approx(10 * LAUNCH + 1e-3 + 1e-3)


def test_a_ring_sends_all_but_its_own_part_twice() -> None:
    assert all_reduce_seconds(8e9, 1, ROUND) == 0
    assert all_reduce_seconds(8e9, 8, ROUND) == pytest.approx(14e9 / (1e11 * chips.LINK_SHARE))


def test_shares_are_those_seen_on_an_h100() -> None:
    # Rates that such chips are known to reach: 3.0 TB/s, 790 TFLOP/s at best, 650 in products of this size.
    assert CHIPS["H100"].copy == pytest.approx(3.0e12, rel=0.01)
    assert CHIPS["H100"].product_ceiling == pytest.approx(790e12, rel=0.01)
    assert CHIPS["H100"].products == pytest.approx(650e12, rel=0.01)


@pytest.mark.parametrize("name", CHIPS)
def test_chips_are_whole(name: str) -> None:
    chip = CHIPS[name]
    assert name in chip.name
    # Twice as many multiply-adds in a second as tensor cores can make in a clock, 1,024 to 8,192 an SM.
    per_clock = chip.peak_products / (chip.num_sms * chip.clock)
    assert 2048 * 0.9 < per_clock < 8192 * 1.1
    for rate in chip.attention.values():
        assert rate.backward <= rate.forward < chip.products
