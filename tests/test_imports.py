"""The layers of the package, and what an import of it may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mhimdist"

# A module imports only from its own layer or a lower one.
LAYERS = [
    {
        "atomic",
        "errors",
        "command",
        "home",
        "schedules",
        "model_settings",
        "config",
        "presets",
        "draws",
        "options",
        "denormals",
        "ops",
    },
    {
        "data",
        "space",
        "chance",
        "models",
        "masking",
        "losses",
        "metrics",
        "optimizer",
        "precision",
        "step_numbers",
    },
    {
        *(
            "teacher",
            "mhim",
            "evaluation",
            "checkpoint",
            "run_folder",
            "workers",
            "official",
            "step",
            "graphs",
        ),
        *("history", "run_state"),
    },
    {"engine", "first_stage", "report"},
    {
        "local_cluster",
        "nodes",
        "cluster",
        "submit",
        "train",
        "unit",
        "experiment",
        "sweep",
        "trial",
        "cost",
        "paper_rows",
    },
    {
        "run_units",
        "cross_validation",
        "planner",
        "proposals",
        "drafts",
        "samplers",
        "pruning",
        "room",
        "paper_tables",
    },
    {"grid", "storage"},
    {"study", "sweep_folder", "warm_start", "tune_trial", "live_trials", "tune_driver", "tune_hooks"},
    {"calibration", "finals"},
    {"tune"},
    {"ablation"},
]
# The only modules that may import a heavy dependency.
DOORS = {
    "ray": {
        *("tune", "tune_trial", "tune_driver", "tune_hooks", "calibration", "finals"),
        *("cluster", "submit", "train", "run_units", "cross_validation"),
    },
    "optuna": {
        "study",
        "samplers",
        "proposals",
        "drafts",
        "chance",
        "grid",
        "storage",
        "pruning",
        "sweep_folder",
        "warm_start",
    },
    "triton": {"ops"},
    "nvidia": {"data"},
    "webdataset": {"data"},
    "plotly": {"report"},
}


def _modules() -> dict[Path, str]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in paths}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _layer(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def test_every_module_has_a_layer():
    assert {name for name in _modules().values() if name != "__init__"} == set().union(*LAYERS)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward_and_through_the_doors(path):
    module = _modules()[path]
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "mhimdist" and rest and module != "__init__":
            assert _layer(rest[0]) <= _layer(module), f"{path.name} imports {name}, from a higher layer"
        if top in DOORS:
            assert module in DOORS[top], f"{path.name} imports {top}, whose door is {DOORS[top]}"


def test_importing_the_package_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import mhimdist; s = time.perf_counter() - t;"
        "heavy = {'ray', 'optuna', 'nvidia', 'triton', 'torch'} & set(sys.modules);"
        "assert not heavy, heavy; assert s < 2, s"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_engine_knows_no_ray_and_no_optuna():
    code = (
        "import sys, mhimdist.training.trainer, mhimdist.training.first_stage;"
        "heavy = {'ray', 'optuna', 'nvidia.dali', 'webdataset', 'plotly'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
