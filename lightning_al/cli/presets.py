"""Presets: the strategy files that are installed with the package, each named by its bare name, such as `margin`."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

# Without a suffix and without a path separator; excludes inline YAML, which `--config` accepts, too.
BARE_NAME = re.compile(r"\w[\w-]*")


def preset_folder() -> Path:
    """Return the folder of the presets: `presets` of an installed package, `configs/strategies` of a source tree."""
    package = Path(str(files("lightning_al")))
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "configs" / "strategies"


def preset_names() -> list[str]:
    """Return the names of all presets in alphabetical order."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def resolve_config(word: str) -> str:
    """Return the path of a preset if the word is a bare name, and else the word itself.

    Args:
        word: A path, a bare name or inline YAML. A file of exactly this name in the working directory comes first.

    Raises:
        ValueError: If the word is a bare name without a file and without a preset; the message lists the presets.

    Example:
        >>> Path(resolve_config("margin")).name
        'margin.yaml'
        >>> resolve_config("configs/digits.yaml")
        'configs/digits.yaml'

    """
    if not BARE_NAME.fullmatch(word) or Path(word).is_file():
        return word
    path = preset_folder() / f"{word}.yaml"
    if not path.is_file():
        raise ValueError(
            f"there is no preset `{word}`, and no such file in the working directory; the presets are "
            f"{', '.join(preset_names())}. A file with a suffix or in another folder is named by its path, "
            f"such as ./{word}.yaml"
        )
    return str(path)


def resolve_config_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `fit` with the path of the preset in place of each bare name after `--config` or `-c`.

    Raises:
        ValueError: As `resolve_config`, naming the option.

    """
    resolved: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if equals and option in ("--config", "-c"):
            resolved.append(f"{option}={_resolve_for(option, value)}")
        elif resolved and resolved[-1] in ("--config", "-c"):
            resolved.append(_resolve_for(resolved[-1], argument))
        else:
            resolved.append(argument)
    return resolved


def to_config_argument(path: Path) -> str:
    """Return what a person types after `--config` for a file: the bare name of a preset, and else the path."""
    is_preset = path.parent == preset_folder() and not Path(path.stem).is_file()
    return path.stem if is_preset else str(path)


def _resolve_for(option: str, word: str) -> str:
    try:
        return resolve_config(word)
    except ValueError as error:
        raise ValueError(f"{option} {word}: {error}") from None
