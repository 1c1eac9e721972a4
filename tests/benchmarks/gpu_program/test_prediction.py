"""Predictions by hand-worked cases."""

import dataclasses

import pytest

from benchmarks.gpu_program.chips import CHIPS, HOST_LAUNCH, LAUNCH, AttentionRate
from benchmarks.gpu_program.prediction import predict_run, predict_step, predict_windows
from benchmarks.gpu_program.program import Attention, Kernel, Program
from benchmarks.gpu_program.workload import Workload
from tests.support import ROOT

CHIP = dataclasses.replace(CHIPS["H100"], attention={"cudnn": AttentionRate(1e14, 1e14)})


def program(seconds: float) -> Program:
    """A program that attends for so long and launches one kernel."""
    kernel = Kernel("k", 1, 0, 0, 0, 0, False, "")
    return Program((kernel,), (), (Attention(False, 1, round(seconds * 1e14)),), ())


def run(*names: str) -> Workload:
    return Workload([ROOT / "configs" / f"{name}.yaml" for name in ("record_10l", *names)])


UPDATE = [{"launches": 100, "operations": 0, "bytes": 0, "gathered": 0}, {"launches": 1, "operations": 0, "bytes": 0}]
UPDATE[1]["gathered"] = round(CHIP.link / 1000)


def test_a_step_is_the_sum_of_its_parts() -> None:
    programs = {"forward": program(0.02), "backward": program(0.04)}
    step = predict_step(programs, 1, UPDATE, run(), CHIP, "cudnn")
    assert step["attention"] == pytest.approx(60)
    assert step["elementwise"] == pytest.approx(2 * 1e3 * LAUNCH)
    assert step["update"] == pytest.approx(101 * 1e3 * LAUNCH)
    assert step["gather"] == pytest.approx(1)
    # 24,730,705 float32 gradients around eight ranks.
    assert step["all_reduce"] == pytest.approx(1e3 * 2 * 4 * 24_730_705 * 7 / 8 / CHIP.link)
    assert step["waiting_for_host"] == 0
    assert step["hidden_host"] == pytest.approx(105 * 1e3 * HOST_LAUNCH)  # 2 kernels, 2 calls of attention, the update
    assert step["step"] == pytest.approx(
        sum(value for name, value in step.items() if name not in ("step", "hidden_host"))
    )


def test_one_gpu_takes_eight_micro_batches_and_reduces_nothing() -> None:
    programs = {"forward": program(0.02)}
    eight, one = (
        predict_step(programs, run(*names).micro_batches, UPDATE, run(*names), CHIP, "cudnn")
        for names in ((), ("one_gpu",))
    )
    assert one["attention"] == pytest.approx(8 * eight["attention"])
    assert one["update"] == eight["update"]
    assert one["all_reduce"] == 0 < eight["all_reduce"]


def test_a_device_that_is_too_fast_waits_for_the_host() -> None:
    step = predict_step({"forward": program(0)}, 8, UPDATE[:1], run("one_gpu"), CHIP, "cudnn")
    assert step["step"] == pytest.approx(1e3 * HOST_LAUNCH * (100 + 8 * 2))


def test_windows_a_second() -> None:
    assert predict_windows({"forward": program(0.032 - LAUNCH)}, 64, CHIP, "cudnn") == pytest.approx(2000)


def test_a_run_spends_each_phase_share_on_its_own_step() -> None:
    steps = {"train": {"step": 50.0}, "qat": {"step": 100.0}}
    predicted = predict_run(steps, {"score": 1000.0}, run())
    assert predicted["steps"] == pytest.approx(0.85 * 600 / 0.05 + 0.15 * 600 / 0.1)
    assert predicted["scoring_seconds"] == pytest.approx(969_060 / 1000 / 8, rel=1e-4)  # 62,021,846 ids, every 64


def test_nothing_is_predicted_of_what_is_not_known() -> None:
    assert predict_run({"train": {"step": 50.0}}, {}, run()) == {}
    assert predict_run({}, {"val": 1000.0}, run()) == {}


def test_a_score_takes_the_training_during_it_too() -> None:
    rung = Workload([ROOT / "configs" / "record_sp8192_ttt.yaml"])
    windows = {"score": 1000.0}
    plain = predict_run({}, windows, Workload([ROOT / "configs" / "record_sp8192_loop.yaml"]))["scoring_seconds"]
    assert predict_run({}, windows, rung) == {}
    # 40,542,207 targets are 1,238 chunks; of all but the last, 16 sequences make a step in each of 3 epochs.
    predicted = predict_run({"ttt": {"step": 10.0}}, windows, rung)
    assert predicted["scoring_seconds"] == pytest.approx(plain + 1237 * 3 * 0.01)
