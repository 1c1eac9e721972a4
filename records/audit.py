"""``python -m records.audit FOLDER``: what a reviewer checks by hand, as a table with a verdict a line.

Each line says pass, FAIL or could not check, and why; any FAIL makes the exit code 1. Figures are counted and computed
from the files themselves wherever that is possible. The folder may be another project's, with ``train_gpt_x.py``,
fewer fields in ``submission.json`` and a ``.ptz`` artifact or none: what such a folder does not show is said.

The audit runs the script that it audits: audit nothing that you would not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from components.artifact import MAX_BYTES
from components.command import run_command
from components.errors import UserError
from components.gpt import GPTConfig
from components.scoring import Windows
from datamodules.shards import find_shards, open_shard
from records.baseline import baseline_losses
from records.runs import SUMMARY_NAME
from records.statistics import compare, describe
from records.train_log import TrainLog, read_log

MAX_TRAIN_SECONDS = 600.0
MAX_SCORING_SECONDS = 600.0
MAX_IMPORT_SECONDS = 300.0
PROGRESS_SECONDS = 30.0
PROJECT = Path(__file__).parents[1]
FRESH_PROCESS = Path(__file__).with_name("fresh_process.py")

SCORE_ROUNDING = 6e-5
"""How far a claimed score may be from the log's: logs and claims give at least four decimals."""
SECONDS_ROUNDING = 0.06
SAME_PRECISION_BPB = 1e-4
OTHER_PRECISION_BPB = 1e-3
"""How far a re-computed score may be from the claimed one, where the arithmetic is the run's and where it is not."""
INITIAL_LOSS_BELOW = 0.1
INITIAL_LOSS_ABOVE = 1.0
"""How far the loss of an untrained network may be from that of guessing evenly, in nats."""

TEXT, NUMBER, WHOLE = (str,), (int, float), (int,)
REQUIRED = {"author": TEXT, "github_id": TEXT, "name": TEXT, "val_bpb": NUMBER}
OTHERS: dict[str, tuple[type, ...]] = {
    "blurb": TEXT,
    "date": TEXT,
    "track": TEXT,
    "val_loss": NUMBER,
    "pre_quant_val_loss": NUMBER,
    "pre_quant_val_bpb": NUMBER,
    "step_stop": WHOLE,
    "wallclock_seconds": NUMBER,
    "eval_time_seconds": NUMBER,
    "bytes_total": WHOLE,
    "bytes_model": WHOLE,
    "bytes_code": WHOLE,
    "seeds": (list,),
    "seed_results": (dict,),
    "hardware": TEXT,
}


class State(StrEnum):
    """What became of a check."""

    PASS = "pass"
    FAIL = "FAIL"
    UNKNOWN = "could not check"


@dataclass(frozen=True)
class Verdict:
    """One line of the table."""

    check: str
    state: State
    detail: str

    def __str__(self) -> str:
        """The line."""
        return f"{self.check:<28} {self.state:<16} {self.detail}"


class Failed(Exception):  # noqa: N818
    """A check that was made and failed; the message says why."""


class Unknown(Exception):  # noqa: N818
    """A check that could not be made; the message says why."""


@dataclass
class SeedFiles:
    """What the folder holds of one seed; a folder of one run may not say its seed."""

    seed: int | None
    claims: dict[str, Any]
    log: TrainLog | None = None
    artifact: Path | None = None
    record: dict[str, Any] | None = None

    def check(self, what: str) -> str:
        """A check's name, of this seed."""
        return what if self.seed is None else f"{what}, seed {self.seed}"


