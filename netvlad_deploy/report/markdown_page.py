"""A page as Markdown, for the summary of a CI job and for a terminal; of a figure it has the words."""

from netvlad_deploy.report.escape import markdown_text, printable
from netvlad_deploy.report.page import Block, Code, Figure, Grid, Page, Paragraph, Photos
from netvlad_deploy.report.text import markdown_table


def markdown_page(page: Page) -> str:
    """Return a page as Markdown.

    >>> print(markdown_page(Page(title="m.onnx", headline="All is well.", facts=(("p50", "1 ms"),))))
    # m.onnx
    <BLANKLINE>
    All is well.
    <BLANKLINE>
    - p50: 1 ms
    <BLANKLINE>
    """
    verdict = f"{page.verdict.value}: " if page.verdict else ""
    lines = [f"# {verdict}{markdown_text(page.title)}", "", markdown_text(page.headline), ""]
    if page.facts:
        lines += [*(f"- {markdown_text(f'{name}: {value}')}" for name, value in page.facts), ""]
    for section in page.sections:
        lines += [f"## {markdown_text(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block_lines(block), ""]
    return "\n".join(lines)


def _block_lines(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        return [markdown_text(block.text)]
    if isinstance(block, Grid):
        return markdown_table(block.header, block.rows)
    if isinstance(block, Code):
        return ["```", *(printable(line).replace("```", "` ` `") for line in block.lines), "```"]
    if isinstance(block, Photos) and not block.file:
        return []
    if not block.file:
        return [f"*{markdown_text(block.alt)}.*"]
    picture = [f"![{markdown_text(block.alt)}]({block.file})"]
    return [*picture, "", markdown_text(block.caption)] if isinstance(block, Figure) else picture
