"""Each line of the audit on a sound submission, and failing on a copy of it with one thing wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from components.artifact import read_artifact, write_artifact
from components.byte_counts import token_byte_table
from components.gpt import GPT, GPTConfig
from components.public_artifact import write_public_artifact
from components.quantization import load_state
from components.scoring import WindowLoader
from components.test_time_training import ScoreFirstTraining
from components.tokenizer import load_tokenizer
from datamodules.shards import open_shard
from records.audit.checks import judge
from records.audit.figure_checks import significance
from records.audit.verdicts import Failed, State, Word
from tests.records.audit.support import (
    CHECKS,
    IDS,
    SCRIPT,
    SCRIPT_PARAMS,
    SEQ_LEN,
    Edit,
    NoBox,
    all_of,
    case_of,
    edit_json,
    edit_log,
    edit_result,
    edit_text,
    remove,
    verdict_of,
)
from tests.support import GOLDEN, SAMPLE, needs_golden, needs_sample, write_shard

SCRIPTS_OWN = {"script imports", "network", "initial loss", "script's own score"}


def damage(folder: Path) -> None:
    path = folder / "model_seed42.golf"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_submission(text: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / "submission.json").write_text(text)

    return edit


def grow(folder: Path) -> None:
    """An artifact over the cap, and claims that own up to it."""
    (folder / "model_seed42.golf").write_bytes(bytes(15_999_900))
    edit_result(bytes_model=15_999_900, bytes_total=15_999_900 + len(SCRIPT))(folder)


def log_more_bytes(folder: Path) -> None:
    edit_log("exported", "exported 15999900 bytes, with code 200 bytes 16000100 bytes")(folder)


def add_a_helper(folder: Path) -> None:
    (folder / "helper.py").write_text("x = 1\n")
    edit_text("train_gpt.py", "import torch\n", "import torch\nimport helper\n")(folder)


def add_a_log(folder: Path) -> None:
    (folder / "train_seed7.log").write_text("stopped at step 10, elapsed 5.000 s\n")


def call_out(folder: Path) -> None:
    edit_text("train_gpt.py", "import torch\n", "__import__('socket').create_connection(('192.0.2.1', 80))\n")(folder)


TRAINING = "components.test_time_training.ScoreFirstTraining"
TRAINED = {
    **{"chunk_tokens": 256, "epochs": 2, "lr": 0.01, "momentum": 0.9, "batch_seqs": 2},
    "trained": [[0, 256, 256], [256, 512, 512]],
}
"""What a record of 699 targets in three chunks says."""


def train_at_test_time(**changed: object) -> Edit:
    """A record of test-time training with one thing changed."""
    return edit_json("run_seed42.json", scorer=TRAINING, test_time_training={**TRAINED, **changed})


def script_that_trains(**settings: object) -> Edit:
    """A script of this project's whose CONFIG trains at test time with these settings."""
    config = {"scorer": {"class_path": TRAINING, "init_args": settings}}

    def edit(folder: Path) -> None:
        text = f"CONFIG = {json.dumps(config)!r}\nREADABLE = {{}}\nREADABLE['a.py'] = ''\n"
        (folder / "train_gpt.py").write_text(text)

    return edit


def describe(**settings: object) -> Edit:
    """Settings in the artifact, other than those of CONFIG in a script of this project's."""

    def edit(folder: Path) -> None:
        path = folder / "model_seed42.golf"
        artifact = read_artifact(path)
        assert artifact.settings is not None
        write_artifact(path, {**artifact.settings, **settings}, artifact.tensors)
        text = "CONFIG = 'model: {logit_softcap: 30.0}'\nREADABLE = {}\nREADABLE['a.py'] = ''\n"
        (folder / "train_gpt.py").write_text(text)

    return edit


