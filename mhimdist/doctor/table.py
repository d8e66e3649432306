"""The findings in a terminal: a table by area, the mends at its end."""

from collections.abc import Iterator
from itertools import groupby

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mhimdist.doctor.findings import Diagnosis, Finding

_SIGNS = {"fine": ("✓", "green"), "warning": ("!", "yellow"), "mend": ("✗", "bold red")}
_PLAIN = {"fine": "ok", "warning": "!", "mend": "X"}


class Shown:
    """A diagnosis for a rich console."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        """Show all of its findings."""
        self.diagnosis = diagnosis

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The areas, what to mend, and a last line that counts."""
        is_plain = not options.encoding.startswith("utf")
        for area, findings in groupby(self.diagnosis.findings, key=lambda finding: finding.area):
            yield Text(area, style="bold")
            yield Padding(_area(list(findings), is_plain=is_plain), (0, 0, 1, 1))
        yield from self._mends(is_plain)
        yield self._last_line()

    def _mends(self, is_plain: bool) -> Iterator[RenderableType]:
        chosen = [finding for finding in self.diagnosis.findings if finding.mend]
        chosen.sort(key=lambda finding: finding.status == "warning")
        if not chosen:
            return
        yield Text("What to do", style="bold")
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1, overflow="fold")
        for finding in chosen:
            table.add_row(_sign(finding, is_plain), _name(finding), _with_commands(finding.mend or ""))
        yield Padding(table, (0, 0, 1, 1))

    def _last_line(self) -> Text:
        mend, warnings = self.diagnosis.count("mend"), self.diagnosis.count("warning")
        took = f" ({len(self.diagnosis.findings)} findings, {self.diagnosis.seconds:.1f} s)"
        parts = [f"{mend} to mend"] * (mend > 0)
        parts += [f"{warnings} warning{'s' if warnings > 1 else ''}"] * (warnings > 0)
        said = ", ".join(parts) or "all is well"
        return Text.assemble((said, _SIGNS[self.diagnosis.status][1]), (took, "dim"))


def _area(findings: list[Finding], *, is_plain: bool) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, min_width=16)
    table.add_column(ratio=1, overflow="fold")
    for finding in findings:
        style = "" if finding.status == "fine" else _SIGNS[finding.status][1].removeprefix("bold ")
        table.add_row(_sign(finding, is_plain), Text(finding.subject), Text(finding.found, style=style))
    return table


def _sign(finding: Finding, is_plain: bool) -> Text:
    sign, style = _SIGNS[finding.status]
    return Text(_PLAIN[finding.status] if is_plain else sign, style=style)


def _name(finding: Finding) -> Text:
    return Text(f"{finding.area}: {finding.subject}", style=_SIGNS[finding.status][1])


def _with_commands(mend: str) -> Text:
    """A sentence in which the commands between backticks stand out; without colours the backticks stay."""
    text = Text()
    for number, part in enumerate(mend.split("`")):
        text.append(f"`{part}`" if number % 2 else part, style="cyan" if number % 2 else "")
    return text
