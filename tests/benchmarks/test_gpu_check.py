"""The check of a GPU: its parts find what is wrong, and one that fails neither stops the others nor is forgotten."""

import itertools
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.gpu_check import golden, quantizer, training
from benchmarks.gpu_check.__main__ import PARTS, findings_table, main, parts_table
from benchmarks.gpu_check.findings import Finding, Skipped, run_part
from benchmarks.gpu_check.kernels import kind_of, milliseconds_by_kind
from benchmarks.gpu_check.setting import FULL, PREDICTION, SMALL, Setting, Size
from components.errors import UserError
from components.quantization import fake_quantize
from components.storage import Storage
from tests.support import GOLDEN, SAMPLE, needs_compiler, needs_golden, needs_gpu, needs_sample, run

NONE = Path("none")


def setting(size: Size = SMALL, golden: Path | None = None, data: Path | None = None) -> Setting:
    return Setting(size, golden, data, None, NONE)


def test_a_finding_holds_up_to_its_limit() -> None:
    assert Finding("x", 5.0).holds
    assert Finding("x", 5.0, limit=5.0).holds
    assert not Finding("x", 5.1, limit=5.0).holds
    assert not Finding("x", math.nan, limit=5.0).holds


def test_parts_end_passed_failed_or_skipped_and_keep_what_they_found(capsys: pytest.CaptureFixture[str]) -> None:
    def passes(_: object) -> Iterator[Finding]:
        yield Finding("a", 1, limit=1)

    def exceeds(_: object) -> Iterator[Finding]:
        yield Finding("a", 1, limit=1)
        yield Finding("b", 2, limit=1)

    def raises(_: object) -> Iterator[Finding]:
        yield Finding("a", 1)
        raise RuntimeError("no such\nkernel")

    def exits(_: object) -> Iterator[Finding]:
        yield Finding("a", 1)
        sys.exit("error: no data")

    def skips(_: object) -> Iterator[Finding]:
        yield Finding("a", 1)
        raise Skipped("no GPU")

    outcomes = [run_part(part.__name__, part, None) for part in (passes, exceeds, raises, exits, skips)]
    assert [(outcome.status, outcome.reason) for outcome in outcomes] == [
        ("passed", ""),
        ("failed", "over its limit: b"),
        ("failed", "RuntimeError: no such kernel"),
        ("failed", "SystemExit: error: no data"),
        ("skipped", "no GPU"),
    ]
    assert all(outcome.findings[0].name == "a" for outcome in outcomes)
    assert "no such\nkernel" in capsys.readouterr().err
    assert "2" in findings_table(outcomes)
    assert [line.split()[-1] for line in findings_table(outcomes).splitlines() if "exceeds: b" in line] == ["!"]
    assert "SystemExit: error: no data" in parts_table(outcomes)


