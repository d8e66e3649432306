#!/usr/bin/env python
"""Take the pictures of README and docs/ again, with a real browser.

    python docs/screenshots.py                                        # all, about 15 minutes
    python docs/screenshots.py help doctor                            # some
    python docs/screenshots.py report --sweep runs/demo               # of a finished sweep
    python docs/screenshots.py cross_validation compare --run runs/train_c16

It trains what is not given: the sweep of `make demo`, and a short cross-validation of the embedded digits. It
needs Chromium or Chrome. The browser gets no network.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from io import StringIO
from pathlib import Path

from PIL import Image, ImageChops
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

DOCS = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1210, 1108
COLOURS = 128
"""A picture of few colours, so that it stays below 300 kB."""
COLUMNS = 100
_HIDE_OTHERS = """<script>
const shown = %s;
for (const section of document.querySelectorAll("section"))
  section.hidden = !shown.includes(section.querySelector("h2")?.textContent.trim());
</script>"""
_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: {background}; color: {foreground} }}
pre {{ margin: 16px 20px; font: 15px/21px "DejaVu Sans Mono", monospace }}
</style><body><pre>{code}</pre></body>"""
_MARGIN = 14
"""Pixels that are left around the words of a terminal."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Runs:
    """What the pictures show; trained when it is first asked for, unless it is given.

    Attributes:
        home: folder for what is trained.
        sweep, cross_validation: finished runs.
    """

    def __init__(self, home: Path, sweep: Path | None, cross_validation: Path | None) -> None:
        self.home, self._sweep, self._cross_validation = home, sweep, cross_validation

    @cached_property
    def sweep(self) -> Path:
        """The folder of the sweep of `make demo`."""
        return self._sweep or self._trained("demo", "tune")

    @cached_property
    def cross_validation(self) -> Path:
        """The folder of a cross-validation of 6 epochs and 2 seeds."""
        short = ("--seeds", "2021,2022", "train.epochs=6")
        return self._cross_validation or self._trained("train_c16", "cross-validate", *short)

    def _trained(self, name: str, *words: str) -> Path:
        command = [sys.executable, "-m", "mhimdist", *words, "--name", name, "--home", str(self.home)]
        subprocess.run(command, check=True)
        return self.home / "runs" / name


def report_of_a_sweep(runs: Runs, picture: Path) -> None:
    """The headline, and the learning curves of all trials."""
    shoot(runs.sweep / "report.html", picture, sections=["Learning curves"])


def report_of_a_cross_validation(runs: Runs, picture: Path) -> None:
    """The headline, and the results of all folds."""
    page = runs.cross_validation / "report.html"
    shoot(page, picture, sections=["Results"], height=2000, is_trimmed=True)


def comparison(runs: Runs, picture: Path) -> None:
    """What `mhimdist compare` says of a cross-validation's two configurations."""
    home = runs.cross_validation.parent.parent
    terminal(["compare", runs.cross_validation.name], picture, {"MHIMDIST_HOME": str(home)})


def doctor(runs: Runs, picture: Path) -> None:
    """What the doctor says of a machine with two faults."""
    terminal(["doctor"], picture, {"RAY_AUTH_MODE": "none", "OMP_NUM_THREADS": "64"}, statuses=(1,))


def help_of_commands(runs: Runs, picture: Path) -> None:
    """The list of commands."""
    terminal([], picture)


def help_of_a_command(runs: Runs, picture: Path) -> None:
    """The options of a sweep that people use first."""
    terminal(["tune", "--help"], picture)


PICTURES: Mapping[str, Callable[[Runs, Path], None]] = {
    "report": report_of_a_sweep,
    "cross_validation": report_of_a_cross_validation,
    "compare": comparison,
    "doctor": doctor,
    "help": help_of_commands,
    "tune": help_of_a_command,
}
"""What is on each picture, by the name of its file."""


def terminal(
    words: Sequence[str],
    picture: Path,
    variables: Mapping[str, str] | None = None,
    *,
    statuses: Sequence[int] = (0,),
) -> None:
    """Draw what a command of `mhimdist` prints, as a terminal shows it, below the command itself.

    Args:
        words: the command's name and options.
        picture: the PNG file to write.
        variables: of the environment, which are not shown.
        statuses: exit statuses that are expected.
    """
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)} | dict(variables or {})
    command = [sys.executable, "-m", "mhimdist", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode not in statuses:
        sys.exit(
            f"error: mhimdist {' '.join(words)} ended with status {done.returncode}: {done.stderr[-500:]}"
        )
    printed = done.stdout.replace(sys.executable, "~/.venv/bin/python").replace(str(Path.home()), "~")
    console = Console(record=True, width=COLUMNS, file=StringIO())
    console.print(Text(f"$ mhimdist {' '.join(words)}".rstrip(), style="bold"))
    console.print(Text.from_ansi(printed))
    page = console.export_html(theme=SVG_EXPORT_THEME, code_format=_TERMINAL, inline_styles=True)
    with tempfile.TemporaryDirectory() as place:
        Path(place, "terminal.html").write_text(page, encoding="utf-8")
        shoot(Path(place, "terminal.html"), picture, height=4000, is_trimmed=True)


def shoot(
    page: Path,
    picture: Path,
    *,
    sections: Sequence[str] = (),
    width: int = WIDTH,
    height: int = HEIGHT,
    is_trimmed: bool = False,
) -> None:
    """Draw the top of a page as a browser shows it, without a network.

    Args:
        page: the HTML file.
        picture: the PNG file to write.
        sections: headings of the only sections to show; all if there are none.
        width, height: of the window, in pixels.
        is_trimmed: whether empty sides are cut off.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: expected one of {', '.join(BROWSERS)} on the PATH; install Chromium")
    if not page.is_file():
        sys.exit(f"error: {page}: expected a report; give the folder of a finished run with --sweep or --run")
    with tempfile.TemporaryDirectory() as place:
        taken, shown = Path(place, "taken.png"), page
        if sections:
            text = page.read_text(encoding="utf-8")
            shown = Path(place, "shown.html")
            hide = _HIDE_OTHERS % list(sections)
            shown.write_text(text.replace("</body>", hide + "</body>"), encoding="utf-8")
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
            drawn = _trimmed(image.convert("RGB")) if is_trimmed else image.convert("RGB")
            drawn.quantize(COLOURS).save(picture, optimize=True)


def _trimmed(image: Image.Image) -> Image.Image:
    """An image without the sides that have the colour of its first pixel, but for a margin."""
    empty = Image.new("RGB", image.size, image.getpixel((0, 0)))
    found = ImageChops.difference(image, empty).getbbox()
    if found is None:
        sys.exit("error: the browser drew an empty page; expected the output of a command")
    left, top, right, bottom = found
    return image.crop(
        (
            max(0, left - _MARGIN),
            max(0, top - _MARGIN),
            min(image.width, right + _MARGIN),
            min(image.height, bottom + _MARGIN),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of the pages again with a real browser.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PICTURES)} (default: all)")
    parser.add_argument("--sweep", type=Path, help="folder of a finished sweep (default: run the demo's)")
    parser.add_argument("--run", type=Path, help="folder of a cross-validation (default: run a short one)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures (default: docs/)")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in PICTURES:
            parser.error(f"no picture {name!r}; valid: {', '.join(PICTURES)}")
    with tempfile.TemporaryDirectory() as home:
        runs = Runs(Path(home), arguments.sweep, arguments.run)
        for name in arguments.names or PICTURES:
            picture = arguments.out / f"{name}.png"
            PICTURES[name](runs, picture)
            print(f"picture: {picture}")


if __name__ == "__main__":
    main()
