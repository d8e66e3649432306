"""Reads a report's page, for the tests of what it says."""

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """The parts of a report that the tests check."""

    VOID = ("meta", "br", "wbr", "link", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.figures: list[dict[str, list[dict[str, object]]]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self._table = ""
        self._is_figure = False
        self.feed(html)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "br" and "td" in self.open:
            self.rows[self._table][-1][-1] += "\n"
        if tag in ("dt", "dd"):
            self.text += " "
        if tag == "table":
            self._table = attributes.get("id", "")
            self.rows[self._table] = []
        elif tag == "tr":
            self.rows[self._table].append([])
        elif tag in ("td", "th"):
            self.text += " "
            self.rows[self._table][-1].append("")
        self._is_figure = attributes.get("type") == "application/json"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._is_figure and "script" in self.open:
            self.figures.append(json.loads(data))
        elif not {"script", "style"} & set(self.open):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.rows[self._table][-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]
