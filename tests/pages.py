"""Reading written HTML pages back."""

from html.parser import HTMLParser
from pathlib import Path


def read_page(path: Path) -> tuple[str, list[str], list[str]]:
    """Return the text of a page, its tags, and every address that it names."""
    text = path.read_text(encoding="utf-8")
    tags: list[str] = []
    sources: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            sources.extend(str(value) for name, value in attrs if name in ("src", "href"))

    Reader().feed(text)
    return text, tags, sources
