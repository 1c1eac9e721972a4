"""Requantizing a fit's weights: the same file as the fit's, other files by other settings, and what is refused."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cli import main as run_cli
from components.artifact import read_artifact
from components.calibration import collect_hessians
from components.gpt import GPT, GPTConfig
from components.gptq import GPTQ
from components.quantization import load_state, store
from components.storage import StorageRule, assign
from components.weights_file import read_weights
from datamodules.fineweb import FineWeb
from records import trade
from records.requantize import main
from records.trade import Choice, draw_trade, trade_table
from tests.support import fit_arguments, summary_of, validate_arguments

# A calibrated fit that fakes nothing and is averaged, in a network narrow enough to be quick: every matrix is int6.
RULES = [
    {"names": "blocks.*.weight", "storage": "int6", "at_most": 0, "qat": False},
    {"names": "*", "storage": "float16", "at_most": 0, "qat": False},
]
EXPORT = {
    "export.storage": str(RULES).replace("'", '"').replace("False", "false"),
    "export.keep_last_k_fp16": 0,
    "export.quantizer": "GPTQ",
    "export.quantizer.calibration_batches": 3,
    "export.quantizer.matrix_sigmas": 8,
}
TRAINED = {
    "model.model_dim": 64,
    "model.num_heads": 2,
    "data.train_batch_tokens": 1024,
    "data.train_seq_len": 64,
}
FIT = {"trainer.max_steps": 6, "warmup.steps": 1, "late_qat.start_fraction": 1, "schedule.warmdown_steps": 4}


@pytest.fixture(scope="module")
def fitted(_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit whose files are requantized."""
    runs = tmp_path_factory.mktemp("fitted") / "runs"
    run_cli(fit_arguments(_corpus, runs, **TRAINED, **EXPORT, **FIT))
    return runs


def logs(runs: Path) -> Path:
    return runs / "lightning_logs" / "version_0"


def checkpoint(runs: Path) -> Path:
    [file] = runs.rglob("*.ckpt")
    return file


Requantize = Callable[..., str]


