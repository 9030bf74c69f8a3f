import threading
from functools import partial

import pytest
from torch.utils.data import Dataset

from lightning_al import ActiveLearningDataModule, EntropyAcquisition, Labels, Pool, run_cycles
from lightning_al.cycles import waiting
from lightning_al.storage.queue_file import latest_queue, read_queue
from lightning_al.testing import ToyDataset
from tests.runs import make_data, maker, picks_in, without_seconds

TRUTH = ToyDataset().targets.tolist()
MAKE = maker(partial(EntropyAcquisition, 6))
CLASSES = ["north", "east", "south", "west"]


class Unlabeled(Dataset):
    """The points of the toy data without their targets."""

    def __init__(self, files=None):
        self.points = ToyDataset().points
        if files:
            self.paths = files

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return (self.points[index],)


def run(folder, cycles=3, dataset=None, **options):
    labels = Labels(folder / "labels.jsonl", classes=CLASSES)
    data = ActiveLearningDataModule(
        dataset or Unlabeled(), initial_size=10, batch_size=8, labels=labels, test_dataset=ToyDataset(seed=1)
    )
    return run_cycles(MAKE, data, cycles=cycles, run_dir=folder / "run", **options)


def answer(folder, limit=None):
    """Answer what is asked by the true classes."""
    queue, labels = read_queue(latest_queue(folder / "run")), Labels(folder / "labels.jsonl", classes=CLASSES)
    for sample in queue.samples[:limit]:
        labels.append(sample.index, CLASSES[TRUTH[sample.index]])
    return queue


def test_a_run_that_people_label_is_the_run_that_knows_all_labels(tmp_path):
    simulated = run_cycles(MAKE, make_data(), cycles=3, run_dir=tmp_path / "simulated")
    records, queues = run(tmp_path), []
    assert records == []
    while len(records) < 3:
        queues.append(answer(tmp_path))
        records = run(tmp_path)
    assert without_seconds(records) == without_seconds(simulated)
    assert picks_in(tmp_path / "run") == picks_in(tmp_path / "simulated")
    assert [[sample.index for sample in queue.samples] for queue in queues] == picks_in(tmp_path / "run")[:3]
    assert [(queue.cycle, queue.kind, queue.classes) for queue in queues] == [(c, "class", CLASSES) for c in range(3)]
    assert all(sample.prediction in range(4) and sample.score is not None for sample in queues[1].samples)


def test_what_nobody_can_say_is_neither_trained_on_nor_asked_again(tmp_path):
    run(tmp_path, cycles=2)
    unclear = {sample.index for sample in answer(tmp_path).samples[:2]}
    for index in unclear:
        Labels(tmp_path / "labels.jsonl").append(index, None)
    assert [record["queried"] for record in run(tmp_path, cycles=2)] == [6]
    assert not unclear & {sample.index for sample in read_queue(latest_queue(tmp_path / "run")).samples}
    labels = Labels(tmp_path / "labels.jsonl")
    data = ActiveLearningDataModule(Unlabeled(), initial_size=10, labels=labels, pool_file=tmp_path / "run/pool.json")
    data.setup("fit")
    assert sorted(data.labeled_indices(0)) == sorted(set(data.pool.labeled_by(0)) - unclear)


def test_a_share_of_the_answers_is_enough_and_the_others_are_asked_again(tmp_path, caplog):
    run(tmp_path, cycles=1)
    answer(tmp_path, limit=8)
    assert run(tmp_path, cycles=1) == []
    assert f"2 of 10 samples have no label. Label them with `lightning-al label {tmp_path / 'run'}`" in caplog.text
    assert len(run(tmp_path, cycles=2, min_answers=0.8)) == 1
    queue = read_queue(latest_queue(tmp_path / "run"))
    assert [sample.index for sample in queue.samples[6:]] == list(picks_in(tmp_path / "run")[0])[8:]


def test_a_run_that_waits_goes_on_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.01)
    asked = threading.Event()
    write = waiting._write_queue
    monkeypatch.setattr(waiting, "_write_queue", lambda *arguments: (write(*arguments), asked.set()))
    person = threading.Thread(target=lambda: (asked.wait(60), answer(tmp_path)))
    person.start()
    records = run(tmp_path, cycles=1, wait=True)
    person.join()
    assert [record["labeled"] for record in records] == [10]


def test_overwrite_asks_anew(tmp_path):
    run(tmp_path, cycles=1)
    answer(tmp_path)
    run(tmp_path, cycles=1)
    (tmp_path / "labels.jsonl").unlink()
    assert run(tmp_path, cycles=1, overwrite=True) == []
    assert len(Pool.load(tmp_path / "run" / "pool.json").history) == 1
    assert (tmp_path / "run.old-1" / "cycles.csv").exists()
    assert (tmp_path / "run" / "config.yaml").exists()


def test_samples_that_are_files_are_asked_by_their_paths(tmp_path):
    files = [str(tmp_path / f"{index}.txt") for index in range(120)]
    for name in files:
        (tmp_path / name).write_text("x")
    run(tmp_path, cycles=1, dataset=Unlabeled(files))
    assert all(sample.path == files[sample.index] for sample in answer(tmp_path).samples)


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_a_share_out_of_range_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match=rf"`run_cycles\(min_answers={share}\)`"):
        run(tmp_path, min_answers=share)


def test_classes_cannot_be_balanced_before_people_answer(tmp_path):
    with pytest.raises(ValueError, match="balanced_start"):
        ActiveLearningDataModule(Unlabeled(), initial_size=4, labels=tmp_path / "labels.jsonl", balanced_start=True)
