"""Opens a page in a real Chromium without a network, and reports what happened there.

A script that the page does not know is put in front of its own ones. It notes errors, messages of the console
and refused requests; when the page has drawn, it measures and writes everything into the document, which
Chromium prints.
"""

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDED = "needs Chromium: apt-get install chromium, or any Chrome on the PATH"
WIDTH = 1280

_LISTEN = """
window.seen = {errors: [], requests: []};
addEventListener("error", event => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", event => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", event => seen.requests.push(event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...words) => seen.errors.push(words.join(" "));
"""
_MEASURE = """
addEventListener("load", () => setTimeout(() => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  seen.requests.push(...performance.getEntriesByType("resource").map(entry => entry.name));
  seen.places = document.querySelectorAll(".plot").length;
  const drawn = [...document.querySelectorAll(".plot.js-plotly-plot")].filter(plot =>
    plot.querySelector(".main-svg") && plot.querySelector("g.trace path"));
  seen.drawn = drawn.length;
  seen.sizes = drawn.map(plot => [plot.clientWidth, plot.clientHeight]);
  const box = element => element.getBoundingClientRect();
  const text = element => element.textContent.trim().slice(0, 60);
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  seen.overlaps = [];
  const compare = elements => {
    const boxes = elements.map(element => [element, box(element)]).filter(([, b]) => b.width && b.height);
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([two, b]) => {
      if (!one.contains(two) && overlap(a, b)) seen.overlaps.push([text(one), text(two)]);
    }));
  };
  compare([...document.querySelectorAll("h1, h2, h3, p, figcaption, .scroll, .plot, summary")]);
  for (const row of document.querySelectorAll("tr")) compare([...row.cells]);
  for (const plot of drawn)
    compare([...plot.querySelectorAll(
      ".xtick text, .ytick text, .xtitle, .ytitle, .legendtext, .annotation-text")]);
  seen.cut = [...document.querySelectorAll("h1, h2, h3, p, th, td, figcaption")]
    .filter(element => element.scrollWidth > element.clientWidth + 1).map(text);
  seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const note = document.createElement("pre");
  note.id = "seen";
  note.textContent = JSON.stringify(seen);
  document.body.append(note);
}, 300));
"""


@dataclass(frozen=True)
class Seen:
    """What happened while a page was open.

    Attributes:
        errors: errors of its scripts, and what it wrote to the console as a warning or an error.
        requests: what it asked the network for, granted or not.
        places, drawn: its places for figures, and the figures that plotly drew there.
        sizes: width and height of each figure in pixels.
        overlaps: texts that overlap, in headings, tables and figures.
        cut: texts that are wider than their place.
        wide: pixels by which the page is wider than the window.
    """

    errors: list[str]
    requests: list[str]
    places: int
    drawn: int
    sizes: list[list[int]]
    overlaps: list[list[str]]
    cut: list[str]
    wide: int


def look(page: Path, folder: Path, *, dark: bool = False) -> Seen:
    """Open a page and say what happened.

    Args:
        page: the file.
        folder: an empty folder for the browser's own files.
        dark: whether the system prefers dark pages.
    """
    text = page.read_text(encoding="utf-8")
    scripts = f"<head><script>{_LISTEN}{_MEASURE}</script>"
    watched = folder / "watched.html"
    watched.write_text(text.replace("<head>", scripts, 1), encoding="utf-8")
    with _counting_proxy() as (port, asked):
        printed = _chromium(folder, port, watched, "--dump-dom", dark=dark)
    found = re.search(r'<pre id="seen">(.*?)</pre>', printed, re.DOTALL)
    assert found, f"the page did not load: {printed[-500:]}"
    seen = Seen(**json.loads(html.unescape(found[1])))
    return Seen(**{**seen.__dict__, "requests": [*seen.requests, *asked]})


def print_pdf(page: Path, folder: Path) -> bytes:
    """The page as Chromium prints it."""
    with _counting_proxy() as (port, _):
        _chromium(folder, port, page, f"--print-to-pdf={folder}/page.pdf", dark=False)
    return (folder / "page.pdf").read_bytes()


def _chromium(folder: Path, port: int, page: Path, *options: str, dark: bool) -> str:
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},2000", "--virtual-time-budget=20000"),
        *(f"--proxy-server=http://127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>"),
        *(("--blink-settings=preferredColorScheme=0",) if dark else ()),
        *options,
        page.as_uri(),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@contextmanager
def _counting_proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy that answers nothing and notes what pages ask for; the browser's own services do not count."""
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            if not re.search(r"(google|gstatic|googleapis|gvt1|chromium)\.\w+", self.path):
                asked.append(self.path)
            self.send_error(502)

        do_GET = do_POST = do_CONNECT = do_HEAD = _refuse

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
