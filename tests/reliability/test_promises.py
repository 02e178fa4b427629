"""Every promise of docs/reliability.md names tests, and they are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[([^\]]*`test_[^\]]*)\]\(\.\./(tests/[^)]*)\)")


def test_the_tests_that_promises_name_are_in_the_files_they_are_linked_to():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [row for row in page.partition("## Counted")[0].splitlines() if row.startswith("|") and not set(row) <= set("|-")]
    promises = [row for row in rows if row != "| promise | test |"]
    assert len(promises) > 40
    for promise in promises:
        assert "](../tests/" in promise, promise
        for names, path in LINK.findall(promise):
            defined = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(encoding="utf-8"), re.M)
            for name in re.findall(r"`(test_\w+?)(?:_?…)?`", names):
                assert any(test.startswith(name) for test in defined), (name, path)
