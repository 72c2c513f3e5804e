"""The page in a real browser: from a search to recommendations, an item that appears, keys, width, dark mode."""

from __future__ import annotations

import re
import shutil
import time

import pytest
from serving import Server, make_run, vector

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    found = Server(make_run(folder), "--store", f"sqlite:///{folder}/store.sqlite")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(server, browser):
    context = browser.new_context()
    found, errors = context.new_page(), []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    found.set_default_timeout(20_000)
    found.goto(server.url)
    found.wait_for_selector("#best li")
    yield found
    context.close()
    unexpected = [error for error in errors if "status of 404" not in error]  # the browser notes an answer that is a test's own
    assert not unexpected, unexpected


def test_from_a_search_to_recommendations_by_keyboard_alone(page):
    assert "120 items" in page.inner_text("#about") or "121 items" in page.inner_text("#about")
    page.focus("#search")
    page.keyboard.type("thing 20")
    page.wait_for_selector("#found li[aria-selected=true]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#history li")
    assert "thing 20" in page.inner_text("#history li")
    page.wait_for_selector("#best .why")
    assert "thing 20" in page.inner_text("#best .why") and page.locator("#best li").count() == 10
    assert (
        page.locator("#best li").first.locator(".codes span").count() == 4
        and page.locator("#best li").first.locator(".codes i").count() == 8
    )
    assert page.locator("#usage td").count() == 8
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Clear
    page.wait_for_selector("#history li", state="detached")


def test_a_user_and_an_item_that_is_added(page):
    page.fill("#user-text", "7")
    page.press("#user-text", "Enter")
    page.wait_for_selector("#history li")
    assert page.inner_text("#who").startswith("user 7:")
    page.fill("#add-id", "900")
    page.fill("#column-title", "a <b>bold</b> new thing")
    page.click("#more summary")
    page.fill("#column-vector", ", ".join(map(str, vector(10.5))))
    page.click("#add button")
    page.wait_for_selector("#added:has-text('In the catalogue')")
    assert "121 items" in page.inner_text("#about") and re.search(r"at place \d+", page.inner_text("#added"))
    assert page.locator("#history li").count() == 3
    page.fill("#search", "bold new")
    page.wait_for_selector("#found li[aria-selected=true]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#history li:nth-child(4)")
    assert page.inner_text("#history li:last-child span") == "a <b>bold</b> new thing" and page.locator("#history b").count() == 0
    page.check("#seen")
    page.select_option("#k", "50")
    page.wait_for_selector("#best li:nth-child(50)")


def test_a_user_is_asked_for_as_such_and_what_is_changed_keeps_its_times(page, server):
    _, known = server.call("GET", "/v1/users/8")

    def asked(act) -> dict:
        with page.expect_request("**/v1/recommend") as request:
            act()
        body = request.value.post_data_json
        return {name: body[name] for name in ("user", "history", "times") if name in body}

    page.fill("#user-text", "8")
    assert asked(lambda: page.press("#user-text", "Enter")) == {"user": "8"}
    items, times = ([one[name] for one in known["history"][1:]] for name in ("item", "time"))
    assert asked(page.locator("#history button").first.click) == {"history": items, "times": times}
    page.fill("#search", "thing 20")
    page.wait_for_selector("#found li[aria-selected=true]")
    begun = time.time()
    longer = asked(lambda: page.keyboard.press("Enter"))
    assert longer["history"] == [*items, 120] and longer["times"][:-1] == times and abs(longer["times"][-1] - begun) < 60
    page.wait_for_selector("#problem", state="hidden")


def test_problems_are_told(page):
    page.fill("#user-text", "nobody")
    with page.expect_response("**/v1/users/nobody"):
        page.press("#user-text", "Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert "unknown user id 'nobody'" in page.inner_text("#problem")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_dark_where_that_is_wanted(server, browser, scheme):
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#best li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, paper[4:-1].split(",")))
    assert brightness > 600 if scheme == "light" else brightness < 150
    context.close()
