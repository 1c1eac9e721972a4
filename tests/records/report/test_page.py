"""Parts of a page: numbers and text that are safe in it."""

import json

from records.report.page import as_json, tile


def test_data_cannot_end_its_script_element_and_is_strict_json() -> None:
    content = {"a</script>": [1.5, float("nan"), float("inf"), "<!--"], "b": (1, None)}
    text = as_json(content)
    assert "<" not in text
    assert json.loads(text) == {"a</script>": [1.5, None, None, "<!--"], "b": [1, None]}


def test_a_meter_shows_what_is_over_its_limit() -> None:
    assert 'class="meter"><i style="width:50.00%"' in tile("8 <MB", "of 16", 0.5)
    assert 'class="meter over"><i style="width:100.00%"' in tile("17", "of 16", 1.0625)
    assert "8 &lt;MB" in tile("8 <MB", "of 16", 0.5)