SPOILED = [
    ("files", remove("README.md"), "missing: README.md"),
    ("files", remove("train_gpt.py"), "missing: train_gpt.py"),
    ("files", remove("train_seed42.log"), "missing: a training log"),
    ("files", lambda folder: (folder / "model_seed7.golf").symlink_to("/dev/zero"), "model_seed7.golf is a link"),
    ("submission.json", edit_json("submission.json", bytes_total="12"), "bytes_total is '12'"),
    ("submission.json", edit_json("submission.json", val_bpb=float("nan")), "val_bpb is nan"),
    ("submission.json", edit_json("submission.json", val_bpb=None), "val_bpb is missing"),
    ("submission.json", replace_submission("{"), "cannot be read as JSON"),
    ("submission.json", replace_submission("[" * 100_000), "nested too deeply"),
    ("submission.json", replace_submission("[]"), "holds no JSON object"),
    ("submission.json", remove("submission.json"), "there is no submission.json"),
    ("code bytes", add_a_helper, "train_gpt.py, helper.py), submission.json says"),
    ("total bytes", grow, "of 16,000,000 bytes"),
    ("total bytes", edit_result(bytes_total=1), "bytes_total is claimed to be 1"),
    ("total bytes", edit_result(bytes_model=1), "bytes_model is claimed to be 1"),
    ("artifact loads", damage, "is damaged"),
    ("artifact loads", edit_log("", "7 parameters, 8 ranks on cuda"), "but the log says 7"),
    ("artifact loads", edit_json("submission.json", num_params=7), "but submission.json says 7"),
    ("artifact loads", describe(logit_softcap=20.0), "logit_softcap is 20.0 in model_seed42.golf and 30.0"),
    pytest.param(
        "artifact loads", describe(num_layers=1), "holds the weights of another network", marks=pytest.mark.slow
    ),
    ("score recomputed", damage, "is damaged"),
    ("logged bytes", log_more_bytes, "16,000,100 of 16,000,000 bytes"),
    ("logged bytes", edit_result(bytes_total=16_000_001), "16,000,001 are claimed"),
    ("training seconds", edit_log("stopped", "stopped at step 6000, elapsed 600.300 s"), "3.0 mean steps of 0.100 s"),
    ("training seconds", edit_log("stopped", "stopped at step 3, elapsed 607.000 s"), "over by 7.000 s"),
    ("scoring seconds", edit_text("train_seed42.log", "in 70.287 s", "in 600.5 s"), "600.500 s of 600 s"),
    ("claims = log", edit_result(val_loss=1.0), "val_loss is claimed to be 1.0, the run's record says"),
    ("claims = log", all_of(remove("run_seed42.json"), edit_result(val_loss=1.0)), "claimed to be 1.0, the log says"),
    ("claims = log", all_of(remove("run_seed42.json"), edit_result(eval_time_seconds=60)), "claimed to be 60, the log"),
    ("claims = log", edit_json("run_seed42.json", step_stop=11), "the run's record says 11"),
    ("claims = log", edit_json("run_seed42.json", step_stop="\x1b[2J"), "the run's record says '\\x1b[2J'"),
    (
        "trained on train",
        edit_json("run_seed42.json", train_shards=["fineweb_val_000000.bin"]),
        "trained on fineweb_val",
    ),
    ("trained on train", edit_json("run_seed42.json", train_positions=[5, 5]), "positions"),
    ("trained on train", edit_json("run_seed42.json", train_positions="x"), "train_positions in the run's record"),
    ("each target once", edit_json("run_seed42.json", tokens_scored=3000), "3,000 scores in"),
    ("each target once", edit_json("run_seed42.json", windows=200), "in 200 windows, where"),
    ("each target once", edit_json("run_seed42.json", windows="x"), "windows in the run's record"),
    ("each target once", edit_json("run_seed42.json", scoring_stride=0), "make no windows"),
    ("each target once", edit_json("run_seed42.json", val_shards=["fineweb_train_1.bin"]), "scored on fineweb_train_1"),
    ("whole split", edit_json("run_seed42.json", val_ids=600), "600 ids were scored"),
    (
        "score before update",
        train_at_test_time(trained=[[0, 256, 256], [256, 512, 511]]),
        "trained on the targets [256, 512) once those before 511 were scored",
    ),
    ("score before update", train_at_test_time(trained=[[5, 5, 256], [256, 512, 512]]), "[5, 5) of 699, which are"),
    ("score before update", train_at_test_time(trained=[[0, 256, 256], [512, 768, 768]]), "[512, 768) of 699, which"),
    ("score before update", train_at_test_time(trained=[[0, 256, 700], [256, 512, 768]]), "those before 700 were"),
    (
        "score before update",
        train_at_test_time(trained=[[256, 512, 512], [0, 256, 512]]),
        "[0, 256) after those up to 512",
    ),
    (
        "score before update",
        train_at_test_time(trained=[[0, 256, 256], [128, 256, 512]]),
        "[128, 256) after those up to 256",
    ),
    (
        "score before update",
        train_at_test_time(trained=[[0, 256, 256]]),
        "trained 1 times, where 699 targets in chunks",
    ),
    ("score before update", train_at_test_time(epochs=0), "trained 2 times, where 699 targets in chunks of 256 make 0"),
    ("score before update", train_at_test_time(trained=[[0, 256]]), "is not what it should be"),
    ("score before update", train_at_test_time(trained=None), "is not what it should be"),
    ("score before update", train_at_test_time(chunk_tokens=63, trained=[]), "chunks of 63 targets hold no sequence"),
    ("score before update", train_at_test_time(chunk_tokens=0), "chunks of 0 targets hold no sequence of 64"),
    ("score before update", train_at_test_time(lr="fast"), "is fast, which it cannot be"),
    ("score before update", edit_json("run_seed42.json", scorer=TRAINING), "does not say what it trained on"),
    (
        "score before update",
        all_of(edit_json("run_seed42.json", scorer=None), script_that_trains(**TRAINED)),
        "does not say what it trained on",
    ),
    ("score before update", edit_json("run_seed42.json", test_time_training=TRAINED), "SlidingWindows scored it, and"),
    ("score before update", script_that_trains(), "SlidingWindows in the run's record and components.test_time"),
    (
        "score before update",
        all_of(train_at_test_time(), script_that_trains(epochs=3)),
        "epochs is 2 in the run's record and 3 in the script",
    ),
    (
        "recorded scoring seconds",
        all_of(
            edit_json("run_seed42.json", eval_time_seconds=600.5),
            edit_text("train_seed42.log", "in 70.287 s", "in 600.500 s"),
        ),
        "600.500 s of 600 s",
    ),
    ("recorded scoring seconds", edit_json("run_seed42.json", eval_time_seconds=60.0), "but the log says 70.287 s"),
    ("recorded scoring seconds", edit_json("run_seed42.json", eval_time_seconds="x"), "is not what it should be"),
    ("score recomputed", train_at_test_time(), "bits per byte recomputed in 32-true, claimed"),  # it was not claimed
    ("seeds", edit_json("submission.json", seeds=[42, 42]), "seeds [42, 42]"),
    ("seeds", edit_json("submission.json", seeds=[7, 42]), "seeds [7, 42], results of [42]"),
    ("seeds", add_a_log, "logs of [7, 42]"),
    ("means", edit_json("submission.json", val_bpb=1.1), "val_bpb is claimed to be 1.1, the seeds' mean is"),
    (
        "means",
        edit_json("submission.json", seed_results={"42": {"val_bpb": 1.5}, "7": {}}, val_bpb=1.5),
        "val_bpb is not given for every seed",
    ),
    ("significance", edit_json("submission.json", baseline_val_losses=[1.4, 1.41, 1.42]), "worse"),
    (
        "significance",
        edit_json("submission.json", baseline_val_losses=[9e3, 9e3], p_value=1e-9),
        "p is claimed to be 1e-09",
    ),
    ("script compiles", edit_text("train_gpt.py", "import torch", "import torch !"), "line 1: invalid syntax"),
    ("script imports", edit_text("train_gpt.py", "import torch\n", "import json.nothing\n"), "No module named"),
    ("script imports", call_out, "the audit refuses the network"),
    ("script imports", edit_text("train_gpt.py", "import torch\n", "raise ValueError('no')\n"), "ValueError: no"),
    ("script imports", edit_text("train_gpt.py", "import torch\n", "import os\nos._exit(0)\n"), "without a report"),
    ("network", edit_log("", f"{SCRIPT_PARAMS - 1} parameters, 8 ranks on cuda"), "the log of seed 42 says 65,535"),
    ("network", edit_json("submission.json", num_params=7), "submission.json says 7"),
    (
        "initial loss",
        edit_text("train_gpt.py", "std=0.005", "std=1.0"),
        "before any training, guessing evenly is 6.9315",
    ),
]


