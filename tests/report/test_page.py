"""The page in a real Chromium, as a person uses it: no error, figures drawn, hovering and sorting work."""

import re

import numpy as np
import pytest
from PIL import Image

from lightning_al.cli.report import main
from tests.browser import launched_browser
from tests.report.runs import written_query, written_run

EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def chromium():
    with launched_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Write a study of two strategies and two seeds, whose names, texts and labels contain markup."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    quantiles = np.linspace(0.01, 1, 21).tolist()
    for seed in (0, 1):
        for strategy, values in (("random", (0.5, 0.6, 0.65)), (f"a{EVIL}", (0.5, 0.7, 0.9))):
            run = f"{strategy[0]}-seed-{seed}"
            marker = {"strategy": strategy, "seed": seed}
            shifted = [value + 0.01 * seed for value in values]
            written_run(folder / run, shifted, marker=marker, config={"model": {"name": EVIL}})
            for cycle in range(3):
                rows = [{"file": "0.png", "score": "0.5", "predicted": "1", "label": "2"}]
                rows += [{"text": EVIL}, {"file": "2.wav"}]
                picked = written_query(folder / run, cycle, rows, {"label/0": 2.0, "redundancy": 0.1}, quantiles)
                Image.new("L", (8, 8), 200).save(picked / "0.png")
                (picked / "2.wav").write_bytes(b"RIFF")
    assert main([str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture
def visit(chromium, page_file):
    """Open the page, and at the end expect no error, no warning and no request."""
    opened = []

    def visit(width=1300, **options):
        page = chromium.new_page(viewport={"width": width, "height": 900}, **options)
        messages = []
        page.on(
            "console", lambda message: messages.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
        page.goto(page_file.as_uri())
        page.wait_for_selector(".main-svg")
        opened.append((page, messages))
        return page

    yield visit
    for page, messages in opened:
        assert page.title() == "Active learning: study"  # no name, text or setting became a script
        page.close()
        assert messages == []


def wait_until(page, script, seconds=10):
    """Ask the page again and again; its policy forbids Playwright's own way, which evaluates a string inside."""
    for _ in range(10 * seconds):
        if page.evaluate(script):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never came true: {script}")


def test_all_figures_of_open_parts_are_drawn(visit):
    page = visit()
    assert page.locator(".pair .chart .scatterlayer .trace").count() == 2 * 4  # two curves with their bands
    page.locator(".run[open]").first.scroll_into_view_if_needed()
    missing = (
        "[...document.querySelectorAll('.run[open] .grid .chart')].filter((chart) => !chart.querySelector('.main-svg'))"
    )
    wait_until(page, f"{missing}.length === 0")
    assert page.locator(".run[open] .barlayer .point").count() == 3
    assert page.locator(".run[open] .boxlayer .trace").count() == 1
    closed = page.locator(".run").nth(1)
    assert closed.locator(".plot-container").count() == 0
    closed.locator("summary").first.click()
    closed.locator(".plot-container").first.wait_for()


def test_hovering_shows_the_numbers(visit):
    page = visit()
    page.locator(".pair .chart .point").nth(5).hover(force=True)
    label = page.locator(".hoverlayer .hovertext")
    label.first.wait_for()
    assert re.search(r"\d+ labels: 0\.\d+ ± 0\.\d+ \(2 seeds\)", label.first.text_content())


def test_heads_sort_the_table_by_number_in_either_direction(visit):
    page = visit()
    names, areas = page.locator("tbody th"), page.locator(".sortable tbody td:nth-child(4)")
    assert names.all_text_contents()[:2] == [f"a{EVIL}", "random"]
    head = page.get_by_role("button", name="area", exact=True)
    head.click()
    assert names.all_text_contents()[:2] == ["random", f"a{EVIL}"]
    assert [text.split()[0] for text in areas.all_text_contents()] == ["0.5925", "0.7050"]
    assert page.locator("th[aria-sort=ascending]").all_text_contents() == ["area"]
    head.press("Enter")
    assert names.all_text_contents()[:2] == [f"a{EVIL}", "random"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1300])
def test_it_fits_a_phone_and_follows_the_color_scheme(visit, width, scheme):
    page = visit(width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.locator(".xtitle").first.evaluate("element => getComputedStyle(element).fill")
    light, dark = (min(map(int, re.findall(r"\d+", color)[:3])) > 128 for color in (paper, ink))
    assert (light, dark) == ((True, False) if scheme == "light" else (False, True))


def test_charts_change_their_colors_with_the_scheme(visit):
    page = visit(color_scheme="light")
    page.emulate_media(color_scheme="dark")
    ink = "getComputedStyle(document.querySelector('.xtitle')).fill"
    wait_until(page, f"{ink}.match(/[0-9]+/g).slice(0, 3).every((part) => part > 128)")


def test_it_prints(visit, tmp_path):
    page = visit()
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000


def test_picks_show_pictures_sounds_and_texts_with_mistakes_framed(visit):
    page = visit()
    sheet = page.locator(".sheet").first
    assert sheet.locator("img").evaluate("image => image.naturalWidth") == 8
    assert sheet.locator("audio").count() == 1
    assert sheet.locator("blockquote").text_content() == EVIL
    assert sheet.locator("li.wrong").count() == 1
