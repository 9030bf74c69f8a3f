import math
import sys
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import yaml
from torch import nn
from torchmetrics import MeanAbsoluteError

from examples.paper import ames, estimate, subtomograms
from examples.paper.cityscapes import IGNORED, CityscapesDataModule
from examples.paper.cryo_et import CryoETDataModule
from examples.paper.drn import DRN22
from examples.paper.image_data import Caltech101DataModule, ImageNetDataModule, TorchvisionDataModule
from examples.paper.mlp import MLP
from examples.paper.resnet3d import ResNet3D18
from examples.paper.small_networks import MNISTNetwork, ResNet18, SmallMobileNetV2
from examples.paper.supervised import SupervisedModule
from examples.paper.variance_reduction import certainty
from tests.paper_files import write_caltech101, write_cityscapes, write_svhn

ROOT = Path(__file__).parents[2]
MICROSCOPE = subtomograms.Microscope()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize(
    ("network", "shape", "output", "parameters"),
    [
        (lambda: ResNet18(10), (2, 3, 32, 32), (2, 10), 11_173_962),  # as in github.com/kuangliu/pytorch-cifar
        (lambda: ResNet18(1000, small=False), (1, 3, 64, 64), (1, 1000), 11_689_512),  # as in torchvision
        (lambda: DRN22(1000), (1, 3, 32, 48), (1, 1000, 32, 48), 16_393_752),  # "16.4M", Yu et al., table 1
        (lambda: SmallMobileNetV2(1000), (1, 3, 32, 32), (1, 1000), 3_504_872),  # as in torchvision
        (lambda: MNISTNetwork(), (2, 1, 28, 28), (2, 10), None),
        (lambda: ResNet3D18(5, width=2), (2, 1, 32, 32, 32), (2, 5), None),
        (lambda: MLP(7, width=4), (2, 7), (2, 1), None),
    ],
)
def test_a_network_has_the_published_size(network, shape, output, parameters):
    network = network().eval()
    assert network(torch.randn(shape)).shape == output
    assert parameters in (None, sum(parameter.numel() for parameter in network.parameters()))


def test_small_stems_keep_the_size_and_the_dilated_network_an_eighth():
    assert SmallMobileNetV2(10).eval().features(torch.randn(1, 3, 32, 32)).shape[2:] == (4, 4)
    resnet = ResNet18(10)
    assert resnet.maxpool(resnet.conv1(torch.randn(1, 3, 32, 32))).shape[2:] == (32, 32)
    assert DRN22(19).eval().features(torch.randn(1, 3, 32, 48)).shape[2:] == (4, 6)


def test_the_module_takes_its_schedule_from_the_configuration():
    def module(scheduler):
        optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731
        return SupervisedModule(nn.Linear(2, 1), nn.MSELoss(), MeanAbsoluteError(), optimizer, "mae", scheduler)

    plain = module(None).configure_optimizers()
    assert isinstance(plain, torch.optim.SGD)
    steps = module(lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])).configure_optimizers()
    steps["optimizer"].step()
    steps["lr_scheduler"].step()
    assert steps["lr_scheduler"].get_last_lr() == [0.1]


def test_an_estimate_counts_the_samples_of_all_cycles():
    config = yaml.safe_load((ROOT / estimate.FOLDER / "cifar10.yaml").read_text())
    work = estimate.work_of(config, estimate.DATA["cifar10"], passes=3)
    labeled = [5000, 7500, 10_000, 12_500, 15_000, 17_500, 20_000]  # 10 % to 40 %, each for 200 epochs
    assert work.trained == 200 * sum(labeled)
    assert work.forward == 4 * sum(50_000 - count for count in labeled) + 7 * 10_000


def test_there_is_an_estimate_for_each_experiment_but_the_one_that_was_run():
    experiments = {path.stem for path in (ROOT / estimate.FOLDER).glob("*.yaml")}
    assert set(estimate.DATA) == experiments - {"ames"}