@pytest.mark.parametrize(("line", "spoil", "detail"), SPOILED)
def test_each_line_fails_where_something_is_wrong(
    line: str, spoil: Edit, detail: str, folder: Path, data: Path
) -> None:
    spoil(folder)
    verdict = verdict_of(line, folder, data)
    assert verdict.state == State.FAIL, verdict
    assert detail in verdict.detail


def test_there_is_no_line_without_a_test_in_which_it_fails() -> None:
    never = {name for name in CHECKS if name.startswith("look: ")} | {"script's own score"}  # in tests of their own
    assert {parameters[0] for parameters in map(_values, SPOILED)} == CHECKS.keys() - never


def _values(parameters: object) -> tuple:
    return getattr(parameters, "values", parameters)


def forget_sizes(folder: Path) -> None:
    edit_log("exported", "nothing")(folder)


def name_a_folder(folder: Path) -> None:
    """A better score than the log's, whose own log is elsewhere, as one accepted record says."""
    edit_json("submission.json", notes="scored again later; logs in ttt_later/")(folder)
    edit_result(val_bpb=1.0)(folder)
    (folder / "run_seed42.json").unlink()


def compressed_later(folder: Path) -> None:
    """A log over the cap with the script that ran, and a folder that lacks the smaller one."""
    edit_log("exported", "exported 15976275 bytes, with code 78688 bytes 16054963 bytes")(folder)
    (folder / "train_gpt.py").unlink()


