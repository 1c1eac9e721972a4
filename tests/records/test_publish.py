import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from components.errors import UserError
from records.publish import main
from tests.datamodules.stand_in_hub import REPOSITORY, StandInHub, served

FACTS = {
    "name": "2 layers of width 272",
    "track": "10min_16mb",
    "val_bpb": 1.25,
    "val_loss": 2.5,
    "bytes_total": 1234567,
}
README = "# 2 layers of width 272\n\n**1.25 bits per byte**: good.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a packed folder has, in small."""
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "README.md").write_text(README)
    (packed / "submission.json").write_text(json.dumps(FACTS))
    (packed / "train_gpt.py").write_text("print('train')\n")
    (packed / "model_seed42.golf").write_bytes(bytes(range(256)) * 30)
    (packed / ".DS_Store").write_bytes(b"hidden")
    return packed


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A hub that its client talks to with the owner's token."""
    with served(StandInHub(REPOSITORY)) as standing:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", standing.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", standing.token)
        yield standing


def card_of(model: dict[str, bytes]) -> tuple[dict, str]:
    """The metadata and the text of an uploaded card."""
    nothing, metadata, text = model["README.md"].decode().split("---\n", 2)
    assert not nothing
    return yaml.safe_load(metadata), text.lstrip()


@pytest.mark.parametrize("name", ["ada/golf", "golf"])
def test_yes_publishes_every_file_and_the_card(
    folder: Path, hub: StandInHub, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(folder), "--repo", name, "--yes"])
    model = hub.models["ada/golf"]
    assert set(model) == {"README.md", "submission.json", "train_gpt.py", "model_seed42.golf"}
    for file in set(model) - {"README.md"}:
        assert model[file] == (folder / file).read_bytes()
    metadata, text = card_of(model)
    assert text == README
    assert metadata["pipeline_tag"] == "text-generation"
    [entry] = metadata["model-index"]
    assert entry["name"] == FACTS["name"]
    metrics = {metric["type"]: metric["value"] for result in entry["results"] for metric in result["metrics"]}
    assert metrics == {"bits_per_byte": 1.25, "nats_per_token": 2.5, "bytes": 1234567}
    assert f"Published: {hub.url}/ada/golf\n" in capsys.readouterr().out
    assert (folder / "README.md").read_text() == README
    assert hub.private == set()


def test_without_yes_nothing_is_sent(
    folder: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    main([str(folder), "--repo", "ada/golf"])
    assert hub.requests == []
    printed = capsys.readouterr().out
    assert "  7,680  model_seed42.golf\n" in printed
    assert "model-index:" in printed
    assert README in printed
    assert "hidden" not in printed
    assert ".DS_Store" not in printed
    listed = printed.partition("bytes in all")[0].splitlines()[1:]
    *sizes, total = (int(line.split()[0].replace(",", "")) for line in listed)
    assert len(sizes) == 4
    assert total == sum(sizes)
    assert "Nothing was uploaded; add --yes to upload." in printed


def test_a_repository_may_be_private_and_may_exist(folder: Path, hub: StandInHub) -> None:
    main([str(folder), "--repo", "ada/golf", "--yes", "--private"])
    assert hub.private == {"ada/golf"}
    (folder / "train_gpt.py").write_text("print('again')\n")
    main([str(folder), "--repo", "ada/golf", "--yes"])
    assert hub.models["ada/golf"]["train_gpt.py"] == b"print('again')\n"


def test_a_card_with_metadata_stays_as_it_is(folder: Path, hub: StandInHub) -> None:
    own = f"---\nlicense: mit\n---\n{README}"
    (folder / "README.md").write_text(own)
    main([str(folder), "--repo", "golf", "--yes"])
    assert hub.models["ada/golf"]["README.md"].decode() == own


def test_no_token_is_one_sentence(
    folder: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"There is no token for the hub; run `hf auth login` or set HF_TOKEN"):
        main([str(folder), "--repo", "golf", "--yes"])
    assert hub.requests == []


@pytest.mark.parametrize(("name", "token", "status"), [("ada/golf", "hf_wrong", 401), ("someone/golf", "hf_ada", 403)])
def test_a_refusal_is_one_sentence(
    folder: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, name: str, token: str, status: int
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=rf"does not let this token write to {name} \({status}\); check the name"):
        main([str(folder), "--repo", name, "--yes"])
    assert not any(hub.models.values())


def test_a_failed_upload_is_one_sentence_and_leaves_nothing_visible(folder: Path, hub: StandInHub) -> None:
    hub.faults["POST", "/api/models/ada/golf/commit/main"] = ["500"]
    with pytest.raises(
        UserError, match=r"could not be published as golf at .* \(.*500.*\); run the command again"
    ) as e:
        main([str(folder), "--repo", "golf", "--yes"])
    assert "\n" not in str(e.value)
    assert hub.models["ada/golf"] == {}


def test_a_hub_that_does_not_answer_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    with pytest.raises(UserError, match=r"could not be published as golf at http://127\.0\.0\.1:9 \("):
        main([str(folder), "--repo", "golf", "--yes"])


@pytest.mark.parametrize("name", ["a/b/c", "golf..", "ada/go lf", ""])
def test_a_name_that_can_be_none_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be a repository's name; give OWNER/NAME"):
        main([str(folder), "--repo", name])


@pytest.mark.parametrize("missing", ["README.md", "submission.json"])
def test_a_folder_that_is_not_packed_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=rf"has no {missing}; give a folder that `python -m records\.pack` wrote"):
        main([str(folder), "--repo", "golf"])


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "submission.json"), ("{}", r"has no '\w+'; pack the runs again")]
)
def test_a_submission_that_cannot_be_read_is_refused(folder: Path, content: str, reason: str) -> None:
    (folder / "submission.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        main([str(folder), "--repo", "golf"])
