"""The package with its core dependencies alone: torch, numpy and safetensors."""

import subprocess
import sys
import tomllib
from pathlib import Path

from adaftr_fast.errors import EXTRAS

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]


def without(packages, code):
    """Runs code in a process that cannot import these packages."""
    block = f"import sys\nfor name in {sorted(packages)}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block + code], capture_output=True, text=True
    )


def test_each_package_is_in_the_extra_that_is_named():
    for package, extra in EXTRAS.items():
        assert any(each.startswith(package) for each in PROJECT["optional-dependencies"][extra])
        assert not any(each.startswith(package) for each in PROJECT["dependencies"])


def test_extras_of_the_trainer_bring_it():
    own = {"train", "recipes", "docs", "dev"}
    for extra in PROJECT["optional-dependencies"].keys() - own:
        assert "adaftr-fast[train]" in PROJECT["optional-dependencies"][extra]


def test_functions_name_the_extra_and_other_missing_modules():
    code = """
import adaftr_fast
for name in (name for name, module in adaftr_fast._LAZY.items() if module.startswith("adaftr_fast.api.")):
    try:
        getattr(adaftr_fast, name)
    except adaftr_fast.errors.MissingPackageError as error:
        assert str(error) == f'adaftr_fast.{name}: pyarrow is not installed: pip install "adaftr-fast[train]"', error
    else:
        print(name)
"""
    done = without(["pyarrow"], code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_loss_embedding_and_models_need_no_extra():
    code = """
import torch, adaftr_fast, adaftr_fast.nn.mlp, adaftr_fast.reference, adaftr_fast.config
from adaftr_fast.models import MMoE, ModelConfig
adaftr_fast.adaptive_infonce(torch.ones(3, 2), torch.ones(3, 2), torch.ones(3))
model = MMoE([5, 7], ("click", "conversion"), ModelConfig(name="mmoe"))
adaftr_fast.optim.Adam([each for each in model.modules() if isinstance(each, adaftr_fast.FusedEmbedding)])
model(torch.zeros(4, 2, dtype=torch.long))
"""
    others = {"pandas", "sklearn", "yaml", "triton", "onnx", "onnxscript"}
    done = without({*EXTRAS, *others}, code)
    assert done.returncode == 0, done.stderr


COMMANDS = [
    ("tqdm", ["train", "--data.folder", "none", "--out", "none"],
     'adaftr-fast train: tqdm is not installed: pip install "adaftr-fast[train]"'),
    ("optuna", ["tune", "--out", "none"],
     'adaftr-fast tune: optuna is not installed: pip install "adaftr-fast[tune]"'),
    ("ray", ["prepare", "--dataset", "flights", "--engine", "ray", "--out", "none"],
     'adaftr-fast prepare: engine ray: ray is not installed: pip install "adaftr-fast[ray]"'),
    ("uvicorn", ["serve", "none"], 'adaftr-fast serve: uvicorn is not installed: pip install '
'"adaftr-fast[serve]"'),
]  # fmt: skip


def test_commands_name_the_extra():
    code = f"""
from adaftr_fast.cli import main
for package, arguments, _ in {COMMANDS}:
    sys.modules[package] = None
    print(main(arguments))
    del sys.modules[package]
"""
    done = without([], code)
    assert done.stdout.split() == ["2"] * len(COMMANDS), done.stderr
    assert [line for line in done.stderr.splitlines() if "is not installed" in line] == [
        each[2] for each in COMMANDS
    ]


def test_a_schema_with_expressions_names_the_extra():
    code = """
from adaftr_fast.data.schema.sql import parse_expression
try:
    parse_expression("columns.hour", "hour(time)")
except Exception as error:
    print(error)
"""
    expected = 'expressions of a schema: duckdb is not installed: pip install "adaftr-fast[sql]"'
    assert without(["duckdb"], code).stdout.strip() == expected
