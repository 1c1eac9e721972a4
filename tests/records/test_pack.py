import json
import shutil
from pathlib import Path

import pytest

from components.errors import UserError
from records import pack
from tests.records.conftest import Made


def summary_of(made: Made, seed: int) -> dict:
    return json.loads((made.sweep / f"seed{seed}/fit/lightning_logs/version_0/summary.json").read_text())


def pack_again(made: Made, out: Path, *words: str) -> dict:
    pack.main([*words, f"--out={out}", "--author=Ada", "--github-id=ada", "--date=2026-01-31"])
    return json.loads((out / "submission.json").read_text())


def test_the_folder_holds_what_the_challenge_asks_for(made: Made) -> None:
    assert {path.name for path in made.folder.iterdir()} == {
        *("README.md", "submission.json", "requirements.txt", "train_gpt.py"),
        *(f"{name}" for seed in (42, 1337) for name in (f"train_seed{seed}.log", f"run_seed{seed}.json")),
        *("model_seed42.golf", "model_seed1337.golf"),
    }
    facts = json.loads((made.folder / "submission.json").read_text())
    one, two = summary_of(made, 42), summary_of(made, 1337)
    assert (facts["author"], facts["github_id"], facts["seeds"]) == ("Ada", "ada", [42, 1337])
    assert facts["val_bpb"] == pytest.approx((one["val_bpb"] + two["val_bpb"]) / 2)
    assert facts["wallclock_seconds"] == max(one["wallclock_seconds"], two["wallclock_seconds"])
    code = (made.folder / "train_gpt.py").stat().st_size
    model = (made.folder / "model_seed42.golf").stat().st_size
    assert facts["bytes_code"] == code
    assert facts["seed_results"]["42"]["bytes_total"] == model + code
    assert facts["seed_results"]["42"]["val_loss"] == one["val_loss"]
    readme = (made.folder / "README.md").read_text()
    assert f"{one['val_bpb']:.8f}" in readme
    assert f"{two['val_loss']:.8f}" in readme
    assert "cannot be read in place" in readme
    requirements = (made.folder / "requirements.txt").read_text()
    assert "lightning==" in requirements
    assert "+" not in requirements


def test_runs_and_sweeps_pack_alike_even_if_moved(made: Made, tmp_path: Path) -> None:
    moved = shutil.copytree(made.sweep, tmp_path / "elsewhere")
    runs = [str(moved / f"seed{seed}/fit/lightning_logs/version_0") for seed in (1337, 42)]
    one, two = pack_again(made, tmp_path / "a", str(moved)), pack_again(made, tmp_path / "b", *runs)
    assert one == two
    for name in ("train_gpt.py", "README.md", "model_seed42.golf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nothing_is_overwritten_or_left_half_written(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="exists already"):
        pack_again(made, made.folder, str(made.sweep))
    monkeypatch.setattr(pack, "requirements", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack_again(made, tmp_path / "out", str(made.sweep))
    assert list(tmp_path.iterdir()) == []


def test_runs_that_do_not_belong_together_are_refused(made: Made, tmp_path: Path) -> None:
    run = made.sweep / "seed42/fit/lightning_logs/version_0"
    with pytest.raises(UserError, match="the same seed"):
        pack_again(made, tmp_path / "out", str(run), str(run))
    other = Path(shutil.copytree(made.sweep / "seed1337/fit/lightning_logs/version_0", tmp_path / "other"))
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("matrix_lr: 0.025", "matrix_lr: 0.03"))
    with pytest.raises(UserError, match="differ in their settings of model"):
        pack_again(made, tmp_path / "out", str(run), str(other))


def test_a_folder_that_is_not_a_finished_run_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the version_N folder"):
        pack_again(made, tmp_path / "out", str(tmp_path))
    run = Path(shutil.copytree(made.sweep / "seed42/fit/lightning_logs/version_0", tmp_path / "run"))
    (run / "train.log").unlink()
    with pytest.raises(UserError, match=r"lacks its train\.log"):
        pack_again(made, tmp_path / "out", str(run))
    (run / "summary.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        pack_again(made, tmp_path / "out", str(run))
