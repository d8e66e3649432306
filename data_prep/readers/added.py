"""Readers of formats that other packages add, see docs/extensions.md."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.readers import damage
from mhimdist.config import extensions


@dataclass(frozen=True)
class Reader:
    """A format of files that each hold the features of one slide.

    Attributes:
        suffixes: the suffixes of its files, in small letters, with their dot.
        read: reads a file's arrays by name, numpy arrays or `data_prep.readers.arrays.RowReader`: "features",
            N x D floats; and if there are any "coords", N x 2 in pixels of level 0, "instance_labels", N, and
            details such as "encoder". It is given the file and the names that the features may have.
            Whatever it raises is reported as damage of the file. A file may come from anywhere: nothing in it
            should be executed, and nothing allocated because the file claims to need it.
        starts_with: first bytes of every such file, by which one of another suffix is recognised; empty if
            they do not tell.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, Collection[str]], Mapping[str, Any]]
    starts_with: bytes = b""


class Added:
    """The readers that can be used here.

    Attributes:
        readers: each reader by its name, the family of its files.
        suffixes: the family by suffix.
        refused: why the other readers cannot be used, by their names.
    """

    def __init__(self, families: Collection[str], suffixes: Collection[str]) -> None:
        """Import them.

        Args:
            families, suffixes: what mhimdist reads itself.
        """
        own = frozenset(suffixes)
        found = extensions.load(
            extensions.READERS, taken=families, fault=lambda name, value: reader_fault(value, own)
        )
        self.readers: dict[str, Reader] = found.loaded
        self.refused = dict(found.refused)
        self.suffixes: dict[str, str] = {}
        for family, reader in list(self.readers.items()):
            if rivals := {self.suffixes[end] for end in reader.suffixes if end in self.suffixes}:
                others = ", ".join(sorted(rivals))
                package = " ".join(found.packages.get(family, ("unknown", "")))
                self.refused[family] = (
                    f"the extension {family} of the package {package} ({extensions.READERS}) is refused: the "
                    f"extension {others} reads files of the same suffix"
                )
                del self.readers[family]
                continue
            self.suffixes |= dict.fromkeys(reader.suffixes, family)

    def read(self, family: str, path: Path, arrays: Collection[str]) -> dict[Any, Any]:
        """Read a file by the reader of this name.

        Args:
            family: name of the reader.
            path: the file.
            arrays: names that the features may have.

        Raises:
            DataError: it raised an error, or returned something else than arrays by name.
        """
        with damage.named(f"{path}: the reader {family} could not read it"):
            found = self.readers[family].read(path, arrays)
            if not isinstance(found, Mapping):
                raise TypeError(f"it returned {type(found).__name__}, expected arrays by name")
            return dict(found)

    def family_of(self, head: bytes) -> str | None:
        """The reader whose files begin with these bytes; None if there is none."""
        for family, reader in self.readers.items():
            if reader.starts_with and head.startswith(reader.starts_with):
                return family
        return None

    @property
    def hint(self) -> str:
        """The refused readers, for the message that nothing was found to read; empty if there are none."""
        return "".join(f"; {reason}" for _, reason in sorted(self.refused.items()))


def reader_fault(found: Any, taken: Collection[str]) -> str | None:
    """Why what an entry point names cannot be a reader; None if it can.

    Args:
        found: what it stands for.
        taken: the suffixes that mhimdist reads itself.
    """
    if not isinstance(found, Reader):
        return f"expected a data_prep.readers.added.Reader, got {found!r}"
    wrong = [end for end in found.suffixes if not end.startswith(".") or end != end.lower()]
    if not found.suffixes or wrong:
        return f"expected suffixes such as .feat, in small letters, got {found.suffixes}"
    if both := sorted(set(found.suffixes) & set(taken)):
        return f"mhimdist itself reads files that end in {', '.join(both)}"
    return None
