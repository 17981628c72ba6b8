"""README.md quotes the published numbers and nothing else, and what it links to is there."""

import re

import pytest

from sam3lab.errors import UserError
from sam3lab.paths import FIGURES, ROOT
from sam3lab.study import readme, stored

RECORDS = {"a.ratio": {"value": 2.0, "low": 1.5, "high": 2.5, "unit": "×", "text": "2.00 [1.50, 2.50]×"}}


def test_the_numbers_are_those_of_the_published_results():
    text = (ROOT / "README.md").read_text()
    assert len(readme.MARK.findall(text)) > 5
    assert readme.refresh(text, stored.published(FIGURES)) == text
    assert "figures/answer.png" in text and "<!-- answer.headline -->" in text


def test_its_links_and_commands_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{command}:" in makefile, command
    for notebook in re.findall(r"`(\d\d_\w+)`", text):
        assert (ROOT / "notebooks" / f"{notebook}.ipynb").exists(), notebook


def test_refresh():
    assert (
        readme.refresh("x <!-- a.ratio -->old<!-- / -->", RECORDS) == "x <!-- a.ratio -->2.00 [1.50, 2.50]×<!-- / -->"
    )
    assert readme.refresh("<!-- a.ratio|value --><!-- / -->", RECORDS) == "<!-- a.ratio|value -->2.00×<!-- / -->"
    elsewhere = {"a-cpu:a.ratio": RECORDS["a.ratio"]}
    assert readme.refresh("<!-- a-cpu:a.ratio|value --><!-- / -->", elsewhere).count("2.00×") == 1
    with pytest.raises(UserError, match=r"b\.ratio"):
        readme.refresh("<!-- b.ratio -->1<!-- / -->", RECORDS)
    with pytest.raises(UserError, match="typed by hand"):
        readme.refresh("it is 3.1 times as fast", RECORDS)
    fenced = "```\nsleep 10 s\n```"
    assert readme.refresh(fenced, RECORDS) == fenced
