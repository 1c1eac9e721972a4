"""What a shell offers after TAB."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, run

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")

# What bash does at a TAB: the function that it was told of gets the words so far, and fills COMPREPLY.
AT_TAB = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
read -ra registered < <(complete -p "$(basename "$1")")
for ((i = 0; i < ${#registered[@]}; i++)); do
  [[ ${registered[i]} == -F ]] && function=${registered[i + 1]}
done
$function
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = run("cli.py", "--print_completion", "shtab-bash")
    assert result.returncode == 0, result.stderr
    path = tmp_path_factory.mktemp("completion") / "completion.bash"
    path.write_text(result.stdout)
    return path


def at_tab(script: Path, *words: str) -> list[str]:
    command = ["bash", "--norc", "-c", AT_TAB, "bash", str(script), *words]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert not shown.stderr
    return [line.rstrip() for line in shown.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("cli.py", ""), {"fit", "validate"}),
        (("python", "cli.py", ""), {"fit", "validate"}),
        (("python", "cli.py", "fit", "--clock."), {"--clock.max_seconds", "--clock.reserve_seconds"}),
        ((".venv/bin/python", "./cli.py", "validate", "--art"), {"--artifact"}),
        (
            ("torchrun", "--nproc_per_node", "8", "cli.py", "fit", "--clock.max_seconds", "3", "--scorer", ""),
            {
                "components.scorer.Scorer",
                "components.scorer.SlidingWindows",
                "components.test_time_training.ScoreFirstTraining",
            },
        ),
        (("python", "other.py", "fit", "--clock."), set()),
    ],
)
def test_bash_offers_what_can_follow(words: tuple[str, ...], offered: set[str], script: Path) -> None:
    assert set(at_tab(script, *words)) == offered


def test_bash_offers_files_for_a_configuration(script: Path) -> None:
    assert at_tab(script, "python", "cli.py", "fit", "--config", "configs/tiny.") == ["configs/tiny.yaml"]
