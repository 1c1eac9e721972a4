"""``make demo``: the whole recipe at a small scale, from text to the score of an exported file in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from components.generate import continuations, load_network
from components.generation import Sampling
from components.run_files import RUNS_NAME, SUMMARY_NAME
from components.tokenizer import load_tokenizer
from datamodules.compressors import bits_per_byte, read_text
from datamodules.corpus import build_corpus
from datamodules.manifest import TOKENIZER_NAME
from records.report import REPORT

ROOT = Path(__file__).parent
CONFIGS = ("configs/record_10l.yaml", "configs/demo.yaml")
DATA = Path(".cache/demo")
RUNS = Path("runs/demo")
PROMPTS = ("The class returns", "Raised when", "This statement")
SAMPLE_TOKENS = 60
SAMPLING = Sampling(temperature=0.7, top_k=20, seed=1)


def main() -> None:
    """Build the corpus, train and export, score the file in a fresh process, compare, and let it write."""
    started = time.perf_counter()
    _heading("Corpus: Python's own documentation")
    build_corpus(DATA)
    _heading("Fit: train, switch to late QAT, average, export, score")
    fitted = run("fit", RUNS)
    _heading("Validate: score the exported file in a fresh process")
    validated = run("validate", RUNS / "validate", "--artifact", fitted["artifact"])
    if abs(validated["val_bpb"] - fitted["val_bpb"]) > 1e-6:
        sys.exit(
            f"error: {fitted['artifact']} scores {validated['val_bpb']} bits per byte in a fresh process and "
            f"{fitted['val_bpb']} in the one that wrote it; please report this."
        )
    text = read_text(DATA, "val", fitted["tokens_scored"] + 1)
    rivals = bits_per_byte(text, read_text(DATA, "train"))
    print(_table(fitted, validated, rivals, len(text), time.perf_counter() - started))
    print(_samples(Path(fitted["artifact"]), DATA / TOKENIZER_NAME))


def _heading(title: str) -> None:
    print(f"\n== {title}", flush=True)


def run(command: str, runs: Path, *arguments: str) -> dict[str, Any]:
    """Run a command of the project and return its summary."""
    logs = runs / RUNS_NAME
    before = set(logs.glob("version_*"))
    configs = [f"--config={config}" for config in CONFIGS]
    full = [sys.executable, "cli.py", command, *configs, "--trainer.default_root_dir", str(runs), *arguments]
    code = subprocess.run(full, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)
    [log] = set(logs.glob("version_*")) - before
    summary: dict[str, Any] = json.loads((log / SUMMARY_NAME).read_text())
    return {**summary, "log_folder": log}


def _samples(artifact: Path, tokenizer_path: Path) -> str:
    """Short texts that an exported model writes, each from its own beginning."""
    network = load_network(artifact)
    tokenizer = load_tokenizer(tokenizer_path)
    texts = (
        "".join(text)
        for prompt in PROMPTS
        for text in continuations(network, tokenizer, prompt, SAMPLE_TOKENS, SAMPLING, num_samples=1)
    )
    return "\nWritten by the exported model:\n" + "\n".join(textwrap.indent(text, "  | ") for text in texts)


def _table(
    fitted: dict[str, Any], validated: dict[str, Any], rivals: dict[str, float], num_bytes: int, seconds: float
) -> str:
    """What came out, beside what compressors take for the same bytes."""
    report = fitted["log_folder"] / REPORT
    rows = [
        *_scores(fitted),
        ("bits per byte before export", f"{fitted['pre_quant_val_bpb']:.4f}"),
        ("bits per byte after export, fresh process", f"{validated['val_bpb']:.4f}"),
        *((f"bits per byte of {name}", f"{bits:.4f}") for name, bits in rivals.items()),
        ("scored text", f"{num_bytes:,} bytes"),
        ("artifact", f"{fitted['bytes_model']:,} bytes for {fitted['num_params']:,} parameters"),
        ("optimizer steps", f"{fitted['step_stop']} in {fitted['wallclock_seconds']:.1f} s"),
        ("steps under late QAT", f"{fitted['qat_steps']} from step {fitted['qat_start_step']}"),
        ("snapshots averaged", str(fitted["snapshots_averaged"])),
        ("artifact file", fitted["artifact"]),
        ("summary", str(fitted["log_folder"] / SUMMARY_NAME)),
        ("TensorBoard logs", f"{fitted['log_folder']} (make tensorboard)"),
        *([("report", str(report))] if report.is_file() else []),
        ("total time", f"{seconds:.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _scores(fitted: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores that compare what became of the weights, as rows; a run without an average has only the last."""
    names = (("last_weights_bpb", "last weights"), ("averaged_bpb", "averaged"), ("exported_bpb", "exported"))
    return [
        (f"bits per byte in validation's windows, {words}", f"{fitted[name]:.4f}")
        for name, words in names
        if name in fitted
    ]


if __name__ == "__main__":
    main()
