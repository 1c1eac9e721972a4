"""``make demo``: the whole recipe at a small scale, from text to the score of an exported file in a fresh process."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import zstandard

from components.tokenizer import load_tokenizer
from datamodules.corpus import build_corpus
from datamodules.shards import find_shards, open_shard

ROOT = Path(__file__).parent
CONFIGS = ("configs/record_10l.yaml", "configs/demo.yaml")
DATA = Path(".cache/demo")
RUNS = Path("runs/demo")


def main() -> None:
    """Build the corpus, train and export, score the file in a fresh process, and compare."""
    started = time.perf_counter()
    _heading("Corpus: Python's own documentation and sources")
    build_corpus(DATA)
    _heading("Fit: train, switch to late QAT, average, export, score")
    fitted = _run("fit", RUNS)
    _heading("Validate: score the exported file in a fresh process")
    validated = _run("validate", RUNS / "validate", "--artifact", fitted["artifact"])
    if abs(validated["val_bpb"] - fitted["val_bpb"]) > 1e-6:
        sys.exit(
            f"error: {fitted['artifact']} scores {validated['val_bpb']} bits per byte in a fresh process and "
            f"{fitted['val_bpb']} in the one that wrote it; please report this."
        )
    print(_table(fitted, validated, _scored_text(fitted["tokens_scored"]), time.perf_counter() - started))


def _heading(title: str) -> None:
    print(f"\n== {title}", flush=True)


def _run(command: str, runs: Path, *arguments: str) -> dict[str, Any]:
    """Run a command of the project and return its summary."""
    logs = runs / "lightning_logs"
    before = set(logs.glob("version_*"))
    configs = [f"--config={config}" for config in CONFIGS]
    full = [sys.executable, "cli.py", command, *configs, "--trainer.default_root_dir", str(runs), *arguments]
    code = subprocess.run(full, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)
    [log] = set(logs.glob("version_*")) - before
    summary: dict[str, Any] = json.loads((log / "summary.json").read_text())
    return {**summary, "log_folder": log}


def _scored_text(num_targets: int) -> bytes:
    """The validation text that the run scored."""
    [shard] = find_shards(DATA, "val")
    ids = open_shard(shard)[: num_targets + 1].tolist()
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    documents: list[list[int]] = []
    for token_id in ids:
        if token_id == tokenizer.bos_id():
            documents.append([])
        documents[-1].append(token_id)
    return "".join(tokenizer.decode(document) for document in documents).encode()


def _table(fitted: dict[str, Any], validated: dict[str, Any], text: bytes, seconds: float) -> str:
    zstd = 8 * len(zstandard.ZstdCompressor(level=22).compress(text)) / len(text)
    xz = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    rows = [
        *_scores(fitted),
        ("bits per byte before export", f"{fitted['pre_quant_val_bpb']:.4f}"),
        ("bits per byte after export, fresh process", f"{validated['val_bpb']:.4f}"),
        (f"bits per byte of zstd -22 on the same {len(text):,} bytes", f"{zstd:.4f}"),
        ("bits per byte of xz -9e on the same bytes", f"{xz:.4f}"),
        ("artifact", f"{fitted['bytes_model']:,} bytes for {fitted['num_params']:,} parameters"),
        ("optimizer steps", f"{fitted['step_stop']} in {fitted['wallclock_seconds']:.1f} s"),
        ("steps under late QAT", f"{fitted['qat_steps']} from step {fitted['qat_start_step']}"),
        ("snapshots averaged", str(fitted["snapshots_averaged"])),
        ("artifact file", fitted["artifact"]),
        ("summary", str(fitted["log_folder"] / "summary.json")),
        ("TensorBoard logs", f"{fitted['log_folder']} (make tensorboard)"),
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
