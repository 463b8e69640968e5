"""The shape of the package: who may import whom, and how long things may get.

A new module gets a line in LAYERS; nothing else here should need to change.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Imports go down this list or sideways. Patterns as in a shell; the longest that fits a module counts.
LAYERS: list[tuple[str, list[str]]] = [
    (
        "ground",
        [
            "cartridges",
            *(f"cartridges.{name}" for name in "errors config log provenance rng run_folder intervals".split()),
        ],
    ),
    (
        "nouns",
        [
            *(
                f"cartridges.{name}"
                for name in "corpus chunking passages seeds template conversation shards dataset cartridge adapter "
                "results questions find ledger scores".split()
            ),
            "cartridges.pocket",
            "cartridges.pocket.*",
        ],
    ),
    (
        "model",
        [
            *(
                f"cartridges.{name}"
                for name in "model precision attention cpu_flash flash losses packing compose mlp adapting lora "
                "moments probe slots sharing matching reference_queries writer".split()
            ),
            *(f"cartridges.pocket.{name}" for name in "attention batches model step tokenizer workers".split()),
        ],
    ),
    ("inference", ["cartridges.engine", "cartridges.engine.*", "cartridges.clients", "cartridges.clients.*"]),
    (
        "verbs",
        [
            *(
                f"cartridges.{name}"
                for name in "initialization recipe preflight rows synthesis self_study study_plan filters training "
                "compact evaluation report building verdict report_figures report_page report_table pairs "
                "transmutation".split()
            ),
            *(f"cartridges.pocket.{name}" for name in "card evaluate generate train".split()),
            *("cartridges.evals", "cartridges.evals.*"),
        ],
    ),
    (
        "surfaces",
        [
            *("cartridges.serving", "cartridges.serving.*", "cartridges.commands", "cartridges.commands.*"),
            *("cartridges.cli", "cartridges.__main__"),
        ],
    ),
]
MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 79
TOO_LONG_ALLOWED: list[str] = []  # "path" or "path::function"; may only shrink
NAMES_WITHOUT_MEANING = {"utils", "util", "helpers", "helper", "common", "misc"}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(root: Path) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted((root / "cartridges").rglob("*.py"))}


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that `name` imports, wherever in the file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                found.add(submodule if submodule in modules else source)
    return (found & set(modules)) - {name}


def layer_of(name: str) -> int:
    fitting = [
        (len(pattern), depth)
        for depth, (_, patterns) in enumerate(LAYERS)
        for pattern in patterns
        if fnmatchcase(name, pattern)
    ]
    assert fitting, f"{name} is in no layer: add it to LAYERS in tests/test_layers.py"
    return max(fitting)[1]


def upward_imports(imports: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} ({LAYERS[layer_of(name)][0]}) imports {other} ({LAYERS[layer_of(other)][0]})"
        for name, others in sorted(imports.items())
        for other in sorted(others)
        if layer_of(other) > layer_of(name)
    ]


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """One circle of imports, or nothing."""
    finished: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in finished:
            return []
        for other in sorted(imports[name]):
            if cycle := visit(other, [*trail, name]):
                return cycle
        finished.add(name)
        return []

    return next((cycle for name in imports if (cycle := visit(name, []))), [])


def all_sources() -> list[Path]:
    folders = ("cartridges", "tests", "benchmarks")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def too_long(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    label = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    if (num_lines := len(text.splitlines())) > MAX_FILE_LINES:
        yield f"{label}: {num_lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield f"{label}::{node.name}: {num_lines} lines"


MODULES = modules_of(ROOT)
IMPORTS = {name: imports_of(name, path, MODULES) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_layer(name):
    layer_of(name)


def test_imports_never_go_up():
    assert upward_imports(IMPORTS) == [], "mend the import, or the module's place in LAYERS"


def test_imports_never_go_in_a_circle():
    assert find_cycle(IMPORTS) == []


@pytest.mark.parametrize(
    "name",
    [
        "cartridges",
        *(
            f"cartridges.{name}"
            for name in "cli config log corpus chunking passages seeds template conversation dataset".split()
        ),
        *(f"cartridges.{name}" for name in "cartridge adapter results questions find ledger report".split()),
    ],
)
def test_import_is_free_of_torch(name):
    program = (
        f"import sys, {name}; sys.exit(' '.join({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"importing {name} imports {result.stderr}"


def test_files_and_functions_are_short():
    found = [line for path in all_sources() for line in too_long(path)]
    assert [line for line in found if line.rsplit(":", 1)[0] not in TOO_LONG_ALLOWED] == []
    stale = [entry for entry in TOO_LONG_ALLOWED if entry not in {line.rsplit(":", 1)[0] for line in found}]
    assert stale == [], "short now: remove them from TOO_LONG_ALLOWED"


def test_names_mean_something():
    assert [str(path) for path in all_sources() if path.stem.strip("_") in NAMES_WITHOUT_MEANING] == []


@pytest.fixture
def little_package(tmp_path):
    """A package that breaks every rule above."""
    package = tmp_path / "cartridges"
    (package / "pocket").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "config.py").write_text("def f():\n    from .pocket import world\n")
    (package / "errors.py").write_text("import cartridges.cli\n")
    (package / "cli.py").write_text("from cartridges import errors\nimport os, torch\n")
    (package / "pocket" / "__init__.py").write_text("")
    (package / "pocket" / "world.py").write_text("from ..config import Config\n")
    modules = modules_of(tmp_path)
    return {name: imports_of(name, path, modules) for name, path in modules.items()}


def test_the_judge_reads_every_form_of_import(little_package):
    assert little_package["cartridges.config"] == {"cartridges.pocket.world"}
    assert little_package["cartridges.pocket.world"] == {"cartridges.config"}
    assert little_package["cartridges.errors"] == {"cartridges.cli"}
    assert little_package["cartridges.cli"] == {"cartridges.errors"}


def test_the_judge_sees_upward_imports_and_circles(little_package):
    assert upward_imports(little_package) == [
        "cartridges.config (ground) imports cartridges.pocket.world (nouns)",
        "cartridges.errors (ground) imports cartridges.cli (surfaces)",
    ]
    assert find_cycle(little_package) == ["cartridges.cli", "cartridges.errors", "cartridges.cli"]


def test_the_judge_says_where_to_add_a_module():
    with pytest.raises(AssertionError, match=r"cartridges\.new is in no layer: add it to LAYERS in tests/test_layers"):
        layer_of("cartridges.new")


def test_the_judge_sees_length(tmp_path):
    long = tmp_path / "long.py"
    long.write_text("def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES + "y = 1\n" * MAX_FILE_LINES)
    assert list(too_long(long)) == [
        f"long.py: {1 + MAX_FUNCTION_LINES + MAX_FILE_LINES} lines",
        f"long.py::f: {1 + MAX_FUNCTION_LINES} lines",
    ]
