"""A report of anything that was run: finds out what a folder is, and writes one HTML file about it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mhimdist import terminal
from mhimdist.errors import ConfigError, ReportError
from mhimdist.pages import calibration, record, results, slides, subgroups, training
from mhimdist.pages.instances import instances_section
from mhimdist.pages.of_tasks import figures_of_task, sections_of_task
from mhimdist.pages.options import REPORT_FILE, ReportJob
from mhimdist.pages.subject import Subject, read_subject, size_text
from mhimdist.report import formats, page
from mhimdist.report.blocks import Fact, Section

MOST_FACTS = 4
"""Most configurations that have a number of their own at the top. Of more, a choice would be a selection."""
_LEADS = {
    "run": "Run",
    "cross-validation": "Cross-validation",
    "paper tables": "The paper's tables",
    "predictions": "Predictions",
    "final runs": "Final runs of a sweep",
}


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    temperature: bool = False,
    subgroups: Sequence[str] = (),
    data: str | Path | None = None,
    pdf: str | Path | None = None,
    risk_groups: int = 2,
) -> Path:
    """Write a report about a folder as one HTML file that needs no network.

    Args:
        folder: a run, a cross-validation, the paper's tables, predictions or a sweep with final runs; or its
            name below `runs/` of `MHIMDIST_HOME`.
        out: the file; by default `report.html` in the folder. A sweep has such a report already, so the page
            of its final runs is `final.html`.
        temperature: show the calibration after temperature scaling, too. It is fitted on validation cases.
        subgroups: tables and columns to divide the test slides by, as `labels.csv:scanner`.
        data: shards that the runs were trained on, if their instances are labelled: shows how well attention
            finds the positive ones, which takes a forward pass of every test slide.
        pdf: folder that receives the figures as vector PDF; by default none are written.
        risk_groups: of survival, groups of risk to compare, divided by the validation cases' quantiles.

    Returns:
        The file.

    Raises:
        ReportError: the folder holds nothing to report on, a table has no such column, or an option is not
            for its task.
        ComparisonError: its files cannot be read, or contradict each other.
        DataError: a table or the data cannot be read.
        CheckpointError: a network cannot be loaded, which only `data` asks for.
        DiskFullError: a file does not fit on the disk.

    Example:
        >>> mh.write_report("runs/train_c16", temperature=True)  # doctest: +SKIP
    """
    subject = read_subject(folder)
    name = "final.html" if subject.kind == "final runs" else REPORT_FILE
    path = Path(out).expanduser() if out is not None else subject.path / name
    text = render_report(
        subject, temperature=temperature, subgroups=subgroups, data=data, risk_groups=risk_groups
    )
    page.write(path, text)
    if pdf is not None:
        from mhimdist.pages.print import write_figures  # a second to import, which a page does not need

        write_figures(subject, Path(pdf).expanduser())
        if subject.tested and (task := subject.task) is not None:
            figures_of_task(subject, task, Path(pdf).expanduser(), risk_groups=risk_groups)
    return path


def run_report(job: ReportJob) -> list[Path]:
    """Write the reports of a job and say where they are.

    Raises:
        ConfigError: `out` is given for several folders.
        ReportError, ComparisonError, DataError, DiskFullError: see `write_report`.
    """
    if job.out is not None and len(job.folders) > 1:
        raise ConfigError(f"out: expected one folder for one file, got {len(job.folders)} folders")
    written = []
    for folder in job.folders:
        pdf = job.pdf if job.pdf is None or len(job.folders) == 1 else job.pdf / Path(folder).name
        written.append(
            write_report(
                folder,
                job.out,
                temperature=job.temperature,
                subgroups=job.subgroups,
                data=job.data,
                pdf=pdf,
                risk_groups=job.risk_groups,
            )
        )
        text = f"report: {written[-1]}" + (f"; figures: {pdf}" if pdf else "")
        terminal.console().print(text, markup=False, highlight=False, soft_wrap=True)
    return written


def render_report(
    subject: Subject,
    *,
    temperature: bool = False,
    subgroups: Sequence[str] = (),
    data: str | Path | None = None,
    risk_groups: int = 2,
) -> str:
    """The page as HTML text; equal folders yield equal texts.

    Args:
        subject: what to report on.
        temperature, subgroups, data, risk_groups: as in `write_report`.
    """
    return page.render(
        "report.html",
        title=subject.path.name,
        kind=_LEADS[subject.kind].lower(),
        lead=_lead(subject),
        banners=record.warnings(subject),
        headline=_headline(subject),
        sections=_sections(
            subject, temperature=temperature, wanted=subgroups, data=data, risk_groups=risk_groups
        ),
    )


def _sections(
    subject: Subject,
    *,
    temperature: bool,
    wanted: Sequence[str],
    data: str | Path | None,
    risk_groups: int,
) -> list[Section]:
    scored: list[Section] = []
    if subject.tested:
        scored = [
            *_results(subject, temperature=temperature, risk_groups=risk_groups),
            *(subgroups.subgroups_section(subject, each) for each in wanted),
            *([instances_section(subject, data)] if data is not None else ()),
        ]
    return [
        results.paper_section(subject),
        *scored,
        slides.slides_section(subject),
        training.learning_section(subject),
        training.stability_section(subject),
        training.masking_section(subject),
        training.cost_section(subject),
        record.protocol_section(subject),
        record.settings_section(subject),
        record.environment_section(subject),
    ]


def _results(subject: Subject, *, temperature: bool, risk_groups: int) -> list[Section]:
    """The test figures, in the sections of the task."""
    if (task := subject.task) is not None:
        if temperature:
            raise ReportError(
                f"temperature: {subject.path} is of {task.name}, and a temperature scales the probabilities "
                "of classes without an order; leave it out"
            )
        return sections_of_task(subject, task, risk_groups=risk_groups)
    if risk_groups != 2:
        raise ReportError(f"risk_groups: {subject.path} is of classes, which have no risks; leave it out")
    return [
        results.results_section(subject),
        results.curves_section(subject),
        results.decisions_section(subject),
        calibration.calibration_section(subject, temperature=temperature),
    ]


def _lead(subject: Subject) -> str:
    of = f" of {subject.dataset}" if subject.kind == "predictions" else f" on {subject.dataset}"
    *first, last = subject.protocols or [""]
    protocols = f"{', '.join(first)} and {last}" if first else last
    protocol = f", {protocols} protocol" + ("s" if len(subject.protocols) > 1 else "") if protocols else ""
    return f"{_LEADS[subject.kind]}{of if subject.dataset else ''}{protocol}"


def _headline(subject: Subject) -> list[Fact]:
    """The figures that a reader looks for first."""
    facts, score, selection = [], subject.score, subject.selection
    if len(subject.tested) > MOST_FACTS:
        known = [mean[0] for each in subject.tested if (mean := each.spread(selection)) is not None]
        span = f"{min(known):.3f}–{max(known):.3f}" if known else formats.NONE
        facts.append(Fact(f"Test {score}", span, f"of {len(subject.tested)} configurations"))
    for each in subject.tested if len(subject.tested) <= MOST_FACTS else ():
        mean = each.spread(selection)
        protocol = f", {each.protocol}" if len(subject.protocols) > 1 else ""
        note = f"{each.name}{protocol}"
        if mean is not None and mean[1] is not None:
            note += f"; ± {mean[1]:.3f}"
        facts.append(
            Fact(score if subject.slides else f"Test {score}", formats.auc(mean[0] if mean else None), note)
        )
    if subject.slides:
        names = subject.slides["slide"]
        called = len(set(subject.slides["case"]))
        facts.append(Fact("Slides", f"{len(names):,}", f"of {formats.count(called, 'case')}"))
        facts.append(Fact("Models", str(len(subject.prediction.get("models", ()))), "in the ensemble"))
    elif subject.configurations and not subject.tested:
        best = [row for h in subject.configurations[0].histories.values() for row in h]
        aucs = [value for row in best if (value := row.get("student_validation_score")) is not None]
        facts.append(
            Fact(f"Validation {score}", formats.auc(float(np.max(aucs)) if aucs else None), "best epoch")
        )
        facts.append(Fact("Epochs", f"{len(best)}", "done"))
    else:
        runs = sum(len(each.folds) for each in subject.configurations)
        facts.append(Fact("Runs", f"{runs}", size_text(subject.tested[0]) if subject.tested else ""))
    return facts
