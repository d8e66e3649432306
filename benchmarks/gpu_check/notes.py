"""What a part of the check finds, on disk as soon as it is found."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REQUIRED = {"torch", "numpy", "pydantic", "mhimdist", "data_prep", "benchmarks"}
"""Without these nothing trains; a part that lacks any other module is left out by the module's name."""


class Notes:
    """The notes of one part.

    Attributes:
        found: what was measured, by name.
        failed: what went wrong, by name; the part has passed if this is empty.
        left_out: what could not be tried on this machine, by name, and why. "part" is the whole part.
    """

    def __init__(self, file: Path, required: frozenset[str] = frozenset(REQUIRED)) -> None:
        """Begin without notes.

        Args:
            file: where they are kept, as JSON.
            required: modules whose absence is a failure.
        """
        self._file, self._required = file, required
        self.found: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    def note(self, name: str, value: Any) -> None:
        """Keep a finding."""
        self.found[name] = value
        self._save()

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a row of a table of findings."""
        self.found.setdefault(name, []).append(row)
        self._save()

    def check(self, name: str, passed: bool, value: Any) -> None:
        """Keep a finding that says whether the part has passed."""
        if not passed:
            self.failed[name] = json.dumps(value, default=str)[:600]
        self.note(name, value)

    def fail(self, name: str, why: str) -> None:
        """Keep a failure."""
        self.failed[name] = why[-1500:]
        self._save()

    def leave_out(self, name: str, why: str) -> None:
        """Keep the reason why something was not tried."""
        self.left_out[name] = why[:600]
        self._save()

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Keep an error as a failure, and go on with what comes after the block.

        Raises:
            Exception: an error of CUDA, after which nothing works in this process.
        """
        try:
            yield
        except ModuleNotFoundError as error:
            self.missing(name, error)
        except Exception as error:
            traceback.print_exc()
            self.fail(name, f"{type(error).__name__}: {error}")
            if "CUDA error" in str(error):
                raise

    def missing(self, name: str, error: ModuleNotFoundError) -> None:
        """Leave something out for lack of a module, or fail if nothing works without it."""
        module = (error.name or "").partition(".")[0]
        if module in self._required:
            self.fail(name, f"no module named {module}")
        else:
            self.leave_out(name, f"no module named {module}")

    def _save(self) -> None:
        draft = self._file.with_suffix(".draft")
        text = json.dumps(
            {"found": self.found, "failed": self.failed, "left_out": self.left_out}, default=str
        )
        draft.write_text(text, encoding="utf-8")
        draft.replace(self._file)  # the driver may be reading
