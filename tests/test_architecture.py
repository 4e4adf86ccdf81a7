"""The plan of the house, enforced: who may import whom, and what library code never does.

Every rule is a function from a file's name and source to a list of findings: each is shown to catch a
planted violation.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nlmegen

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nlmegen"

# From left to right: a room imports only from rooms to its left. Rooms of one tier do not know each other.
TIERS = (
    ("maths",),
    ("data",),
    ("structure",),
    ("model",),
    ("simulate",),
    ("inference",),
    ("fit",),
    ("resample", "check", "explain"),
    ("search", "dosing", "exchange"),
    ("plots",),
    ("report",),
    ("results",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(TIERS) for room in rooms}
FREE = {"errors", "shapes"}
MOST_LINES = 400
GLOBAL_STATE = {
    "torch.manual_seed",
    "torch.seed",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "torch.set_num_threads",
    "torch.set_rng_state",
    "torch.use_deterministic_algorithms",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "plt.show",
    "warnings.simplefilter",
}

Rule = Callable[[str, str], list[str]]


def room_of(name: str) -> str | None:
    """`nlmegen/data/events.py` -> data, `nlmegen/fit.py` -> fit, `nlmegen/__init__.py` -> None."""
    room = Path(name).parts[1].removesuffix(".py")
    return None if room.startswith("__") else room


def imports(name: str, tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Every import statement with the dotted names it reaches, relative ones resolved."""
    package = Path(name).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node, f"{module}.{alias.name}"


def import_direction(name: str, source: str) -> list[str]:
    """A room imports only from rooms to its left; exception: tables of `check` plot themselves lazily."""
    room = room_of(name)
    if room is None:
        return []
    if room not in RANK and room not in FREE:
        return [f"{name}: room '{room}' is not in the plan"]
    tree = ast.parse(source)
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    found = []
    for node, target in imports(name, tree):
        parts = target.split(".")
        if parts[0] != "nlmegen" or target == "nlmegen.__version__":
            continue
        if len(parts) == 1 or (parts[1] not in RANK and parts[1] not in FREE):
            found.append(f"{name}:{node.lineno}: import {target} from its room, not from the package")
            continue
        if parts[1] in FREE or parts[1] == room:
            continue
        if room == "check" and parts[1] == "plots" and id(node) in lazy:
            continue
        if room in FREE or RANK[parts[1]] >= RANK[room]:
            found.append(f"{name}:{node.lineno}: '{room}' may not import '{parts[1]}' ({target})")
    return found


def public_names_only(name: str, source: str) -> list[str]:
    """Pages, documents and benchmarks use `import nlmegen as nl` and names of `nlmegen.__all__`."""
    tree = ast.parse(source)
    public = set(nlmegen.__all__)
    aliases = set()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "nlmegen":
                    aliases.add(alias.asname or "nlmegen")
                    if alias.name != "nlmegen":
                        found.append(f"{name}:{node.lineno}: {alias.name} is not public")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nlmegen":
            for alias in node.names:
                if node.module != "nlmegen" or alias.name not in public:
                    found.append(f"{name}:{node.lineno}: {node.module}.{alias.name} is not public")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id in aliases and node.attr not in public:
            found.append(f"{name}:{node.lineno}: nlmegen.{node.attr} is not public")
    return found