@pytest.mark.parametrize(
    ("line", "spoil", "detail"),
    [
        ("code bytes", remove("train_gpt.py"), "there is no script"),
        ("total bytes", remove("model_seed42.golf"), "no artifact of this run to count"),
        ("artifact loads", remove("model_seed42.golf"), "holds no artifact"),
        ("logged bytes", forget_sizes, "gives no total"),
        ("logged bytes", edit_result(bytes_total=5), "where 5 are claimed; both are under the cap"),
        ("logged bytes", compressed_later, "there is no script here that may be smaller"),
        ("training seconds", edit_log("stopped", "stopped"), "the log does not say"),
        ("training seconds", edit_json("submission.json", hardware="1 x H100"), "on 1 x H100, where the limit"),
        ("training seconds", edit_json("submission.json", track="track_non_record_16mb"), "the track track_non_record"),
        ("training seconds", edit_text("train_seed42.log", "8 ranks on cuda", "2 ranks on cuda"), "on 2 x GPU"),
        ("training seconds", edit_text("train_seed42.log", "8 ranks on cuda", "8 ranks on cpu"), "on CPUs"),
        ("scoring seconds", edit_text("train_seed42.log", "8 ranks on cuda", "2 ranks on cuda"), "on 2 x GPU"),
        ("scoring seconds", edit_log("artifact", "artifact"), "the log does not say"),
        (
            "claims = log",
            edit_json("submission.json", seed_results={"42": {"artifact_bytes": 1}}),
            "no figure in common",
        ),
        ("claims = log", name_a_folder, "submission.json names ttt_later/, which is not here"),
        ("claims = log", all_of(remove("run_seed42.json"), edit_result(step_stop=5999)), "steps is claimed to be 5999"),
        ("claims = log", all_of(remove("run_seed42.json"), edit_result(num_params=5)), "the log is of another network"),
        ("trained on train", remove("run_seed42.json"), "no record of what the run read"),
        ("trained on train", edit_json("run_seed42.json", train_ids=None), "the run's record does not give train_ids"),
        ("score before update", remove("run_seed42.json"), "no record of what the run read"),
        (
            "score before update",
            edit_json("run_seed42.json", scorer=None),
            "neither the run's record nor the script says",
        ),
        ("score before update", edit_json("run_seed42.json", scorer="other.Scorer"), "other.Scorer, which this audit"),
        (
            "recorded scoring seconds",
            edit_json("run_seed42.json", eval_time_seconds=None),
            "not give eval_time_seconds",
        ),
        (
            "recorded scoring seconds",
            edit_text("train_seed42.log", "8 ranks on cuda", "8 ranks on cpu"),
            "70.287 s of 600 s, on CPUs",
        ),
        ("whole split", edit_json("run_seed42.json", scoring_max_tokens=600), f"only the first {IDS} validation ids"),
        ("seeds", edit_json("submission.json", seeds=None, seed_results=None), "lists no seeds"),
        ("seeds", edit_json("submission.json", seeds=[7, 42], seed_results=None), "there is no log of 7"),
        ("means", edit_json("submission.json", seed_results=None), "no results of single seeds"),
        ("means", edit_json("submission.json", val_bpb=99.5), "val_bpb is claimed to be 99.5"),  # worse than the seeds
        ("significance", lambda folder: None, "no baseline is named"),
        ("significance", edit_json("submission.json", baseline_val_losses=[99.5]), "one seed"),
        ("script compiles", edit_text("train_gpt.py", "import torch\n", 'x = f"{"a"}"\n'), "Python 3.12 may"),
        ("script imports", edit_text("train_gpt.py", "import torch\n", 'x = f"{"a"}"\n'), "Python 3.12 may"),
        (
            "script imports",
            edit_text("train_gpt.py", "import torch\n", "import no_such_kernels\n"),
            "install it and audit",
        ),
        (
            "script imports",
            edit_text("train_gpt.py", "import torch\n", "raise RuntimeError('no CUDA device')\n"),
            "needs a GPU, and this machine has none",
        ),
        ("network", edit_text("train_gpt.py", "class GPT", "class Net"), "no classes GPT and Hyperparameters"),
        ("initial loss", edit_text("train_gpt.py", "target_ids):", "target_ids, more):"), "missing 1 required"),
    ],
)
def test_what_could_not_be_checked_is_said(line: str, spoil: Edit, detail: str, folder: Path) -> None:
    spoil(folder)
    verdict = verdict_of(line, folder)
    assert verdict.state == State.UNKNOWN, verdict
    assert detail in verdict.detail


