"""Where a benchmark's tables go: between marks of their own on a page of the documentation."""

from pathlib import Path

from fastslm.writing import write_text


def put_section(text: str, page: Path, section: str) -> None:
    """Put a section between its marks, `<!-- section -->` and `<!-- end of section -->`.

    Where the page has no such marks yet, they and the section come at its end.
    """
    first, last = f"<!-- {section} -->", f"<!-- end of {section} -->"
    whole = page.read_text(encoding="utf-8")
    if first not in whole:
        whole = f"{whole.rstrip()}\n\n{first}\n{last}\n"
    head, _, rest = whole.partition(first)
    _, _, tail = rest.partition(last)
    write_text(page, f"{head}{first}\n{text}\n{last}{tail}")
