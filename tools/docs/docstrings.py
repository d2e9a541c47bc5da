"""An extension of Griffe: what docstrings write for Sphinx and readers, as mkdocstrings shows it.

- Roles, such as :func:`conv2d`, become links.
- "Example:" becomes the section of examples, whose lines with >>> are code.
- Lines that are indented below a paragraph, such as formulas, become blocks of code.
"""

from __future__ import annotations

import re

import griffe

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`(~?)([\w.]+)`")


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is None:
            return
        text = obj.docstring.value

        def link(match: re.Match[str]) -> str:
            name = match[2].rpartition(".")[2] if match[1] else match[2]
            target = _find(obj, match[2])
            return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'

        text = "\n\n".join(_as_code(paragraph) for paragraph in text.split("\n\n"))
        text = _ROLE.sub(link, text)
        obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _as_code(paragraph: str) -> str:
    first, *others = paragraph.split("\n")
    if first.startswith((" ", "- ", ">>>")) or first.endswith(":"):
        return paragraph
    if not any(line.startswith(" ") for line in others):
        return paragraph
    return f"```text\n{paragraph}\n```"


def _find(obj: griffe.Object, name: str) -> str:
    """The full name of what a docstring calls `name`."""
    if name.startswith("pyconv."):
        return name
    scope: griffe.Object | None = obj
    while scope is not None:
        if name.partition(".")[0] in scope.members:
            return f"{scope.path}.{name}"
        scope = scope.parent
    return name
