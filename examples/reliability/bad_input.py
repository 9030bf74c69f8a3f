"""Feed runs with 60 kinds of malformed input; each must end in an error that names it, and label nothing.

    python -m examples.reliability.bad_input

Wrong arguments, wrong YAML, data and models that cannot be scored, and damaged files of a run folder. The status is 1
if an input is accepted, if the error does not name it, if it is a bare error of Python, or if anything was labeled.
"""

import contextlib
import io
import shutil
import sys
import traceback
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from examples.reliability.compared import CONFIG
from examples.reliability.harness import fresh
from examples.reliability.toy_run import PictureClassifier, Pictures, make_data, make_trainer
from lightning_al import ActiveLearningDataModule, EntropyAcquisition, Pool, run_cycles, strategies, wrappers
from lightning_al.cli import main as command_line

EXPLAINED = (ValueError, TypeError, RuntimeError, MisconfigurationException, SystemExit)
Case = tuple[str, Callable[[Path], object], str]  # name, what to do in a folder, a word of the message


class OneBroken(Pictures):
    """One sample of the pool is broken, as `read` says."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = super().__getitem__(index)
        return (self.read(picture) if index == 50 else picture), label


class Stream(IterableDataset[Tensor]):
    """Data without positions."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.zeros(3, 1, 8, 8))


