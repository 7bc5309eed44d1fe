"""Parses an HTML page: its tags, whether each is closed, and its text."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class HtmlPage(HTMLParser):
    """The parsed page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.unclosed: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.html = html
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def assert_self_contained(self, charts: int) -> None:
        """Fail if the page is malformed, runs a script, requests anything or lacks a chart."""
        assert self.unclosed == []
        assert not re.search(r"https?:|//cdn|@import|url\(", self.html)
        names = [tag for tag, _ in self.tags]
        assert "script" not in names and "link" not in names
        images = [attributes for tag, attributes in self.tags if tag == "img"]
        assert len(images) == charts
        for attributes in images:
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
            assert attributes["alt"]
