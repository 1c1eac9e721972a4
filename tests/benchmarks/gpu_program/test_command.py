"""The command: its errors, its comparison, and the whole of it where a CUDA build of torch is at hand."""

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_program.__main__ import main, measure, parse, show
from benchmarks.gpu_program.captured import check_build
from benchmarks.gpu_program.report import PARTS, as_json, comparison
from benchmarks.gpu_program.workload import Workload
from components.errors import UserError
from docs.step import PARTS as DRAWN
from docs.step import draw_steps, runs_table
from docs.step import main as draw
from tests.support import CUDA_PYTHON, ROOT, run

SAMPLE = (Path(__file__).parent / "sample.txt").read_text()
SMALL = """
trainer: {devices: 1}
model: {num_layers: 1, model_dim: 256, num_heads: 4, num_kv_heads: 2, bigram_vocab_size: 0}
data: {train_batch_tokens: 1024, train_micro_batches: 1, train_seq_len: 256}
scoring: {seq_len: 256, windows_per_batch: 4}
"""

needs_cuda_build = pytest.mark.skipif(
    not CUDA_PYTHON.exists(),
    reason="no CUDA build of torch: make gpu-program installs one, or GPU_PROGRAM_PYTHON names its Python",
)
cpu_build = pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has CUDA")


