"""How Sphinx builds the site; `.ci/docs` runs it.

Rules of this file: settings, and two functions, for texts of the repository's that become pages and
for docstrings. Everything that can be a warning is one, since the build fails on warnings.
Nothing is fetched while the site is built.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# Signatures are read from the Python: methods in C have none.
os.environ["TRIO_URING_ACCELERATOR"] = "0"

from sphinx.ext.napoleon import Config, GoogleDocstring  # noqa: E402

from trio_uring import __version__  # noqa: E402

project = "trio_uring"
author = "the authors of trio_uring"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_design",
]
exclude_patterns = ["_build"]

# Pages are Markdown, as they are read in the repository. Their anchors are those of GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# Docstrings: Google's style. `name` is a link where it names something of ours, and code elsewhere.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
# What is inherited from classes of ours is shown, and not what is from these.
FOREIGN = (
    "object BaseException Exception OSError EOFError ValueError tuple Generic Protocol "
    "AsyncResource ReceiveStream SendStream Stream HalfCloseableStream Channel ReceiveChannel "
    "SendChannel Listener Instrument SocketType _SocketType"
)
autodoc_default_options = {
    "members": True,
    "inherited-members": ",".join(FOREIGN.split()),
    "member-order": "bysource",
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"trio_uring {version}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Pages whose text is a file of the repository's that stays where it is expected to be.
TEXTS = {
    "explanation/benchmarks": ROOT / "benchmarks" / "README.md",
    "explanation/changelog": ROOT / "CHANGELOG.md",
    "explanation/contributing": ROOT / "CONTRIBUTING.md",
    "explanation/security": ROOT / "SECURITY.md",
}
PAGES = {text: ROOT / "docs" / f"{page}.md" for page, text in TEXTS.items()}


def read(app: Any, page: str, source: list[str]) -> None:
    """A page's text, with links to texts of the repository's leading to their pages.

    Links to other files of the repository's, such as examples, become downloads.
    """
    here = ROOT / "docs" / page
    file = TEXTS.get(page, here)
    if page in TEXTS:
        app.env.note_dependency(file)
        source[0] = file.read_text()

    def link(match: re.Match[str]) -> str:
        target, anchor = match.groups()
        if "://" in target:
            return match.group()
        there = Path(os.path.normpath(file.parent / target))
        return f"]({os.path.relpath(PAGES.get(there, there), here.parent)}{anchor or ''})"

    source[0] = re.sub(r"\]\(([^)\s#]+)(#[^)\s]*)?\)", link, source[0])


def read_docstring(
    app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    """A docstring in Google's style, as Sphinx wants it.

    The extension sphinx.ext.napoleon would do that too, but takes the first line of an attribute's
    docstring for its type if there is a colon in it.
    """
    text = re.sub("^Cancellation: ", "**Cancellation:** ", "\n".join(lines), flags=re.MULTILINE)
    settings = Config(napoleon_use_rtype=False)
    lines[:] = GoogleDocstring(text.split("\n"), settings, app, "function", name, thing).lines()


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("source-read", read)
