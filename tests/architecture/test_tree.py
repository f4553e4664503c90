"""The tree holds what its reader relies on: sizes, docstrings, where imports may stand, one version.

Which package may import which is in `.importlinter`, checked by `make check`.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import median

from serve.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES, MAX_TEST_FILE_LINES = 400, 600
MAX_FUNCTION_LINES = 50
MAX_MEDIAN_FUNCTION_LINES = 10
HEAVY = {"xgboost", "treelite", "tl2cgen", "lmdb", "torch", "vllm", "onnxruntime", "tensorrt", "sklearn", "lightgbm",
         "pandas", "pyarrow", "transformers", "ray", "numba", "uvloop"}  # fmt: skip
MAY_IMPORT_RAY = {"serve/app.py", "serve/deployments.py"}
MAY_TOUCH_THE_ENVIRONMENT = {
    "serve/settings.py",  # the only reader
    "serve/deployments.py",  # sets where Numba caches, before it is imported
    "serve/backends/tree_import.py",  # hands the whole of it on to a child process
}
ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb", "putenv"}
CALLBACK = re.compile("connection_made|connection_lost|data_received|eof_received|(pause|resume)_writing|on_[a-z_]+")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[str]:
    """Python files below the folders that people write: not generated ones, not what tools leave behind."""
    found = chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders)
    names = [path.relative_to(ROOT).as_posix() for path in found]
    return sorted(name for name in names if "_pb2" not in name and not re.search(r"/(\.|__pycache__|build/)", name))


PRODUCT = sources("serve", "kernels", "clients")
EVERYTHING = [*PRODUCT, *sources("tests", "benchmarks", "model_repository", "protos")]
SERVE = [name for name in PRODUCT if name.startswith("serve/")]


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), name)


def functions(node: ast.AST) -> Iterator[Function]:
    return (inner for inner in ast.walk(node) if isinstance(inner, Function))


def num_lines(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Top-level packages of the import statements among the nodes."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: no function bodies, nothing that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function) or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            continue
        yield child
        yield from at_import(child)


def undocumented(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Public classes, functions and methods without a docstring. A Protocol's one-line members may speak by name, and
    what asyncio and httptools call back is documented there.
    """
    bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
    is_protocol, is_called_back = "Protocol" in bases, "asyncio.Protocol" in bases
    for child in node.body:
        if not isinstance(child, Function | ast.ClassDef) or child.name.startswith("_"):
            continue
        is_member_of_protocol = is_protocol and child.lineno == child.end_lineno
        is_again = isinstance(child, Function) and any(
            ast.unparse(decorator).endswith((".setter", "overload")) for decorator in child.decorator_list
        )
        is_callback = is_called_back and CALLBACK.fullmatch(child.name) is not None
        if ast.get_docstring(child) is None and not (is_member_of_protocol or is_again or is_callback):
            yield prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{prefix}{child.name}.")


def violations(names: Iterable[str], found_in: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
    """What was found, by file; empty where the rule holds."""
    return {name: found for name in names if (found := sorted(found_in(name)))}


def test_no_file_is_longer_than_can_be_read_at_one_sitting():
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in EVERYTHING}
    limits = {name: MAX_TEST_FILE_LINES if name.startswith("tests/") else MAX_FILE_LINES for name in lengths}
    assert {name: length for name, length in lengths.items() if length > limits[name]} == {}


def test_no_function_is_longer_than_a_screen():
    def too_long(name: str) -> Iterator[str]:
        return (function.name for function in functions(tree_of(name)) if num_lines(function) > MAX_FUNCTION_LINES)

    assert violations(PRODUCT, too_long) == {}


def test_the_usual_function_is_short():
    assert median(num_lines(f) for name in PRODUCT for f in functions(tree_of(name))) <= MAX_MEDIAN_FUNCTION_LINES


def test_every_module_says_what_it_is_for():
    """That of an `__init__` is its package's."""
    assert [name for name in PRODUCT if not ast.get_docstring(tree_of(name))] == []


def test_everything_public_has_a_docstring():
    documented = [name for name in PRODUCT if "/examples/" not in name]
    assert violations(documented, lambda name: undocumented(tree_of(name))) == {}


def test_every_folder_of_the_product_is_a_package():
    folders = {Path(name).parent for name in PRODUCT if name.startswith(("serve/", "kernels/"))}
    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_no_module_is_a_drawer_for_everything():
    names = {Path(name).stem for name in PRODUCT}
    assert names & {"util", "utils", "helper", "helpers", "common", "misc"} == set()


def test_nothing_is_left_for_later():
    left = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
    assert violations(PRODUCT, lambda name: left.findall((ROOT / name).read_text())) == {}


def test_tests_are_no_packages():
    """`tests/unit/kernels` would become the package `kernels`."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_annotations_are_strings_except_where_ray_reads_one():
    """Ray takes the builder's annotation as it is: as a string, the configuration would arrive unchecked."""
    postponed = {
        name
        for name in SERVE
        if any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree_of(name).body)
    }
    annotated = {
        name
        for name in SERVE
        if any(isinstance(node, Function | ast.ClassDef | ast.AnnAssign) for node in tree_of(name).body)
    }
    assert annotated - postponed == {"serve/app.py"}


def test_ray_is_imported_by_the_two_modules_that_need_it():
    assert {name for name in SERVE if "ray" in imported(ast.walk(tree_of(name)))} <= MAY_IMPORT_RAY


def test_heavy_libraries_are_imported_where_they_are_used():
    others = [name for name in SERVE if name not in MAY_IMPORT_RAY]
    assert violations(others, lambda name: imported(at_import(tree_of(name))) & HEAVY) == {}


def test_the_environment_is_read_by_the_settings_alone():
    def touched(name: str) -> set[str]:
        nodes = list(ast.walk(tree_of(name)))
        attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        taken = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        return (attributes | taken) & ENVIRONMENT_NAMES

    assert violations([name for name in SERVE if name not in MAY_TOUCH_THE_ENVIRONMENT], touched) == {}


def test_kernels_need_numpy_and_numba_alone():
    known = sys.stdlib_module_names | {"kernels", "numpy", "numba", "llvmlite", "nanobind"}  # builds the transport
    kernels = [name for name in PRODUCT if name.startswith("kernels/")]
    assert violations(kernels, lambda name: imported(ast.walk(tree_of(name))) - known) == {}


def test_the_name_kernels_passes_for_no_hugging_face_package():
    """`transformers` probes a package of that name by importing it and compares its version."""
    tree = tree_of("kernels/__init__.py")
    assert imported(ast.walk(tree)) == set()
    assert [ast.unparse(node) for node in tree.body[1:]] == ["__version__ = '0'"]


def test_the_client_needs_nothing_of_the_server():
    ours = {"serve", "kernels", "protos", "ray", "torch", "numba"}
    clients = [name for name in PRODUCT if name.startswith("clients/python/")]
    assert violations(clients, lambda name: imported(ast.walk(tree_of(name))) & ours) == {}


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    changes = ROOT / "CHANGELOG.md"
    if changes.exists():
        released = re.search(r"^## \[?(\d+\.\d+\.\d+)", changes.read_text(), re.MULTILINE)
        assert released is not None
        assert released[1] == VERSION
