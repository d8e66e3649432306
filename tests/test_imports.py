"""The order of the packages, and what an import of the package may cost."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module imports only from its own package or from one further up in its list.
ORDER = {
    "mhimdist": [
        {"errors", "files", "foreign_text", "process", "terminal"},
        {"ops"},
        {"config"},
        {"cluster"},
        {"tables"},
        {"data"},
        {"statistics"},
        {"tasks"},
        {"models"},
        {"method"},
        {"training"},
        {"report"},
        {"comparison"},
        {"pages"},
        {"heatmaps"},
        {"search"},
        {"distributed"},
        {"prediction"},
        {"export"},
        {"cross_validation"},
        {"sweep"},
        {"run_files"},
        {"paper"},
        {"doctor"},
        {"commands"},
        {"__main__"},
    ],
    "data_prep": [
        {"settings"},
        {"embedded"},
        {"tables"},
        {"readers"},
        {"writing"},
        {"checks"},
        {"command_line"},
        {
            *("classic", "digits", "inspect", "merge", "options", "shard", "shard_labels", "shard_options"),
            "verify",
        },
    ],
}
# The only packages and modules that may import a heavy dependency.
DOORS = {
    "ray": (
        "mhimdist.cluster",
        "mhimdist.distributed",
        "mhimdist.sweep",
        "mhimdist.paper.costs",
        "data_prep.writing.parallel",
    ),
    "optuna": ("mhimdist.search",),
    "triton": ("mhimdist.ops",),
    "nvidia": ("mhimdist.data", "mhimdist.doctor.probes"),
    "webdataset": ("mhimdist.data",),
    "plotly": ("mhimdist.report",),
    "onnxruntime": ("mhimdist.export",),
    "pandas": ("mhimdist.tables",),
    "python_calamine": ("mhimdist.tables",),
    "openslide": ("mhimdist.heatmaps.slides",),
}
# The only modules of mhimdist that may import data_prep, and only within a function.
DATA_PREP_DOORS = ("mhimdist.prediction.sources", "mhimdist.doctor.shards", "mhimdist.commands.actions")


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for root in ORDER for path in sorted((ROOT / root).rglob("*.py"))}


def _imports(module: str) -> set[str]:
    """What a module imports: modules of ours, and the names of others."""
    found = set()
    tree = ast.parse(MODULES[module].read_text())
    # Imports for type checkers alone, such as those of the package's lazy exports, load nothing.
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found - {module}


def _level(root: str, package: str) -> int:
    return next(i for i, level in enumerate(ORDER[root]) if package in level)


def test_every_package_has_its_place():
    for root, levels in ORDER.items():
        found = {name.split(".")[1] for name in MODULES if name.startswith(f"{root}.")}
        assert found == set().union(*levels)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward_and_through_the_doors(module):
    root, *inside = module.split(".")
    for name in _imports(module):
        top, *rest = name.split(".")
        if top in DOORS:
            allowed = any(f"{module}.".startswith(f"{door}.") for door in DOORS[top])
            assert allowed, f"{module} imports {top}, whose door is {DOORS[top]}"
        if top == root and rest and inside:
            assert _level(root, rest[0]) <= _level(root, inside[0]), (
                f"{module} imports {name}, from higher up"
            )
        if (root, top) == ("mhimdist", "data_prep"):
            assert module in DATA_PREP_DOORS, f"{module} imports {name}"


def test_no_modules_import_each_other():
    graph = {module: _imports(module) & MODULES.keys() for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_importing_the_package_is_light():
    code = (
        "import sys, time; t = time.process_time(); import mhimdist; s = time.process_time() - t;"
        "heavy = {'ray', 'optuna', 'nvidia', 'triton', 'torch', 'numpy', 'pydantic', 'pandas'};"
        "heavy &= set(sys.modules);"
        "assert not heavy, heavy; assert s < 0.3, s"  # of the processor's time, which a busy machine keeps
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("door", DATA_PREP_DOORS)
def test_the_door_to_data_prep_opens_on_demand(door):
    code = f"import sys, {door}; assert 'data_prep' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_that_trains_imports_nothing_slow_that_it_does_not_need(tmp_path):
    code = (
        "import sys; from pathlib import Path; from memory_bags import gaussian_bags;"
        "import mhimdist as mh; from mhimdist.training.first_stage import open_trainer;"
        "config = mh.preset('c16', 'abmil').override({'epochs': 1, 'device': 'cpu'});"
        "bags = gaussian_bags();"
        "trainer = open_trainer(config, bags, bags.holdout(), Path(sys.argv[1]) / 'run', Path(sys.argv[1]));"
        "assert len(list(trainer.epochs())) == 1;"
        "slow = {'ray', 'optuna', 'nvidia.dali', 'webdataset', 'plotly', 'torch._dynamo', 'sympy', 'triton'};"
        "slow &= set(sys.modules); assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parent, check=True)