def test_the_command_goes_on_after_a_failed_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Setting) -> Iterator[Finding]:
        yield Finding("before", 1.5, "ms", predicted=1.25)
        torch.compiler.set_stance("fail_on_recompile")
        raise RuntimeError("out of memory")

    monkeypatch.setitem(PARTS, "quantizer", broken)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # restored: the command sets it
    out = tmp_path / "result.json"
    names = ["quantizer", "golden logits", "Muon"]
    assert main(["--parts", ",".join(names), "--out", str(out)]) == 1
    result = json.loads(out.read_text())
    assert [(part["part"], part["status"]) for part in result["parts"]] == [
        ("quantizer", "failed"),
        ("golden logits", "skipped"),
        ("Muon", "passed"),
    ]
    assert result["parts"][0]["findings"] == [
        {"name": "before", "value": 1.5, "unit": "ms", "predicted": 1.25, "limit": None}
    ]
    assert {"device", "versions", "date", "seconds"} <= result.keys()
    said = capsys.readouterr().out
    assert "1 of 3 parts failed" in said
    assert "give a folder of golden numbers with --golden" in said
    assert main(["--parts", "golden logits", "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "muon"], "'muon'; give some of quantizer,"),
        (["--golden", "nowhere"], "--golden nowhere does not exist"),
    ],
)
def test_errors_come_before_any_part(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_one_wrong_bit_of_rounding_is_found() -> None:
    def off_by_one_bit(weight: Tensor, storage: Storage) -> Tensor:
        seen = fake_quantize(weight, storage).clone()
        seen.view(torch.int32)[-1, -1] ^= 1
        return seen

    def eager(findings: Iterator[Finding]) -> dict[str, Finding]:
        return {finding.name: finding for finding in itertools.islice(findings, 4)}  # before it compiles

    right, wrong = eager(quantizer.rounding(setting())), eager(quantizer.rounding(setting(), off_by_one_bit))
    assert all(finding.holds for finding in right.values())
    [broken] = [finding for finding in wrong.values() if not finding.holds]
    assert broken.name == "weights that late QAT sees otherwise, eager"
    assert broken.value == right["matrices"].value


def test_awkward_matrices_hold_ties_and_zeros() -> None:
    matrix = quantizer.awkward_matrix((64, 80))
    ties = matrix[1] / 0.5 % 1 == 0.5
    assert ties.sum() == 79
    assert matrix[1].abs().max() / 31 == 0.5
    assert not matrix[0].any()


def test_the_exported_file_holds_what_late_qat_saw() -> None:
    outcome = run_part("exported file", quantizer.exported_file, setting())
    assert outcome.status == "passed", outcome.reason
    named = {finding.name: finding for finding in outcome.findings}
    assert named["weights of the file that late QAT saw otherwise"].limit == 0
    assert named["score on the device, bfloat16: off by"].value != 0


@needs_golden
def test_logits_that_are_off_are_found(tmp_path: Path) -> None:
    right = run_part("golden logits", golden.logits, setting(golden=GOLDEN))
    assert right.status == "passed", right.reason
    shutil.copytree(GOLDEN, tmp_path / "golden")
    arrays = dict(np.load(GOLDEN / "forward.npz"))
    arrays["logits_last8"][0, 0, 0] += 0.01
    (tmp_path / "golden" / "forward.npz").chmod(0o644)
    np.savez(tmp_path / "golden" / "forward.npz", **arrays)
    off = run_part("golden logits", golden.logits, setting(golden=tmp_path / "golden"))
    assert (off.status, off.reason) == ("failed", "over its limit: logits, float32: off by")


@pytest.mark.parametrize("part", [golden.logits, golden.trajectory, golden.scores])
def test_golden_parts_are_skipped_without_golden_numbers(part: object) -> None:
    outcome = run_part("golden", part, setting())
    assert (outcome.status, outcome.reason) == ("skipped", "give a folder of golden numbers with --golden")


def test_kernels_are_known_by_name() -> None:
    kinds = {
        "nvjet_tst_192x192_64x4_2x1_v_bz_coopA_NTN": "products",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "products",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x4_tn_align8>": "products",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1_kernel0_0": "attention",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits>": "attention",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
        "triton_per_fused__fused_rms_norm__to_copy__unsafe_view_add_mul_17": "elementwise",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel": "other",
    }
    assert {name: kind_of(name) for name in kinds} == kinds
    times = milliseconds_by_kind([{"name": name, "ms": 1.0} for name in kinds])
    assert times == {"attention": 3.0, "products": 3.0, "elementwise": 1.0, "other": 1.0}


def test_a_prediction_of_one_rank_leaves_out_what_several_exchange() -> None:
    full = setting(FULL)
    predicted = json.loads(PREDICTION.read_text())["predicted_ms"]["train"]
    exchanged = predicted["all_reduce"] + predicted["gather"]
    assert training.predicted_step(full) == pytest.approx(predicted["step"] - exchanged)
    passes = full.predicted_pass("forward"), full.predicted_pass("backward")
    computed = ("products", "attention", "elementwise", "recomputed")
    assert sum(ms for ms in passes if ms is not None) == pytest.approx(sum(predicted[part] for part in computed))
    assert setting(SMALL).predicted("predicted_ms", "train", "step") is None
    assert training.predicted_step(setting(SMALL)) is None


@needs_compiler
@needs_golden
@needs_sample
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the full size: make gpu-check")
def test_the_whole_on_a_cpu(data_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    files = ["--golden", str(GOLDEN), "--data", str(SAMPLE / "datasets" / "fineweb10B_sp1024")]
    files += ["--tokenizer", str(SAMPLE / "tokenizers" / "fineweb_1024_bpe.model"), "--corpus", str(data_folder)]
    ended = run("-m", "benchmarks.gpu_check", *files, "--out", str(out), timeout=1500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts = json.loads(out.read_text())["parts"]
    assert {part["part"]: part["status"] for part in parts} == {
        name: "skipped" if name in ("synchronization", "fused MLP") else "passed" for name in PARTS
    }
    assert all(part["findings"] or "CUDA" in part["reason"] for part in parts)


@needs_gpu
def test_a_wait_for_the_device_is_found() -> None:
    from benchmarks.overhead import watched_synchronizations

    value = torch.ones((), device="cuda")
    with watched_synchronizations() as places:
        value.item()
        value + 1
    assert [place.split(":")[0] for place in places] == [Path(__file__).name]
