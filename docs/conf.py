"""Sphinx makes a site of these pages and of the Markdown beside the code: `make site`.

The whole repository is the source folder, so that a link between two files works on the site as in the tree.
Warnings are errors, and nothing is loaded from a network: formulas are MathML, which browsers draw.
"""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from mhimdist import __version__

project = "mhimdist"
project_copyright = "the authors of mhimdist; Apache-2.0"
release = __version__

extensions = ["myst_nb", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/notebooks/*.ipynb",
    "benchmarks/RESULTS.md",
    "data_prep/DATA_CARD.md",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests run the notebooks

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"mhimdist {release}"
html_extra_path = ["start"]  # the site's index.html, which opens the first page
html_show_sourcelink = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(
        f'<div class="math" style="margin: 1em 0">{convert(node.astext(), display="block")}</div>'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
