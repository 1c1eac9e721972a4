"""A valid submission of two seeds, made the way a user makes one."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from datamodules.shards import open_shard
from records import pack, sweep
from tests.support import fit_arguments, write_shard


@dataclass(frozen=True)
class Made:
    sweep: Path
    folder: Path
    data: Path


@pytest.fixture(scope="session")
def made(_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("records")
    data = Path(shutil.copytree(_corpus, root / "data"))
    [shard] = data.glob("fineweb_val_*.bin")
    write_shard(shard, open_shard(shard)[:1500])  # a split small enough to be scored whole many times
    config = root / "run.yaml"
    config.write_text("seed_everything: 1\n")
    settings = [a for a in fit_arguments(data, root)[1:] if not a.startswith("--trainer.default_root_dir")]
    seeds = ["--seeds", "42", "1337", "--devices", "0", "1"]  # two at a time; without a GPU the numbers are only names
    lighter = ["--scoring.max_tokens=0", "--data.train_micro_batches=2", "--trainer.val_check_interval=12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        sweep.main([f"--config={config}", f"--out={root / 'sweep'}", *seeds, "--", *settings, *lighter])
    baseline = ["--baseline", "60", "60.01", "60.02"]
    pack.main([str(root / "sweep"), f"--out={root / 'folder'}", "--author=Ada", "--github-id=ada", *baseline])
    return Made(root / "sweep", root / "folder", data)