@pytest.mark.parametrize(
    ("line", "spoil", "detail"),
    [
        ("submission.json", edit_json("submission.json", author=None, name=None), "not given: author, name"),
        ("training seconds", edit_log("stopped", "stopped at step 6000, elapsed 600.080 s"), "first step that ended"),
        ("claims = log", edit_result(val_bpb=None, eval_time_seconds=None), "steps, train_seconds, val_loss"),
        ("code bytes", edit_json("submission.json", bytes_code=None), "not claimed"),
        ("score before update", lambda folder: None, "the scorer trains on nothing"),
        ("score before update", train_at_test_time(), "trained 2 times, on 512 of 699 targets"),
        (
            "score before update",  # the script says so too; sequences that fill a chunk but for its last targets
            all_of(train_at_test_time(trained=[[0, 192, 256], [256, 448, 512]]), script_that_trains(epochs=2, lr=0.01)),
            "trained 2 times, on 384 of 699 targets",
        ),
        ("score before update", train_at_test_time(epochs=0, trained=[]), "trained 0 times"),
        (
            "code bytes",
            lambda folder: (folder / "unused.py").write_text("x = 1\n"),
            f"{len(SCRIPT):,} bytes (train_gpt",
        ),
        (
            "logged bytes",  # with the script that ran over the cap, with the compressed one that is handed in under it
            all_of(
                edit_log("exported", "exported 15976275 bytes, with code 78688 bytes 16054963 bytes"),
                edit_result(bytes_total=15976275),
            ),
            f"with the script that is here {15976275 + len(SCRIPT):,}",
        ),
        (
            "script imports",
            edit_text(
                "train_gpt.py", "import torch\n", "import torch\nfrom flash_attn_interface import flash_attn_func\n"
            ),
            "stand-ins for flash_attn_interface",
        ),
    ],
)
def test_what_a_reviewer_lets_pass_passes(line: str, spoil: Edit, detail: str, folder: Path) -> None:
    spoil(folder)
    verdict = verdict_of(line, folder)
    assert verdict.state == State.PASS, verdict
    assert detail in verdict.detail


def test_a_baseline_on_the_command_line_comes_first(folder: Path) -> None:
    edit_json("submission.json", baseline_val_losses=[9e3, 9e3 + 1])(folder)
    with pytest.raises(Failed, match="worse than the baseline"):
        significance(case_of(folder, box=NoBox(), baseline=[1.4, 1.41]))


def test_figures_are_checked_without_any_child(folder: Path) -> None:
    case = case_of(folder, box=NoBox())
    for check in CHECKS.values():
        # For these two, a child reads the script.
        if check.word in (Word.LOG, Word.RECORD) and check.name not in ("logged bytes", "score before update"):
            judge(check, case, case.submission.runs[0])


def test_only_what_this_project_finds_is_its_own_word() -> None:
    assert {name for name, check in CHECKS.items() if check.word == Word.SCRIPT} == SCRIPTS_OWN


