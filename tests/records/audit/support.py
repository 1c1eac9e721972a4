"""What the tests of the audit share: a submission made by hand, and a box that asks no child the same twice."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from components.artifact import write_artifact
from components.byte_counts import token_byte_table
from components.gpt import GPTConfig
from components.tokenizer import load_tokenizer
from datamodules.shards import open_shard
from records.audit.case import Case
from records.audit.checks import GROUPS, audit, judge
from records.audit.contained import Box, Ended, Job
from records.audit.folder import read_folder
from records.audit.verdicts import Verdict
from tests.support import TINY, recipe_stored, tiny_network, write_shard

IDS = 700
SEQ_LEN = 64

SCRIPT = """import torch
from torch import nn


class Hyperparameters:
    vocab_size = 1024
    model_dim = 64
    data_path = "data"


class GPT(nn.Module):
    def __init__(self, vocab_size, model_dim):
        super().__init__()
        self.table = nn.Embedding(vocab_size, model_dim)
        nn.init.normal_(self.table.weight, std=0.005)

    def forward(self, input_ids, target_ids):
        z = self.table(input_ids) @ self.table.weight.T
        return nn.functional.cross_entropy(z.flatten(0, 1), target_ids.flatten())


if __name__ == "__main__":
    raise SystemExit("needs a GPU")
"""
SCRIPT_PARAMS = 1024 * 64


class RememberingBox:
    """The best box of this machine; of the same command on the same files it gives the same end."""

    def __init__(self) -> None:
        self.box = Box.of_this_machine()
        self.ended: dict[Any, tuple[str, Ended]] = {}

    def run(self, job: Job) -> Ended:
        key = (tuple(job.command), tuple(sorted(job.files.items())), tuple(job.keep), job.limits)
        if key not in self.ended:
            self.ended[key] = job.secret, self.box.run(job)
        first, ended = self.ended[key]
        return replace(ended, report=ended.report.replace(first.encode(), job.secret.encode())) if first else ended


BOX = RememberingBox()
CHECKS = {check.name: check for group in GROUPS for check in group}


class NoBox:
    """For audits that need no child: none may be started."""

    def run(self, job: Job) -> Ended:
        raise AssertionError("a child was started")


def case_of(folder: Path, data: Path | None = None, box: Any = BOX, baseline: Sequence[float] = ()) -> Case:
    return Case(read_folder(folder), box, data, data / "tokenizer.model" if data else None, tuple(baseline))


def verdicts_of(folder: Path, data: Path | None = None, **settings: Any) -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in audit(case_of(folder, data, **settings))}


def verdict_of(name: str, folder: Path, data: Path | None = None) -> Verdict:
    """One verdict, of the folder or of seed 42, without what the others need."""
    check, case = CHECKS[name], case_of(folder, data)
    runs = [run for run in case.submission.runs if run.seed == 42]
    return judge(check, case, runs[0] if check.of_run else None)


def small_data(corpus: Path, data: Path) -> Path:
    """A folder of one small validation shard of real text, and its tokenizer."""
    data.mkdir()
    (data / "tokenizer.model").write_bytes((corpus / "tokenizer.model").read_bytes())
    [shard] = corpus.glob("fineweb_val_*.bin")
    write_shard(data / shard.name, open_shard(shard)[:IDS])
    return data


def score_by_hand(data: Path, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """Nats a token and bits per byte in windows that do not overlap, without this project's scoring."""
    from components.gpt import GPT

    network = GPT(GPTConfig(**settings))
    network.load_state_dict(state)
    [shard] = data.glob("fineweb_val_*.bin")
    ids = torch.from_numpy(open_shard(shard)[:].astype("int64"))
    nats, num_bytes = 0.0, 0
    table = token_byte_table(load_tokenizer(data / "tokenizer.model"))
    with torch.no_grad():
        for start in range(0, IDS - 1, SEQ_LEN):
            end = min(start + SEQ_LEN, IDS - 1)
            inputs, targets = ids[start:end], ids[start + 1 : end + 1]
            nats += network(inputs[None], targets[None]).double().sum().item()
            num_bytes += int(table.target_bytes(inputs, targets).sum())
    return nats / (IDS - 1), nats / math.log(2) / num_bytes