@pytest.fixture
def requantize(_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Requantize:
    """Run the command with the fit's data and export, and return what it printed."""

    def requantize(*words: Any, data: Path = _corpus, **settings: Any) -> str:
        known = validate_arguments(data, tmp_path / "runs")[1:]
        data_settings = {name: value for name, value in TRAINED.items() if name.startswith("data.")}
        options = [f"--{name}={value}" for name, value in {**data_settings, **EXPORT, **settings}.items()]
        main([*known, "--trainer.enable_progress_bar=false", *options, *map(str, words)])
        return capsys.readouterr().out

    return requantize


@pytest.fixture
def refusal(requantize: Requantize, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Requantize:
    """The one sentence of a command that must fail, before anything is scored, and leave nothing."""

    def refusal(*words: Any, **settings: Any) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as exit:
            requantize(*words, **settings)
        sentence = exit.value.code
        assert isinstance(sentence, str)
        assert sentence.startswith("error: ")
        assert "\n" not in sentence
        assert "bits per byte" not in capsys.readouterr().out
        assert sorted(tmp_path.rglob("*")) == before
        return sentence.removeprefix("error: ")

    return refusal


@pytest.mark.parametrize("source", ["ckpt_path", "weights"])
def test_with_the_fits_settings_it_writes_the_fits_file_and_reports_its_scores(
    source: str, fitted: Path, requantize: Requantize, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "again.golf"
    given = {"ckpt_path": checkpoint(fitted), "weights": logs(fitted) / "model.safetensors"}[source]
    printed = requantize(out=out, **{source: given})
    assert out.read_bytes() == (logs(fitted) / "model.golf").read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["again.golf", "new"]  # and no record of a run
    lines = printed.splitlines()
    score_of = {line[:14].strip(): float(line.split()[-4]) for line in lines if line.endswith("bits per byte")}
    summary = summary_of(fitted)
    assert abs(summary["val_bpb"] - summary["pre_quant_val_bpb"]) > 1e-5  # or the two could be mixed up
    assert score_of["float weights"] == pytest.approx(summary["pre_quant_val_bpb"], abs=2e-6)
    assert score_of["artifact"] == pytest.approx(summary["val_bpb"], abs=2e-6)
    floats = read_weights(logs(fitted) / "model.safetensors").weights
    stored = load_state(read_artifact(out).tensors)
    name = "blocks.1.mlp.fc.weight"
    [row] = [line.split() for line in lines if line.startswith(f"{name} ")]
    assert row[1] == "int6"
    assert 0 < float(row[5]) < 6  # bits per weight, entropy-coded
    error = (stored[name] - floats[name]).norm() / floats[name].norm()
    assert float(row[6]) == pytest.approx(float(error), rel=1e-2)


@pytest.fixture(scope="module")
def tried(fitted: Path, _corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of three files by three values, and the lines printed."""
    folder = tmp_path_factory.mktemp("tried")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        main(
            [
                *validate_arguments(_corpus, folder / "runs", **EXPORT)[1:],
                *(f"--{name}={value}" for name, value in TRAINED.items()),
                "--trainer.enable_progress_bar=false",
                f"--weights={logs(fitted) / 'model.safetensors'}",
                f"--out={folder / 'model.golf'}",
                *("--try", "export.quantizer.matrix_sigmas", "30", "8", "3"),
            ]
        )
    return folder, "\n".join(printed).splitlines()


def test_each_value_gives_the_file_of_its_own_settings(
    tried: tuple[Path, list[str]], fitted: Path, requantize: Requantize, tmp_path: Path
) -> None:
    folder, _ = tried
    assert sorted(path.name for path in folder.iterdir()) == [
        "model-1.golf",
        "model-2.golf",
        "model-3.golf",
        "model.png",
    ]
    assert (folder / "model-2.golf").read_bytes() == (logs(fitted) / "model.golf").read_bytes()
    settings = {"export.quantizer.matrix_sigmas": 3, "weights": logs(fitted) / "model.safetensors"}
    requantize(out=tmp_path / "three.golf", **settings)
    assert (folder / "model-3.golf").read_bytes() == (tmp_path / "three.golf").read_bytes()


def test_the_table_shows_bytes_and_bits_per_byte_of_each_value(
    tried: tuple[Path, list[str]], fitted: Path, data_folder: Path, tmp_path: Path
) -> None:
    folder, lines = tried
    heading = next(i for i, line in enumerate(lines) if line.startswith("value "))
    assert lines[heading - 1] == "export.quantizer.matrix_sigmas"
    rows = [line.split() for line in lines[heading + 1 : heading + 4]]
    assert [row[0] for row in rows] == ["30", "8", "3"]
    assert [int(row[1].replace(",", "")) for row in rows] == [
        (folder / f"model-{i}.golf").stat().st_size for i in (1, 2, 3)
    ]
    sizes = [int(row[1].replace(",", "")) for row in rows]
    assert sizes == sorted(sizes)  # the wider the codes' range, the fewer of them are used
    assert float(rows[1][2]) == pytest.approx(summary_of(fitted)["val_bpb"], abs=2e-6)
    before = summary_of(fitted)["pre_quant_val_bpb"]
    assert lines[heading + 4].split() == ["float", "weights", f"{before:.6f}"]
    for i, row in enumerate(rows):
        run_cli(validate_arguments(data_folder, tmp_path / str(i), artifact=folder / f"model-{i + 1}.golf"))
        assert float(row[2]) == pytest.approx(summary_of(tmp_path / str(i))["val_bpb"], abs=2e-6)
        assert float(row[3]) == pytest.approx(float(row[2]) - before, abs=2e-6)
        assert row[4] == str(folder / f"model-{i + 1}.golf")


def test_a_checkpoint_from_under_late_qat_is_calibrated_and_scored_in_float(
    finished_run: Any, requantize: Requantize, tmp_path: Path
) -> None:
    faked = {"export.storage": str(EXPORT["export.storage"]).replace("false", "true", 1)}
    printed = requantize(ckpt_path=finished_run.checkpoint, out=tmp_path / "again.golf", **faked)
    scored = float(re.search(r"float weights +([\d.]+)", printed)[1])
    assert scored == pytest.approx(summary_of(finished_run.folder)["pre_quant_val_bpb"], abs=1e-5)
    found = read_weights(finished_run.logs / "model.safetensors")
    network = GPT(GPTConfig(**found.settings))
    network.load_state_dict(found.weights)
    quantizer = GPTQ(matrix_sigmas=8)
    batches = finished_run.cli.datamodule.calibration_batches(3)
    quantizer.hessians = collect_hessians(network, (ids[:2] for ids in batches))
    storages = {n: r.kind for n, r in assign(network.shapes(), [StorageRule(**rule) for rule in RULES]).items()}
    expected = store(dict(network.named_parameters()), storages, quantizer)
    for name, tensor in read_artifact(tmp_path / "again.golf").tensors.items():
        assert torch.equal(tensor.values, expected[name].values), name


@pytest.mark.parametrize(
    ("tried_setting", "batches"),
    [("export.quantizer.table_sigmas", [3]), ("export.quantizer.calibration_batches", [3, 2])],
)
def test_it_calibrates_again_only_for_another_number_of_batches(
    tried_setting: str,
    batches: list[int],
    fitted: Path,
    requantize: Requantize,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    real = FineWeb.calibration_batches

    def calibration_batches(data: FineWeb, num_batches: int) -> Iterator[torch.Tensor]:
        asked.append(num_batches)
        return real(data, num_batches)

    monkeypatch.setattr(FineWeb, "calibration_batches", calibration_batches)
    weights = logs(fitted) / "model.safetensors"
    requantize("--try", tried_setting, "3", "2", out=tmp_path / "model.golf", weights=weights)
    assert asked == batches


# What is refused


def test_float_weights_are_given_once(fitted: Path, refusal: Requantize, tmp_path: Path) -> None:
    weights = logs(fitted) / "model.safetensors"
    out = tmp_path / "again.golf"
    assert refusal(out=out) == "There is nothing to quantize; give float weights with --ckpt_path or --weights."
    both = refusal(out=out, weights=weights, ckpt_path=checkpoint(fitted))
    assert both == "--weights and --ckpt_path both name weights to score; give one of them."
    assert refusal(weights=weights) == "There is no file to write; name a new .golf file with --out."
    rounded = logs(fitted) / "model.golf"
    assert refusal(out=out, artifact=rounded).startswith(f"{rounded} holds weights that are rounded already; give ")


@pytest.mark.parametrize("source", ["ckpt_path", "weights"])
def test_weights_that_are_not_there(source: str, refusal: Requantize, tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(out=tmp_path / "again.golf", **{source: tmp_path / "none"})


def test_weights_of_other_shapes(fitted: Path, refusal: Requantize, tmp_path: Path) -> None:
    file = tmp_path / "foreign.safetensors"
    save_file(read_weights(logs(fitted) / "model.safetensors").weights, file)  # without the network's settings
    network = {"model.num_layers": 2, "model.model_dim": 128, "model.bigram_vocab_size": 64, "model.bigram_dim": 16}
    sentence = refusal(out=tmp_path / "again.golf", weights=file, **network)
    assert sentence.startswith(f"{file} holds the weights of another network: ")


@pytest.mark.parametrize("taken", ["model.golf", "model-2.golf", "model.png"])
def test_nothing_is_overwritten(taken: str, fitted: Path, refusal: Requantize, tmp_path: Path) -> None:
    (tmp_path / taken).write_text("precious")
    values = () if taken == "model.golf" else ("--try", "export.quantizer.matrix_sigmas", "3", "8")
    sentence = refusal(*values, out=tmp_path / "model.golf", weights=logs(fitted) / "model.safetensors")
    assert sentence == f"{tmp_path / taken} exists already; remove it or choose another --out."


def test_another_suffix(fitted: Path, refusal: Requantize, tmp_path: Path) -> None:
    sentence = refusal(out=tmp_path / "model.png", weights=logs(fitted) / "model.safetensors")
    assert sentence == f"--out is {tmp_path / 'model.png'}; give it a name that ends in .golf."


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["model.num_layers", "2", "3"],
            "--try model.num_layers is not a setting of the export section; give one such",
        ),
        (["export.quantizer"], "--try export.quantizer has 0 values; give two or more, each once."),
        (["export.quantizer", "GPTQ"], "--try export.quantizer has 1 values; give two or more, each once."),
        (["export.quantizer", "GPTQ", "GPTQ"], "--try export.quantizer has 2 values; give two or more, each once."),
        (["export.quantizer", "--try", "export.quantizer", "GPTQ", "Nearest"], "--try is given twice; compare the"),
        (["export.keep_last_k_fp16", "0", "3"], "export.keep_last_k_fp16 is 3 and the network has 2 blocks; set it"),
        (["export.quantizer.calibration_batches", "0", "3"], "export.quantizer.calibration_batches is 0, and GPTQ"),
    ],
)
def test_values_that_cannot_be_tried(
    words: list[str], sentence: str, fitted: Path, refusal: Requantize, tmp_path: Path
) -> None:
    weights = logs(fitted) / "model.safetensors"
    assert refusal("--try", *words, out=tmp_path / "again.golf", weights=weights).startswith(sentence)


def test_what_calibration_needs(fitted: Path, refusal: Requantize, data_folder: Path, tmp_path: Path) -> None:
    given = {"out": tmp_path / "again.golf", "weights": logs(fitted) / "model.safetensors"}
    sentence = refusal(**given, **{"export.quantizer.calibration_batches": 0})
    assert sentence.startswith("export.quantizer.calibration_batches is 0, and GPTQ cannot round without calibration")
    for shard in data_folder.glob("fineweb_train_*.bin"):
        shard.unlink()
    assert refusal(**given, data=data_folder).startswith(f"no train shards (fineweb_train_*.bin) in {data_folder}")


def test_a_storage_rule_without_a_weight(fitted: Path, refusal: Requantize, tmp_path: Path) -> None:
    given = {"out": tmp_path / "again.golf", "weights": logs(fitted) / "model.safetensors"}
    sentence = refusal(**given, **{"export.storage+": '{"names": "nonsense", "storage": "int6"}'})
    assert sentence.startswith("The storage rule for nonsense matches no weight of this network; correct or remove it")


# The trade


CHOICES = [Choice("2", Path("a-1.golf"), 3_000, 1.5), Choice("a" * 40, Path("a-2.golf"), 1_000, 2.0)]


def test_the_table_by_hand() -> None:
    assert trade_table("export.some", CHOICES, 1.25).splitlines() == [
        "export.some",
        f"{'value':<32}       bytes  bits per byte  over float  file",
        f"{'2':<32}       3,000       1.500000   +0.250000  a-1.golf",
        f"{'a' * 29}...       1,000       2.000000   +0.750000  a-2.golf",
        f"{'float weights':<32}                   1.250000",
    ]


@pytest.mark.parametrize(("cap", "shown"), [(3_300, True), (3_400, False)])
def test_the_picture_shows_each_value_the_floats_and_a_cap_that_is_near(
    cap: int, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    real = trade.Figure.savefig

    def savefig(figure: Any, *words: Any, **settings: Any) -> None:
        drawn.append(figure)
        real(figure, *words, **settings)

    monkeypatch.setattr(trade, "MAX_BYTES", cap)
    monkeypatch.setattr(trade.Figure, "savefig", savefig)
    draw_trade("export.some", CHOICES, 1.25, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    [axes] = drawn[0].axes
    assert axes.get_title() == "export.some"
    curve, floats, *caps = axes.lines
    assert curve.get_xydata().tolist() == [[1_000, 2.0], [3_000, 1.5]]
    assert [(text.get_text(), *text.xy) for text in axes.texts] == [("a" * 29 + "...", 1_000, 2.0), ("2", 3_000, 1.5)]
    assert floats.get_ydata()[0] == 1.25
    assert [line.get_xdata()[0] for line in caps] == ([cap] if shown else [])
