"""Reports in Chromium, without a window: what only a browser can tell of a page."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report_golden import NAMES, write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHECKS = Path(__file__).with_name("report_checks.js")
SCHEMES = {"dark": 0, "light": 1}  # as Chromium counts them
CHECKED = ("errors", "requests", "sorting", "plots", "saving", "width", "contrast")
WIDTHS = (1200, 390)  # of a screen, of a phone
PRINTED = 720  # of A4 paper, within its margins

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium, chromium-browser or google-chrome")

# Every page in frames of both widths; what the checks in them find, by the name of the frame, becomes this page's text.
FRAMES = """<!DOCTYPE html><meta charset="utf-8"><body>{frames}<pre id="found"></pre><script>
const found = {{}};
addEventListener("message", event => {{
  for (const frame of document.querySelectorAll("iframe")) {{
    if (frame.contentWindow === event.source) found[frame.name] = event.data;
  }}
  document.querySelector("#found").textContent = JSON.stringify(found);
}});
</script></body>"""
FRAME = '<iframe name="{name} {width}" style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>'
CATCH = "<script>const errors = []; addEventListener('error', event => errors.push(event.message));</script>"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    for name in NAMES:
        write(folder, name)
    return {name: (folder / f"{name}.html").read_text() for name in NAMES}


@pytest.fixture(scope="module", params=SCHEMES)
def checked(request, pages, tmp_path_factory):
    """The scheme, what the checks found by page and width, and what Chromium said."""
    folder = tmp_path_factory.mktemp("browser")
    frames = [frame(name, width, page) for name, page in pages.items() for width in WIDTHS]
    frames += [frame(name, PRINTED, on_paper(page)) for name, page in pages.items()]
    return request.param, *in_chromium(folder, request.param, frames)


def on_paper(page: str) -> str:
    """The page on a screen as it is printed."""
    return page.replace("@media print", "@media all").replace("@media screen", "@media print")


def frame(name: str, width: int, page: str) -> str:
    """A frame with the page, and the checks in it."""
    script = f"<script>{CHECKS.read_text()}</script></body>"
    watched = html.escape(page.replace("<head>", f"<head>{CATCH}").replace("</body>", script))
    return FRAME.format(name=name, width=width, page=watched)


def in_chromium(folder: Path, scheme: str, frames: list[str]) -> tuple[dict, str]:
    """What the checks find by frame, and what Chromium says."""
    (folder / "frames.html").write_text(FRAMES.format(frames="".join(frames)))
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={folder / 'user'}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=60000"]
    command = [CHROMIUM, *options, "--dump-dom", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(text)), done.stderr


def test_all_pages_are_checked_in_their_scheme_and_width(checked):
    scheme, found, _ = checked
    assert {name: one["width_px"] for name, one in found.items()} == {
        f"{name} {width}": width for name in NAMES for width in (*WIDTHS, PRINTED)
    }
    assert {one["dark"] for one in found.values()} == {scheme == "dark"}
    papers = {one["width_px"]: one["paper"] for one in found.values()}
    screen, white = "rgb(18, 22, 27)" if scheme == "dark" else "rgb(255, 255, 255)", "rgb(255, 255, 255)"
    assert papers == dict.fromkeys(WIDTHS, screen) | {PRINTED: white}


@pytest.mark.parametrize("check", CHECKED)
def test_nothing_is_wrong_with(check, checked):
    assert {name: one[check] for name, one in checked[1].items() if one[check]} == {}


def test_the_console_says_nothing(checked):
    assert [line for line in checked[2].splitlines() if "CONSOLE" in line] == []


def test_the_checks_find_what_is_wrong(tmp_path):
    """A page in which all of it is."""
    page = """<!DOCTYPE html><head></head><body style="background: #fff">
        <p style="color: #999; width: 2000px">grey</p><img src="http://nowhere.invalid/a.png">
        <table id="t"><thead><tr><th><button>a</button></th></tr></thead>
        <tbody><tr><td data-value="2"></td></tr><tr><td data-value="1"></td></tr></tbody></table>
        <figure><svg aria-label="s"></svg></figure><script>nothing()</script></body>"""
    found = in_chromium(tmp_path, "light", [frame("bad", 390, page)])[0]["bad 390"]
    assert all(found[check] for check in CHECKED), found