def write_submission(folder: Path, data: Path) -> Path:
    """A sound submission of one seed: another project's script, with an artifact, a log and a record of this one's."""
    folder.mkdir()
    network = tiny_network()
    settings = {**TINY}
    stored = recipe_stored(network.state_dict())
    model = write_artifact(folder / "model_seed42.golf", settings, stored)
    state = {name: tensor.dequantize() for name, tensor in stored.items()}
    val_loss, val_bpb = score_by_hand(data, settings, state)
    num_params = sum(p.numel() for p in network.parameters())
    code = len(SCRIPT.encode())
    windows = math.ceil((IDS - 1) / SEQ_LEN)
    (folder / "README.md").write_text("# A record\n")
    (folder / "train_gpt.py").write_text(SCRIPT)
    (folder / "train_seed42.log").write_text(
        f"{num_params} parameters, 8 ranks on cuda\n"
        "step 50 train_loss 4.1203 elapsed 4.500 s step_avg 90.00 ms\n"
        "stopped at step 6000, elapsed 599.500 s\n"
        f"exported {model} bytes, with code {code} bytes {model + code} bytes\n"
        f"float weights val_loss {val_loss:.8f} val_bpb {val_bpb:.8f}\n"
        f"artifact val_loss {val_loss:.8f} val_bpb {val_bpb:.8f} scored in 70.287 s\n"
    )
    figures = {
        **{"val_loss": val_loss, "val_bpb": val_bpb, "pre_quant_val_loss": val_loss, "pre_quant_val_bpb": val_bpb},
        **{"step_stop": 6000, "wallclock_seconds": 599.50042, "eval_time_seconds": 70.28713, "bytes_model": model},
    }
    [shard] = [path.name for path in data.glob("fineweb_val_*.bin")]
    read = {
        **{"train_shards": ["fineweb_train_000000.bin"], "train_positions": [0, 1000], "train_ids": 2000},
        **{"val_shards": [shard], "val_ids": IDS, "tokens_scored": IDS - 1, "windows": windows},
        **{"scoring_seq_len": SEQ_LEN, "scoring_stride": SEQ_LEN, "scoring_max_tokens": 0, "precision": "32-true"},
        "scorer": "components.scorer.SlidingWindows",
    }
    (folder / "run_seed42.json").write_text(json.dumps({**figures, **read}))
    claims = {
        **{"author": "Ada", "github_id": "ada", "name": "N", "track": "10min_16mb", "hardware": "8 x NVIDIA H100 80GB"},
        **{name: figures[name] for name in figures if name.endswith(("loss", "bpb"))},
        **{"bytes_code": code, "bytes_total": model + code, "seeds": [42]},
        "seed_results": {"42": {**figures, "bytes_total": model + code}},
    }
    (folder / "submission.json").write_text(json.dumps(claims))
    return folder


Edit = Callable[[Path], None]


def edit_json(file: str, /, **fields: object) -> Edit:
    """Set fields, or take out those that are None."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | fields
        (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return edit


def edit_result(**fields: object) -> Edit:
    """Set what is claimed of seed 42, or take out what is None."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "submission.json").read_text())
        results = content["seed_results"]["42"] | fields
        content["seed_results"]["42"] = {name: value for name, value in results.items() if value is not None}
        (folder / "submission.json").write_text(json.dumps(content))

    return edit


def edit_text(name: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


def edit_log(start: str, line: str) -> Edit:
    """Put a line in the place of the one that starts so."""

    def edit(folder: Path) -> None:
        path = folder / "train_seed42.log"
        lines = [line if said.startswith(start) else said for said in path.read_text().splitlines()]
        assert line in lines
        path.write_text("\n".join(lines) + "\n")

    return edit


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def all_of(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit
