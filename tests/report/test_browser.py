"""The report in headless Chromium: nothing clipped, nothing small, nothing that axe finds, and on paper."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from app.report.collect import collect
from app.report.two_runs import beside, files_of
from tests.report.runs import written
from tests.report.test_report import DATASETS, RUN, read

MEASURE = """
const clipped = [], small = [];
for (const box of document.querySelectorAll(".scroll"))
  if (box.scrollWidth > box.clientWidth + 1) clipped.push(box.getAttribute("aria-label"));
for (const element of document.querySelectorAll("body *")) {
  if (![...element.childNodes].some(node => node.nodeType == 3 && node.textContent.trim())) continue;
  let size = parseFloat(getComputedStyle(element).fontSize);
  if (element.closest("svg") && element.tagName != "text") continue;
  if (element.tagName == "text") { const m = element.getScreenCTM(); size *= Math.hypot(m.a, m.b); }
  if (size && size < 10.95 && !["STYLE", "SCRIPT"].includes(element.tagName)) small.push([element.textContent, size]);
}
answer({width: innerWidth, page: document.documentElement.scrollWidth, clipped, small});"""
# Gradients, which show that there is more to scroll to, hide from axe what text stands on.
AXE = """
for (const folded of document.querySelectorAll("details")) folded.open = true;
document.head.append(Object.assign(document.createElement("style"), {
  textContent: ".scroll { background: var(--surface) !important } nav { background: var(--page) !important }"}));
const found = await axe.run(
  {exclude: [["svg > *"]]}, {resultTypes: ["violations"]});  // of all others no more than their number
const told = rules => rules.map(rule => [rule.id, rule.help, rule.nodes.slice(0, 3).map(n => n.html.slice(0, 200))]);
answer({dark: matchMedia("(prefers-color-scheme: dark)").matches, rules: found.passes.length,
  violations: told(found.violations)});"""


class Browser:
    """Headless Chromium with a profile of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder = program, folder

    def call(self, page: str, *options: str) -> str:
        """Open a page with further options; return what Chromium writes."""
        (self.folder / "page.html").write_text(page)
        command = [
            self.program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={self.folder}/profile",
        ]
        command += [*options, (self.folder / "page.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    def ask(self, page: str, script: str, *, width: int = 1280, dark: bool = False) -> Any:
        """Return what ``answer(value)`` is told by a script that runs once the page has loaded."""
        answer = """const answer = value => { const place = parent.document.body;
            if (parent === window) place.innerHTML = "";
            const text = JSON.stringify(value);
            place.append(Object.assign(parent.document.createElement("output"), {textContent: text})); };"""
        script = f'<script>addEventListener("load", async () => {{ {answer} {script} }});</script>'
        page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # which this script is not of
        before, _, after = page.rpartition("</body>")
        page = f"{before}{script}</body>{after}"
        if width < 500:  # no window of the browser is narrower, but a frame in it is
            page = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        shown = self.call(page, "--dump-dom", "--virtual-time-budget=30000", f"--window-size={width},900", scheme)
        found = re.search(r"<output>(.*?)</output>", shown, re.S)
        assert found, "the script came to its end"
        return json.loads(html.unescape(found[1]))


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    return Browser(found, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1920, 1280, 390])
@pytest.mark.parametrize("kind", ["widest", "own"])
def test_nothing_is_clipped_or_small_in_a_browser(browser, request, kind, width):
    seen = browser.ask(read(request.getfixturevalue(kind), "index.html"), MEASURE, width=width)
    assert seen["page"] <= seen["width"], "the page itself never scrolls sideways"
    assert seen["small"] == []
    if width > 1000:
        assert seen["clipped"] == []


def violations(browser: Browser, page: str, **how: Any) -> Any:
    """What axe-core finds, folded parts unfolded; [rule, what to do, where]."""
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text()
    found = browser.ask(page.replace("</head>", f"<script>{source}</script></head>", 1), AXE, **how)
    assert found["dark"] == how.get("dark", False)
    assert found["rules"] > 20, "it has looked"
    return found["violations"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"), [("widest", {"width": 1280}), ("own", {"width": 390, "dark": True}), ("two", {"dark": True})]
)
def test_axe_finds_nothing_that_keeps_people_out(browser, request, own, kind, how):
    if kind == "two":
        page = files_of(beside(*[collect(own.store, RUN)] * 2))["index.html"]
    else:
        page = read(request.getfixturevalue(kind), "index.html")
    assert violations(browser, page, **how) == []


def test_axe_finds_what_is_broken(browser, own):
    page = read(own, "index.html").replace(' lang="en"', "", 1).replace("</main>", "<img src='data:,'></main>", 1)
    assert {rule for rule, _, _ in violations(browser, page)} == {"html-has-lang", "image-alt"}


def printed(browser: Browser, page: str) -> list[list[str]]:
    """The lines of each page of paper."""
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (poppler) is not installed")
    paper = browser.folder / "page.pdf"
    browser.call(page, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    text = subprocess.run(["pdftotext", "-layout", paper, "-"], capture_output=True, text=True).stdout
    pages = [[line.strip() for line in page.splitlines() if line.strip()] for page in text.split("\f")]
    return [lines for lines in pages if lines]


@pytest.mark.slow
def test_in_print_no_table_is_left_without_its_head_or_rows(browser, widest):
    """No page ends with the head of a table, or shows rows without one."""
    pages = printed(browser, read(widest, "index.html"))
    assert len(pages) > 10
    folded = ("pretrain:", "Every point of the curves", "Calibration of every cell", "Rows as CSV", "Record of")
    assert not [line for lines in pages for line in lines if line.startswith(folded)], "what needs a screen"
    heads = ("Dataset", "Job ", "Role ", "Item ")
    captions = (
        "Test AUROC: mean",
        "Paired differences",
        "AUROC of each",
        "Every test metric",
        "Downstream jobs",
        "Datasets (",
    )
    for lines in pages:
        assert not lines[-1].startswith((*heads, *captions)), lines[-1]
        if re.search(r"^\S.* \d\.\d{3} ± ", lines[0]):
            pytest.fail(f"rows without a head: {lines[0]}")


SORT = """
const page = document.querySelector("iframe").contentDocument, table = page.getElementById("results");
const seen = () => [...table.querySelectorAll("tbody tr")].map(row => [...row.cells].map(cell => cell.innerText));
const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells], told = [], before = seen();
for (const column of [3, 3, 1, 1, 1]) {
  heads[column].querySelector("button").click();
  told.push([column, heads.map(head => head.ariaSort), seen()]);
}
answer({told, before, injected: page.title === "injected"});"""


@pytest.mark.slow
def test_tables_are_sorted_by_buttons_under_a_policy_that_lets_nothing_else_run(browser, widest):
    page = read(widest, "index.html").replace("</main>", "<script>document.title = 'injected'</script></main>")
    seen = browser.ask(f'<iframe srcdoc="{html.escape(page)}"></iframe></body>', SORT)
    orders = [[head for head in heads if head != "none"] for _, heads, _ in seen["told"]]
    assert orders == [["descending"], ["ascending"], ["ascending"], ["descending"], []]
    assert all(len(row) == 7 for _, _, rows in seen["told"][:4] for row in rows), "each row has its group's heading"
    byol = [
        [float(re.search(r"\d\.\d+", row[3])[0]) for row in rows] for column, _, rows in seen["told"] if column == 3
    ]
    assert byol[0] == sorted(byol[0], reverse=True)
    assert byol[1] == sorted(byol[1])
    assert byol[0] != byol[1]
    protocols = [row[1] for row in seen["told"][2][2]]
    assert protocols == sorted(protocols)
    assert seen["told"][4][2] == seen["before"], "at last as it was"
    assert not seen["injected"]


@pytest.mark.slow
def test_a_study_of_one_set_prints_on_less_than_ten_pages(browser):
    """As the demo: one data set, two protocols, the start and BYOL."""
    run = written(
        datasets={"pneumoniamnist": DATASETS["pneumoniamnist"]}, methods=("random", "byol"), seeds=(0, 1, 2),
        protocols=("linear_probe", "few_shot_frozen"), clinical=True, curve=("1", "5", "50"),
    )  # fmt: skip
    assert len(printed(browser, read(run, "index.html"))) < 10
