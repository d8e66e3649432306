"""What all reports share: one page with its style and script, and the file, which needs no network.

A page is one HTML file with plotly inside, once. Its style serves the light screen, the dark one and paper.
"""

import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from mhimdist import files
from mhimdist.report import formats


def write(path: Path, html: str) -> None:
    """Write a page; a reader sees either the old file or the complete new one.

    Raises:
        DiskFullError: the page does not fit on the disk; the old one is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, html)


def render(template: str, **values: Any) -> str:
    """A template of this folder as a page; equal values yield equal texts.

    Args:
        template: its file's name; it extends `page.html`.
        values: what the template uses; text in them is escaped unless it is `Markup`.
    """
    environment = Environment(
        loader=PackageLoader("mhimdist.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "auc": formats.auc,
        "breakable": breakable,
        "count": formats.count,
        "duration": formats.duration,
        "last_line": formats.last_line,
        "sentence": lambda text: f"{text[:1].upper()}{text[1:]}.",
        "setting": formats.setting,
    }
    return environment.get_template(template).render(plotly_js=Markup(_valid(get_plotlyjs())), **values)


def _valid(script: str) -> str:
    """A script without the control characters that HTML forbids; plotly has two of them inside strings."""
    return re.sub(r"[\x00-\x08\x0b\x0e-\x1f]", lambda found: f"\\x{ord(found.group()):02x}", script)


def breakable(name: str) -> Markup:
    """A dotted configuration path that may break after a dot or an underscore in a narrow column."""
    return Markup(str(escape(name)).replace("_", "_<wbr>").replace(".", ".<wbr>"))


def figure_html(figure: go.Figure) -> Markup:
    """A place for the figure and its data; empty if there is nothing to draw.

    The page's script draws the figure after the page is laid out, when its width is known. Plotly's JSON
    escapes every "<" and ">" of a string, so none can end the script element.
    """
    if not figure.data:
        return Markup("")
    return Markup(
        f'<div class="plot"></div><script type="application/json">{figure.to_json(engine="json")}</script>'
    )