class Audit:
    """The checks of one folder.

    Args:
        folder: the submission.
        data: folder of validation shards to score on; None to leave that out.
        tokenizer: the tokenizer's model; None for ``tokenizer.model`` in the data folder.
        baseline: losses of the seeds to beat; none for those that the submission names.
        say: gets each verdict as it comes.
    """

    def __init__(
        self,
        folder: Path,
        data: Path | None = None,
        tokenizer: Path | None = None,
        baseline: Sequence[float] = (),
        say: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; give the submission's folder.")
        self.folder = folder
        self.data = data
        self.tokenizer = tokenizer or (data / "tokenizer.model" if data is not None else None)
        if self.tokenizer is not None and not self.tokenizer.is_file():
            raise UserError(f"There is no tokenizer {self.tokenizer}; give --tokenizer the data's SentencePiece model.")
        self.baseline = list(baseline)
        self.verdicts: list[Verdict] = []
        self._say = say
        self._script: Path | None = None
        self._submission: dict[str, Any] = {}
        self._imported: dict[str, Any] = {}
        self._seeds: list[SeedFiles] = []

    def run(self) -> list[Verdict]:
        """Make every check, in order."""
        self._check("files", self._files)
        self._check("submission.json", self._fields)
        self._seeds = self._seed_files()
        self._check("script compiles", self._compiles)
        self._check("script imports", self._imports)
        self._check("network", self._network)
        self._check("initial loss", self._initial_loss)
        self._check("code bytes", self._code_bytes)
        for seed in self._seeds:
            self._check(seed.check("total bytes"), self._total_bytes, seed)
            self._check(seed.check("training seconds"), self._training_seconds, seed)
            self._check(seed.check("scoring seconds"), self._scoring_seconds, seed)
            self._check(seed.check("claims = log"), self._claims, seed)
            self._check(seed.check("trained on train"), self._trained_on_train, seed)
            self._check(seed.check("each target once"), self._targets_once, seed)
            self._check(seed.check("whole split"), self._whole_split, seed)
            self._check(seed.check("artifact loads"), self._loads, seed)
            self._check(seed.check("score recomputed"), self._scores, seed)
        self._check("seeds", self._seed_list)
        self._check("means", self._means)
        self._check("significance", self._significance)
        return self.verdicts

    def _check(self, name: str, check: Callable[..., str], *arguments: SeedFiles) -> None:
        try:
            verdict = Verdict(name, State.PASS, check(*arguments))
        except Failed as failed:
            verdict = Verdict(name, State.FAIL, str(failed))
        except Unknown as unknown:
            verdict = Verdict(name, State.UNKNOWN, str(unknown))
        except UserError:
            raise
        except (TypeError, ValueError, LookupError) as error:  # of figures that are not what they should be
            verdict = Verdict(name, State.FAIL, f"the folder's figures are malformed ({error!r})")
        self.verdicts.append(verdict)
        self._say(verdict)

    # --- The folder ---

    def _files(self) -> str:
        scripts = sorted(self.folder.glob("train_gpt*.py"))
        if scripts:
            self._script = next((path for path in scripts if path.name == "train_gpt.py"), scripts[0])
        missing = [name for name in ("README.md", "submission.json") if not (self.folder / name).is_file()]
        missing += [] if scripts else ["train_gpt.py"]
        missing += [] if self._logs() else ["a training log (*.log)"]
        if missing:
            raise Failed(f"missing: {', '.join(missing)}")
        return ", ".join(sorted(path.name for path in self.folder.iterdir()))

    def _fields(self) -> str:
        path = self.folder / "submission.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise Failed(f"cannot be read as JSON ({error})") from error
        if not isinstance(content, dict):
            raise Failed("holds no JSON object")
        self._submission = {name: value for name, value in content.items() if not _wrong(name, value)}
        wrong = [f"{name} is {content[name]!r}" for name in content if _wrong(name, content[name])]
        missing = [name for name in REQUIRED if name not in content]
        if wrong or missing:
            raise Failed("; ".join([*wrong, *(f"{name} is missing" for name in missing)]))
        absent = [name for name in OTHERS if name not in content]
        return "all fields" if not absent else f"required fields; not given: {', '.join(absent)}"

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    def _seed_files(self) -> list[SeedFiles]:
        """What belongs together: by the seed in the files' names, or all of it where there is one run."""
        results = {
            int(seed): claims
            for seed, claims in self._submission.get("seed_results", {}).items()
            if str(seed).isdigit() and isinstance(claims, dict)
        }
        artifacts = sorted([*self.folder.glob("*.golf"), *self.folder.glob("*.ptz")])
        records = sorted(self.folder.glob("run_seed*.json"))
        logs = self._logs()
        named = {_seed_in(path) for path in (*logs, *artifacts, *records)} | results.keys()
        seeds = sorted(seed for seed in named if seed is not None)
        if len(seeds) <= 1:
            log = read_log(logs[0]) if len(logs) == 1 else None
            seed = seeds[0] if seeds else (log.seed if log is not None else None)
            claims = results.get(seed, self._submission) if seed is not None else self._submission
            return [SeedFiles(seed, claims, log, _only(artifacts), _record(_only(records)))]
        found = []
        for seed in seeds:
            log_path, artifact, record = (
                _only([path for path in paths if _seed_in(path) == seed]) for paths in (logs, artifacts, records)
            )
            log = None if log_path is None else read_log(log_path)
            found.append(SeedFiles(seed, results.get(seed, {}), log, artifact, _record(record)))
        return found

    # --- The script ---

    def _compiles(self) -> str:
        script = self._need_script()
        try:
            compile(script.read_bytes(), str(script), "exec")
        except (SyntaxError, ValueError) as error:
            raise Failed(f"{script.name}: {error}") from error
        return script.name

    def _imports(self) -> str:
        self._imported = self._in_fresh_process("import")
        return f"on this CPU in {self._imported['seconds']:.1f} s, the network refused"

    def _network(self) -> str:
        if "num_params" not in self._imported:
            raise Unknown(self._why_no_network())
        settings, num_params = self._imported["settings"], self._imported["num_params"]
        claims = [("submission.json", self._submission.get("num_params"))]
        claims += [(seed.check("the log"), seed.log.num_params) for seed in self._seeds if seed.log is not None]
        for where, claimed in claims:
            if claimed is not None and claimed != num_params:
                raise Failed(f"{num_params:,} parameters, but {where} says {claimed:,}")
        sizes = ", ".join(
            f"{name} {settings[name]}"
            for name in ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult", "vocab_size")
            if name in settings
        )
        return f"{num_params:,} parameters; {sizes}"

    def _initial_loss(self) -> str:
        if "initial_loss" not in self._imported:
            raise Unknown(self._why_no_network())
        loss, even = self._imported["initial_loss"], math.log(self._imported["settings"]["vocab_size"])
        if not even - INITIAL_LOSS_BELOW <= loss <= even + INITIAL_LOSS_ABOVE:
            raise Failed(f"{loss:.4f} nats before any training, guessing evenly is {even:.4f}")
        return f"{loss:.4f} nats, guessing evenly is {even:.4f}"

    def _why_no_network(self) -> str:
        return str(self._imported.get("why_not", "the script could not be imported"))

    # --- Sizes and times ---

    def _code_bytes(self) -> str:
        code = self._count_code()
        claimed = self._submission.get("bytes_code")
        if claimed is not None and claimed != code:
            raise Failed(f"{code:,} bytes of Python in the folder, submission.json says {claimed:,}")
        return f"{code:,} bytes" + ("" if claimed is not None else ", not claimed")

    def _count_code(self) -> int:
        self._need_script()
        return sum(path.stat().st_size for path in self.folder.rglob("*.py"))

    def _total_bytes(self, seed: SeedFiles) -> str:
        code = self._count_code()
        if seed.artifact is not None:
            model, source = seed.artifact.stat().st_size, seed.artifact.name
        elif seed.log is not None and seed.log.bytes_model is not None:
            model, source = seed.log.bytes_model, "the log"
        else:
            raise Unknown("there is no artifact and no log that gives its size")
        total = model + code
        said = f"{model:,} ({source}) + {code:,} = {total:,} of {MAX_BYTES:,} bytes"
        if total > MAX_BYTES:
            raise Failed(said)
        for name, counted in (("bytes_model", model), ("bytes_total", total)):
            if seed.claims.get(name, counted) != counted:
                raise Failed(f"{said}, but {name} is claimed to be {seed.claims[name]:,}")
        if seed.artifact is None:
            raise Unknown(f"there is no artifact to count; {said}")
        return said

    def _training_seconds(self, seed: SeedFiles) -> str:
        return _within(_need_log(seed).train_seconds, MAX_TRAIN_SECONDS)

    def _scoring_seconds(self, seed: SeedFiles) -> str:
        return _within(_need_log(seed).eval_seconds, MAX_SCORING_SECONDS)

    # --- Figures ---

    def _claims(self, seed: SeedFiles) -> str:
        log, compared = _need_log(seed), []
        record = seed.record or {}
        for name, said, most in (
            ("val_loss", log.val_loss, SCORE_ROUNDING),
            ("val_bpb", log.val_bpb, SCORE_ROUNDING),
            ("step_stop", log.step_stop, 0),
            ("wallclock_seconds", log.train_seconds, SECONDS_ROUNDING),
            ("eval_time_seconds", log.eval_seconds, SECONDS_ROUNDING),
            ("bytes_model", log.bytes_model, 0),
        ):
            claimed = seed.claims.get(name)
            if claimed is None or said is None:
                continue
            if not abs(claimed - said) <= most:
                raise Failed(f"{name} is claimed to be {claimed}, the log says {said}")
            if name in record and not abs(claimed - record[name]) <= most:
                raise Failed(f"{name} is claimed to be {claimed}, the run's record says {record[name]}")
            compared.append(name)
        if not compared:
            raise Unknown("claims and log have no figure in common")
        return ", ".join(compared)

    def _seed_list(self) -> str:
        listed = self._submission.get("seeds")
        if listed is None:
            raise Unknown("submission.json lists no seeds")
        results = sorted(map(int, self._submission.get("seed_results", {})))
        logs = sorted(seed.seed for seed in self._seeds if seed.log is not None and seed.seed is not None)
        if not sorted(listed) == sorted(set(listed)) == results == logs:
            raise Failed(f"seeds {listed}, results of {results}, logs of {logs}")
        return ", ".join(map(str, listed))

    def _means(self) -> str:
        compared = []
        for name in ("val_loss", "val_bpb", "pre_quant_val_loss", "pre_quant_val_bpb"):
            figures = [seed.claims.get(name) for seed in self._seeds if seed.claims is not self._submission]
            claimed = self._submission.get(name)
            known = [x for x in figures if isinstance(x, int | float)]
            if claimed is None or not known:
                continue
            if len(known) < len(figures):
                raise Failed(f"{name} is not given for every seed")
            sample = describe(known)
            if not abs(sample.mean - claimed) <= SCORE_ROUNDING:
                raise Failed(f"{name} is claimed to be {claimed}, the seeds' mean is {sample.mean:.8f}")
            compared.append(f"{name} {sample.mean:.6f}" + (f" ± {sample.interval:.6f}" if sample.interval else ""))
        if not compared:
            raise Unknown("submission.json gives no results of single seeds")
        return ", ".join(compared)

    def _significance(self) -> str:
        baseline = self.baseline or self._submission.get("baseline_val_losses", [])
        if not baseline:
            raise Unknown("no baseline is named; give --baseline")
        losses = [seed.claims["val_loss"] for seed in self._seeds if "val_loss" in seed.claims]
        if not losses:
            raise Unknown("no seed's val_loss is given")
        comparison = compare(losses, baseline)
        claimed = self._submission.get("p_value")
        if not self.baseline and claimed is not None:
            recomputed = comparison.p_margin
            if recomputed is None or not math.isclose(claimed, recomputed, rel_tol=1e-3):
                raise Failed(f"p is claimed to be {claimed}, recomputed it is {recomputed}")
        if comparison.holds is None:
            raise Unknown(comparison.sentence())
        if not comparison.holds:
            raise Failed(comparison.sentence())
        return comparison.sentence()

    # --- What the run read ---

    def _trained_on_train(self, seed: SeedFiles) -> str:
        record = _need_record(seed, "train_shards", "val_shards", "train_positions", "train_ids")
        train, val = record["train_shards"], record["val_shards"]
        strange = [name for name in train if not name.startswith("fineweb_train_")]
        if strange or set(train) & set(val):
            raise Failed(f"trained on {', '.join(strange or sorted(set(train) & set(val)))}")
        first, end = record["train_positions"]
        if not 0 <= first < end:
            raise Failed(f"the positions [{first}, {end}) of the stream are none")
        return f"ids [{first:,}, {end:,}) of a stream of {record['train_ids']:,} in {len(train)} train shards"

    def _targets_once(self, seed: SeedFiles) -> str:
        record = _need_record(
            seed, "val_ids", "tokens_scored", "windows", "scoring_seq_len", "scoring_stride", "val_shards"
        )
        targets = record["val_ids"] - 1
        windows = len(Windows(targets, record["scoring_seq_len"], record["scoring_stride"]))
        if (record["tokens_scored"], record["windows"]) != (targets, windows):
            raise Failed(
                f"{record['tokens_scored']:,} scores in {record['windows']:,} windows, where {targets:,} targets make "
                f"{windows:,} windows"
            )
        strange = [name for name in record["val_shards"] if not name.startswith("fineweb_val_")]
        if strange:
            raise Failed(f"scored on {', '.join(strange)}")
        return f"{targets:,} targets in {windows:,} windows"

    def _whole_split(self, seed: SeedFiles) -> str:
        record = _need_record(seed, "val_ids", "scoring_max_tokens")
        if record["scoring_max_tokens"]:
            raise Unknown(f"only the first {record['val_ids']:,} validation ids were to be scored")
        if self.data is None:
            raise Unknown("no data was given; give --data")
        held = sum(len(open_shard(path)) for path in find_shards(self.data, "val"))
        if held != record["val_ids"]:
            raise Failed(f"{record['val_ids']:,} ids were scored, the validation split holds {held:,}")
        return f"all {held:,} validation ids"

    # --- The artifact ---

    def _loads(self, seed: SeedFiles) -> str:
        artifact = _need_artifact(seed)
        try:
            found = self._in_fresh_process("load", artifact)
        except Failed as failed:
            if self._imported.get("ours", True):
                raise
            raise Unknown(f"not a format that this audit reads ({failed})") from failed
        expected = self._imported.get("settings")
        if found["settings"] is not None and expected is not None:
            for name, value in found["settings"].items():
                if name in expected and expected[name] != value:
                    raise Failed(f"{name} is {value} in {artifact.name} and {expected[name]} in the script")
        return f"{found['num_tensors']} tensors, {found['num_values']:,} values, from the file alone, network refused"

    def _scores(self, seed: SeedFiles) -> str:
        artifact = _need_artifact(seed)
        if self.data is None:
            raise Unknown("no data was given; give --data")
        found = self._score(artifact)
        record = seed.record or {}
        if found["tokens_scored"] != record.get("tokens_scored", found["tokens_scored"]):
            raise Unknown(
                f"{found['val_bpb']:.6f} bits per byte on the {found['tokens_scored']:,} targets of this data, where "
                f"the run scored {record['tokens_scored']:,}"
            )
        same = found["precision"] == record.get("precision")
        most = SAME_PRECISION_BPB if same else OTHER_PRECISION_BPB
        claimed = seed.claims.get("val_bpb")
        if claimed is None:
            raise Unknown(f"{found['val_bpb']:.6f} bits per byte, and no claim to compare")
        said = f"{found['val_bpb']:.6f} bits per byte recomputed in {found['precision']}, claimed {claimed:.6f}"
        if not abs(found["val_bpb"] - claimed) <= most:
            raise Failed(said)
        return said

    def _score(self, artifact: Path) -> dict[str, Any]:
        """A ``validate``'s summary, by the submission's own script if it has that command, else by this project."""
        assert self.data is not None
        assert self.tokenizer is not None
        arguments = [
            *("validate", f"--artifact={artifact.name}", "--trainer.default_root_dir=scored"),
            *(f"--data.path={self.data.resolve()}", f"--data.tokenizer_path={self.tokenizer.resolve()}"),
            *("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto", "--model.compile=false"),
        ]
        if not torch.cuda.is_available():
            arguments += ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
        with tempfile.TemporaryDirectory() as scratch:
            if self._imported.get("ours"):
                self._run_fresh(Path(scratch), "run", self._need_script(), artifact, arguments)
            else:
                arguments += self._foreign_settings()
                try:
                    self._run_fresh(Path(scratch), "run", PROJECT / "cli.py", artifact, arguments)
                except Failed as failed:
                    raise Unknown(f"this project's network does not score it ({failed})") from failed
            summary = Path(scratch) / "scored" / "lightning_logs" / "version_0" / SUMMARY_NAME
            found: dict[str, Any] = json.loads(summary.read_text())
        return found

    def _foreign_settings(self) -> list[str]:
        """What a foreign script's hyperparameters say of network and scoring, in this project's words."""
        given = self._imported.get("hyperparameters", {})
        seq_len = given.get("eval_seq_len", given.get("train_seq_len"))
        stride = given.get("eval_stride")
        if seq_len is None or stride is None:
            raise Unknown("the script does not say how it scores (Hyperparameters.train_seq_len and eval_stride)")
        known = {field.name for field in dataclasses.fields(GPTConfig)}
        model = {name: value for name, value in self._imported.get("settings", {}).items() if name in known}
        scoring = {"seq_len": seq_len, "stride": stride}
        return [
            *(f"--model.{name}={value}" for name, value in model.items()),
            *(f"--scoring.{name}={value}" for name, value in scoring.items()),
        ]

    # --- Fresh processes ---

    def _need_script(self) -> Path:
        if self._script is None:
            raise Unknown("there is no script")
        return self._script

    def _in_fresh_process(self, job: str, artifact: Path | None = None) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            words = [] if artifact is None else [artifact.name]
            output = self._run_fresh(Path(scratch), job, self._need_script(), artifact, words, MAX_IMPORT_SECONDS)
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found

    def _run_fresh(
        self,
        scratch: Path,
        job: str,
        script: Path,
        artifact: Path | None,
        words: list[str],
        timeout: float | None = None,
    ) -> str:
        """Run a job on copies of script and artifact in an otherwise empty folder; returns its output."""
        if script.parent != PROJECT:
            script = Path(shutil.copyfile(script, scratch / script.name))
        if artifact is not None:
            shutil.copyfile(artifact, scratch / artifact.name)
        scrubbed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PL_GLOBAL_SEED", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in scrubbed}
        environment["PROJECT"] = str(PROJECT)
        with subprocess.Popen(
            [sys.executable, "-I", str(FRESH_PROCESS), job, str(script), *words],
            cwd=scratch,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            output = _communicate(process, job, timeout)
        if process.returncode:
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            raise Failed(lines[-1] if lines else f"ended with code {process.returncode}")
        return output


def _communicate(process: subprocess.Popen[str], job: str, timeout: float | None) -> str:
    """The output of a process, saying now and then that it still runs."""
    started = time.monotonic()
    while True:
        try:
            return process.communicate(timeout=PROGRESS_SECONDS)[0]
        except subprocess.TimeoutExpired as expired:
            seconds = time.monotonic() - started
            if timeout is not None and seconds > timeout:
                process.kill()
                raise Failed(f"took more than {timeout:.0f} s") from expired
            print(f"... {job}: {seconds:.0f} s", file=sys.stderr, flush=True)


def _wrong(name: str, value: object) -> bool:
    kinds = {**REQUIRED, **OTHERS}.get(name)
    if kinds is None:
        return False
    if kinds in (NUMBER, WHOLE) and (
        isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))
    ):
        return True
    return not isinstance(value, kinds) or (kinds == TEXT and not value)


