#!/usr/bin/env python
"""Take docs/report.png again, the picture of a sweep's report, with a real browser.

    python docs/screenshots.py                     # runs the sweep of `make demo` first, about 5 minutes
    python docs/screenshots.py --sweep runs/demo   # the report of a finished sweep

It needs Chromium or Chrome. The browser gets no network.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1210, 1108
COLOURS = 128
"""A picture of few colours, so that it stays below 300 kB."""
SECTION = "Learning curves"
"""The section that the picture shows below the headline."""
_HIDE_OTHERS = """<script>
for (const section of document.querySelectorAll("section"))
  section.hidden = section.querySelector("h2")?.textContent.trim() !== "%s";
</script>"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def run_demo(home: Path) -> Path:
    """Run the sweep of `make demo` on this machine, and return its folder."""
    command = [sys.executable, "jobs/tune_c16.py", "--name", "demo", "--home", str(home)]
    subprocess.run(command, cwd=DOCS.parent, check=True)
    return home / "runs" / "demo"


def shoot(page: Path, picture: Path, *, section: str = "", width: int = WIDTH, height: int = HEIGHT) -> None:
    """Draw the top of a page as a browser shows it, without a network.

    Args:
        page: the HTML file.
        picture: the PNG file to write.
        section: heading of the only section to show; all if it is empty.
        width, height: of the window, in pixels.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: expected one of {', '.join(BROWSERS)} on the PATH; install Chromium")
    if not page.is_file():
        sys.exit(f"error: {page}: expected a report; give the folder of a finished sweep with --sweep")
    with tempfile.TemporaryDirectory() as place:
        taken, shown = Path(place, "taken.png"), page
        if section:
            text = page.read_text(encoding="utf-8")
            shown = Path(place, "shown.html")
            shown.write_text(text.replace("</body>", _HIDE_OTHERS % section + "</body>"), encoding="utf-8")
        command = [
            browser,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--hide-scrollbars", "--force-device-scale-factor=1", "--virtual-time-budget=20000"),
            *("--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<-loopback>"),
            *(f"--user-data-dir={place}/profile", f"--window-size={width},{height}"),
            f"--screenshot={taken}",
            shown.resolve().as_uri(),
        ]
        subprocess.run(
            command, check=True, capture_output=True, timeout=240, env=os.environ | {"HOME": place}
        )
        with Image.open(taken) as image:
            image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Take docs/report.png again with a real browser.")
    parser.add_argument("--sweep", type=Path, help="folder of a finished sweep (default: run the demo's)")
    parser.add_argument(
        "--out", type=Path, default=DOCS / "report.png", help="the picture (default: docs/report.png)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        sweep = arguments.sweep or run_demo(Path(home))
        shoot(sweep / "report.html", arguments.out, section=SECTION)
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
