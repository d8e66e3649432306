"""The section on calibration: how far a probability can be taken at its word."""

from dataclasses import dataclass

from markupsafe import Markup

from mhimdist.errors import UndefinedError
from mhimdist.pages.subject import Configuration, Subject
from mhimdist.report import blocks, drawing, formats, score_plots
from mhimdist.report.blocks import Cell, Section
from mhimdist.statistics.bootstrap import bootstrap
from mhimdist.statistics.calibration import (
    ReliabilityBin,
    brier,
    ece,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    scale_by_temperature,
    wilson,
)
from mhimdist.statistics.metrics import Scores, pooled

NUM_BINS = 10


@dataclass(frozen=True)
class Scaled:
    """Test scores after temperature scaling.

    Attributes:
        parts: the test scores of each network.
        temperatures: the temperatures that were fitted.
        unfitted: why the other networks keep their probabilities, by the name of their fold.
    """

    parts: list[Scores]
    temperatures: list[float]
    unfitted: dict[str, str]


def scaled(configuration: Configuration) -> Scaled | str:
    """Scale the test scores by temperatures fitted on validation cases, or say why that cannot be done."""
    if configuration.protocol == "paper":
        return "under the paper's protocol the test cases select, so no cases are left to fit it on"
    if len(configuration.folds) < len(configuration.networks):
        return "only runs keep their validation scores"
    found = Scaled([], [], {})
    for network, fold in zip(configuration.networks, configuration.folds, strict=True):
        scores, validation = network.scores, fold.validation
        if validation is None:
            return f"{fold.name} was made by an earlier release, which did not keep its validation scores"
        try:
            temperature = fit_temperature(validation.labels_N, validation.probabilities_NC)
        except UndefinedError as error:
            found.unfitted[fold.name] = str(error)
            found.parts.append(scores)
            continue
        after_NC = scale_by_temperature(scores.probabilities_NC, temperature)
        found.parts.append(Scores(scores.labels_N, after_NC, scores.cases))
        found.temperatures.append(temperature)
    return found if found.temperatures else "; ".join(f"{k}: {v}" for k, v in found.unfitted.items())


def calibration_section(subject: Subject, *, temperature: bool) -> Section:
    """Brier score, ECE and reliability of every configuration, optionally after temperature scaling."""
    rows: list[list[str | Cell]] = []
    notes: list[Markup] = []
    figures = []
    for protocol in subject.protocols:
        bins: dict[str, list[ReliabilityBin]] = {}
        shown = [each for each in subject.tested if each.protocol == protocol]
        for each in shown:
            name = each.name + (f", {protocol}" if len(subject.protocols) > 1 else "")
            _add(name, each, each.parts, rows, bins)
            if temperature:
                after = scaled(each)
                if isinstance(after, str):
                    notes.append(blocks.paragraph(f"{name}: no temperature scaling: {after}."))
                else:
                    _add(f"{name}, scaled", each, after.parts, rows, bins)
                    notes.append(blocks.paragraph(_scaled_text(name, after)))
        event = f"of {drawing.label(shown[0].classes[1])}" if shown[0].is_binary else "of being right"
        title = "Reliability" if len(subject.protocols) == 1 else f"Reliability, {protocol} protocol"
        caption = "A point below the diagonal: the probability promises too much."
        if len(bins) > score_plots.MOST_CURVES:
            caption += f" The first {score_plots.MOST_CURVES} of {len(bins)}."
        figures.append(blocks.figure(score_plots.reliability_figure(bins, event), caption, title=title))
    caption = (
        "Brier score: mean squared error of the probabilities, 0 is best, with its 95 % bootstrap interval "
        f"by case. ECE: mean gap between probability and frequency in {NUM_BINS} bins of equal width. Both "
        "pool the predictions of all networks. NLL: mean negative log-likelihood in nats."
    )
    header = ["configuration", "Brier score", "95 % interval", "ECE", "NLL"]
    return blocks.section(
        "calibration",
        "Calibration",
        blocks.table("calibration-table", header, rows, caption=caption),
        *notes,
        blocks.side_by_side(*figures),
    )


def _add(
    name: str,
    configuration: Configuration,
    parts: list[Scores],
    rows: list[list[str | Cell]],
    bins: dict[str, list[ReliabilityBin]],
) -> None:
    whole = pooled(parts)
    labels_N, probabilities_NC = whole.labels_N, whole.probabilities_NC
    try:
        found = bootstrap(
            whole.cases, lambda rows_M: brier(labels_N[rows_M], probabilities_NC[rows_M]), num_resamples=500
        )
        ends = f"{found.low:.3f}–{found.high:.3f}"
    except UndefinedError:
        ends = formats.NONE
    rows.append(
        [
            name,
            f"{brier(labels_N, probabilities_NC):.4f}",
            ends,
            f"{ece(labels_N, probabilities_NC, num_bins=NUM_BINS):.4f}",
            f"{negative_log_likelihood(labels_N, probabilities_NC):.4f}",
        ]
    )
    # Several seeds test a slide several times, which is no more slides: the interval counts each once.
    times = configuration.times_tested
    bins[name] = [
        ReliabilityBin(
            p.low, p.high, p.count, p.confidence, p.frequency, *wilson(p.frequency, max(1, p.count // times))
        )
        for p in reliability(labels_N, probabilities_NC, num_bins=NUM_BINS)
    ]


def _scaled_text(name: str, after: Scaled) -> str:
    low, high = min(after.temperatures), max(after.temperatures)
    span = f"{low:.2f}" if len(after.temperatures) == 1 else f"{low:.2f} to {high:.2f}"
    text = (
        f"{name}: temperature scaling was fitted on the validation cases of each network. They selected its "
        f"epoch, too; no test case took part. Temperatures: {span}; above 1 they make probabilities less "
        "extreme, below 1 more."
    )
    for fold, why in after.unfitted.items():
        text += f" {fold.capitalize()} keeps its probabilities: {why}."
    return text
