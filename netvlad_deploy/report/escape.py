r"""Escape names from files and users for each output: terminal, JSON, Markdown and XML. A name may hold any character.

Line breaks, escape codes of terminals, characters that turn the direction of text, and bytes that are no UTF-8
(surrogates, in Python's names of files) become `\x1b` and the like. Other text stays as it is.
"""

import re
from xml.etree import ElementTree as ET

_MARKDOWN = re.compile(r"[\\`*|<\[\]]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that Markdown takes for markup; an underscore inside a word is none."""


def printable(text: str) -> str:
    r"""Return a text as one printable line, for a terminal or a picture.

    >>> print(printable("a\nb"))
    a\nb
    """
    return text if text.isprintable() else "".join(each if each.isprintable() else _code(each) for each in text)


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def unicode_text(text: str) -> str:
    """Return a text without surrogates, which `json` would write although they are no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode()


def markdown_text(text: str) -> str:
    r"""Return a text that Markdown shows as it is, in a paragraph or in the cell of a table.

    >>> print(markdown_text("a|b_c*"))
    a\|b_c\*
    """
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def xml_text(root: ET.Element) -> str:
    """Return a tree as XML 1.0, with control characters made printable, because XML forbids most even when escaped."""
    for element in root.iter():
        element.text = element.text and printable(element.text)
        for name, value in element.items():
            element.set(name, printable(value))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def html_value(value: object) -> object:
    """Return a value as a template of HTML shows it: a text as one printable line, markup of our own as it is.

    The template itself escapes what HTML would obey.
    """
    return value if hasattr(value, "__html__") else printable(str(value))