@cpu_build
def test_a_cpu_build_is_told_what_to_run() -> None:
    ended = run("-m", "benchmarks.gpu_program")
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: torch ")
    assert "make gpu-program" in line
    with pytest.raises(UserError, match="without CUDA"):
        check_build()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passes", "train,test"], "'test'; give some of train,loop,qat,val,score,ttt"),
        (["--passes", "train,ttt"], "record_10l does not train on what it scores; leave ttt out of --passes"),
        (["--against", "run.json"], "run.json is no result of benchmarks.gpu_program"),
        (["--against", "old.json"], "old.json is from another version of benchmarks.gpu_program"),
    ],
)
def test_errors_come_before_compilation(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.json").write_text('{"passes": {}}')
    Path("old.json").write_text('{"predicted_ms": {}}')
    with pytest.raises(UserError, match=re.escape(message)):
        main(arguments)


def result() -> dict[str, Any]:
    """A result of the kept sample."""
    call = {"name": "extern_kernels.mm", "inputs": [[98_304, 512], [512, 1536]], "bytes": 404_226_048}
    program = {"code": SAMPLE, "externs": [call] * 10}
    update = {"name": "aten.add", "calls": 5, "launches": 5, "bytes": 0, "operations": 0, "gathered": 0}
    capture = {
        "passes": {"train": {"forward": program, "backward": program}, "score": {"forward": program}},
        "instructions": {},
        "updates": {"train": [update]},
        "versions": {},
    }
    args = parse([])
    return measure(args, Workload(args.config), capture)


def test_a_result_says_what_the_program_is(capsys: pytest.CaptureFixture[str]) -> None:
    whole = result()
    forward = whole["passes"]["train"]["forward"]
    assert (forward["launches"], forward["kernels"], forward["products"]) == (3, 2, 10)
    assert forward["launches_with_trigonometry"] == 2
    assert forward["gigabytes"] == pytest.approx((2 * 204_472_352 + 305_668_100) / 1e9, rel=1e-3)
    assert forward["ms"]["products_at_ceiling"] == pytest.approx(10 * 0.196, rel=0.01)  # 155 GFLOP at 790 TFLOP/s
    text = as_json(whole)
    assert json.loads(text) == whole
    assert max(len(line) for line in text.splitlines()) < 500
    assert sum('"launches": 2' in line and '"name": "triton_poi' in line for line in text.splitlines()) == 3
    show(whole)
    text = capsys.readouterr().out
    assert "all times are predictions" in text
    assert all(label in text for label in PARTS.values())


def test_a_comparison_lists_what_both_results_have() -> None:
    before, after = result(), copy.deepcopy(result())
    forward = after["passes"]["train"]["forward"]
    forward["launches"] -= 2
    after["predicted_ms"]["train"]["step"] += 1.5
    del before["passes"]["score"], before["predicted_windows_per_second"]["score"]
    lines = [line.split() for line in comparison(before, after).splitlines()]
    assert ["train", "forward,", "launches", "3", "1", "-2"] in lines
    assert ["train", "backward,", "launches", "3", "3", "+0"] in lines
    [step] = [line for line in lines if line[-4:-3] == ["step"]]
    assert step[-1] == "+1.5"
    assert not [line for line in lines if line and line[0].startswith("score")]


def test_the_chart_draws_every_part_of_a_step_once() -> None:
    assert sorted(name for names, _, _ in DRAWN.values() for name in names) == sorted(PARTS)
    drawn = draw_steps([result()]).decode()
    assert drawn.startswith("<?xml")
    assert drawn == draw_steps([result()]).decode()


def test_the_table_of_runs_has_what_is_known() -> None:
    whole = result()
    whole["predicted_ms"] = {name: {"step": step} for name, step in (("loop", 70.04), ("ttt", 9.0), ("train", 50.0))}
    whole["predicted_windows_per_second"] = {"score": 2345.6}
    whole["predicted_run"] = {"scoring_seconds": 59.9}
    assert runs_table([whole]).splitlines()[-1] == "| `record_10l` | 50.0, 70.0 |  | 2,346 | 60 |"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predicted_ms": {"ttt": {"step": 9.0}}}, "holds no training step"),
        ({"version": 1}, "is from another version of benchmarks.gpu_program"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps({**result(), **changes}))
    with pytest.raises(UserError, match=message):
        draw([str(file), "--out", str(tmp_path)])
    assert not (tmp_path / "step.svg").exists()


def written(folder: Path, overlay: str, passes: str) -> str:
    """What the command writes for the record with an overlay."""
    (folder / "small.yaml").write_text(overlay)
    out = folder / "result.json"
    files = ["--config", str(ROOT / "configs" / "record_10l.yaml"), str(folder / "small.yaml")]
    ended = subprocess.run(
        [CUDA_PYTHON, "-m", "benchmarks.gpu_program", *files, "--passes", passes, "--sass", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return out.read_text()


@needs_cuda_build
@pytest.mark.slow
def test_the_whole(tmp_path: Path) -> None:
    text = written(tmp_path, SMALL, "train,qat,score")
    passes = json.loads(text)["passes"]
    assert {name: set(parts) for name, parts in passes.items()} == {
        "train": {"forward", "backward"},
        "qat": {"forward", "backward"},
        "score": {"forward"},
    }
    for parts in passes.values():
        for program in parts.values():
            assert program["launches"] >= program["kernels"] > 0
            assert program["attention_calls"] == 1
            assert all(kernel["bytes"] > 0 for kernel in program["by_kernel"])
            assert all(kernel["instructions"]["all"] > 0 for kernel in program["by_kernel"])
    forward, backward = passes["train"].values()
    assert backward["products"] == 2 * forward["products"]  # each product has two factors
    assert passes["qat"]["forward"]["launches_with_float64"] > forward["launches_with_float64"] == 0
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


@needs_cuda_build
@pytest.mark.slow
def test_a_fused_mlp_is_products_and_no_kernel_of_the_compiler_s(tmp_path: Path) -> None:
    fused = SMALL.replace("model: {", "model: {fused_mlp: true, ")
    passes = json.loads(written(tmp_path, fused, "train,score"))["passes"]
    # A layer's joint product, its projection and its MLP's two; the head. Each has two factors to go back to.
    assert {part: p["products"] for part, p in passes["train"].items()} == {"forward": 5, "backward": 10}
    assert passes["score"]["forward"]["products"] == 6  # the last layer's queries are apart
    kernels = [kernel["name"] for parts in passes.values() for p in parts.values() for kernel in p["by_kernel"]]
    assert all(name.startswith("triton_") and "relu" not in name for name in kernels)