class Scored(PictureClassifier):
    """Its output while scoring is what a function makes of the logits."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def acquisition_step(self, batch: tuple[Tensor, Tensor]) -> Any:
        """Return the changed logits."""
        return self.change(self(batch[0]))


def fail(picture: Tensor) -> Tensor:
    """Raise, as a damaged file does."""
    raise OSError("image file is truncated")


def run(
    folder: Path, data: dict[str, Any] | None = None, model: Callable[[], Any] = PictureClassifier, **options: Any
) -> Any:
    """Run a cycle with one thing wrong."""
    options = {"cycles": 1, "run_dir": folder / "run", **options}
    make = options.pop("acquisition", partial(EntropyAcquisition, 4))
    trainer = {"enable_checkpointing": False, "max_epochs": 1}
    return run_cycles(lambda cycle: (make_trainer(make(), **trainer), model()), make_data(**(data or {})), **options)


def from_yaml(folder: Path, *arguments: str, text: str = CONFIG) -> None:
    """Run `lightning-al fit` with a file."""
    (folder / "toy.yaml").write_text(text)
    command = ["fit", f"--config={folder / 'toy.yaml'}", f"--trainer.default_root_dir={folder / 'run'}"]
    sys.argv = ["lightning-al"]
    command_line([*command, *arguments])


def damaged(folder: Path, finished: Path, name: str, damage: Callable[[bytes], bytes]) -> Any:
    """Continue a finished run of one cycle, of which one file is damaged."""
    shutil.copytree(finished / "run", folder / "run")
    path = folder / "run" / name
    path.write_bytes(damage(path.read_bytes()))
    return run(folder, cycles=2)


def argument_cases() -> Iterator[Case]:
    """Yield wrong arguments of Python."""
    acquisitions: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        *((strategies.MarginAcquisition, (size,), {}, "query_size") for size in (0, -1, 1.5, float("nan"), "5", True)),
        (strategies.NoiseStabilityAcquisition, (4,), {"passes": 0}, "passes"),
        (strategies.NoiseStabilityAcquisition, (4,), {"magnitude": -1.0}, "magnitude"),
        (strategies.NoiseStabilityAcquisition, (4,), {"method": "guess"}, "method"),
        (strategies.NoiseStabilityAcquisition, (4,), {"selection": "best"}, "selection"),
        (strategies.NoiseStabilityAcquisition, (4,), {"distribution": "cauchy"}, "distribution"),
        (strategies.NoiseStabilityAcquisition, (4,), {"norm": "l7"}, "norm"),
        (strategies.BALDAcquisition, (4,), {"passes": 1}, "passes"),
        (strategies.CheckpointEnsembleAcquisition, (4,), {"epochs": 1}, "epochs"),
        (strategies.QueryByCommitteeAcquisition, (4,), {"members": 1}, "members"),
        (wrappers.StochasticBatch, (4, strategies.MarginAcquisition), {"temperature": -1.0}, "temperature"),
        (wrappers.RandomSubset, (4, strategies.MarginAcquisition), {"candidates": 0}, "candidates"),
        (wrappers.Mixture, (4, []), {}, "acquisitions"),
    ]
    for made, positional, named, word in acquisitions:
        yield (
            f"{made.__name__}{(*positional, named)}",
            lambda folder, made=made, positional=positional, named=named: made(*positional, **named),
            word,
        )
    words = {"[0, 0]": "more than once", "[1000]": "out of range", "candidates": "candidate"}
    for name, value in (
        *(("initial_size", value) for value in (0, -3, 1.5, [0, 0], [1000], 61)),
        *(("batch_size", 0), ("pool_batch_size", -1), ("candidates", 0), ("candidates", 3)),
    ):
        yield f"data {name}={value}", partial(run, data={name: value}), words.get(str(value), words.get(name, name))
    wrong = {"cycles": 0, "ckpt": "first", "reset": "cold", "num_preview_samples": -1, "shrink": 2.0}
    for name, value in wrong.items():
        yield f"run_cycles({name}={value!r})", partial(run, **{name: value}), name
    yield "no dataset", lambda folder: ActiveLearningDataModule(None, initial_size=1), "dataset"  # type: ignore[arg-type]


def yaml_cases() -> Iterator[Case]:
    """Yield wrong configurations."""
    nothing = CONFIG.replace("acquisition:\n  class_path: RandomAcquisition\n  init_args: {query_size: 4}\n", "")
    margin = ("--acquisition=MarginAcquisition", "--acquisition.query_size=4")
    yield "YAML without acquisition", partial(from_yaml, text=nothing), "acquisition"
    yield "unknown preset", lambda folder: from_yaml(folder, "--config", "margn"), "margn"
    words = {
        "misspelt key": ((*margin, "--trainer.max_epoch=3"), "max_epoch"),
        "misspelt argument": ((*margin, "--acquisition.query_sise=3"), "query_sise"),
        "text for a number": ((*margin, "--cycles=many"), "cycles"),
        "unknown class": (("--acquisition=MargnAcquisition",), "MargnAcquisition"),
    }
    for name, (arguments, word) in words.items():
        yield name, lambda folder, arguments=arguments: from_yaml(folder, *arguments, text=nothing), word
    yield "no YAML", partial(from_yaml, text="cycles: [1\n"), "parsing config"


def data_cases() -> Iterator[Case]:
    """Yield data and outputs that cannot be scored."""
    broken: dict[str, Callable[[Tensor], Tensor]] = {
        "a sample that raises": fail,
        "a sample of NaN": lambda picture: picture * float("nan"),
        "an infinite sample": lambda picture: picture + float("inf"),
        "a sample of another shape": lambda picture: picture[:, :4],
    }
    datasets: dict[str, Dataset[Any]] = {name: OneBroken(read) for name, read in broken.items()}
    datasets |= {"no sample": Pictures(0), "a stream": Stream()}
    words = {"no sample": "initial_size", "a stream": "Stream", "a sample of another shape": "size"}
    for name, dataset in datasets.items():
        yield name, partial(run, data={"datamodule_or_train_dataset": dataset}), words.get(name, "50")
    one_for_two = {"datamodule_or_train_dataset": Pictures(1), "initial_size": 2}
    yield "one sample for two labels", partial(run, data=one_for_two), "initial_size"
    outputs: dict[str, tuple[Callable[[Tensor], Any], str]] = {
        "None": (lambda logits: None, "None"),
        "a list of texts": (lambda logits: ["a"] * len(logits), "list"),
        "complex": (lambda logits: logits.to(torch.complex64), "complex"),
        "integers": (lambda logits: logits.long(), "int"),
        "constant": (torch.zeros_like, "EntropyAcquisition"),
        "one row too few": (lambda logits: logits[1:], "samples"),
        "one number": (lambda logits: logits.sum(), "one output"),
        "one class": (lambda logits: logits[:, :1], "one output"),
        "NaN": (lambda logits: logits * float("nan"), "NaN"),
    }
    for name, (change, word) in outputs.items():
        yield f"output: {name}", partial(run, model=partial(Scored, change)), word


def file_cases(finished: Path) -> Iterator[Case]:
    """Yield damages of a run folder: files cut off, emptied or overwritten at places that hypothesis draws."""
    from hypothesis import given, seed, settings
    from hypothesis import strategies as st

    drawn: list[tuple[str, str, Callable[[bytes], bytes]]] = []

    @seed(0)
    @settings(max_examples=8, database=None, deadline=None)
    @given(share=st.floats(0.1, 0.9), junk=st.binary(min_size=8, max_size=8).filter(lambda junk: b"\n" not in junk))
    def draw(share: float, junk: bytes) -> None:
        drawn.append((f"cut off at {share:.0%}", "pool.json", lambda content: content[: int(share * len(content))]))
        drawn.append(
            (f"junk at {share:.0%}", "pool.json", lambda content: content[: int(share * len(content))] + b"\x00" + junk)
        )

    draw()
    yield from (
        (f"{name} {how}", partial(damaged, finished=finished, name=name, damage=damage), name)
        for how, name, damage in [
            *drawn[:12],
            ("empty", "pool.json", lambda content: b""),
            ("another order", "pool.json", lambda content: content.replace(b'"cycle": 1', b'"cycle": 7')),
            ("text for an index", "pool.json", lambda content: content.replace(b'"indices": [', b'"indices": ["x", ')),
            ("a repeated index", "pool.json", lambda content: content.replace(b'"size": 60', b'"size": 5')),
            ("cut off", "cycles.csv", lambda content: content[:-60]),
            ("no column", "cycles.csv", lambda content: content.replace(b"labeled", b"marked")),
            ("another count", "cycles.csv", lambda content: content.replace(b"\n0,9,", b"\n0,8,")),
            ("no YAML", "config.yaml", lambda content: b"[" + content),
            ("a list", "config.yaml", lambda content: b"- 1\n"),
        ]
    )


def try_case(case: Case, folder: Path) -> str | None:
    """Return what is wrong about how a case ends; None if it is an error that names the input, without a label."""
    _, work, word = case
    before = labels_in(folder)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work(folder)
        return "accepted"
    except EXPLAINED as error:
        message = f"{error} {printed.getvalue()}"
        if word not in message:
            return f"the message does not name {word!r}: {type(error).__name__}: {message.strip()[-300:]}"
    except BaseException as error:
        return f"{type(error).__name__}: {error} in {traceback.extract_tb(error.__traceback__)[-1].filename}"
    after = labels_in(folder)
    return None if (before is None and (after or 0) <= 9) or after in (before, 13) else f"{after} labels"


def labels_in(folder: Path) -> int | None:
    """Return the number of labels in the pool file of a run; None without one that can be read."""
    try:
        return Pool.load(folder / "run" / "pool.json").num_labeled
    except (OSError, ValueError):
        return None


def main() -> None:
    """Parse the arguments, and try all cases."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/reliability/bad-input"))
    folder = fresh(parser.parse_args().folder.resolve())
    run(folder / "finished")
    cases = [*argument_cases(), *yaml_cases(), *data_cases(), *file_cases(folder / "finished")]
    failures = 0
    for number, case in enumerate(cases):
        problem = try_case(case, fresh(folder / str(number)))
        failures += problem is not None
        print(f"{case[0]}: {problem or 'a named error'}")
    print(f"{len(cases)} inputs, {len(cases) - failures} named errors.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
