import json
from html.parser import HTMLParser

from records.audit.report import as_json, as_page, as_text, summary
from records.audit.verdicts import State, Verdict, Word, printable

VERDICTS = [
    Verdict("files", "", State.PASS, Word.OURS, "README.md"),
    Verdict("total bytes", "seed 42", State.FAIL, Word.OURS, "too many <b>bytes</b>"),
    Verdict("look: gate across documents", "", State.LOOK, Word.OURS, "line 3: SmearGate"),
    Verdict("score recomputed", "seed 42", State.UNKNOWN, Word.OURS, "no data was given; give --data"),
    Verdict("whole split", "seed 42", State.UNKNOWN, Word.RECORD, "no data was given; give --data"),
    Verdict("seeds", "", State.UNKNOWN, Word.LOG, "submission.json lists no seeds"),
]


def test_what_matters_comes_first_and_reasons_once() -> None:
    assert summary(VERDICTS) == [
        "1 FAIL, 1 pass, 1 look here, 3 could not check",
        "FAIL: total bytes, seed 42: too many <b>bytes</b>",
        "look here: gate across documents",
        "could not check: score recomputed, seed 42, whole split, seed 42: no data was given; give --data",
        "could not check: seeds: submission.json lists no seeds",
    ]
    text = as_text("folder", "Contained.", VERDICTS)
    assert text.startswith("folder: 1 FAIL, 1 pass")
    [line] = [line for line in text.splitlines() if line.startswith("whole split")]
    assert " ".join(line.split()) == "whole split, seed 42 could not check the record no data was given; give --data"


def test_tools_get_every_field() -> None:
    content = json.loads(as_json("folder", "Contained.", VERDICTS))
    assert content["counts"] == {"FAIL": 1, "pass": 1, "look here": 1, "could not check": 3}
    assert content["summary"] == summary(VERDICTS)
    assert content["verdicts"][1] == {
        **{"check": "total bytes", "run": "seed 42", "state": "FAIL", "word": "ours"},
        "detail": "too many <b>bytes</b>",
    }


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_people_get_a_page_in_which_a_folders_text_is_text() -> None:
    page = Cells()
    page.feed(as_page("<script>alert(1)</script>", "Contained.", VERDICTS))
    assert page.tags.count("tr") == 1 + len(VERDICTS)
    assert not {"script", "b"} & set(page.tags)
    assert "too many <b>bytes</b>" in page.text
    assert "Audit of <script>" in page.text


def test_nothing_that_a_terminal_obeys_is_printable() -> None:
    assert printable("a\x1b[2J\nb\x9b\u202e\udc80é") == "a\\x1b[2J\\nb\\x9b\\u202e\\udc80é"
