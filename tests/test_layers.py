"""The rooms of the package lie in layers, and imports run downwards."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_al"
LAYERS = [
    {"numerics", "storage"},
    {"formulas", "analysis", "data"},
    {"scoring", "report"},
    {"model"},
    {"perturbation", "tracking", "labeling"},
    {"acquisition", "functional"},
    {"strategies", "wrappers", "cycles"},
    {"cli"},
]
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imported(path):
    """Return the modules that a file imports, at the top and inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            # a name imported from the package itself may be a room
            yield from (
                [f"lightning_al.{name.name}" for name in node.names] if node.module == "lightning_al" else [node.module]
            )
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_its_room_and_the_layers_below(path):
    room = path.relative_to(PACKAGE).parts[0]
    for module in imported(path):
        package, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if package == "lightning_al" and other not in (room, "__version__"):
            assert LAYER_OF[other] < LAYER_OF[room], f"{path.relative_to(PACKAGE)} imports {module}"


def test_every_room_has_a_layer():
    assert {path.relative_to(PACKAGE).parts[0] for path in MODULES} <= set(LAYER_OF)


@pytest.mark.parametrize("path", sorted((PACKAGE / "formulas").glob("*.py")), ids=lambda path: path.stem)
def test_formulas_import_torch_only(path):
    top_level = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    modules = {getattr(node, "module", None) or node.names[0].name for node in top_level}
    others = {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names)
    assert others <= {"torch", "typing_extensions", "lightning_al"}  # torch requires typing_extensions
    assert {module for module in modules if module.startswith("lightning_al")} <= {
        "lightning_al.numerics.float32",
        *(f"lightning_al.formulas.{file.stem}" for file in path.parent.glob("*.py")),
    }
