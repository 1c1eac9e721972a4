"""``python -m records.pack RUN... --out FOLDER``: the folder to hand in, made of finished runs of one configuration.

A RUN is the log folder of a ``fit`` (``.../lightning_logs/version_N``) or the folder of a sweep, which stands for all
of its finished seeds. The folder holds:

- ``README.md``: what, how, the results of each seed, how to reproduce, all from the runs' own figures;
- ``submission.json``: the same for programs; scores are means over the seeds, everything else is the largest;
- ``train_gpt.py``: one self-contained script (see `records.script`), and ``requirements.txt``, what it needs;
- for each seed ``train_seed<N>.log``, ``model_seed<N>.golf`` and ``run_seed<N>.json``, the run's own record.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install

from components.artifact import MAX_BYTES
from components.command import run_command
from components.errors import UserError
from records.baseline import baseline_losses
from records.runs import SUMMARY_NAME, Run, open_run, read_json
from records.script import Script, build_script, clear_settings
from records.statistics import compare, describe
from records.sweep import SWEEP_NAME

SCRIPT_NAME = "train_gpt.py"
SUBMISSION_NAME = "submission.json"
REQUIREMENTS_NAME = "requirements.txt"
REQUIREMENTS = (
    "docstring_parser",
    "jsonargparse",
    "lightning",
    "numpy",
    "sentencepiece",
    "tensorboard",
    "torch",
    "torchmetrics",
    "tqdm",
    "typeshed_client",
    "zstandard",
)
"""What fit and validate need, at the versions installed here."""

MEANS = ("val_loss", "val_bpb", "pre_quant_val_loss", "pre_quant_val_bpb")
LARGEST = ("step_stop", "wallclock_seconds", "eval_time_seconds", "bytes_model", "bytes_total")


@dataclass(frozen=True)
class Credits:
    """Who hands in what.

    Attributes:
        author: the author's name.
        github_id: the author's GitHub account.
        name: the submission's name; empty for one made of the model's sizes.
        blurb: one sentence about it; empty for one made of the settings.
        date: the day, as 2026-01-31.
        track: the challenge's track.
    """

    author: str
    github_id: str
    name: str
    blurb: str
    date: str
    track: str


def pack(runs: Sequence[Run], out: Path, credits: Credits, baseline: Sequence[float] = ()) -> dict[str, Any]:
    """Write the folder, whole or not at all, and return its ``submission.json``.

    Raises:
        UserError: the folder exists, the runs are not of one configuration with a seed each, or the script is too
            large.
    """
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another --out.")
    runs = sorted(runs, key=lambda run: run.seed)
    settings = _common_settings(runs)
    script = build_script(runs[0].config.read_text(), max(run.artifact.stat().st_size for run in runs))
    facts = submission(runs, script.num_bytes, credits, settings, baseline)
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        (scratch / SCRIPT_NAME).write_text(script.text)
        (scratch / REQUIREMENTS_NAME).write_text(requirements())
        (scratch / SUBMISSION_NAME).write_text(json.dumps(facts, indent=2) + "\n")
        (scratch / "README.md").write_text(readme(facts, settings, script, runs))
        for run in runs:
            shutil.copyfile(run.log, scratch / f"train_seed{run.seed}.log")
            shutil.copyfile(run.artifact, scratch / f"model_seed{run.seed}{run.artifact.suffix}")
            shutil.copyfile(run.folder / SUMMARY_NAME, scratch / f"run_seed{run.seed}.json")
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return facts


def submission(
    runs: Sequence[Run], bytes_code: int, credits: Credits, settings: dict[str, Any], baseline: Sequence[float]
) -> dict[str, Any]:
    """The content of ``submission.json``."""
    results: dict[str, dict[str, Any]] = {}
    for run in runs:
        figures = {name: run.summary[name] for name in (*MEANS, *LARGEST)}
        results[str(run.seed)] = {**figures, "bytes_total": figures["bytes_model"] + bytes_code}
    model = settings["model"]
    summary = runs[0].summary
    sizes = f"{model['num_layers']} layers of width {model['model_dim']}"
    facts: dict[str, Any] = {
        "author": credits.author,
        "github_id": credits.github_id,
        "name": credits.name or f"{sizes}, int5 MLP, SmearGate, BigramHash, late QAT",
        "blurb": credits.blurb
        or f"{sizes}, {model['vocab_size']} pieces, {summary['num_params']:,} parameters; quantization-aware training "
        f"from {settings['late_qat']['start_fraction']:.0%} of the run, snapshots averaged, int5 MLP and int6 "
        "attention matrices, sliding-window scoring of the exported file.",
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
    """Exact versions of what the script needs, a line each."""
    # A local part, as in 2.13.0+cpu, names a build of this machine's.
    return "".join(f"{name}=={importlib.metadata.version(name).split('+')[0]}\n" for name in REQUIREMENTS)


def readme(facts: dict[str, Any], settings: dict[str, Any], script: Script, runs: Sequence[Run]) -> str:
    """The content of ``README.md``."""
    summary, model, scoring = runs[0].summary, settings["model"], settings["scoring"]
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
    bigram = (
        f"a hash table of {model['bigram_vocab_size']} token pairs, {model['bigram_dim']} wide"
        if model["bigram_vocab_size"]
        else "no token-pair table"
    )
    return f"""# {facts["name"]}

