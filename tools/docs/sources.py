"""A hook of MkDocs: links from docs/ to the rest of the repository lead to pages of the site.

Pages in docs/ link to sources as one reads them in the repository, e.g. `../csrc/cpu/conv2d.cpp`.
MkDocs knows only what is in docs/. So every file or folder that a page links to becomes a page of
its own below source/, and the links are changed to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(?=[)#])")
_LANGUAGES = {
    ".cpp": "cpp",
    ".cu": "cpp",
    ".cuh": "cpp",
    ".hpp": "cpp",
    ".ipynb": "json",
    ".py": "python",
    ".toml": "toml",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for everything that is linked to and not in the site."""
    linked = {
        target
        for file in list(files.documentation_pages())
        for link in _LINK.findall(Path(file.abs_src_path).read_text())
        if (target := _target(link, file.src_uri, files, config)) is not None
    }
    for folder in [target for target in linked if target.is_dir()]:
        linked.update(_shown(folder))
    for target in sorted(linked):
        files.append(File.generated(config, _page(target), content=_content(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Changes the links."""

    def change(match: re.Match[str]) -> str:
        target = _target(match[1], page.file.src_uri, files, config)
        if target is None:
            return match[1]
        return os.path.relpath(_page(target), Path(page.file.src_uri).parent)

    if page.file.src_uri.startswith("source/"):
        return markdown
    return _LINK.sub(change, markdown)


def _target(link: str, page: str, files: Files, config: MkDocsConfig) -> Path | None:
    """What of the repository a link of a page in docs/ stands for; None if that is in the site."""
    docs = Path(config.docs_dir)
    path = Path(os.path.normpath(docs / Path(page).parent / link))
    if not path.exists() or not path.is_relative_to(_ROOT):
        return None
    if path.is_relative_to(docs) and files.get_file_from_path(path.relative_to(docs).as_posix()):
        return None
    return path


def _page(target: Path) -> str:
    return f"source/{target.relative_to(_ROOT).as_posix()}.md"


def _shown(folder: Path) -> list[Path]:
    """The files of a folder that are text."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return [p for p in files if not p.name.startswith(".") and b"\0" not in p.read_bytes()]


def _content(target: Path) -> str:
    name = target.relative_to(_ROOT).as_posix()
    start = f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {name}\n\n"
    if target.is_dir():
        names = [path.name for path in _shown(target)]
        return start + "".join(f"- [{file}]({target.name}/{file}.md)\n" for file in names)
    text = target.read_text(errors="replace")
    fence = "~" * 8
    return f"{start}{fence}{_LANGUAGES.get(target.suffix, 'text')}\n{text}\n{fence}\n"
