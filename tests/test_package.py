"""What the package exports, what importing it costs, and whether its examples run."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import earlyworm

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
[LIGHT] = [contract for contract in PROJECT["tool"]["importlinter"]["contracts"] if contract["id"] == "light"]
OPTIONAL = LIGHT["forbidden_modules"]
LIBRARY = [
    module.name
    for module in pkgutil.walk_packages(earlyworm.__path__, "earlyworm.")
    if module.name.startswith(tuple(LIGHT["source_modules"]))
]


def test_every_name_resolves_to_what_the_type_checker_sees():
    tree = ast.parse(Path(earlyworm.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(imported) == sorted(earlyworm.__all__)
    for name, module in imported.items():
        value = getattr(earlyworm, name)
        assert value is vars(importlib.import_module(module))[name]
        if name.isupper():
            continue  # settings, which know neither their module nor their words
        assert value.__module__ == module  # imported from where it is defined
        assert value.__doc__


def test_exports():
    assert dir(earlyworm) == sorted(set(earlyworm.__all__)) == sorted(earlyworm.__all__)
    star = {}
    exec("from earlyworm import *", star)
    assert set(star) - {"__builtins__"} == set(earlyworm.__all__)
    assert earlyworm.__doc__


@pytest.mark.parametrize("name", ["nothing", "torch", "Tensor", "gate_masks", "TicketSearchs", "__version__"])
def test_other_names_are_attribute_errors(name):
    with pytest.raises(AttributeError, match=f"module 'earlyworm' has no attribute '{name}'"):
        getattr(earlyworm, name)


def test_importing_the_package_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-c", "import earlyworm"]
    trace = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    imported = {line.rpartition("|")[2].strip() for line in trace.splitlines()}
    assert "earlyworm" in imported
    ours = {name for name in imported if name.startswith("earlyworm.")}
    assert not ours
    roots = {name.partition(".")[0] for name in imported}
    heavy = {*OPTIONAL, "torch", "torch_pruning", "numpy", "safetensors", "asyncio", "email"}
    assert not roots & heavy


def test_the_library_imports_no_optional_dependency(fresh_python):
    program = f"""
import sys, earlyworm
assert "torch" not in sys.modules
assert not earlyworm.Emergence().has_emerged(())
assert "torch" in sys.modules
for name in earlyworm.__all__:
    getattr(earlyworm, name)
found = [name for name in {OPTIONAL!r} if name in sys.modules]
assert not found, found
application = ["cli", "options", "reporting", "comparisons", "experiments"]
assert not [name for name in application if "earlyworm." + name in sys.modules]
"""
    fresh_python(program)


@pytest.mark.parametrize("module", LIBRARY)
def test_examples_in_docstrings(module):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = {test.name for module in LIBRARY for test in finder.find(importlib.import_module(module)) if test.examples}
    assert found >= {
        "earlyworm.search.ticket_search.TicketSearch",
        "earlyworm.masks.mask.make_mask",
        "earlyworm.search.truncation.Worm",
    }