{facts["blurb"]}

**{facts["val_bpb"]:.6f} bits per byte** ({facts["val_loss"]:.6f} nats a token), mean of {losses.count} \
seed{"s" if losses.count > 1 else ""}{spread}. By {facts["author"]} ({facts["github_id"]}), {facts["date"]}.

## What

- Network: {model["num_layers"]} blocks of width {model["model_dim"]}, {model["num_heads"]} query and \
{model["num_kv_heads"]} key/value heads, MLP {model["mlp_mult"]:g} times as wide, U-Net skips, SmearGate, {bigram}; \
{facts["num_params"]:,} parameters.
- Training: {settings["data"]["train_batch_tokens"]:,} tokens a step in sequences of \
{settings["data"]["train_seq_len"]:,}, Muon for matrices and AdamW for the rest, rates warmed down over the last \
{settings["schedule"]["warmdown_steps"]} steps' time, fake quantization from \
{settings["late_qat"]["start_fraction"]:.0%} of the run on.
- Export: the mean of the snapshots, MLP matrices int5 and attention matrices int6 with a float16 scale a row, \
entropy-coded. Late QAT and export share one quantizer.
- Score: of the exported file, read back; windows of {scoring["seq_len"]:,} every {scoring["stride"]:,} tokens, each \
of the {summary["tokens_scored"]:,} targets once; total nats / ln 2 / {summary["bytes_scored"]:,} bytes of text.

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

The run leaves its figures in `runs/lightning_logs/version_N/summary.json`. `validate` needs nothing of the training: \
the artifact says what network it holds.

## The files

- `{SCRIPT_NAME}`: everything that training and scoring need, in one file. In clear text: the settings, \
{", ".join(f"`{file}`" for file in script.readable)}. The {len(script.packed)} other modules are compressed to keep \
the code small, without comments and docstrings, so they cannot be read in place: \
`python {SCRIPT_NAME} unpack FOLDER` writes all of them as files.
- `submission.json`: these figures for programs. Scores are means over the seeds, everything else is the largest.
- For each seed `train_seed*.log` (the log), `model_seed*{runs[0].artifact.suffix}` (the artifact) and \
`run_seed*.json` (the run's record of itself: shards and positions read, targets and bytes scored, times, versions).
"""


def runs_of(folders: Sequence[Path]) -> list[Run]:
    """The finished runs in folders of runs and of sweeps.

    Raises:
        UserError: a folder is neither.
    """
    runs = []
    for folder in folders:
        if (folder / SWEEP_NAME).is_file():
            content = read_json(folder / SWEEP_NAME, "run the sweep again")
            # The sweep may have moved since.
            places = [Path(result["fit"]).parts[-4:] for result in content["seed_results"]]
            runs += [open_run(folder.joinpath(*parts)) for parts in places]
        else:
            runs.append(open_run(folder))
    return runs


def _common_settings(runs: Sequence[Run]) -> dict[str, Any]:
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"Two of the runs have the same seed ({', '.join(map(str, seeds))}); give each seed once.")
    every: list[dict[str, Any]] = [
        yaml.safe_load(clear_settings(yaml.safe_load(run.config.read_text()))) for run in runs
    ]
    for run, settings in zip(runs, every, strict=True):
        for section in every[0].keys() | settings.keys():
            if section != "seed_everything" and settings.get(section) != every[0].get(section):
                raise UserError(
                    f"The runs {runs[0].folder} and {run.folder} differ in their settings of {section}; pack runs of "
                    "one configuration."
                )
    return every[0]


def main(arguments: Sequence[str]) -> None:
    """Pack the runs that the command line names.

    Raises:
        UserError: see `pack`.
    """
    parser = argparse.ArgumentParser(prog="python -m records.pack", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a fit's version_N folder, or a sweep's")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; must not exist")
    parser.add_argument("--author", required=True, help="your name")
    parser.add_argument("--github-id", required=True, help="your GitHub account")
    parser.add_argument("--name", default="", help="the submission's name (default: made of the model's sizes)")
    parser.add_argument("--blurb", default="", help="a sentence about it (default: made of the settings)")
    parser.add_argument("--track", default="10min_16mb", help="the challenge's track (default: %(default)s)")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    parser.add_argument("--date", default=today, help="the day to write (default: today)")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        help="what to beat: a sweep.json, a submission.json, or the losses of its seeds in nats",
    )
    args = parser.parse_args(arguments)
    credits = Credits(args.author, args.github_id, args.name, args.blurb, args.date, args.track)
    facts = pack(runs_of(args.runs), args.out, credits, baseline_losses(args.baseline))
    print(
        f"Packed {args.out}: seeds {', '.join(map(str, facts['seeds']))}, {facts['val_bpb']:.6f} bits per byte, "
        f"{facts['bytes_total']:,} bytes of {MAX_BYTES:,}, {facts['bytes_code']:,} of them code. "
        f"Next: python -m records.audit {args.out}"
    )


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
