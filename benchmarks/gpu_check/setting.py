"""What a part is told: the device, the sizes that suit it, and how long it may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """How a part of the check runs.

    Attributes:
        device: "cuda" or "cpu".
        limit_s: seconds after which the driver ends the part.
        argument: what the part is about, such as a model's name; empty for most parts.
    """

    device: str
    limit_s: float
    argument: str = ""

    @property
    def is_gpu(self) -> bool:
        """Whether the sizes are real ones; on a CPU they only show that the part works."""
        return self.device == "cuda"

    @property
    def num_instances(self) -> int:
        """Instances of a bag, about the mean of CAMELYON16."""
        return 9000 if self.is_gpu else 200

    @property
    def num_features(self) -> int:
        """Width of an instance."""
        return 1024 if self.is_gpu else 64

    @property
    def num_steps(self) -> int:
        """Steps in a round of a timing."""
        return 100 if self.is_gpu else 1

    @property
    def num_rounds(self) -> int:
        """Rounds of a timing, of which the median counts."""
        return 3 if self.is_gpu else 1
