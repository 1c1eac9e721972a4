"""The record's training step: its time by part and its memory beside the prediction, the switch to QAT, waits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.common import device, seconds
from benchmarks.gpu_check.findings import Finding, Skipped
from benchmarks.gpu_check.kernels import milliseconds_by_kind
from benchmarks.gpu_check.setting import Setting
from benchmarks.overhead import watched_synchronizations
from benchmarks.qat_switch import measure_switch
from benchmarks.train_step import heaviest, host_launch, kept_for_backward, peak_memory, phases

TIMED = 10
STEADY = 5
SEVERAL_RANKS = ("all_reduce", "gather")
"""Parts of a predicted step that one rank does not have."""


def training(setting: Setting) -> Iterator[Finding]:
    """Steps on made-up ids as a run launches them, then each part by itself."""
    step = setting.step
    yield Finding("first step, with compilation", seconds(step), "s")
    first_loss = step.loss.item()

    def steps() -> None:
        for _ in range(setting.size.steps):
            setting.new_ids(step)
            step()

    elapsed = seconds(steps)
    yield Finding(
        f"step, mean of {setting.size.steps}", 1e3 * elapsed / setting.size.steps, "ms", predicted_step(setting)
    )
    yield Finding("loss after them", step.loss.item(), "nats", limit=first_loss)
    yield from by_part(setting)
    yield from memory(setting)


def predicted_step(setting: Setting) -> float | None:
    """Milliseconds of a step without communication."""
    whole = setting.predicted("predicted_ms", "train", "step")
    communication = [setting.predicted("predicted_ms", "train", part) for part in SEVERAL_RANKS]
    return None if whole is None else whole - sum(ms for ms in communication if ms is not None)


def by_part(setting: Setting) -> Iterator[Finding]:
    """Each part of a step with the device idle in between, and the passes' kernels by kind."""
    step = setting.step
    predicted = {
        "forward": setting.predicted_pass("forward"),
        "backward": setting.predicted_pass("backward"),
        "optimizer": setting.predicted("predicted_ms", "train", "update"),
    }
    for part, taken in phases(step, TIMED).items():
        yield Finding(part, 1e3 * taken, "ms", predicted.get(part))
    if device().type != "cuda":
        return
    yield Finding("host, until a step is launched", 1e3 * host_launch(step), "ms")

    def passes() -> None:
        step.forward()
        step.backward()

    kernels = heaviest(passes)
    step.optimizer.zero_grad()
    for kind, ms in milliseconds_by_kind(kernels).items():
        names = {"elementwise": ("elementwise", "recomputed"), "other": ()}.get(kind, (kind,))
        expected = [setting.predicted("predicted_ms", "train", name) for name in names]
        yield Finding(f"kernels of {kind}", ms, "ms", sum(ms for ms in expected if ms is not None) or None)
    for kernel in kernels[:TIMED]:
        yield Finding(f"{kernel['calls']} x {kernel['name'][:60]}", kernel["ms"], "ms")


def memory(setting: Setting) -> Iterator[Finding]:
    """The peak, beside what must be there at once: weights, gradients, state, and what the backward pass needs."""
    step = setting.step
    state = [value for values in step.optimizer.state.values() for value in values.values()]
    weights = sum(p.nbytes for p in step.network.parameters())
    standing = 2 * weights + sum(value.nbytes for value in state if isinstance(value, Tensor))
    kept = kept_for_backward(step)
    yield Finding("weights, gradients and optimizer state", standing / 2**30, "GiB")
    yield Finding("kept for the backward pass", kept / 2**30, "GiB")
    peak = peak_memory(step)
    if peak is not None:
        yield Finding("peak memory of a step", peak / 2**30, "GiB", (standing + kept) / 2**30)


def late_qat(setting: Setting) -> Iterator[Finding]:
    """The switch to fake quantization; warm, it must compile nothing."""
    step = setting.step
    times = measure_switch(step, TIMED)
    step.switch(on=False)
    share = setting.predicted("predicted_ms", "qat", "step")
    plain = setting.predicted("predicted_ms", "train", "step")
    yield Finding("switch, cold", times["cold_switch"], "s")
    yield Finding("switch, warm", 1e3 * times["warm_switch"], "ms")
    yield Finding("plain step", 1e3 * times["plain"], "ms", predicted_step(setting))
    yield Finding(
        "a QAT step costs more by",
        100 * (times["qat"] / times["plain"] - 1),
        "%",
        None if share is None or plain is None else 100 * (share / plain - 1),
    )


def synchronization(setting: Setting) -> Iterator[Finding]:
    """Steady steps, in which the host must never wait for the device."""
    if device().type != "cuda":
        raise Skipped("needs CUDA: on a CPU there is nothing to wait for")
    step = setting.step
    step()
    torch.cuda.synchronize()
    with watched_synchronizations() as places:
        for _ in range(STEADY):
            setting.new_ids(step)
            step()
    yield from waits(f"in {STEADY} steady steps", places)


def waits(where: str, places: list[str]) -> Iterator[Finding]:
    """How often the host waited for the device, and from which lines."""
    for place in sorted(set(places)):
        yield Finding(f"the host waits at {place}", places.count(place), "times")
    yield Finding(f"waits {where}", len(places), limit=0)
