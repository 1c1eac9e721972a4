"""The report of a finished run: what stands in the page, and what a browser makes of it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from cli import main as run_cli
from records.report import write_report
from records.report.__main__ import main
from tests.records.report.support import charts_of, needs_chromium, open_page
from tests.support import FinishedRun, summary_of, validate_arguments

CHARTS = ["loss", "rates", "momentum", "speed", "step-time", "bytes", "errors", "codes"]


@pytest.fixture(scope="module")
def page(finished_run: FinishedRun) -> Path:
    return finished_run.logs / "report.html"


@pytest.fixture
def copied_run(finished_run: FinishedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run.logs, tmp_path / "runs" / "mine" / "version_3"))


@needs_chromium
def test_every_figure_is_drawn_without_an_error(page: Path, tmp_path: Path) -> None:
    shown = open_page(page, tmp_path)
    assert shown.errors == []
    assert charts_of(page) == CHARTS
    assert [chart for chart in CHARTS if not shown.marks[chart]] == []
    assert shown.marks["codes"] > 1
    assert "tok_emb.weight" in shown.options


def test_it_shows_the_result_and_the_samples(page: Path, finished_run: FinishedRun) -> None:
    html, summary = page.read_text(), summary_of(finished_run.folder)
    assert f'<div class="score">{summary["val_bpb"]:.4f}</div>' in html
    assert f"{summary['bytes_total']:,} bytes" in html
    assert f"{16_000_000 - summary['bytes_total']:,} of 16,000,000 left" in html
    assert re.search(r"<blockquote class=\"card\"><b>If you want to</b>[^<]+</blockquote>", html)
    assert "<code>model.num_layers</code>" in html  # set on the command line
    assert summary["torch"] in html


def test_it_needs_nothing_from_outside_and_is_small(page: Path) -> None:
    html = page.read_text()
    assert len(html.encode()) < 5_000_000
    assert not re.search(r"<(link|img|iframe|script)[^>]*\s(src|href)=|@import|url\(", html.split("<script>")[0])
    assert not re.search(r"<script[^>]*\ssrc=", html)


def test_it_is_rebuilt_from_the_folder_alone(copied_run: Path, page: Path) -> None:
    (copied_run / "report.html").unlink()
    main([str(copied_run)])
    rebuilt = (copied_run / "report.html").read_text()
    assert rebuilt.count("<figure") == page.read_text().count("<figure")
    assert "mine / version_3" in rebuilt


def test_text_from_a_run_cannot_become_part_of_the_page(copied_run: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    lines = [json.loads(line) for line in (copied_run / "history.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step":
            line["phase"] = evil
        elif line["kind"] == "event":
            line["sentence"] = evil
        elif line["kind"] == "start":
            line["command"].append(evil)
            line["layers"].append([evil, {"seed_everything": evil}])
    (copied_run / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = json.loads((copied_run / "summary.json").read_text())
    summary |= {"device": evil, "techniques": [evil], "phases_missed": [evil]}
    (copied_run / "summary.json").write_text(json.dumps(summary))
    html = write_report([copied_run]).read_text()
    assert "alert(1)" in html
    assert "<script>alert" not in html


def test_a_run_that_was_killed_is_drawn_as_far_as_it_got(copied_run: Path) -> None:
    for name in ("summary.json", "model.golf", "model.safetensors"):
        (copied_run / name).unlink()
    page = write_report([copied_run])
    assert charts_of(page) == ["loss", "rates", "momentum", "speed", "step-time"]
    assert "has not finished" in page.read_text()


def test_a_run_of_an_older_program_has_no_history(copied_run: Path) -> None:
    (copied_run / "history.jsonl").unlink()
    page = write_report([copied_run])
    assert charts_of(page) == ["bytes", "errors", "codes"]
    assert "has left no history" in page.read_text()


def test_a_validate_leaves_a_page_of_what_it_scored(finished_run: FinishedRun, tmp_path: Path) -> None:
    artifact = finished_run.logs / "model.golf"
    run_cli(validate_arguments(finished_run.data, tmp_path, artifact=artifact))
    page = tmp_path / "lightning_logs" / "version_0" / "report.html"
    assert charts_of(page) == ["bytes", "errors", "codes"]
    assert f'<div class="score">{summary_of(tmp_path)["val_bpb"]:.4f}</div>' in page.read_text()
    assert "<blockquote" in page.read_text()


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has neither summary.json nor history.jsonl; give the version_N folder"):
        main([str(tmp_path)])


def test_a_full_disk_is_a_warning(finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folders: list[Path]) -> None:
        raise OSError(28, "No space left on device", str(folders[0] / "report.html"))

    monkeypatch.setattr("records.report.write_report", write)
    with pytest.warns(
        UserWarning, match=r"has no report \(No space left on device: .*report.html\); mend that and run"
    ):
        finished_run.cli.after_fit()


@needs_chromium
def test_runs_lie_over_each_other(copied_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copied_run, tmp_path / "runs" / "other" / "version_0"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("seed_everything: 1337", "seed_everything: 42"))
    main([str(copied_run), str(other)])
    page = tmp_path / "runs" / "report.html"
    shown = open_page(page, tmp_path / "profile")
    assert shown.errors == []
    assert charts_of(page) == ["loss", "scores", "speed", "rates", "bytes"]
    assert all(shown.marks[chart] > 1 for chart in charts_of(page))
    assert re.search(r"<code>seed_everything</code></td><td[^>]*>1337</td><td[^>]*>42</td>", page.read_text())
    assert "mine" in shown.text
    assert "other" in shown.text


def test_a_sweep_s_seeds_are_its_runs(copied_run: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for seed in (7, 42):
        shutil.copytree(copied_run, sweep / f"seed{seed}" / "fit" / "lightning_logs" / "version_0")
        state = {"settings": "x", "fit": "fit/lightning_logs/version_0"}
        (sweep / f"seed{seed}" / "seed.json").write_text(json.dumps(state))
    main([str(sweep)])
    html = (sweep / "report.html").read_text()
    assert html.index("</span>seed7<") < html.index("</span>seed42<")
    assert "All settings are the same." in html
