"""What the bill of materials lists; `make sbom`, which CI runs, writes and validates one."""

from tools.sbom import needed, runtime


def test_what_a_package_needs_is_followed_to_the_end() -> None:
    names, absent = needed([("typer", frozenset()), ("no-such-package", frozenset())])
    assert {"typer", "rich", "markdown-it-py", "mdurl"} <= names
    assert "pytest" not in names
    assert absent == {"no-such-package"}


def test_an_extra_of_a_requirement_is_followed_where_it_is_wanted() -> None:
    """The extra `dev` of this package itself brings pytest, which nothing needs to run."""
    plain, developing = (needed([("netvlad-deploy", frozenset(extras))])[0] for extras in ((), ("dev",)))
    assert "pytest" in developing - plain
    assert "numpy" in plain


def test_the_runtime_is_all_but_development() -> None:
    found = runtime()
    assert {"", "export", "cpu", "images"} <= set(found)
    assert not {"dev", "demo"} & set(found)
    assert ("numpy", frozenset()) in found[""]