def test_an_estimate_measures_a_step_of_the_configured_experiment(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lightning-al"])
    name, *numbers = estimate.measure("mnist").strip("| ").split(" | ")
    assert name == "mnist"
    assert all(float(number) > 0 for number in numbers)
    assert len(numbers) == 6


def test_certainty_is_that_of_the_mean_over_draws_of_dropout():
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 2, bias=False))
    nn.init.constant_(network[1].weight[0], 0.0)
    nn.init.constant_(network[1].weight[1], math.log(3) / 2)  # doubled where the input is kept: odds of 1 or of 3
    torch.manual_seed(0)
    confidence, entropy = certainty(network, torch.ones(400, 1), torch.ones(400, dtype=torch.long), draws=50)
    assert confidence == pytest.approx(0.5 * 0.5 + 0.5 * 0.75, abs=0.005)
    assert entropy == pytest.approx(-(0.625 * math.log(0.625) + 0.375 * math.log(0.375)), abs=0.01)


# ------------------------------------------------------------------ data


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda folder: TorchvisionDataModule("CIFAR10", folder),
            ("download: true", "cs.toronto.edu", "cifar-10-batches-py"),
        ),
        (lambda folder: TorchvisionDataModule("SVHN", folder), ("download: true", "ufldl.stanford.edu", "_32x32.mat")),
        (lambda folder: TorchvisionDataModule("MNIST", folder), ("download: true", "MNIST/raw")),
        (lambda folder: Caltech101DataModule(folder), ("download: true", "caltech-101.zip", "101_ObjectCategories")),
        (lambda folder: ImageNetDataModule(folder), ("ILSVRC2012_img_train.tar", "image-net.org", "/train and")),
        (lambda folder: CityscapesDataModule(folder), ("gtFine_trainvaltest.zip", "www.cityscapes-dataset.com")),
    ],
)
def test_missing_data_is_one_sentence_that_says_what_to_download_and_where_to(make, words, tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        make(str(tmp_path)).setup("fit")
    message = str(missing.value)
    assert message.count("\n") == 0
    assert all(word in message for word in (*words, str(tmp_path)))


@pytest.mark.parametrize("make", [partial(TorchvisionDataModule, "CIFAR10"), Caltech101DataModule])
def test_a_download_without_a_network_ends_in_the_same_sentence(make, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(FileNotFoundError, match=rf"is not in {tmp_path}: the download failed; download .* and unpack"):
        make(str(tmp_path), download=True).prepare_data()


def test_caltech_has_no_background_and_holds_out_a_tenth_of_each_class(tmp_path):
    write_caltech101(tmp_path)
    data = Caltech101DataModule(str(tmp_path))
    data.setup("fit")
    assert (len(data.train), len(data.test)) == (18, 2)
    assert [data.test[position][1] for position in range(2)] == [0, 1]
    assert data.train[0][0].shape == data.test[0][0].shape == (3, 224, 224)  # of a gray picture, too
    assert not set(data.train.indices) & set(data.test.indices)


def test_svhn_calls_the_digit_zero_zero_and_only_training_is_augmented(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda file, md5: True)
    write_svhn(tmp_path)
    data = TorchvisionDataModule("SVHN", str(tmp_path), crop=True, flip=True)
    data.setup("fit")
    assert {data.test[row][1] for row in range(12)} == set(range(10))
    torch.manual_seed(0)
    assert torch.equal(data.test[0][0], data.test[0][0])
    assert not torch.equal(data.train[0][0], data.train[0][0])


def test_cityscapes_crops_picture_and_classes_alike_and_ignores_what_is_not_evaluated(tmp_path):
    write_cityscapes(tmp_path)
    data = CityscapesDataModule(str(tmp_path), crop=24)
    data.setup("fit")
    assert data.train.images == sorted(data.train.images)
    pair = data.train.transforms
    # a picture whose first channel is its class: 7 is road, 26 car, 3 none that is evaluated
    classes = torch.tensor([3, 7, 26], dtype=torch.uint8)[torch.randint(3, (48, 96), generator=seeded())]
    for transform in (pair, data.test.transforms):
        from torchvision.transforms.functional import to_pil_image

        picture, targets = transform(to_pil_image(classes.expand(3, -1, -1)), to_pil_image(classes))
        assert picture.shape == (3, 24, 24)
        values = picture[0].unique()
        assert [targets[picture[0] == value].unique().tolist() for value in values] == [[IGNORED], [0], [13]]


def test_ames_is_encoded_by_what_is_known_without_prices_or_the_test_half():
    table = ames.read_ames()
    train, test = table.iloc[:60], table.iloc[60:90]
    inputs, others = ames.encode(train, test)
    assert inputs.shape[1] == others.shape[1]
    assert torch.isfinite(torch.cat([inputs, others])).all()
    assert inputs[:, :35].mean(0).abs().max() < 1e-5
    again, _ = ames.encode(train.assign(price=0.0), table.iloc[90:100])
    assert torch.equal(inputs, again)


def test_ames_halves_are_disjoint_and_the_same_for_every_run():
    first, second = ames.AmesDataModule(), ames.AmesDataModule()
    first.setup("fit")
    second.setup("test")
    assert len(first.train) == len(first.test) == 730
    assert torch.equal(first.train.tensors[0], second.train.tensors[0])
    assert 1.0 < first.train.tensors[1].mean() < 3.0  # hundreds of thousands of dollars


# ------------------------------------------------------------------ subtomograms


def test_macromolecules_are_fixed_by_the_seed_and_differ():
    first, second = subtomograms.macromolecules(2, seed=3)
    assert torch.equal(first, subtomograms.macromolecules(1, seed=3)[0])
    assert len(first) != len(second)
    assert not torch.equal(first[:100], subtomograms.macromolecules(1, seed=4)[0][:100])
    assert first.mean(0).abs().max() < 1e-3
    assert first.norm(dim=1).max() < 16 * MICROSCOPE.voxel  # inside of the volume, whatever the rotation


def test_rotations_are_rotations_in_all_directions():
    rotations = subtomograms.random_rotations(2000, seeded())
    identity = torch.eye(3).expand(2000, 3, 3)
    assert torch.allclose(rotations @ rotations.transpose(1, 2), identity, atol=1e-5)
    assert torch.allclose(rotations.det(), torch.ones(2000), atol=1e-5)
    assert rotations.mean(0).abs().max() < 0.05


def test_splatting_keeps_mass_and_center():
    points = torch.tensor([[[1.25, 2.0, 3.5], [2.75, 1.0, 0.5]]])
    (grid,) = subtomograms.splat(points, 5)
    axis = torch.arange(5.0)
    assert grid.sum() == pytest.approx(2.0)
    assert (grid.sum((1, 2)) @ axis).item() == pytest.approx(4.0)
    assert (grid.sum((0, 1)) @ axis).item() == pytest.approx(4.0)


def test_the_wedge_is_missing_and_the_noise_has_the_stated_ratio():
    residues = torch.randn(200, 3, generator=seeded()) * 30
    clean, noisy = (subtomograms.simulate(residues, 40, snr, MICROSCOPE, seeded(1)) for snr in (float("inf"), 0.25))
    missing = MICROSCOPE.wedge() == 0
    missing[0, 0, 0] = True  # the mean
    for volumes in (clean, noisy):
        assert volumes.mean().abs() < 1e-4
        power = torch.fft.rfftn(volumes, dim=(1, 2, 3)).abs().square().mean(0)
        assert power[missing].mean() < 1e-6 * power.mean()
    assert 0.3 < missing.float().mean() < 0.37  # 60 of 180 degrees
    # noisy = (clean + noise / sqrt(snr)) / sqrt(1 + 1 / snr), both of variance one
    assert (clean * noisy).mean().item() == pytest.approx((1 / (1 + 1 / 0.25)) ** 0.5, abs=0.03)


def test_subtomograms_are_simulated_once_and_mapped(tmp_path):
    data = CryoETDataModule(str(tmp_path), classes=2, train_size=6, test_size=3)
    data.prepare_data()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    CryoETDataModule(str(tmp_path), classes=2, train_size=6, test_size=3).prepare_data()
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    data.setup("fit")
    assert [data.train[row][1] for row in range(6)] == [0, 1, 0, 1, 0, 1]
    assert data.train[0][0].shape == (1, 32, 32, 32)
    assert not torch.equal(data.train[0][0], data.test[0][0])
