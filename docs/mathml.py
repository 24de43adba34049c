"""MkDocs hook: equations become MathML while the site is built, so that browsers show them without a network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

#: In pages, what arithmatex marks; in notebooks, what stands between dollars in a cell of text.
PAGE = re.compile(r"\\\((?P<inline>.+?)\\\)|\\\[(?P<block>.+?)\\\]", re.S)
NOTEBOOK = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$", re.S)
MARKED = re.compile(r'<(span|div) class="arithmatex">.*?</\1>', re.S)
TEXT_CELL = re.compile(r'<div[^>]*class="[^"]*jp-RenderedMarkdown[^"]*"[^>]*>.*?</div>', re.S)


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    content = MARKED.sub(lambda marked: PAGE.sub(_mathml, marked[0]), content)
    return TEXT_CELL.sub(lambda cell: NOTEBOOK.sub(_mathml, cell[0]), content)


def _mathml(equation: re.Match[str]) -> str:
    block = equation["block"] is not None
    latex = html.unescape(equation["block"] if block else equation["inline"])
    mathml = convert(latex.strip(), display="block" if block else "inline")
    if "\\" in html.unescape(mathml):
        raise PluginError(f"latex2mathml does not know a command of {latex!r}: write it another way")
    return mathml
