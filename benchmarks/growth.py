"""How cost grows with sequence length, depth, width, stride and text: ``python -m benchmarks.growth``.

It writes its tables into `benchmarks/README.md`. On a GPU the network is compiled and of full size. On a CPU it is
eager and smaller, since only the growth within a table matters.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import torch

from benchmarks.common import TrainingStep, device, device_name, in_turn, random_network, save, seconds
from components.byte_counts import ByteTable
from components.gpt import GPTConfig
from components.optimizer import OptimizerConfig, build_optimizer
from components.scorer import SlidingWindows
from components.scoring import WindowLoader

README = Path(__file__).with_name("README.md")
SEQ_LENS = (512, 1024, 2048, 4096, 8192)
DEPTHS = (4, 8, 12, 16, 20)
HEADS = (2, 4, 8, 12)
HEAD_DIM = 64
STRIDES = (16, 32, 64, 128, 256, 512)
LENGTHS = (1, 2, 4, 8)
"""Lengths of validation texts, in units of the shortest."""


def tokens_per_second(config: GPTConfig, num_tokens: int, seq_len: int) -> float:
    """Tokens per second of whole optimizer steps of ``num_tokens`` tokens."""
    torch._dynamo.reset()
    network = random_network(config)
    if device().type == "cuda":
        network.compile(dynamic=False, fullgraph=True)
    optimizer = build_optimizer(network, OptimizerConfig())
    step = TrainingStep(network, optimizer, num_tokens // seq_len, seq_len)
    return step.num_tokens / in_turn({"step": step}, repeats=5 if device().type == "cuda" else 2)["step"]


def scoring_seconds(config: GPTConfig, seq_len: int, cases: list[tuple[int, int]]) -> list[float]:
    """Seconds to score the first ``length`` tokens at a stride, for each (length, stride)."""
    torch._dynamo.reset()
    cuda = device().type == "cuda"
    network = random_network(config).eval()
    ids = torch.randint(config.vocab_size, (max(length for length, _ in cases) + 1,))
    byte_table = ByteTable(*torch.ones(3, config.vocab_size, dtype=torch.int64))

    def batches(length: int, stride: int) -> WindowLoader:
        return WindowLoader(
            ids[: length + 1],
            byte_table,
            seq_len=seq_len,
            stride=stride,
            windows_per_batch=64 if cuda else 16,
            device=device(),
        )

    times = []
    for length, stride in cases:
        work = functools.partial(SlidingWindows().score, network, batches(length, stride))
        with torch.autocast(device().type, torch.bfloat16, enabled=cuda):
            SlidingWindows().score(network, batches(seq_len + 65, stride))  # warm up both batch shapes
            times.append(seconds(work))
    return times


def markdown(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    """A table of two columns, the second right-aligned."""
    return "\n".join(f"| {left} | {right} |" for left, right in (header, ("---", "---:"), *rows))


def with_section(readme: str, body: str) -> str:
    """The README with this text between its two markers."""
    marked = re.compile(r"(<!-- benchmarks\.growth: begin -->\n).*(<!-- end -->)", re.DOTALL)
    assert len(marked.findall(readme)) == 1, "benchmarks/README.md must have one place for the tables"
    return marked.sub(lambda found: f"{found[1]}{body}\n{found[2]}", readme)


def main() -> None:
    """Measure, save, and write the README's section."""
    if device().type == "cuda":
        base, num_tokens, seq_len, window, text = GPTConfig(), 98_304, 2048, 2048, 65_536
        long_tokens = num_tokens
    else:
        base = GPTConfig(num_layers=4, model_dim=128, num_heads=2, num_kv_heads=1)
        num_tokens, long_tokens, seq_len, window, text = 1024, 8192, 512, 512, 1024
    parts = {}
    rates = {n: tokens_per_second(base, long_tokens, n) for n in SEQ_LENS}
    parts["sequence length"] = {str(n): rate for n, rate in rates.items()}
    rates = {n: tokens_per_second(dataclasses.replace(base, num_layers=n), num_tokens, seq_len) for n in DEPTHS}
    parts["layers"] = {str(n): rate for n, rate in rates.items()}
    widths = [
        dataclasses.replace(base, model_dim=HEAD_DIM * heads, num_heads=heads, num_kv_heads=heads // 2)
        for heads in HEADS
    ]
    parts["width"] = {str(config.model_dim): tokens_per_second(config, num_tokens, seq_len) for config in widths}
    strides = scoring_seconds(base, window, [(4 * text, stride) for stride in STRIDES])
    lengths = scoring_seconds(base, window, [(n * text, 64) for n in LENGTHS])
    scoring = {
        "stride": {str(stride): time for stride, time in zip(STRIDES, strides, strict=True)},
        "tokens": {f"{n * text:,}": time for n, time in zip(LENGTHS, lengths, strict=True)},
    }
    body = [
        f"On {device_name()}, torch {torch.__version__}: {base.num_layers} layers of width {base.model_dim} unless the "
        f"table varies it, {num_tokens:,} tokens per step in sequences of {seq_len:,} ({long_tokens:,} where the "
        f"length varies); scoring of {4 * text:,} tokens in windows of {window:,} at stride 64.",
        *(
            markdown((name, "training, tokens/s"), [(key, f"{rate:,.0f}") for key, rate in part.items()])
            for name, part in parts.items()
        ),
        *(
            markdown((name, "scoring, s"), [(key, f"{time:.2f}") for key, time in part.items()])
            for name, part in scoring.items()
        ),
    ]
    print("\n\n".join(body))
    save("growth", {"training_tokens_per_second": parts, "scoring_seconds": scoring})
    README.write_text(with_section(README.read_text(), "\n\n".join(body)))


if __name__ == "__main__":
    main()
