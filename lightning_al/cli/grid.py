"""Variants of strategies from the command line: `--grid acquisition.passes=1,3,10,inf`, without a file per point."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Settings = dict[str, str]  # arguments of `fit` by their dotted names
Variants = dict[str, Settings]  # by the name that says what differs

ACQUISITION = "acquisition."
QUERY_SIZE = ("acquisition.query_size", "acquisition.init_args.query_size")


def read_grid(words: Sequence[str]) -> Variants:
    """Return every combination of the settings in a grid, by name.

    Args:
        words: Each is `SETTING=VALUE,VALUE,...`, its values in YAML, or a YAML file that maps names of variants to
            settings and their values.

    Returns:
        One empty variant without a name if there are no words.

    Raises:
        ValueError: If a word is neither, a file has no variants, or two variants have the same name or setting.

    Example:
        >>> read_grid(["acquisition.passes=1,inf", "acquisition.modules=[layer1]"])["passes=1,modules=layer1"]
        {'acquisition.passes': '1', 'acquisition.modules': '["layer1"]'}

    """
    variants: Variants = {}
    for combination in itertools.product(*(_read_axis(word).items() for word in words)):
        name = ",".join(part for part, _ in combination)
        settings: Settings = {}
        for part, values in combination:
            if twice := settings.keys() & values.keys():
                raise ValueError(f"expected each setting once, got {min(twice)} again in {part}")
            settings |= values
        if name in variants:
            raise ValueError(f"two variants have the name {name}; give them names in a YAML file")
        variants[name] = settings
    return variants


def expand(strategies: Mapping[str, Path], grid: Variants, baseline: str) -> dict[str, tuple[Path, Settings]]:
    """Return the file and the settings of each strategy, by a name that says what differs.

    Settings of the acquisition are not for the baseline if there are other strategies, which it is compared with and
    whose arguments it lacks; all other settings, and `acquisition.query_size`, are for every strategy.

    Args:
        strategies: The files by the strategies' names.
        grid: What `read_grid` returned.
        baseline: The name of the baseline.

    Returns:
        The variants by name: that of the strategy, unless there is only one, and that of the variant.

    """
    varied = [name for name in strategies if name != baseline] or list(strategies)
    expanded: dict[str, tuple[Path, Settings]] = {}
    for name, path in strategies.items():
        for label, settings in grid.items() if name in varied else _without_acquisition(grid).items():
            prefix = "" if label and name in varied and len(varied) == 1 else name
            expanded[",".join(part for part in (prefix, label) if part)] = (path, settings)
    return expanded


def _without_acquisition(grid: Variants) -> Variants:
    """Return the variants without settings of the acquisition, each of them once."""
    variants: Variants = {}
    for name, settings in grid.items():
        common = {key: value for key, value in settings.items() if not key.startswith(ACQUISITION) or key in QUERY_SIZE}
        if common not in variants.values():
            label = name if common == settings else ",".join(_name(key, value) for key, value in common.items())
            variants[label] = common
    return variants


def _read_axis(word: str) -> Variants:
    """Return the variants of one word of a grid."""
    if word.endswith((".yaml", ".yml")) and "=" not in word:
        return _read_file(Path(word))
    key, equals, text = word.partition("=")
    try:
        values = yaml.safe_load(f"[{text}]") if equals and key.strip() else []
    except yaml.YAMLError as error:
        raise ValueError(f"{word}: the values are not YAML: {' '.join(str(error).split())}") from error
    if not values:
        raise ValueError(f"{word}: expected SETTING=VALUE,VALUE,... or a YAML file of variants")
    variants = {_name(key, _format(value)): {key: _format(value)} for value in values}
    if len(variants) < len(values):
        raise ValueError(f"{word}: two values have the same name; give them names in a YAML file")
    return variants


def _read_file(path: Path) -> Variants:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(settings, dict) for settings in content.values()):
        raise ValueError(f"{path}: expected names of variants, each with settings such as `acquisition.passes: 3`")
    return {
        _plain(str(name)): {key: _format(value) for key, value in settings.items()}
        for name, settings in content.items()
    }


def _name(key: str, value: str) -> str:
    return f"{key.rpartition('.')[2]}={_plain(value)}"


def _plain(text: str) -> str:
    """Return a text without the characters that a folder's name must not have."""
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-")


def _format(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
