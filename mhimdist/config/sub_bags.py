"""Sub-bags in words, for whatever shows a figure: what training saw of a bag, and what the figures are of."""

from mhimdist.config.train import TrainConfig


def sample_text(config: TrainConfig) -> str:
    """The size of a sample, such as "512 instances a bag"; empty if training sees whole bags."""
    most, share = config.instances_per_bag, config.instances_share
    if share is None:
        return "" if most is None else f"{most:,} instances a bag"
    of_share = f"{100 * share:g} % of each bag"
    return of_share if most is None else f"{of_share}, at most {most:,} instances"


def evaluation_text(config: TrainConfig) -> str:
    """What the figures are of, in a few words; empty if training saw whole bags."""
    if not config.trains_on_sub_bags:
        return ""
    number = config.evaluation_samples
    if number is None:
        return "evaluated on whole bags"
    return (
        "evaluated on one sample of each bag" if number == 1 else f"evaluated by the mean of {number} samples"
    )


def sub_bags_text(config: TrainConfig) -> str:
    """Both in a clause for captions and notes; empty if training saw whole bags."""
    if not config.trains_on_sub_bags:
        return ""
    return f"trained on {sample_text(config)}, drawn anew in each epoch; {evaluation_text(config)}"
