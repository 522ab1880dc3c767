"""README is true: its offline script runs, its links lead somewhere, its two commands are what CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(
    not README.is_file(), reason="needs the source tree, not only the installed package"
)


def test_offline_script_runs(tmp_path, monkeypatch):
    code = re.search(
        r"<!-- tests/test_readme.py runs this -->\n```python\n(.*?)```", README.read_text(), re.S
    )[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 (our own text)
    for name in ("glass.png", "mixed.png", "bees.png", "bees.safetensors"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_links_lead_to_files():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("web/docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_commands_are_those_that_ci_runs():
    text = README.read_text()
    assert "pip install . && stylemamba demo" in text
    assert 'pip install ".[test]" && pytest' in text
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip install --quiet ".[test]"' in ci and "\npytest\n" in ci
