"""The report is one file that needs nothing else, tells what is missing, and can be read by everyone."""

import re
from html.parser import HTMLParser

import nbformat
import pytest

from sam3lab.study import published, report
from sam3lab.study.notebook import Study

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>'


def output(kind, **data):
    return nbformat.v4.new_output("display_data", data={f"text/{kind}": data["text"]})


def cell(source, *outputs, tags=(), count=1):
    made = nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count)
    made.metadata["tags"] = list(tags)
    return made


def prose(source, *tags):
    made = nbformat.v4.new_markdown_cell(source)
    made.metadata["tags"] = list(tags)
    return made


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "notebooks").mkdir()
    image = '<figure id="figure-x"><img src="data:image/svg+xml;base64,AA==" alt="An alt text"></figure>'
    books = {
        "01_runtimes": [
            prose("# Which is fast?\n\nText with <script>alert(1)</script> and *care*.\n\n## What was seen"),
            cell("measure()", nbformat.v4.new_output("stream", text="\x1b[31mprogress\x1b[0m line\n")),
            cell("say()", output("markdown", text="- **One** is 2.00× as fast")),
            cell("figure()", output("html", text=image)),
        ],
        "02_resolution": [
            prose("# How does it grow?"),
            cell(
                "1 / 0",
                nbformat.v4.new_output(
                    "error", ename="ZeroDivisionError", evalue="division", traceback=["\x1b[1mline"]
                ),
            ),
            cell("never()", count=None),
        ],
        "90_report": [
            prose("## Key findings", "opening"),
            cell("findings()", output("markdown", text="It is *quick*."), tags=["opening"]),
            prose("# Can it be trusted?\n\n## Parity"),
            cell("parity()", output("html", text="<table><tr><th>x</th></tr></table>")),
        ],
    }
    for name, cells in books.items():
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.headings, self.ids, self.links, self.loads, self.images, self.tags = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "a":
            self.links.append(given["href"])
        if tag == "img":
            self.images.append(given)
        if tag in ("script", "link", "img", "iframe"):
            self.loads.append(given.get("src") or given.get("href") or tag)


def read(run_dir):
    text = report.write(run_dir).read_text()
    return text, Page(text)


def test_the_report_needs_no_network_and_no_other_file(run_dir):
    text, page = read(run_dir)
    assert all(place.startswith("data:") for place in page.loads)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"url\(|@import", text)


def test_the_contents_lead_to_every_section(run_dir):
    _, page = read(run_dir)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert {"#findings", "#01_runtimes", "#01_runtimes-what-was-seen", "#90_report-parity"} <= set(page.links)
    assert len(set(page.ids)) == len(page.ids)


def test_headings_are_in_order_and_images_have_texts(run_dir):
    _, page = read(run_dir)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.images and all(image["alt"] for image in page.images)


def test_findings_come_first_and_what_is_missing_is_told_above_them(run_dir):
    text, _ = read(run_dir)
    places = [
        text.index(part)
        for part in ("ZeroDivisionError: division", "It is <em>quick</em>", "Which is fast?</h2>", "Parity</h3>")
    ]
    assert places == sorted(places)


def test_code_and_logs_are_folded_away_and_markup_in_prose_is_text(run_dir):
    text, page = read(run_dir)
    assert page.tags.count("details") == text.count("</details>") >= 4
    assert re.search(r"<summary>Log</summary><pre[^>]*>progress line", text)
    assert "&lt;script&gt;" in text and "<strong>One</strong>" in text
    assert "\x1b" not in text


def test_a_notebook_that_was_stopped_is_named(run_dir):
    path = run_dir / "notebooks" / "01_runtimes.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[-1].execution_count = None
    nbformat.write(book, path)
    assert report.problem(path) == "it was stopped before its end"
    assert "it was stopped before its end" in read(run_dir)[0]
    assert report.problem(run_dir / "notebooks" / "03_prompts.ipynb") == "it never began"


def test_without_any_notebook_there_is_still_a_report(tmp_path):
    assert "<h1>" in report.write(tmp_path).read_text()


def test_what_a_notebook_shows_is_escaped_and_complete(tmp_path, capsys):
    given = {"run": str(tmp_path), "results": "", "measure": True, "figures": "", "checkpoint": "x", "device": "cpu"}
    study = Study("01_runtimes", given)
    study.record("a.one", 2.0, "ms")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "x.svg").write_bytes(SVG)
    shown = []
    import IPython.display

    original, IPython.display.display = IPython.display.display, shown.append
    try:
        study.show("x", "Takes {a.one} <i>", 'An "alt" of {a.one}')
        study.say("- **{name.*}** takes {a.*}", each=["one", "two"])
        study.say("- {name.pytorch} takes {a.one}", "- {never.measured}")
        study.say("{never.measured}")
    finally:
        IPython.display.display = original
    figure, nothing, one, none = shown
    page, text = figure._repr_html_(), figure._repr_markdown_()
    nothing, one, none = nothing.data, one.data, none.data
    assert "Takes 2.00 ms &lt;i&gt;" in page and 'alt="An &quot;alt&quot; of 2.00 ms"' in page
    assert text == '![An "alt" of 2.00 ms](x.png)\n\n*Takes 2.00 ms &lt;i&gt;*'
    assert one == "- PyTorch (lean) takes 2.00 ms"
    assert "not measured" in nothing and "not measured" in none


def test_what_is_published_is_prose_and_tables_in_order_with_figures_beside_it(run_dir, tmp_path):
    path = run_dir / "notebooks" / "01_runtimes.ipynb"
    book = nbformat.read(path, as_version=4)
    both = {"text/html": "<table>never this</table>", "text/markdown": "| a |\n| --: |\n| 1 |"}
    book.cells.append(cell("table()", nbformat.v4.new_output("display_data", data=both)))
    nbformat.write(book, path)
    target = tmp_path / "figures"
    target.mkdir()
    text = published.write(run_dir, target, tmp_path / "h200").read_text()
    assert text == (target / "report.md").read_text() and text.startswith("# Results of `h200`\n")
    parts = ("## Key findings", "It is *quick*.", "## Which is fast?", "### What was seen", "- **One**", "| 1 |")
    places = [text.index(part) for part in (*parts, "## How does it grow?", "### Parity")]
    assert places == sorted(places)
    for absent in ("never this", "progress", "measure()", "ZeroDivisionError", "base64"):
        assert absent not in text