def _seed_in(path: Path) -> int | None:
    found = re.search(r"seed_?(\d+)", path.name)
    return int(found.group(1)) if found else None


def _only(paths: list[Path]) -> Path | None:
    return paths[0] if len(paths) == 1 else None


def _record(path: Path | None) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text()) if path is not None else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _need_log(seed: SeedFiles) -> TrainLog:
    if seed.log is None:
        raise Unknown("there is no one log of this run")
    return seed.log


def _need_record(seed: SeedFiles, *names: str) -> dict[str, Any]:
    if seed.record is None or not set(names) <= seed.record.keys():
        raise Unknown("the folder has no record of what the run read (run_seed*.json)")
    return seed.record


def _need_artifact(seed: SeedFiles) -> Path:
    if seed.artifact is None:
        raise Unknown("the folder holds no artifact of this run")
    return seed.artifact


def _within(seconds: float | None, most: float) -> str:
    if seconds is None:
        raise Unknown("the log does not say")
    if not seconds <= most:
        raise Failed(f"{seconds:.3f} s of {most:.0f} s")
    return f"{seconds:.3f} s of {most:.0f} s"


def main(arguments: Sequence[str]) -> None:
    """Audit the folder that the command line names, and exit with 1 if a check failed.

    Raises:
        UserError: the folder, the data or the baseline cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m records.audit", description=__doc__)
    parser.add_argument("folder", type=Path, help="the submission")
    parser.add_argument("--data", type=Path, help="folder of validation shards, to score the artifacts on again")
    parser.add_argument("--tokenizer", type=Path, help="their SentencePiece model (default: DATA/tokenizer.model)")
    parser.add_argument(
        "--baseline", nargs="+", default=[], help="what was to be beaten, where the submission does not say it"
    )
    args = parser.parse_args(arguments)
    audit = Audit(
        args.folder, args.data, args.tokenizer, baseline_losses(args.baseline), lambda line: print(line, flush=True)
    )
    states = [verdict.state for verdict in audit.run()]
    counts = {state: states.count(state) for state in State}
    print("\n" + ", ".join(f"{count} {state}" for state, count in counts.items()))
    if counts[State.FAIL]:
        sys.exit(1)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