def no_prints(name: str, source: str) -> list[str]:
    """Only the command line writes to the terminal."""
    if room_of(name) == "cli":
        return []
    return [
        f"{name}:{node.lineno}: print"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def no_bare_except(name: str, source: str) -> list[str]:
    """Ctrl-C and bugs are not to be swallowed."""
    return [
        f"{name}:{node.lineno}: bare except"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]


def no_global_state(name: str, source: str) -> list[str]:
    """Seeds are arguments; dtype, random state, threads, warnings and windows are the caller's.

    The one exception: `fit` holds torch to one thread while it runs, and gives back what there was.
    """
    if name == "nlmegen/fit/result.py":
        source = source.replace("torch.set_num_threads(", "held(", 2)
    return [
        f"{name}:{node.lineno}: {ast.unparse(node.func)} changes global state"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in GLOBAL_STATE
    ]


def short_files(name: str, source: str) -> list[str]:
    """A file over 400 lines holds two ideas."""
    lines = source.count("\n")
    return [f"{name}: {lines} lines"] if lines > MOST_LINES else []


def no_drawer(name: str, source: str) -> list[str]:
    """A file is named by its idea."""
    del source
    words = ("util", "helper", "common", "misc")
    return [f"{name}: what is in it?" for word in words if word in Path(name).stem]


PACKAGE_RULES: tuple[Rule, ...] = (
    import_direction,
    no_prints,
    no_bare_except,
    no_global_state,
    short_files,
    no_drawer,
)


def package_files() -> list[tuple[str, str]]:
    return [(str(file.relative_to(ROOT)), file.read_text("utf-8")) for file in sorted(PACKAGE.rglob("*.py"))]


def user_files() -> list[tuple[str, str]]:
    """Python of models/, benchmarks/ and docs/, with the Python blocks of Markdown."""
    files = []
    for folder in ("models", "benchmarks", "docs"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            files.append((str(file.relative_to(ROOT)), file.read_text("utf-8")))
        for file in sorted((ROOT / folder).rglob("*.md")):
            for block in re.findall(r"^```python\n(.*?)^```", file.read_text("utf-8"), flags=re.M | re.S):
                files.append((str(file.relative_to(ROOT)), block))
    return files


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    found = [line for name, source in package_files() for line in rule(name, source)]
    assert not found, "\n" + "\n".join([str(rule.__doc__), "order: " + " -> ".join(map(str, TIERS)), *found])


def test_models_docs_and_benchmarks_use_public_names() -> None:
    found = [line for name, source in user_files() for line in public_names_only(name, source)]
    assert not found, "\n" + "\n".join(found)


def test_no_empty_rooms() -> None:
    rooms = {room_of(name) for name, _ in package_files()} - {None}
    for room in rooms:
        assert room in FREE or room in RANK
        files = [PACKAGE / f"{room}.py", *(PACKAGE / str(room)).rglob("*.py")]
        assert any(file.exists() and file.stat().st_size > 200 for file in files), f"room '{room}' is empty"


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (import_direction, "nlmegen/data/events.py", "from nlmegen.model.page import Model"),
        (import_direction, "nlmegen/data/events.py", "from nlmegen.model import page"),
        (import_direction, "nlmegen/data/events.py", "import nlmegen.fit"),
        (import_direction, "nlmegen/data/events.py", "from ..fit import Fit"),
        (import_direction, "nlmegen/data/events.py", "from .. import fit"),
        (import_direction, "nlmegen/data/events.py", "def f():\n    from nlmegen.cli import main"),
        (import_direction, "nlmegen/data/events.py", "from nlmegen import Model"),
        (import_direction, "nlmegen/data/events.py", "import nlmegen as nl"),
        (import_direction, "nlmegen/check/vpc.py", "from nlmegen.plots.vpc import draw"),
        (import_direction, "nlmegen/check/vpc.py", "from nlmegen.explain.saliency import saliency"),
        (import_direction, "nlmegen/model/page.py", "def f():\n    from nlmegen.plots.vpc import draw"),
        (import_direction, "nlmegen/errors.py", "from nlmegen.maths.newton import newton"),
        (import_direction, "nlmegen/drawer/thing.py", "import torch"),
        (public_names_only, "models/warfarin.py", "from nlmegen.model.page import Model"),
        (public_names_only, "models/warfarin.py", "from nlmegen import Taylor"),
        (public_names_only, "models/warfarin.py", "import nlmegen.model.page"),
        (public_names_only, "models/warfarin.py", "import nlmegen as nl\nnl.maths.taylor"),
        (no_prints, "nlmegen/fit.py", "def f():\n    print('x')"),
        (no_bare_except, "nlmegen/fit.py", "try:\n    x = 1\nexcept:\n    pass"),
        (no_global_state, "nlmegen/fit.py", "import torch\ntorch.manual_seed(1)"),
        (no_global_state, "nlmegen/fit/result.py", "import torch\n" + 3 * "torch.set_num_threads(1)\n"),
        (short_files, "nlmegen/fit.py", "x = 1\n" * 401),
        (no_drawer, "nlmegen/data/utils.py", ""),
    ],
)
def test_a_planted_violation_is_caught(rule: Rule, name: str, source: str) -> None:
    assert len(rule(name, source)) == 1


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (import_direction, "nlmegen/model/page.py", "from nlmegen.data.events import Kind"),
        (import_direction, "nlmegen/model/page.py", "from nlmegen.model.problem import Problem"),
        (import_direction, "nlmegen/model/page.py", "from nlmegen.errors import nearest"),
        (import_direction, "nlmegen/results.py", "from nlmegen import __version__"),
        (import_direction, "nlmegen/cli/main.py", "from nlmegen.results import save_fit"),
        (import_direction, "nlmegen/check/vpc.py", "def plot():\n    from nlmegen.plots.vpc import draw"),
        (import_direction, "nlmegen/__init__.py", "from nlmegen.fit import fit"),
        (public_names_only, "models/warfarin.py", "import nlmegen as nl\nnl.Model\nmath.sin"),
        (no_prints, "nlmegen/cli.py", "print('x')"),
        (no_prints, "nlmegen/fit.py", "describe('print(x)')"),
        (no_bare_except, "nlmegen/fit.py", "try:\n    x = 1\nexcept ValueError:\n    x = 2"),
        (no_global_state, "nlmegen/fit.py", "import torch\ntorch.Generator().manual_seed(1)"),
        (short_files, "nlmegen/fit.py", "x = 1\n" * 400),
    ],
)
def test_a_legal_neighbour_passes(rule: Rule, name: str, source: str) -> None:
    assert rule(name, source) == []


HEAVY = ("torch", "numpy", "pandas", "scipy", "matplotlib")


def run_fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    "code",
    [
        "import nlmegen; dir(nlmegen); nlmegen.__version__",
        "from nlmegen.errors import DataError, Status",
        "from nlmegen.cli import main; assert main(['--help']) == 0",
        "from nlmegen.cli import main; assert main(['fit', '--help']) == 0",
        "from nlmegen.cli import main; assert main(['list']) == 0",
        "from nlmegen.cli import main; assert main(['fit', 'theophylline', 'theophylline', '--n']) == 2",
    ],
)
def test_cheap_commands_load_no_numerical_library(code: str) -> None:
    ran = run_fresh(f"{code}\nimport sys\nprint('loaded:', *(m for m in {HEAVY} if m in sys.modules))")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "loaded:"


def test_every_public_name_is_found_and_stays_itself() -> None:
    """A submodule of the same name (nlmegen.fit, .simulate, .report) never takes a function's place."""
    code = (
        "import importlib, types, nlmegen as nl\n"
        "for place in nl._PLACES: importlib.import_module(place)\n"
        "for name in nl.__all__:\n"
        "    assert not isinstance(getattr(nl, name), types.ModuleType), name\n"
        "assert nl.fit is importlib.import_module('nlmegen.fit').fit\n"
    )
    ran = run_fresh(code)
    assert ran.returncode == 0, ran.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        nlmegen.Modle  # noqa: B018
    assert set(dir(nlmegen)) == set(nlmegen.__all__)