@pytest.fixture
def public(folder: Path) -> Path:
    """The submission with its artifact in the public format."""
    tensors = read_artifact(folder / "model_seed42.golf").tensors
    (folder / "model_seed42.golf").unlink()
    write_public_artifact(folder / "final_seed42.int5int6.ptz", tensors)
    return folder


def test_an_artifact_of_the_public_format_is_read(public: Path) -> None:
    verdict = verdict_of("artifact loads", public)
    assert verdict.state == State.PASS, verdict
    assert "does not say of what network" in verdict.detail


@pytest.mark.parametrize("line", ["artifact loads", "score recomputed"])
def test_an_artifact_of_an_unknown_format_is_said(line: str, public: Path, data: Path) -> None:
    (public / "final_seed42.int5int6.ptz").write_bytes(b"of no format that is known")
    verdict = verdict_of(line, public, data)
    assert verdict.state == State.UNKNOWN, verdict
    assert "not a format that this audit reads" in verdict.detail


def test_a_run_that_trained_on_the_text_is_scored_again_with_training(folder: Path, data: Path) -> None:
    train_at_test_time()(folder)
    artifact = read_artifact(folder / "model_seed42.golf")
    assert artifact.settings is not None
    network = GPT(GPTConfig(**artifact.settings))  # type: ignore[arg-type]
    network.load_state_dict(load_state(artifact.tensors))
    [shard] = data.glob("fineweb_val_*.bin")
    windows = WindowLoader(
        torch.from_numpy(open_shard(shard).astype("int64")),
        token_byte_table(load_tokenizer(data / "tokenizer.model")),
        seq_len=SEQ_LEN,
        stride=SEQ_LEN,
        windows_per_batch=4,
        device=torch.device("cpu"),
    )
    settings = {name: value for name, value in TRAINED.items() if name != "trained"}
    trained = ScoreFirstTraining(**settings).score(network, windows).bits_per_byte  # type: ignore[arg-type]
    plain = json.loads((folder / "submission.json").read_text())["val_bpb"]
    assert abs(trained - plain) > 0.002  # far more than the audit allows
    edit_result(val_bpb=trained)(folder)
    verdict = verdict_of("score recomputed", folder, data)
    assert verdict.state == State.PASS, verdict


@pytest.mark.slow
def test_a_public_artifact_of_another_network_is_said(public: Path, data: Path) -> None:
    verdict = verdict_of("score recomputed", public, data)
    assert verdict.state == State.UNKNOWN, verdict
    assert (
        "this project's network does not score it (error: model.ptz holds the weights of another network"
        in verdict.detail
    )


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first ids of the sample's validation shard, as many as the golden numbers are of."""
    data = tmp_path_factory.mktemp("sample")
    [shard] = (SAMPLE / "datasets" / "fineweb10B_sp1024").glob("fineweb_val_*.bin")
    write_shard(data / shard.name, open_shard(shard)[:4097])
    shutil.copy(SAMPLE / "tokenizers" / "fineweb_1024_bpe.model", data / "tokenizer.model")
    return data


@needs_golden
@needs_sample
@pytest.mark.parametrize(("off_by", "state"), [(0, State.PASS), (0.01, State.FAIL)])
def test_a_public_artifact_is_scored_as_the_public_script_scores_it(
    off_by: float, state: State, folder: Path, sample: Path
) -> None:
    (folder / "model_seed42.golf").unlink()
    (folder / "run_seed42.json").unlink()
    shutil.copy(GOLDEN / "artifact.int5int6.ptz", folder / "final_seed42.int5int6.ptz")
    settings = json.loads((GOLDEN / "config.json").read_text()) | {"eval_stride": 64}
    values = [
        f'    {name} = int(os.environ.get("{name}", {value!r}))' if type(value) is int else f"    {name} = {value!r}"
        for name, value in settings.items()
    ]
    (folder / "train_gpt.py").write_text("\n".join(["import os", "", "", "class Hyperparameters:", *values, ""]))
    [golden] = [case for case in json.loads((GOLDEN / "eval.json").read_text())["roundtrip"] if case["tokens"] == 4097]
    edit_result(val_bpb=golden["val_bpb"] + off_by)(folder)
    verdict = verdict_of("score recomputed", folder, sample)
    assert verdict.state == state, verdict
    assert f"{golden['val_bpb']:.4f}" in verdict.detail
    assert "the script's settings describe" in verdict.detail or state == State.FAIL
