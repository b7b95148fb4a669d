"""A hook of mkdocs: the documents at the repository's root become pages, and every link leads somewhere.

Documents link to one another and to source files by their paths in the repository, so that they can be read there.
On the way into the site, by `rewritten`, a link to a document becomes one to its page, and a link to any other file one
to the repository (`repo_url` in mkdocs.yml); as long as that is not set, its text stays without a link. A link to
what is not there stays as it is, and mkdocs, which is strict, ends with an error. So it does for a page that loads
anything from another host (`on_post_page`).
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents at the root -> their pages."""
BRANCH = "main"

# Code first: what stands in it is no link.
_LINK = re.compile(
    r"^```.*?^```|^ {4}.*?$|`[^`]*`|(?P<image>!?)\[(?P<text>(?:`[^`]*`|[^\]`])*)\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)

_LOADED = re.compile(r'(?:\bsrc=|<link (?!rel="canonical")[^>]*href=)"(?:https?:)?//[^"]*"')


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of documents outside docs/."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for document, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / document)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page as mkdocs shall read it."""
    return rewritten(markdown, page.file.src_uri, config.repo_url)


def on_post_page(output: str, page: Any, config: Any) -> None:
    """Complain of what a browser would ask other hosts for."""
    for found in _LOADED.findall(output):
        logging.getLogger("mkdocs.hooks").warning("%s loads from another host: %s", page.file.src_uri, found)


def rewritten(markdown: str, page: str, repository: str | None) -> str:
    """The text of `page`, a path in docs/, with links that lead somewhere from the site."""
    document = next((name for name, there in PAGES.items() if there == page), f"docs/{page}")

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        if target is None or target.startswith("#") or "://" in target:
            return found[0]
        path, mark, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(document), path))
        if file in PAGES or file.startswith("docs/"):
            there = posixpath.relpath(PAGES.get(file, file.removeprefix("docs/")), posixpath.dirname(page) or ".")
            return f"{found['image']}[{found['text']}]({there}{mark}{anchor})"
        if file.startswith("..") or not (ROOT / file).exists():
            return found[0]
        if repository:
            return f"[{found['text']}]({repository.rstrip('/')}/blob/{BRANCH}/{file}{mark}{anchor})"
        return found["text"]

    return _LINK.sub(link, markdown)
