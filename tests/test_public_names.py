"""Public names and their arguments are promises, so a change to one has to change `public_names.txt`, too.

`python -m tests.test_public_names` writes the file anew.
"""

import inspect
import re
from importlib import import_module
from pathlib import Path

NAMES = Path(__file__).with_name("public_names.txt")
MODULES = ("lightning_al", "lightning_al.functional", "lightning_al.testing")


def signature_of(value):
    """Return the parameters with their defaults, without the annotations; a default that is a function by its name."""
    signature = inspect.signature(value)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r"<\w+ '?([\w.]+)[^>]*>", r"\1", text)


def lines_of(name, value):
    """Yield a line for a function; for a class also one for each public method or attribute that it defines."""
    if not callable(value):
        yield name
        return
    yield name + signature_of(value)
    if inspect.isclass(value):
        for key, member in sorted(vars(value).items()):
            function = getattr(member, "__func__", member)  # of a class method
            if not key.startswith("_"):
                yield f"  .{key}" + (signature_of(function) if inspect.isfunction(function) else "")


def public_names():
    lines = []
    for path in MODULES:
        module = import_module(path)
        names = getattr(module, "__all__", None) or [
            name for name, value in vars(module).items() if getattr(value, "__module__", "") == path
        ]
        lines += [line for name in sorted(names) for line in lines_of(f"{path}.{name}", getattr(module, name))]
    return "".join(f"{line}\n" for line in lines)


def test_public_names_and_arguments_are_those_of_the_list():
    assert public_names().splitlines() == NAMES.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    NAMES.write_text(public_names(), encoding="utf-8")
