"""The table of faults names tests that exist."""

import re

from tests.support import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_of_the_table_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 30
    for file, test in named:
        source = (ROOT / "tests" / file).read_text()
        assert f"def {test}(" in source or not test, f"{file} has no {test}"
