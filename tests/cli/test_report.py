import pytest
from PIL import Image

from lightning_al import EntropyAcquisition
from lightning_al.cli import report as command
from lightning_al.cli.report import main
from tests.python_process import run_python
from tests.report.runs import comparison_of_real_runs, random_strategy, real_run, written_run


def test_a_page_and_pictures_of_real_runs(tmp_path, capsys):
    folder = comparison_of_real_runs(tmp_path / "study", [random_strategy, lambda: EntropyAcquisition(6)])
    assert main([str(folder)]) == 0
    names = ["learning_curves.png", "learning_curves_seconds.png"]
    names += ["queries-EntropyAcquisition.png", "queries-RandomAcquisition.png"]
    expected = [folder / "report.html", *(folder / "report" / name for name in names)]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in expected]
    for picture in expected[1:]:
        with Image.open(picture) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**24)) > 20
    assert main([str(folder)]) == 0  # its own files are no runs
    page = expected[0].read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') == 2 * 2 * 2 * 6


def test_a_run_without_test_metrics_is_shown_without_curves(tmp_path):
    folder = real_run(tmp_path / "run", lambda: EntropyAcquisition(6), seed=0)
    rows = (folder / "cycles.csv").read_text().splitlines()
    kept = [",".join(row.split(",")[:3] + row.split(",")[-4:]) for row in rows]
    (folder / "cycles.csv").write_text("\n".join(kept) + "\n")
    assert main([str(folder), "--output", str(tmp_path / "out" / "page.html")]) == 0
    assert "no learning curves" in (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out" / "page").iterdir()] == ["queries-EntropyAcquisition.png"]


def test_a_run_whose_labels_do_not_grow_is_shown_without_curves(tmp_path):
    folder = written_run(tmp_path / "run", labels=(10, 10, 10), metric="cost in $ and $")
    assert main([str(folder)]) == 0
    assert "no learning curves" in (folder / "report.html").read_text(encoding="utf-8")


def test_several_folders_are_reported_where_they_lie(tmp_path):
    for name in ("one", "two"):
        written_run(tmp_path / name)
    assert main([str(tmp_path / "one"), str(tmp_path / "two"), "--title", "Both"]) == 0
    assert "<h1>Both</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_refusal_is_a_sentence_and_writes_nothing(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lightning-al report: ")
    assert "holds no run" in error
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "plotly" else name)
    assert main([str(written_run(tmp_path / "run"))]) == 1
    assert 'plotly is not installed: pip install "lightning_al[report]"' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["report", "--help"], ["--help"]])
def test_the_command_line_knows_it(arguments):
    finished = run_python("-m", "lightning_al", *arguments)
    assert finished.returncode == 0
    assert "lightning-al report" in " ".join(finished.stdout.split())
