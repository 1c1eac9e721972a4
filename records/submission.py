"""The texts of a submission: ``submission.json`` for programs, ``README.md`` for people, ``requirements.txt``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.artifact import MAX_BYTES
from records.runs import Run
from records.script import Script
from records.statistics import compare, describe

SCRIPT_NAME = "train_gpt.py"
REQUIREMENTS = (
    "PyYAML",
    "docstring_parser",
    "jsonargparse",
    "lightning",
    "numpy",
    "safetensors",
    "sentencepiece",
    "torch",
    "torchmetrics",
    "tqdm",
    "typeshed_client",
    "zstandard",
)
"""What fit and validate need; the versions are those installed here."""

MEANS = ("val_loss", "val_bpb", "pre_quant_val_loss", "pre_quant_val_bpb")
LARGEST = ("step_stop", "wallclock_seconds", "eval_time_seconds", "bytes_model", "bytes_total")


@dataclass(frozen=True)
class Credits:
    """Who submits what.

    Attributes:
        author: the author's name.
        github_id: the author's GitHub account.
        name: the submission's name; empty for one made from the model's size.
        blurb: one sentence about it; empty for one made from the settings.
        date: the date, such as 2026-01-31.
        track: the challenge's track.
    """

    author: str
    github_id: str
    name: str
    blurb: str
    date: str
    track: str


def submission(
    runs: Sequence[Run], bytes_code: int, credits: Credits, settings: dict[str, Any], baseline: Sequence[float]
) -> dict[str, Any]:
    """The content of ``submission.json``."""
    results: dict[str, dict[str, Any]] = {}
    for run in runs:
        figures = {name: run.summary[name] for name in (*MEANS, *LARGEST)}
        results[str(run.seed)] = {**figures, "bytes_total": figures["bytes_model"] + bytes_code}
    summary = runs[0].summary
    model = settings["model"]
    facts: dict[str, Any] = {
        "author": credits.author,
        "github_id": credits.github_id,
        "name": credits.name or f"{model['num_layers']} layers of width {model['model_dim']}",
        "blurb": credits.blurb or f"{_sentence(summary['network'])} {' '.join(summary['techniques'])}",
        "date": credits.date,
        "track": credits.track,
        **{name: describe([result[name] for result in results.values()]).mean for name in MEANS},
        **{name: max(result[name] for result in results.values()) for name in LARGEST},
        "bytes_code": bytes_code,
        "num_params": summary["num_params"],
        "seeds": [run.seed for run in runs],
        "seed_results": results,
        "hardware": f"{summary['world_size']} x {summary['device']}",
    }
    if baseline:
        comparison = compare([result["val_loss"] for result in results.values()], baseline)
        facts["baseline_val_losses"] = list(baseline)
        facts["improvement_nats"] = comparison.improvement
        facts["p_value"] = comparison.p_margin
    return facts


def requirements() -> str:
    """Exact versions of what the script needs, one per line."""
    # A local version label, as in 2.13.0+cpu, names this machine's build.
    return "".join(f"{name}=={importlib.metadata.version(name).split('+')[0]}\n" for name in REQUIREMENTS)


def readme(facts: dict[str, Any], settings: dict[str, Any], script: Script, runs: Sequence[Run]) -> str:
    """The content of ``README.md``."""
    summary, scoring = runs[0].summary, settings["scoring"]
    losses = describe([result["val_loss"] for result in facts["seed_results"].values()])
    bpbs = describe([result["val_bpb"] for result in facts["seed_results"].values()])
    spread = ""
    if losses.interval is not None and bpbs.interval is not None:
        spread = f" (95% interval ±{losses.interval:.5f} nats, ±{bpbs.interval:.5f} bits per byte)"
    rows = "\n".join(
        f"| {seed} | {r['val_loss']:.8f} | {r['val_bpb']:.8f} | {r['pre_quant_val_bpb']:.6f} | {r['step_stop']} | "
        f"{r['wallclock_seconds']:.1f} | {r['eval_time_seconds']:.1f} | {r['bytes_model']:,} | {r['bytes_total']:,} |"
        for seed, r in facts["seed_results"].items()
    )
    against = ""
    if "baseline_val_losses" in facts:
        comparison = compare([r["val_loss"] for r in facts["seed_results"].values()], facts["baseline_val_losses"])
        against = f"\nAgainst the baseline of {len(facts['baseline_val_losses'])} seeds: {comparison.sentence()}.\n"
    techniques = "\n".join(f"- {sentence}" for sentence in summary["techniques"])
    return f"""# {facts["name"]}

{facts["blurb"]}

**{facts["val_bpb"]:.6f} bits per byte** ({facts["val_loss"]:.6f} nats per token), mean of {losses.count} \
seed{"s" if losses.count > 1 else ""}{spread}. By {facts["author"]} ({facts["github_id"]}), {facts["date"]}.

## Method

- {_sentence(summary["network"])} {facts["num_params"]:,} parameters.
- Training: {settings["data"]["train_batch_tokens"]:,} tokens per step in sequences of \
{settings["data"]["train_seq_len"]:,}.
{techniques}
- Scoring: the exported file is read back and scored in windows of {scoring["seq_len"]:,} tokens at stride \
{scoring["stride"]:,}, each of the {summary["tokens_scored"]:,} targets once. Bits per byte are the total nats / ln 2 \
/ {summary["bytes_scored"]:,} bytes of text.

## Results

On {facts["hardware"]}, torch {summary["torch"]}, lightning {summary["lightning"]}, Python {summary["python"]}:

| seed | val_loss | val_bpb | before export | steps | train s | scoring s | model bytes | with code |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Code: {facts["bytes_code"]:,} bytes. The largest total is {facts["bytes_total"]:,} of {MAX_BYTES:,} bytes.
{against}
## How to reproduce

```
pip install -r requirements.txt
torchrun --standalone --nproc_per_node={summary["world_size"]} {SCRIPT_NAME} --seed_everything {runs[0].seed} \\
    --data.path FOLDER_OF_SHARDS --data.tokenizer_path TOKENIZER.model
python {SCRIPT_NAME} validate --artifact model_seed{runs[0].seed}{runs[0].artifact.suffix} \\
    --data.path FOLDER_OF_SHARDS --data.tokenizer_path TOKENIZER.model
```

The run writes its figures to `runs/lightning_logs/version_N/summary.json`. `validate` needs nothing from training: \
the artifact describes its own network.

## The files

- `{SCRIPT_NAME}`: everything that training and scoring need, in one file. It has in clear text the settings, \
{", ".join(f"`{file}`" for file in script.readable)}. The {len(script.packed)} other modules are compressed to keep \
the code small, without comments and docstrings, so they cannot be read in place: \
`python {SCRIPT_NAME} unpack FOLDER` writes all of them as files.
- `submission.json`: these figures for programs. Scores are means over the seeds, all other figures are maxima.
- For each seed, `train_seed*.log` (the log), `model_seed*{runs[0].artifact.suffix}` (the artifact) and \
`run_seed*.json` (the run's record of itself: shards and positions read, targets and bytes scored, times, versions).
"""


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."
