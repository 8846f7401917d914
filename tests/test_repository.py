"""The repository: import rules between packages, requirements, tracked files."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "igpt_tf"

# What each package or module of igpt_tf may import of the others, besides itself. In the order of
# docs/architecture.md: modules import only from their left.
BASE = {"__init__", "errors", "files", "formatting", "runtime", "config", "cli"}
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "files": {"errors"},
    "formatting": set(),
    "runtime": {"__init__", "errors"},
    "config": {"errors", "files"},
    "cli": {"errors", "files"},
    "__main__": {"__init__", "cli", "config"},
    "image_grid": BASE,
    "palette": BASE,
    "objectives": BASE,
    "data": BASE | {"palette", "objectives"},
    "model": {"errors"},
    "sampling": BASE | {"model", "palette"},
    "savedmodel": BASE | {"model", "palette", "objectives", "data", "sampling"},
    "api": BASE | {"model", "palette", "objectives", "sampling", "savedmodel"},
    "training": BASE
    | {"image_grid", "palette", "objectives", "data", "model", "sampling", "savedmodel"},
    "evaluation": BASE
    | {
        "image_grid",
        "palette",
        "objectives",
        "data",
        "model",
        "sampling",
        "savedmodel",
        "training",
    },
    "ahead_of_time": BASE | {"objectives", "model", "sampling", "training"},
    "convert": BASE | {"palette", "objectives", "model", "savedmodel"},
    "serving": BASE | {"image_grid", "data", "sampling", "savedmodel"},
    "playground": BASE | {"data", "sampling", "savedmodel", "serving"},
    "report": BASE | {"savedmodel"},
    "benchmark": BASE | {"palette", "objectives", "data", "model", "sampling", "training"},
    "main": BASE | {"savedmodel", "training"},
}


def _imports(path: Path) -> Iterator[str]:
    """Full dotted names of all that a file imports, wherever in it: `from a import b` is a.b."""
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, node.module) if node.module else base
            yield from (".".join((*module, alias.name)) for alias in node.names)


def _package_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def _library_imports() -> list[tuple[Path, str]]:
    """(file, imported name) pairs of the library; never empty."""
    pairs = [(path, name) for path in sorted(LIBRARY.rglob("*.py")) for name in _imports(path)]
    assert pairs
    return pairs


def _outside(path: Path) -> set[str]:
    """Top-level packages a file imports that are neither Python's nor this repository's."""
    ours = {"igpt_tf", "tools", "tests"} | sys.stdlib_module_names
    return {name.split(".")[0] for name in _imports(path)} - ours


def _requirements(name: str) -> dict[str, Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    parsed = map(Requirement, filter(None, lines))
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def _unnamed_imports(folders: tuple[str, ...], named: set[str]) -> list[str]:
    """Imports under `folders` that no named requirement provides."""
    providers = importlib.metadata.packages_distributions()
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for module in sorted(_outside(path))
        if named.isdisjoint(map(canonicalize_name, providers.get(module, [module])))
    ]


def _tracked_texts() -> dict[str, str]:
    """Path -> content of every text file that git tracks or would track."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    options = ["--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command + options, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this copy is not a git checkout")
    texts = {}
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        try:
            texts[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # a picture, or deleted but not yet committed
    assert texts
    return texts


def test_no_python_file_lies_in_gin():
    assert not list((ROOT / "gin").rglob("*.py"))


def test_every_package_has_an_entry_in_the_import_table():
    assert {_package_of(path) for path in LIBRARY.rglob("*.py")} <= ALLOWED.keys()


def test_the_architecture_page_names_every_package_and_no_module_that_does_not_exist():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    packages = ALLOWED.keys() - {"__init__", "main"}
    assert [
        name for name in packages if f"`{name}/`" not in page and f"{name}.py`" not in page
    ] == []
    modules = set(re.findall(r"`(?:igpt_tf/)?([\w/]+[.]py)`", page))
    missing = [
        name for name in modules if not list(LIBRARY.rglob(name)) and not (ROOT / name).exists()
    ]
    assert modules and missing == []


def test_packages_import_only_what_the_table_allows():
    wrong = []
    for path, name in _library_imports():
        package, (top, *inner) = _package_of(path), name.split(".")
        if top == "igpt_tf" and inner and inner[0] not in ALLOWED[package] | {package}:
            wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_the_library_imports_neither_its_tools_nor_its_tests():
    wrong = [pair for pair in _library_imports() if pair[1].split(".")[0] in {"tools", "tests"}]
    assert not wrong


def test_the_model_package_imports_keras_only_never_tensorflow():
    files = list((LIBRARY / "model").rglob("*.py"))
    assert files
    assert set().union(*map(_outside, files)) <= {"keras", "gin"}


def test_every_direct_import_is_named_in_the_requirements():
    named = set(_requirements("requirements.txt"))
    optional = set(_requirements("requirements-serving.txt"))
    optional |= set(_requirements("requirements-bench.txt"))
    optional |= set(_requirements("requirements-compile.txt"))
    assert not _unnamed_imports(("igpt_tf", "tools"), named | optional)
    of_tests = set(_requirements("requirements-dev.txt"))
    of_tests |= set(_requirements("requirements-parity.txt"))
    assert not _unnamed_imports(("tests",), named | of_tests)


@pytest.mark.parametrize(
    ("packages", "optional"),
    [
        ({"serving"}, {"grpc", "tensorflow_serving"}),
        ({"benchmark"}, {"torch", "transformers"}),
        ({"benchmark", "ahead_of_time"}, {"jax"}),
        ({"ahead_of_time"}, {"jaxlib", "libtpu"}),
    ],
)
def test_only_these_packages_import_each_optional_dependency(packages, optional):
    files = [*LIBRARY.rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    users = {path.relative_to(ROOT).parts[1] for path in files if _outside(path) & optional}
    assert users <= packages


def test_every_requirement_has_a_lower_and_an_upper_bound():
    for file in (
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-serving.txt",
        "requirements-bench.txt",
        "requirements-cuda.txt",
    ):
        for requirement in _requirements(file).values():
            operators = {specifier.operator for specifier in requirement.specifier}
            assert operators == {">=", "<"}, requirement


def test_the_lock_pins_one_version_within_the_bounds_of_every_requirement():
    lock = _requirements("requirements.lock")
    pins = {name: list(requirement.specifier) for name, requirement in lock.items()}
    assert all([one.operator for one in pin] == ["=="] for pin in pins.values())
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-serving.txt"):
        for name, requirement in _requirements(file).items():
            assert name in pins, f"{name} is not in requirements.lock"
            assert requirement.specifier.contains(pins[name][0].version), requirement


def test_the_lock_also_pins_what_the_requirements_require():
    lock = _requirements("requirements.lock")
    for name in lock:
        for needed in map(Requirement, importlib.metadata.requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in lock, f"{name} requires {needed}"


def test_the_lock_of_cuda_pins_what_tensorflow_asks_for():
    pins = _requirements("requirements-cuda.lock")
    for needed in map(Requirement, importlib.metadata.requires("tensorflow")):
        if needed.marker and needed.marker.evaluate({"extra": "and-cuda"}):
            name = canonicalize_name(needed.name)
            pin = pins.get(name) or _requirements("requirements.lock")[name]
            [version] = pin.specifier
            assert version.operator == "==" and needed.specifier.contains(version.version), needed


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cuda.lock"])
def test_a_lock_names_no_package_index(name):
    assert not re.search(r"^\s*-|://", (ROOT / name).read_text(), re.MULTILINE)


def test_no_tracked_text_mentions_a_path_of_the_authors_machines():
    private = re.compile(r"(?<!\w)/[w]ork\b|[.][.]/[s]hared\b")
    assert [name for name, text in _tracked_texts().items() if private.search(text)] == []
