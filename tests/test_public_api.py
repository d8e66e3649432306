"""`import mhimdist as mh` is enough for a notebook, and every name says what it raises."""

import doctest
import importlib
import inspect
import subprocess
import sys
from importlib.resources import files

import pytest

import mhimdist as mh

NAMES = [name for name in mh.__all__ if not name.startswith("__")]


def test_every_name_is_there_and_no_other():
    assert sorted(mh.__all__) == mh.__all__
    assert set(mh._MODULES) == set(NAMES)
    assert set(mh.__all__) <= set(dir(mh))
    with pytest.raises(AttributeError, match="module 'mhimdist' has no attribute 'nope'"):
        mh.nope  # noqa: B018  # what is tested is the access
    assert files("mhimdist").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_what_it_is_and_what_it_raises(name):
    found = getattr(mh, name)
    assert found.__module__ == f"mhimdist.{mh._MODULES[name]}", "it is exported from where it is defined"
    text = found.__doc__
    assert text
    assert "Raises:" in text
    if inspect.isfunction(found) and len(inspect.signature(found).parameters) > 2:
        assert "Args:" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_example_runs(name):
    found = getattr(mh, name)
    examples = doctest.DocTestFinder(recurse=False).find(found, name, globs={"mh": mh})
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in examples:
        assert runner.run(example).failed == 0


def test_several_names_have_an_example():
    assert sum(">>> " in getattr(mh, name).__doc__ for name in NAMES) >= 5


def test_what_a_notebook_begins_with_loads_no_torch_and_no_ray():
    code = (
        "import sys, mhimdist as mh; mh.preset('c16', 'abmil'), mh.TrainConfig;"
        "heavy = {'ray', 'optuna', 'torch', 'plotly'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_see_what_is_loaded_lazily():
    source = inspect.getsource(importlib.import_module("mhimdist"))
    typed = source[source.index("if TYPE_CHECKING:") : source.index("__version__")]
    for name, module in mh._MODULES.items():
        assert f"from mhimdist.{module} import " in typed
        assert name in typed
