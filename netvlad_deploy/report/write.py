"""Pages as files: those of a report's folder, and those that `--report` names."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.errors import MissingDependencyError, UsageError
from netvlad_deploy.report.html_page import check_packages, html_page
from netvlad_deploy.report.markdown_page import markdown_page
from netvlad_deploy.report.page import Page
from netvlad_deploy.report.serialize import to_json
from netvlad_deploy.support.files import check_targets, stage_files, write_text

LOG = logging.getLogger(__name__)

REPORT_JSON, REPORT_PAGE, REPORT_HTML = REPORT_FILES = ("report.json", "report.md", "report.html")
"""Names of the files that a report's folder holds: the last one where the packages of the extra `report` are there."""

WRITERS: Final = {".html": html_page, ".md": markdown_page}
"""What writes a page, by the suffix of its file."""


def write_report(
    folder: Path, verb: str, result: Any, page: Page, *, pictures: Mapping[str, bytes] | None = None, force: bool
) -> None:
    """Write the result of a verb into a folder, as JSON, Markdown and HTML, with its pictures by name: all or none.

    Without matplotlib or jinja2 there is no HTML: the log says so, and that of an earlier report is removed.
    """
    files = {**(pictures or {}), REPORT_JSON: to_json(verb, result).encode(), REPORT_PAGE: markdown_page(page).encode()}
    try:
        files[REPORT_HTML] = html_page(page).encode()
    except MissingDependencyError as error:
        LOG.warning("%s is left out: %s", folder / REPORT_HTML, error)
    with stage_files(force=force) as staging:
        for name, content in files.items():
            staging.write(folder / name, content)
    if REPORT_HTML not in files:
        (folder / REPORT_HTML).unlink(missing_ok=True)


def check_reports(reports: Sequence[Path]) -> None:
    """Refuse files of `--report` that could not be written, before long work.

    Raises: UsageError if the suffix is neither `.html` nor `.md`, or a name stands twice; MissingDependencyError if
        HTML is asked for without its packages; OutputError if a file cannot be written.
    """
    for report in reports:
        if report.suffix not in WRITERS:
            raise UsageError(f"{report} ends in neither .html nor .md: name the report so, that it has a format")
    if len({report.resolve() for report in reports}) < len(reports):
        raise UsageError("--report names one file twice: name each once")
    if any(report.suffix == ".html" for report in reports):
        check_packages()
    check_targets(*reports, force=True)


def write_pages(reports: Sequence[Path], page: Page) -> None:
    """Write a page into the files of `--report`, each by its suffix; what stood there before is replaced."""
    for report in reports:
        write_text(report, WRITERS[report.suffix](page))
