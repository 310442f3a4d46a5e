"""MkDocs hooks: the site is made from the repository's Markdown as it is.

Files keep their places in the repository, so that a link leads to the same file on the site and in the repository.
Other files that a page links to, such as a study's table, come along.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
PARTS = ["docs/site/iframe-worker.js", "docs/site/wide.css"]


def on_files(files: Files, config: Any) -> Files:
    """The pages and what they link to, in place of the files of `docs_dir`."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
    for name in dict.fromkeys([*pages, *(link for page in pages for link in linked_files(page)), *PARTS]):
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def linked_files(page: str) -> list[str]:
    """The files of the repository that a page links to."""
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    found = [(ROOT / page).parent.joinpath(target).resolve() for target in targets if "://" not in target]
    return [path.relative_to(ROOT).as_posix() for path in found if path.is_file() and path.is_relative_to(ROOT)]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocstrings' `::: name` stands in a comment, which the repository's web page does not show."""
    return re.sub(r"^<!-- (:::.*?)\s*-->$", r"\1", markdown, flags=re.MULTILINE | re.DOTALL)
