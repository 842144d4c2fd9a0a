"""Docstrings describe the arguments that there are."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "adaftr_fast"


def described(docstring: str) -> set[str]:
    """Returns the names in the section ``Args:`` of a docstring without indentation."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.M)
    heads = re.findall(r"^    (\S[^:]*):", section[1], re.M) if section else []
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


def parameters(node: ast.FunctionDef | ast.ClassDef) -> set[str] | None:
    """Returns the names of a function's parameters, of those of a class's constructor, or of a
    dataclass's fields.
    """
    if isinstance(node, ast.ClassDef):
        made = [
            each
            for each in node.body
            if isinstance(each, ast.FunctionDef) and each.name == "__init__"
        ]
        if not made:
            fields = {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
            return fields if node.decorator_list else None  # the constructor of the parent
        (node,) = made
    named = node.args
    variadic = [each for each in (named.vararg, named.kwarg) if each is not None]
    return {each.arg for each in [*named.posonlyargs, *named.args, *named.kwonlyargs, *variadic]}


def test_described_arguments_exist():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (
                docstring := ast.get_docstring(node)
            ):
                known = parameters(node)
                unknown = set() if known is None else described(docstring) - known
                wrong += [f"{path.relative_to(PACKAGE)}: {node.name}: {name}" for name in unknown]
    assert wrong == []
