"""The package of docs/extensions.md as pip would install it, and packages that cannot be used."""

import re
import textwrap
import tomllib
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extensions.md"


def blocks(kind: str) -> list[str]:
    """The code blocks of a kind on the page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def install_page(folder: Path) -> None:
    """Install the package of the page into a folder, which is then put on the path."""
    (project,) = blocks("toml")
    told = tomllib.loads(project)["project"]
    package = folder / "my_mil"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for code in blocks("python"):
        first, _, _ = code.partition("\n")
        (folder / first.removeprefix("# ")).write_text(code)
    describe(folder, told["name"], told["version"], told["entry-points"])


def describe(folder: Path, name: str, version: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Write what pip notes of an installed package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in entry_points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def install_code(folder: Path, name: str, code: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Install a package of one module of the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(code))
    describe(folder, name, "0.1", entry_points)
