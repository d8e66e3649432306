"""The results of a prediction: tables, `prediction.json` and a few lines for the user.

Dimensions: N slides, M networks, C classes.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mhimdist import files
from mhimdist.prediction.measures import measure
from mhimdist.prediction.members import Member
from mhimdist.prediction.options import Prediction
from mhimdist.prediction.slides import Slides
from mhimdist.prediction.tables import case_table, slide_table, write_table
from mhimdist.prediction.verdicts import Threshold, Verdicts, judge, judge_cases
from mhimdist.report import formats
from mhimdist.report.comparison import PAPER_WARNING
from mhimdist.tasks import Task
from mhimdist.training.environment import environment

PREDICTION_FILE = "prediction.json"
FORMAT = 1
MAX_NAMED = 5


@dataclass(frozen=True)
class Results:
    """All that was computed.

    Attributes:
        out: the folder of the predictions.
        job: the options.
        members: the networks.
        slides: the slides.
        threshold: the decision threshold.
        places: the positions of the slides that were predicted.
        probabilities_NMC: float64 probabilities of these slides by every network.
        unions: the same of cases whose slides were one bag, M x C by case.
        failed: why a slide or case was not predicted, by its name.
        device: where the networks computed.
    """

    out: Path
    job: Prediction
    members: tuple[Member, ...]
    slides: Slides
    threshold: Threshold
    places: tuple[int, ...]
    probabilities_NMC: np.ndarray
    unions: Mapping[str, np.ndarray]
    failed: Mapping[str, str]
    device: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their indices."""
        return self.members[0].classes

    @cached_property
    def of_slides(self) -> Verdicts:
        """The predictions of the slides."""
        slides = self.slides
        return judge(
            [slides.slides[place] for place in self.places],
            [slides.cases[place] for place in self.places],
            [slides.labels[place] for place in self.places],
            self.probabilities_NMC,
            self.classes,
            self.threshold,
            np.array([len(slides.groups[place]) for place in self.places], np.int64),
            task=self.task,
            fitted=self.fitted,
            targets_NK=self._targets_NK,
        )

    @property
    def task(self) -> Task:
        """What the networks predict."""
        return self.members[0].task

    @cached_property
    def fitted(self) -> dict[str, Any]:
        """What the task has fitted on the bags that selected the networks, and the threshold."""
        members = [member.task.fitted_as(member.fitted, self.task) for member in self.members]
        found = self.task.fitted_of(members)
        return found | ({"threshold": self.threshold.value} if self.task.has_classes else {})

    @property
    def _targets_NK(self) -> np.ndarray:
        """The targets of what was predicted, where a table or the data state those of the task."""
        bags, columns = self.slides.bags, self.task.info.columns
        known = self.slides.said is not None or (bags.task.columns == columns and not self.job.ignore_labels)
        if not known:
            return np.full((len(self.places), len(columns)), np.nan)
        return self.slides.targets_NK[list(self.places)]

    @cached_property
    def _cases(self) -> tuple[Verdicts, list[str]]:
        return judge_cases(
            self.of_slides,
            self.probabilities_NMC,
            self.unions,
            self.job.cases,
            self.classes,
            self.threshold,
            task=self.task,
            fitted=self.fitted,
        )

    @property
    def of_cases(self) -> Verdicts | None:
        """The predictions of the cases; None if every case has one slide."""
        return self._cases[0] if len(set(self.of_slides.cases)) < len(self.of_slides) else None

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the slides and of the cases, where labels are known."""
        both = {f"{self.slides.bag_of}s": self.of_slides}
        if self.of_cases is not None:
            both["cases"] = self.of_cases
        measured = {
            name: measure(verdicts, self.threshold.value, self.task, self.fitted)
            for name, verdicts in both.items()
        }
        return {name: values for name, values in measured.items() if values is not None}

    @cached_property
    def warnings(self) -> list[str]:
        """What the user should know before quoting a number."""
        found = list(self.slides.warnings)
        if any(member.protocol == "paper" for member in self.members):
            found.append(PAPER_WARNING)
        seen = set().union(*(member.seen for member in self.members))
        slides, what = self.slides, f"{self.slides.bag_of}s"
        if known := sum(not seen.isdisjoint(slides.names_of(place)) for place in self.places):
            found.append(
                f"{known:,} of {len(self.places):,} {what} have the names of {what} that trained or selected "
                "a model: their predictions are not a test of it"
            )
        if evaluated := sorted({member.evaluated for member in self.members} - {""}):
            found.append(
                f"the models were trained on samples of each bag and {' and '.join(evaluated)}; bags are "
                "predicted whole here"
            )
        if self.slides.bag_of != self.members[0].bag_of:
            found.append(
                f"the models were trained on bags of a {self.members[0].bag_of} each, and predict bags of a "
                f"{self.slides.bag_of} each here (--bag-of)"
            )
        if self.of_cases is not None and (torn := self._cases[1]):
            found.append(
                f"{len(torn):,} cases have slides of different labels and count as unlabelled, such as "
                f"{torn[0]!r}"
            )
        left_out = {**self.slides.left_out, **self.failed}
        if left_out:
            reasons = "; ".join(list(left_out.values())[:MAX_NAMED])
            found.append(f"{len(left_out):,} slides were left out: {reasons}")
        return found

    def write(self, wall_s: float) -> None:
        """Write the tables and, as the end mark, `prediction.json`.

        Args:
            wall_s: seconds that this start took.

        Raises:
            DiskFullError: a file does not fit on the disk.
        """
        write_table(slide_table(self.of_slides, self.task, self.threshold), self.out / "predictions")
        if self.of_cases is not None:
            table = case_table(self.of_cases, self.task, self.threshold, self.job.cases)
            write_table(table, self.out / "cases")
        else:
            for old in self.out.glob("cases.*"):
                old.unlink()
        document = json.dumps(self._document(wall_s), indent=1, allow_nan=False)
        files.write_text(self.out / PREDICTION_FILE, document + "\n")

    def _document(self, wall_s: float) -> dict[str, Any]:
        bags = self.slides.bags
        return {
            "format": FORMAT,
            "models": [member.describe() for member in self.members],
            "data": {
                "path": str(bags.folder),
                "digest": bags.digest,
                "slides": int(self.of_slides.slides_N.sum()),
                "bag_of": self.slides.bag_of,
                "cases": len(set(self.of_slides.cases)),
                "num_features": self.members[0].num_features,
                "encoder": self.slides.encoder,
                "labels": str(self.job.labels) if self.job.labels else None,
            },
            "classes": list(self.classes),
            "threshold": self.threshold.value,
            "threshold_from": self.threshold.source,
            **({"task": record | {"fitted": self.fitted}} if (record := self.task.record()) else {}),
            "how": self.job.cases if self.of_cases is not None else None,
            "metrics": self.metrics,
            "protocol": " and ".join(sorted({member.protocol for member in self.members})),
            "warnings": self.warnings,
            "left_out": {**self.slides.left_out, **self.failed},
            "wall_s": round(wall_s, 3),
            "device": self.device,
            "versions": environment(self.job.threads or 1),
        }

    def lines(self) -> Iterator[str]:
        """What a terminal shows: what was predicted, the metrics, the warnings and where the files are."""
        verdicts = self.of_slides
        found = Counter(verdicts.decided or ())
        names = self.classes if self.task.has_classes else sorted(found)
        told = ", ".join(f"{found[name]:,} {name or 'without a label'}" for name in names)
        told = told or ", ".join(self.task.columns)
        num_bags = formats.count(len(verdicts), self.slides.bag_of)
        yield f"{num_bags} by {formats.count(len(self.members), 'model')}: {told}"
        if self.threshold.value is not None:
            yield f"threshold {self.threshold.value:.3f}: {self.threshold.source}"
        for what, values in self.metrics.items():
            yield f"{what}: " + ", ".join(
                f"{label} {formats.auc(values[name]['value'])}{_ends(values[name]['interval'])}"
                for name, label in self.task.headings.items()
                if name in values
            )
        for warning in self.warnings:
            yield f"WARNING: {warning}"
        yield f"predictions: {self.out}/predictions.parquet, .csv; {PREDICTION_FILE} says how they were made"


def _ends(interval: list[float] | None) -> str:
    return "" if interval is None else f" ({formats.auc(interval[0])} to {formats.auc(interval[1])})"
