"""The structure of the package: imports point downward, without cycles."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adaftr_fast"
LAYERS = (
    "errors _memory _startup",
    "_extension engines files",
    "display",
    "config distributed kernels",
    "ops ops.embedding.reference",
    "ops.*",
    "reference nn",
    "optim",
    "data",
    "data.synthetic",
    "data.schema",
    "data.dataset",
    "data.encode",
    "data.raw",
    "data.prepare",
    "models",
    "training.checkpoint",
    "training",
    "explain",
    "runs",
    "serving",
    "extras.trackers",
    "extras extras.*",
    "api",
    "cli",
)
OUTSIDE = ("api", "cli")  # what may import the extras

"""Packages from the lowest layer up. A package imports from itself and from lower layers. "ops.*"
is every other op, "extras.*" every other extra.
"""


@cache
def modules():
    return {name_of(path): path for path in PACKAGE.rglob("*.py")}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Yields the modules of the package that a module imports, also in functions, without imports
    for type checking.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = modules()
    for node in without_type_checking(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "adaftr_fast":
            base = node.module.removeprefix("adaftr_fast").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in known or inner.startswith("kernels") else base
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("adaftr_fast.")
                for a in node.names
                if a.name.startswith("adaftr_fast.")
            )


def without_type_checking(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from without_type_checking(child)


def room(name):
    """Returns the package of a module; a module at the root counts as a package."""
    return name if name in ROOMS else name.rpartition(".")[0] or name


ROOMS = {name_of(path) for path in PACKAGE.rglob("__init__.py")} - {""}
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}


def layer(name):
    for each in (name, f"{name.rpartition('.')[0]}.*"):
        if each in LAYER:
            return LAYER[each]
    pytest.fail(f"LAYERS in {__file__} has no layer for the package {name!r}")


def test_every_import_points_downward_or_stays_in_its_package():
    wrong = []
    for name, path in modules().items():
        if not name:
            continue  # the public names come from every layer
        for target in imports(path):
            source = room(name)
            goal = room("kernels" if target.startswith("kernels") else target)
            if source != goal and not layer(goal) < layer(source):
                wrong.append(f"{name} -> {target}")
    assert wrong == []


def test_the_core_imports_no_extras():
    wrong = [
        f"{name} -> {target}"
        for name, path in modules().items()
        if name.split(".")[0] not in ("extras", *OUTSIDE)
        for target in imports(path)
        if target.split(".")[0] == "extras"
    ]
    assert wrong == []


def test_packages_of_extras_are_imported_there_alone():
    packages = (
        "confluent_kafka|fbgemm_gpu|fsspec|h11|mlflow|optuna|prometheus_client|ray|sqlalchemy"
        "|starlette|torchrec|uvicorn|wandb|torch.utils.tensorboard"
    )
    wrong = [
        f"{name}: {line.strip()}"
        for name, path in modules().items()
        if not name.startswith("extras.")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(rf"\s*(import|from) ({packages})\b", line)
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_cycle():
    graph = defaultdict(set)
    for name, path in modules().items():
        graph[name] = {
            target for target in imports(path) if target in modules() and target != name and name
        }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_the_package_imports_only_what_the_loss_needs():
    heavy = (
        "matplotlib pyarrow torchrec scipy tqdm pandas torch._dynamo triton "
        "torch.utils.flop_counter"
    )
    code = f"""
import sys, torch
before = set(sys.modules)
import adaftr_fast
adaftr_fast.adaptive_infonce, adaftr_fast.FusedEmbedding, adaftr_fast.optim.Adam
new = set(sys.modules) - before
print(sorted(new.intersection({heavy.split()})), len(new))
import torch.utils.flop_counter as counter
print(torch.ops.adaftr_fast.infonce in counter.flop_registry, type(counter.__spec__.loader).__name__)
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    shown, formulas = shown.splitlines()
    found, count = shown.rsplit(" ", 1)
    assert found == "[]"
    assert int(count) < 60  # modules besides torch's; each takes time
    assert formulas == "True SourceFileLoader"


def test_an_unknown_name_is_an_attribute_error():
    import adaftr_fast

    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        getattr(adaftr_fast, "trian")  # noqa: B009
