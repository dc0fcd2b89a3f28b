# SPDX-License-Identifier: Apache-2.0
"""MkDocs calls these functions. What documents link to outside docs/ becomes a page of the site, below `source/`.

The documents are read in the repository, too, and link to code there. The project has no address yet that such links
could lead to, so the site holds the linked files, and the files that those documents outside docs/ link to.
"""

import posixpath
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
SOURCE = "source"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".sh": "bash"}
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"

_places: dict[str, str] = {}  # of the pages made here: the path in the repository by the path in the site


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside docs/ that a document links to."""
    _places.clear()
    waiting = [_place(page.src_uri) for page in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        for path in linked_outside(waiting.pop()):
            if path not in seen:
                seen.add(path)
                _places[page_of(path)] = path
                files.append(File.generated(config, page_of(path), content=page_text(path)))
                waiting += [path] if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the links that lead out of docs/ into links to their pages."""
    return relinked(markdown, _place(page.file.src_uri), page.file.src_uri)


def _place(src_uri: str) -> str:
    """The path in the repository of a page of the site."""
    return _places.get(src_uri, f"{DOCS}/{src_uri}")


def page_of(path: str) -> str:
    """The path in the site of a file or folder of the repository outside docs/."""
    if path.endswith(".md"):
        return f"{SOURCE}/{path}"
    return f"{SOURCE}/{path}/index.md" if (ROOT / path).is_dir() else f"{SOURCE}/{path}.md"


def page_text(path: str) -> str:
    """The page of a file or folder: a document as it is, code in a block, the names in a folder."""
    place = ROOT / path
    if path.endswith(".md"):
        return place.read_text(encoding="utf-8")
    if place.is_dir():
        names = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith((".", "__pycache__")))
        return f"{NOT_SEARCHED}# {path}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = place.read_text(encoding="utf-8")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    language = LANGUAGES.get(place.suffix, "text")
    return f"{NOT_SEARCHED}# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def linked_outside(path: str) -> set[str]:
    """The paths outside docs/ that a document of the repository links to."""
    text = FENCED.sub("", (ROOT / path).read_text(encoding="utf-8"))
    targets = (target_of(link, path) for _, link in LINK.findall(text))
    return {target for target in targets if target is not None and not is_document(target)}


def target_of(link: str, path: str) -> str | None:
    """The path in the repository that a link in the document `path` leads to; None for other links."""
    name = link.partition("#")[0]
    if not name or re.match(r"[a-z]+:", name):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), name))


def is_document(path: str) -> bool:
    return path.startswith(f"{DOCS}/")


def relinked(text: str, path: str, src_uri: str) -> str:
    """`text`, the document `path` shown at `src_uri`, with links that hold in the site.

    A document that is named by its file has its title there.
    """
    folder = posixpath.dirname(src_uri) or "."

    def replace(match: re.Match[str]) -> str:
        shown, link = match.groups()
        target = target_of(link, path)
        if target is None:
            return match[0]
        if shown.endswith(".md") and target.endswith(".md"):
            shown = title_of(target)
        place = target.removeprefix(f"{DOCS}/") if is_document(target) else page_of(target)
        _, hash_sign, anchor = link.partition("#")
        return f"[{shown}]({posixpath.relpath(place, folder)}{hash_sign}{anchor})"

    return outside_fences(text, lambda part: LINK.sub(replace, part))


@cache
def title_of(path: str) -> str:
    """The first heading of a document of the repository; the path where there is none, or no such document."""
    place = ROOT / path
    heading = re.search(r"^# +(.+)$", place.read_text(encoding="utf-8"), re.MULTILINE) if place.is_file() else None
    return heading[1] if heading else path


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """`text` with `change` applied to all but its fenced blocks."""
    parts, place = [], 0
    for block in FENCED.finditer(text):
        parts += [change(text[place : block.start()]), block[0]]
        place = block.end()
    return "".join([*parts, change(text[place:])])
