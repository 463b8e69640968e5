"""The package's own names: loaded on first use, and known to type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cartridges

FOLDER = Path(cartridges.__file__).parent


@pytest.mark.parametrize("name", cartridges.EXPORTS)
def test_every_public_name_is_there(name):
    assert getattr(cartridges, name).__module__.startswith("cartridges.") or name == "WARD"
    assert name in dir(cartridges)


def test_another_name_is_told_which_there_are():
    with pytest.raises(AttributeError, match="no attribute 'Cartrige'; public names: Cartridge, CartridgesError"):
        cartridges.Cartrige  # noqa: B018


def test_type_checkers_are_told_of_the_same_names():
    stub = ast.parse((FOLDER / "__init__.pyi").read_text(encoding="utf-8"))
    told = {alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == cartridges.EXPORTS
    assert (FOLDER / "py.typed").is_file(), "without it they look at no types"


def test_importing_the_package_is_cheap():
    program = "import sys, cartridges; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
