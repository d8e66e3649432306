"""A comparison as sentences, tables and JSON."""

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from mhimdist.comparison.entries import Entry
from mhimdist.comparison.pairs import Outcome
from mhimdist.foreign_text import markdown
from mhimdist.report import formats
from mhimdist.report.comparison import PAPER_WARNING
from mhimdist.report.text_table import Grid

MEASURED = (
    "Figures are means over networks (folds x seeds), each on the slides that it tested; predictions of "
    "different networks are not pooled. Every metric: the paired bootstrap over cases, which are drawn for "
    "both sides and all networks at once, and the corrected resampled t-test over folds (Nadeau and Bengio "
    "2003). The bootstrap says what other patients would change, the corrected t also what other training "
    "data would change."
)
"""The methods of tasks whose tests are those of `measures.measure_tests`."""
METHODS = (
    "Figures are means over networks (folds x seeds), each on the slides that it tested; seeds are averaged "
    "per case before anything is tested, and scores of different networks are not pooled. AUC: DeLong's test "
    "with the case as its unit (DeLong 1988; Obuchowski 1997 for several slides of a case; LeDell 2015 for "
    "the mean over folds), the bootstrap over cases, and the corrected resampled t-test over folds (Nadeau "
    "and Bengio 2003). Accuracy: McNemar's test, exact with one slide per case, otherwise clustered (Yang "
    "2010); a slide's decision is the mean over the networks that tested it, each at its own threshold. "
    "DeLong, bootstrap and McNemar say what other patients would change, the corrected t also what other "
    "training data would change."
)


@dataclass(frozen=True)
class Pair:
    """Two sides and their tests.

    Attributes:
        first, second: the sides, on the same slides.
        outcomes: one per test.
    """

    first: Entry
    second: Entry
    outcomes: Sequence[Outcome]

    @property
    def settings(self) -> dict[str, tuple[object, object]]:
        """The settings in which they differ, by dotted path; None where a side has no such setting."""
        one, two = self.first.settings, self.second.settings
        return {
            path: (one.get(path), two.get(path))
            for path in dict.fromkeys([*one, *two])
            if one.get(path) != two.get(path)
        }

    @property
    def decisive(self) -> Outcome:
        """The test that the verdict is taken from: DeLong's, or the bootstrap of the metric that selects."""
        return self.outcomes[0]


