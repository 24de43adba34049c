"""The documentation: its Python is executed, its commands are parsed, and what it links to exists."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from imaml_lightning.cli import main

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
#: Pages of the site that are notebooks; docs/notebooks leads to them.
NOTEBOOKS = {f"notebooks/{path.name}" for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
NAVIGATION = set(re.findall(r": ([\w/-]+\.(?:md|ipynb))$", (REPOSITORY / "mkdocs.yml").read_text(), re.M))


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Fenced code blocks of a language, each with the number of its first line."""
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    return [(text[: match.start()].count("\n") + 2, match.group(1)) for match in found]


def commands(text: str) -> list[str]:
    """What stands after ``imaml-lightning fit`` or ``python -m imaml_lightning fit`` in blocks of shell commands, comments left out."""
    shell = "\n".join(block for _, block in blocks(text, "sh"))
    shell += "\n".join(line for line in text.splitlines() if line.startswith("    "))
    return re.findall(r"(?:python -m imaml_lightning|imaml-lightning) fit\b([^#\n]*)", re.sub(r"\\\n\s*", "", shell))


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda page: page.stem)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page.read_text(), "python"):
        # Padded, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize(
    ("page", "options"),
    [(page, options) for page in PAGES for options in dict.fromkeys(commands(page.read_text()))],
    ids=lambda value: value.stem if isinstance(value, Path) else value.strip()[:60] or "fit",
)
def test_commands_are_understood(
    page: Path, options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split(options)
    if "--ckpt_path" in arguments or "…" in options or any(a.endswith("help") for a in arguments):
        pytest.skip("needs a run, or is an excerpt")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["imaml_lightning"])
    arguments = [a for a in arguments if a != "--print_config"]
    with pytest.raises(SystemExit) as caught:
        main(["fit", *arguments, "--print_config=comments"])
    assert caught.value.code in (0, None)
    assert yaml.safe_load(capsys.readouterr().out)["model"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert target.removeprefix("docs/") in NAVIGATION or (page.parent / target).exists(), (
                f"{page.name} links to {target}"
            )


def test_every_page_is_in_the_navigation() -> None:
    assert {page.name for page in PAGES if page.parent.name == "docs"} | NOTEBOOKS <= NAVIGATION
