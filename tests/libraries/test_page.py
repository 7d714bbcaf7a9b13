"""The page has all libraries and cases, and the code of the examples."""

from __future__ import annotations

from libraries import page
from libraries.results import NO
from libraries.table import CASES, LIBRARIES, fails

WRITE = "run `make test-libraries`, then `python -m libraries --write` in the folder tests"


def test_page_matches_its_results() -> None:
    text = page.PAGE.read_text()
    assert text == page.render(page.parse(text)), WRITE


def test_every_library_has_its_row() -> None:
    found = page.parse(page.PAGE.read_text())
    assert list(found) == [library.name for library in LIBRARIES], WRITE
    for library in LIBRARIES:
        assert list(found[library.name].versions) == list(library.packages), WRITE


def test_every_failure_is_listed_as_known() -> None:
    found = page.parse(page.PAGE.read_text())
    for name, result in found.items():
        for case in CASES:
            assert (result.cells.get(case) == NO) is bool(fails(name, case)), (
                f"{name}, {case}: {WRITE}"
            )


def test_every_example_is_on_the_page() -> None:
    shown = {library.example for library in LIBRARIES if library.title}
    assert shown == {path.name for path in page.EXAMPLES.iterdir() if path.is_file()}
