"""No name in the package is a word that could stand for anything."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_al"
VAGUE = {"found", "own", "whole", "shown", "said", "called", "told", "mine", "info", "handle", "theirs", "ours"}


def defined_names(tree):
    """Return each name that a module gives to a function, class, parameter, variable or attribute, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_say_what_they_hold(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [(name, line) for name, line in defined_names(tree) if name.strip("_").lower() in VAGUE] == []


def test_every_kind_of_name_is_looked_at():
    source = "def told(found, *own, **said): self.shown = 1\nclass Mine: info: int = 1\nfor whole in (): pass"
    assert {name for name, _ in defined_names(ast.parse(source))} == {
        *("told", "found", "own", "said", "shown", "Mine", "info", "whole")
    }
