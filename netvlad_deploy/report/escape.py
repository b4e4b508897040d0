r"""Names from files and users on their way out: a function for each edge, since a name may hold any character.

Line breaks, escape codes of terminals, characters that turn the direction of text, and bytes that are no UTF-8
(surrogates, in Python's names of files) become `\x1b` and the like. Where nothing needs that, text stays as it is.
"""

import re
from xml.etree import ElementTree as ET

_MARKDOWN = re.compile(r"[\\`*|<\[\]]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown reads as a sign: of underscores only those at the end of a word."""


def printable(text: str) -> str:
    """Return a text as one line for a terminal or a picture."""
    return text if text.isprintable() else "".join(each if each.isprintable() else _code(each) for each in text)


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def unicode_text(text: str) -> str:
    """Return a text that every reader of JSON takes: `json` itself escapes all but surrogates, which are no text."""
    return text.encode("utf-8", "backslashreplace").decode()


def markdown_text(text: str) -> str:
    """Return a text that stands in a page of Markdown, or in a cell of its tables, as itself."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def xml_text(root: ET.Element) -> str:
    """Return a tree as XML 1.0, in which most control characters cannot stand, not even escaped."""
    for element in root.iter():
        element.text = element.text and printable(element.text)
        for name, value in element.items():
            element.set(name, printable(value))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
