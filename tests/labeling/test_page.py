"""The page to label on in a real Chromium, as a person uses it, before the real server."""

import contextlib
import re
from urllib.parse import urlsplit

import numpy as np
import pytest

from lightning_al import Labels
from lightning_al.labeling.content import Content, reader_of
from lightning_al.labeling.session import LabelingSession
from lightning_al.storage.queue_file import Queue, QueuedSample, TopClass
from tests.browser import launched_browser
from tests.labeling.queues import TOKEN, running, session_of

EVIL = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def chromium():
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def visit(chromium):
    """Open the page of a session, and at the end expect no error and no request to another host."""
    with contextlib.ExitStack() as stack:
        messages = []

        def visit(session, width=1200, **options):
            address = stack.enter_context(running(session, **options))
            context = chromium.new_context(viewport={"width": width, "height": 800}, has_touch=width < 500)
            stack.callback(context.close)
            page = context.new_page()
            watch(page, address, messages)
            page.goto(f"{address}/#{TOKEN}")
            page.wait_for_selector("#work:not([hidden]), #done:not([hidden])")
            return page

        yield visit
        assert messages == []


def watch(page, address, messages):
    page.on("console", lambda line: messages.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    allowed = (address, f"blob:{address}")
    page.on("request", lambda request: request.url.startswith(allowed) or messages.append(request.url))


def title(page):
    return page.locator("#title").text_content()


def press(page, key):
    """Press a key, and wait for the next sample."""
    before = title(page)
    page.keyboard.press(key)
    page.locator("#title", has_not_text=before).or_(page.locator("#done h1")).first.wait_for()
    page.locator("#note:empty").wait_for(state="attached")


def test_a_robot_labels_by_the_keys_with_reloads_and_undo(visit, tmp_path):
    session = session_of(tmp_path, size=12)
    page = visit(session)
    for number in range(12):
        assert re.search(rf"/{number}-\w+\.png$", title(page))
        page.locator("#sample img.small").wait_for()  # displayed, and not blurred
        if number == 3:
            page.reload()
            page.locator("#sample img").wait_for()
            assert "/3-cat.png" in title(page)
        if number == 5:  # a wrong answer
            press(page, "1")
            assert session.labels[15] == "cat"
            press(page, "Backspace")
            assert 15 not in session.labels
        true_class = re.search(r"-(\w+)\.png", title(page)).group(1)
        if number == 7:
            page.get_by_role("button", name="Cannot say").click()
            page.locator("#title", has_text="/8-").wait_for()
        elif number == 8:
            page.get_by_role("button", name=true_class).click()
            page.locator("#title", has_text="/9-").wait_for()
        else:
            press(page, str(["cat", "dog", "cow"].index(true_class) + 1))
    assert dict(session.labels) == {
        10 + number: None if number == 7 else ["cat", "dog", "cow"][number % 3] for number in range(12)
    }
    assert page.locator("#done h1").text_content() == "All 12 samples are answered"
    assert page.locator("#counts tr").all_text_contents() == ["cat4", "dog3", "cow4"]
    assert all(0 < answer.seconds < 60 and answer.by == "Ada" for answer in session.labels.answers.values())
    page.locator("#answers li", has_text="/7-").get_by_role("button").click()
    page.locator("#title", has_text="/7-").wait_for()
    press(page, "2")
    assert session.labels[17] == "dog"


@pytest.mark.parametrize("kind", ["class", "classes"])
def test_no_name_and_no_text_is_markup(visit, tmp_path, kind):
    classes = [EVIL, "<b>bold</b>"]
    samples = [
        QueuedSample(0, f"/none/{EVIL}.txt", 0, [TopClass(0, 0.9)]),
        QueuedSample(1, None, EVIL, [TopClass(EVIL, 0.9)]),
    ]
    queue = Queue(0, kind=kind, classes=classes, samples=samples)
    session = LabelingSession(queue, Labels(tmp_path / "labels.jsonl", classes), suggest=True)
    page = visit(session, read=lambda sample: Content("text/plain; charset=utf-8", EVIL.encode()))
    page.locator("#sample pre").wait_for()
    assert page.locator("#sample pre").text_content() == EVIL
    assert EVIL in page.locator("#question").text_content()
    press(page, "?")
    page.locator("#sample pre").wait_for()
    page.keyboard.press("1")
    if kind == "classes":
        page.keyboard.press("Enter")
    page.locator("#done h1").wait_for()
    page.locator("#answers li").nth(1).wait_for()
    assert EVIL in page.locator("#answers").text_content()
    assert (page.title(), page.locator("img, b").count()) == ("Label", 0)


def test_several_classes_are_saved_together(visit, tmp_path):
    session = session_of(tmp_path, size=2, kind="classes")
    page = visit(session)
    for key in ("3", "1", "2", "2"):
        page.keyboard.press(key)
    assert page.locator("[aria-pressed=true]").count() == 2
    press(page, "Enter")
    assert session.labels[10] == ["cat", "cow"]
    assert page.locator("[aria-pressed=true]").count() == 0
    page.get_by_role("button", name="Save").click()
    page.locator("#done h1").wait_for()
    assert session.labels[11] == []


def test_numbers_are_typed(visit, tmp_path):
    session = session_of(tmp_path, size=2, kind="number", classes=[])
    page = visit(session)
    page.keyboard.press("Enter")
    assert page.locator("#note").text_content() == "Type a number, such as 3.5."
    page.keyboard.type("-2.5")
    press(page, "Enter")
    page.keyboard.press("?")
    page.locator("#done h1").wait_for()
    assert dict(session.labels) == {10: -2.5, 11: None}


def test_a_class_of_many_is_searched(visit, tmp_path):
    classes = [f"species {number:03d}" for number in range(300)]
    session = session_of(tmp_path, size=2, classes=classes)
    page = visit(session)
    page.keyboard.press("/")
    page.keyboard.type("es 27")
    assert page.locator("#classes button:visible").count() == 10
    page.keyboard.type("3")
    press(page, "Enter")
    assert session.labels[10] == "species 273"
    assert page.locator("#classes button:visible").count() == 300


def test_what_the_model_predicts_is_hidden_until_asked_for(visit, tmp_path):
    page = visit(session_of(tmp_path / "a"))
    assert page.locator(".predicted").count() == 0
    assert "%" not in page.locator("#form").text_content()
    assert not page.locator("#by-class").is_visible()
    session = session_of(tmp_path / "b", suggest=True)
    page = visit(session)
    assert page.locator(".predicted").text_content() == "dog50 %2"
    page.locator("#by-class input").check()
    page.keyboard.press("Tab")
    page.locator("#title", has_text="/0-").wait_for()  # the sample that is displayed stays
    page.locator("#sample").focus()
    press(page, "Enter")
    assert session.labels[10] == "dog"
    assert "/2-" in title(page)  # of the first class


def test_a_second_window_has_another_sample_and_no_answer_is_given_twice(visit, tmp_path):
    session = session_of(tmp_path, size=3)
    first = visit(session)
    second = first.context.new_page()
    second.goto(first.url)
    second.locator("#title", has_text="/1-").wait_for()
    assert "/0-" in title(first)
    session.answer(11, "cow")
    second.keyboard.press("1")
    second.locator("#note", has_text="That sample was answered in another window.").wait_for()
    assert session.labels[11] == "cow"
    assert "/2-" in title(second)


def test_an_answer_that_does_not_reach_the_disk_is_not_taken_for_one(chromium, tmp_path):
    session = session_of(tmp_path, size=2)
    page = chromium.new_page()
    with running(session) as address:
        page.goto(f"{address}/#{TOKEN}")
        page.locator("#title", has_text="/0-").wait_for()
        (tmp_path / "labels.jsonl").mkdir()
        page.keyboard.press("1")
        page.locator("#note", has_text="Is a directory").wait_for()
        (tmp_path / "labels.jsonl").rmdir()
    page.keyboard.press("1")
    page.locator("#note", has_text="The server does not answer. Start `lightning-al label` again").wait_for()
    assert "/0-" in title(page)
    with running(session, port=urlsplit(address).port):
        page.goto(f"{address}/#wrong")  # of a server that has ended
        page.locator("#note", has_text="open the address again").wait_for()
        page.goto(f"{address}/#{TOKEN}")  # differs behind the `#` only
        page.locator("#title", has_text="/0-").wait_for()
        press(page, "1")
    assert dict(session.labels) == {10: "cat"}
    page.close()


def test_a_sound_can_be_played(visit, tmp_path):
    values = np.sin(np.arange(4000) / 8).astype(np.float32)
    dataset = [{"audio": {"array": values, "sampling_rate": 8000}}]
    queue = Queue(0, classes=["a"], samples=[QueuedSample(0)])
    page = visit(LabelingSession(queue, Labels(tmp_path / "labels.jsonl", ["a"])), read=reader_of(dataset))
    page.locator("#sample audio").wait_for()
    for _ in range(100):
        if page.evaluate("document.querySelector('audio').duration === 0.5"):
            return
        page.wait_for_timeout(100)
    pytest.fail("the browser does not read the sound")


def test_a_sample_that_cannot_be_read_says_why_and_can_be_set_aside(chromium, tmp_path):
    session = session_of(tmp_path, size=2)
    (tmp_path / "photos" / "0-cat.png").unlink()
    page = chromium.new_page()
    with running(session) as address:
        page.goto(f"{address}/#{TOKEN}")
        page.locator("#note", has_text="Sample 10 cannot be read").wait_for()
        press(page, "?")
    assert dict(session.labels) == {10: None}
    page.close()


def test_it_fits_a_phone_and_zooms(visit, tmp_path):
    session = session_of(tmp_path)
    page = visit(session, width=360)
    page.locator("#sample img").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in page.locator("#form button:visible").all():
        assert button.bounding_box()["height"] >= 44  # of a finger
    width = page.locator("#sample img").bounding_box()["width"]
    page.get_by_role("button", name="Zoom in").tap()
    assert page.locator("#sample img").bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.05)
    page.get_by_role("button", name="dog").tap()
    page.locator("#title", has_text="/1-").wait_for()
    assert session.labels[10] == "dog"
