"""The documentation: it builds without a warning, its code runs, its numbers are those that were measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_al import strategies, wrappers
from tests.python_process import run_python
from tests.sweep import sampled

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
WITH_CODE = [name for name, text in PAGES.items() if "```python" in text and name != "index.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_the_site_has_every_page_and_asks_for_nothing_from_elsewhere(site):
    for name in PAGES:
        page = site / (name.removesuffix("index.md") if name.endswith("index.md") else name.removesuffix(".md"))
        text = (page / "index.html").read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"?(https?:[^\" >]+)", text)
        assert [address for address in fetched if "rel=to_batch_class_positions" not in address] == [], name


def test_formulas_are_drawn_by_the_browser(site):
    for name in ("method", "strategies/noise_stability", "strategies/bald"):
        text = (site / name / "index.html").read_text(encoding="utf-8")
        assert "<math" in text
        assert "arithmatex" not in text


def test_examples_of_docstrings_are_code_and_costs_are_sentences(site):
    text = (site / "api" / "core" / "index.html").read_text(encoding="utf-8")
    assert "<p><strong>Cost:</strong> one 32-bit integer per sample" in text
    assert "Examples:" in text
    assert "<blockquote" not in text


def test_every_strategy_and_wrapper_has_its_part():
    for name in strategies.__all__:
        file = getattr(strategies, name).__module__.rpartition(".")[2]
        page = PAGES[f"strategies/{file}.md"]
        assert f"::: lightning_al.{name}\n" in page
        assert f'--8<-- "configs/strategies/{file}.yaml"' in page
        assert "**Take it when**" in page
        assert "**Mind**" in page
        assert f"({file}.md) | `{name}`" in PAGES["strategies/index.md"]
    for name in wrappers.__all__:
        if name != "Wrapper":
            assert f"::: lightning_al.{name}\n" in PAGES["strategies/wrappers.md"]


def test_the_gains_are_those_of_the_study():
    study = json.loads((ROOT / "configs" / "results" / "digits.json").read_text(encoding="utf-8"))
    measured = study["differences"]["random"]
    told = {}
    for page in PAGES.values():
        for line in re.findall(r"\*\*Measured\*\*.*", page):
            for name, *numbers in re.findall(r"`(\w+)` \*\*([+-][\d.]+)\*\* \[([+-][\d.]+), ([+-][\d.]+)\]", line):
                told[name] = [float(number) for number in numbers]
    assert told.keys() == measured.keys()
    for name, numbers in told.items():
        expected = [round(measured[name][key], 3) for key in ("mean", "low", "high")]
        assert numbers == pytest.approx(expected, abs=1.1e-3), name


def test_the_precision_table_is_what_was_measured():
    results = ROOT / "examples" / "benchmarks" / "results" / "precision.json"
    measured = json.loads(results.read_text(encoding="utf-8"))["against float64, K = 10, magnitude 1e-3"]
    rows = re.findall(r"^\| (?:finite|derivative).*\| ([\d.]+) \| ([\d.]+) \|$", PAGES["method.md"], re.MULTILINE)
    expected = [(way["spearman"], way["top-10 % overlap"]) for way in measured.values()]
    assert [(float(spearman), float(overlap)) for spearman, overlap in rows] == expected


def code_of(name):
    return "\n".join(re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL))


def test_the_code_of_the_pages_compiles():
    for name in WITH_CODE:
        compile(code_of(name), name, "exec")


@pytest.mark.parametrize("name", sampled(WITH_CODE, ("how-to/segmentation.md", "how-to/strategy.md")))
def test_the_code_of_a_page_runs(name, tmp_path):
    # as a module, whose classes can be pickled
    (tmp_path / "page.py").write_text(code_of(name), encoding="utf-8")
    finished = run_python("-c", "import page", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert finished.returncode == 0, finished.stderr
    for promised in re.findall(r"print\(.*\)  # (.*)", PAGES[name]):
        assert promised in finished.stdout


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "lightning-al " in text])
def test_the_commands_of_a_page_parse(name):
    found = re.findall(r"^lightning-al (.*)$", PAGES[name].replace("\\\n", ""), re.MULTILINE)
    for command in found:
        for file in re.findall(r"configs/[\w/]+\.yaml", command):
            assert (ROOT / file).is_file()
        assert command.split()[0] in ("fit", "query", "compare", "report", "label")