@dataclass(frozen=True)
class PairedComparison:
    """Configurations compared on the same test slides.

    Attributes:
        entries: the configurations, restricted to these slides.
        pairs: the pairs that were tested.
        notes: what a reader of the figures must know of the data and of the configurations.
        level: confidence level of the intervals and of the verdict.
    """

    entries: Sequence[Entry]
    pairs: Sequence[Pair]
    notes: Sequence[str]
    level: float

    @property
    def num_slides(self) -> int:
        """The number of test slides that all sides have."""
        return len({key for network in self.entries[0].networks for key in network.keys})

    @property
    def num_cases(self) -> int:
        """The number of cases of these slides."""
        return len({case for network in self.entries[0].networks for case in network.scores.cases})

    @property
    def warnings(self) -> list[str]:
        """The notes, and that of the protocol."""
        return [*([PAPER_WARNING] if self.entries[0].protocol == "paper" else []), *self.notes]

    @property
    def methods(self) -> str:
        """How figures and tests were formed."""
        return METHODS if self.entries[0].task is None else MEASURED

    @property
    def sentences(self) -> list[str]:
        """One sentence per pair that can be quoted as it is, with protocol, interval and verdict."""
        return [self._sentence(pair, lambda text: text) for pair in self.pairs]

    def _sentence(self, pair: Pair, quote: Callable[[str], str]) -> str:
        one, two, outcome = pair.first, pair.second, pair.decisive
        if self.num_slides == self.num_cases:
            tested = f"{self.num_cases:,} test cases"
        else:
            tested = f"{self.num_slides:,} test slides of {formats.count(self.num_cases, 'case')}"
        size = one.size if one.size == two.size else f"{one.size} against {two.size}"
        protocol = f"{one.protocol} protocol"
        if two.protocol != one.protocol:
            protocol = f"{one.protocol} and {two.protocol} protocols"
        start = (
            f"On {tested} of {quote(one.dataset)} ({size}, {quote(protocol)}), "
            f"{quote(one.name)} reached {outcome.metric} {short(outcome.first)} against "
            f"{short(outcome.second)} of {quote(two.name)}"
        )
        if outcome.tested is None:
            return f"{start}; {quote(outcome.note)}."
        difference = f"{start}; difference {short(outcome.tested.difference)}"
        if outcome.p is None:
            return f"{difference}; {quote(outcome.note)}."
        return (
            f"{difference}, {100 * self.level:g} % interval {interval(outcome)}, {outcome.test} "
            f"{p_text(outcome.p)}"
            f"{self._of_several(outcome)}: {quote(self._verdict(pair))}."
        )

    def _of_several(self, outcome: Outcome) -> str:
        return "" if outcome.p_adjusted is None else f" (Holm's over {len(self.pairs)} pairs)"

    def _verdict(self, pair: Pair) -> str:
        outcome = pair.decisive
        if outcome.p is None or outcome.tested is None or outcome.p >= 1 - self.level:
            return "no evidence of a difference"
        better = (pair.first if outcome.tested.difference > 0 else pair.second).name
        again = next(
            each for each in pair.outcomes if each.test == "corrected t" and each.metric == outcome.metric
        )
        if again.p is None:
            return (
                f"evidence that these networks of {better} are better; what training again would change is "
                "not known"
            )
        if again.p >= 1 - self.level:
            return (
                f"evidence that these networks of {better} are better, but not that training again would "
                f"make them so (corrected t over folds, {p_text(again.p)})"
            )
        return f"evidence that {better} is better (corrected t over folds, {p_text(again.p)})"

    def grids(self) -> list[Grid]:
        """Per pair a table of the tests and, if settings differ, a table of these."""
        return [grid for pair in self.pairs for grid in self._grids(pair)]

    def _grids(self, pair: Pair) -> list[Grid]:
        names = pair.first.name, pair.second.name
        title = f"{names[0]} against {names[1]}"
        with_holm = len(self.pairs) > 1
        rows = []
        for outcome in pair.outcomes:
            tested = outcome.tested
            row = [
                f"{outcome.metric}: {outcome.test}",
                short(outcome.first),
                short(outcome.second),
                short(tested.difference if tested else None),
                interval(outcome),
                p_value(tested.p if tested else None),
            ]
            rows.append([*row, p_value(outcome.p_adjusted)] if with_holm else row)
        header = ["test", *names, "difference", f"{100 * self.level:g} %", "p"]
        told = [f"{o.metric}, {o.test}: {o.note}." for o in pair.outcomes if o.note]
        tests = Grid(title, [*header, "p, Holm"] if with_holm else header, rows, " ".join(told))
        settings = [[path, *formats.setting_pair(*values)] for path, values in pair.settings.items()]
        if not settings:
            return [tests]
        return [tests, Grid(f"{title}: settings that differ", ["setting", *names], settings, "")]

    def markdown(self) -> str:
        """Sentences, warnings, tables and methods, as Markdown."""
        lines = ["# Comparison", ""]
        for pair in self.pairs:
            lines += [self._sentence(pair, markdown), ""]
        lines += [f"> {markdown(text)}\n" for text in self.warnings]
        lines += [grid.markdown() for grid in self.grids()]
        if not any(pair.settings for pair in self.pairs):
            lines.append("No setting differs, or none is known.\n")
        return "\n".join([*lines, textwrap.fill(self.methods, 110, break_on_hyphens=False), ""])

    def json(self) -> str:
        """Everything except the scores of single slides, as JSON."""
        body = {
            "format": 1,
            "protocol": self.entries[0].protocol,
            "dataset": self.entries[0].dataset,
            "slides": self.num_slides,
            "cases": self.num_cases,
            "level": self.level,
            "warnings": self.warnings,
            "methods": self.methods,
            "configurations": [
                {
                    "name": entry.name,
                    "folder": str(entry.folder),
                    "data_digest": entry.data_digest,
                    "networks": [
                        {"fold": n.fold, "seed": n.seed, "slides": len(n.keys)} for n in entry.networks
                    ],
                    "settings": dict(entry.settings),
                }
                for entry in self.entries
            ],
            "pairs": [
                {
                    "first": pair.first.name,
                    "second": pair.second.name,
                    "sentence": sentence,
                    "settings": {path: list(values) for path, values in pair.settings.items()},
                    "tests": [asdict(outcome) for outcome in pair.outcomes],
                }
                for pair, sentence in zip(self.pairs, self.sentences, strict=True)
            ],
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"


def short(value: float | None) -> str:
    """A figure in [-1, 1] to three decimals, without the zero before the point."""
    if value is None:
        return formats.NONE
    return re.sub(r"^(-?)0\.", r"\1.", f"{value + 0.0:.3f}").replace("-.000", ".000")


def interval(outcome: Outcome) -> str:
    """`[-.010, .020]`."""
    tested = outcome.tested
    if tested is None or tested.low is None or tested.high is None:
        return formats.NONE
    return f"[{short(tested.low)}, {short(tested.high)}]"


def p_value(p: float | None) -> str:
    """`.04`, with a third decimal below .1, and `< .001` below that."""
    if p is None:
        return formats.NONE
    if p < 0.001:
        return "< .001"
    return re.sub(r"^0\.", ".", f"{p:.3f}" if p < 0.1 else f"{p:.2f}")


def p_text(p: float | None) -> str:
    """`p = .40` or `p < .001`."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
