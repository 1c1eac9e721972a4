"""What the switch to late QAT costs in each of three forms: ``python -m benchmarks.qat_switch``.

Two graphs: a Python attribute on each linear layer, as in the run; each of its values has its own graph. One graph,
flag: a tensor on the device chooses between the weight and its fake-quantized value, and both are always computed. One
graph, written: fake-quantized values are copied into the weights before the forward pass, and the weights are restored
before the optimizer step. All are compiled and use straight-through gradients. The network has full size on a GPU and
one layer on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch._inductor.config
from torch import Tensor

from benchmarks.common import TrainingStep, device, device_name, in_turn, random_network, save, seconds, table
from components.gpt import GPT, GPTConfig
from components.layers import Linear
from components.optimizer import OptimizerConfig, build_optimizer
from components.quantization import Nearest, fake_quantize
from components.storage import RECIPE, Storage, keep_last_keys

RULES = (*keep_last_keys(1), *RECIPE)


class FlaggedNearest(Nearest):
    """Nearest rounding that a tensor flag turns on and off; weight and fake-quantized value are both computed."""

    def __init__(self) -> None:
        super().__init__()
        self.flag = torch.zeros((), dtype=torch.bool, device=device())

    def fake_quantize(self, weight: Tensor, storage: Storage) -> Tensor:
        """The weight, or what export would make of it."""
        return torch.where(self.flag, super().fake_quantize(weight, storage), weight)


class Switchable(TrainingStep):
    """A training step of two graphs, as in the run."""

    def switch(self, on: bool) -> None:
        """Turn fake quantization on or off."""
        if on:
            self.network.enable_fake_quantization(RULES, Nearest())
        else:
            self.network.disable_fake_quantization()


class Flagged(TrainingStep):
    """A training step of one graph with a flag."""

    def __init__(self, network: GPT, *arguments: Any) -> None:
        self.quantizer = FlaggedNearest()
        network.enable_fake_quantization(RULES, self.quantizer)
        super().__init__(network, *arguments)

    def switch(self, on: bool) -> None:
        """Turn fake quantization on or off."""
        self.quantizer.flag.fill_(on)


class Written(TrainingStep):
    """A training step of one graph, whose weights are overwritten for the forward and backward passes."""

    def __init__(self, network: GPT, *arguments: Any) -> None:
        self.on = False
        network.enable_fake_quantization(RULES, Nearest())
        linears = [module for module in network.modules() if isinstance(module, Linear) and module.fake is not None]
        self.weights = [module.weight for module in linears]
        self.storages = [module.fake[1] for module in linears if module.fake is not None]
        network.disable_fake_quantization()
        self.quantize = torch.compile(fake_quantize, dynamic=False)
        super().__init__(network, *arguments)

    def switch(self, on: bool) -> None:
        """Turn fake quantization on or off."""
        self.on = on

    def forward(self) -> None:
        """Compute the loss, with fake-quantized values in the weights if that is on."""
        if self.on:
            with torch.no_grad():
                self.saved = [weight.clone() for weight in self.weights]
                for weight, storage in zip(self.weights, self.storages, strict=True):
                    weight.copy_(self.quantize(weight, storage))
        super().forward()

    def update(self) -> None:
        """Restore the weights and update them."""
        if self.on:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.saved)
        super().update()


FORMS = {"two graphs (the run's)": Switchable, "one graph, flag": Flagged, "one graph, written": Written}


def measure(form: type[Any], config: GPTConfig, num_sequences: int, seq_len: int, repeats: int) -> dict[str, float]:
    """`measure_switch` of a form, compiled anew."""
    torch._dynamo.reset()
    network = random_network(config)
    network.compile(dynamic=False, fullgraph=True)
    step = form(network, build_optimizer(network, OptimizerConfig()), num_sequences, seq_len)
    return measure_switch(step, repeats)


def measure_switch(step: Any, repeats: int) -> dict[str, float]:
    """Seconds of plain and fake-quantized steps, and of the first switch, cold and warm.

    Args:
        step: A step of one of FORMS, whose network is compiled and was never switched.
        repeats: Steps of each kind to time.
    """

    def run(on: bool) -> None:
        step.switch(on)
        step()

    alone = in_turn({"plain": lambda: run(on=False)}, repeats)["plain"]
    cold = seconds(lambda: run(on=True))
    torch.compiler.set_stance("fail_on_recompile")
    try:
        run(on=False)
        first = seconds(lambda: run(on=True))
        both = in_turn({"plain": lambda: run(on=False), "qat": lambda: run(on=True)}, repeats)
    finally:
        torch.compiler.set_stance("default")
    return {
        "plain_alone": alone,
        "plain": both["plain"],
        "qat": both["qat"],
        "cold_switch": cold - both["qat"],
        "warm_switch": max(0.0, first - both["qat"]),
    }


def main() -> None:
    """Measure every form, print a table, save."""
    # A graph from an earlier run's cache would make the cold switch look cheap.
    torch._inductor.config.force_disable_caches = True
    if device().type == "cuda":
        config, num_sequences, seq_len, repeats = GPTConfig(), 48, 2048, 20
    else:
        config, num_sequences, seq_len, repeats = GPTConfig(num_layers=1), 4, 512, 7
    results = {name: measure(form, config, num_sequences, seq_len, repeats) for name, form in FORMS.items()}
    print(f"{config.num_layers} layers, {num_sequences * seq_len:,} tokens per step, on {device_name()}")
    header = ("form", "plain alone, ms", "plain, ms", "QAT, ms", "QAT costs", "switch cold, s", "switch warm, s")
    rows = [
        (
            name,
            *(f"{1000 * times[key]:.1f}" for key in ("plain_alone", "plain", "qat")),
            f"{times['qat'] / times['plain'] - 1:+.1%}",
            f"{times['cold_switch']:.1f}",
            f"{times['warm_switch']:.2f}",
        )
        for name, times in results.items()
    ]
    print(table(header, rows))
    save(
        "qat_switch",
        {"num_layers": config.num_layers, "num_sequences": num_sequences, "seq_len": seq_len, "forms": results},
    )


if __name__ == "__main__":
    main()
