"""Networks that nobody here wrote, whose expected scores need no change of theirs either."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics.functional import spearman_corrcoef
from torchvision.models import VisionTransformer, mobilenet_v2, resnet18
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.models.swin_transformer import SwinTransformer

from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition
from lightning_al.functional import noise_stability
from lightning_al.model.predictor import Predictor
from lightning_al.perturbation.noise import Noise
from tests.digits import one_thread
from tests.perturbation.networks import made, normal, tokens
from tests.sweep import sampled

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

CLASSES = 3
IMAGES, SMALL, IDS = normal(5, 3, 32, 32), normal(5, 3, 16, 16), tokens(5, 6, below=40) + 3
TEXT = {"input_ids": IDS, "attention_mask": (torch.arange(6) < torch.tensor([6, 3, 5, 6, 4]).unsqueeze(1)).long()}
SIZES = {"vocab_size": 50, "num_labels": CLASSES, "pad_token_id": 0}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def of_config(name: str, **sizes: Any) -> nn.Module:
    """Return a small model of the library of that name, without any weights of it."""
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}For{'Image' if 'image_size' in sizes else 'Sequence'}Classification")(config)


def routine(outputs: int) -> nn.Module:
    from torch_uncertainty import routines as torch_uncertainty

    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, outputs))
    if outputs == 1:
        return torch_uncertainty.RegressionRoutine(model=net, output_dim=1, loss=nn.MSELoss())
    return torch_uncertainty.ClassificationRoutine(model=net, num_classes=outputs, loss=nn.CrossEntropyLoss())


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "torchvision resnet": (partial(resnet18, num_classes=CLASSES), SMALL),
    "torchvision mobilenet": (partial(mobilenet_v2, width_mult=0.25, num_classes=CLASSES), IMAGES),
    "torchvision vit": (partial(VisionTransformer, 16, 4, 2, 2, 8, 16, num_classes=CLASSES), SMALL),
    "torchvision swin": (
        partial(SwinTransformer, [2, 2], 8, [2, 2], [2, 4], [2, 2], num_classes=CLASSES),
        SMALL,
    ),
    "torchvision convnext": (
        partial(ConvNeXt, [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)], num_classes=CLASSES),
        IMAGES,
    ),
    "timm vit": (
        partial(timm.create_model, "vit_tiny_patch16_224", num_classes=CLASSES, img_size=32, depth=2, embed_dim=24),
        IMAGES,
    ),
    "timm resnet": (partial(timm.create_model, "resnet10t", num_classes=CLASSES), IMAGES),
    "transformers bert": (partial(of_config, "Bert", **SIZES, **BERT), TEXT),
    "transformers roberta": (partial(of_config, "Roberta", **SIZES, **BERT), TEXT),
    "transformers distilbert": (
        partial(of_config, "DistilBert", **SIZES, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
        TEXT,
    ),
    "transformers gpt": (partial(of_config, "GPT2", **SIZES, n_embd=16, n_layer=2, n_head=2), TEXT),
    "transformers vit": (
        partial(of_config, "ViT", **{**BERT, "num_labels": CLASSES}, image_size=16, patch_size=4),
        {"pixel_values": SMALL},
    ),
    "torch-uncertainty classification": (partial(routine, CLASSES), normal(5, 5)),
    "torch-uncertainty regression": (partial(routine, 1), normal(5, 5)),
}


@pytest.fixture(autouse=True)
def one_core():
    with one_thread():
        yield


def expected_scores(model: nn.Module, batch: Any, output: str) -> Tensor:
    """Return the scores from the gradients of one output of one sample after another."""
    predictor = Predictor(model)
    for layer in model.modules():
        if isinstance(layer, nn.Embedding):
            layer.padding_idx = None
    outputs = predictor.output(batch, output)
    parameters = list(model.parameters())
    gradients = [
        torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True) for each in outputs.flatten()
    ]
    used = [place for place in range(len(parameters)) if any(own[place] is not None for own in gradients)]
    variances = Noise().variances([parameters[place] for place in used])
    norms = [
        sum(variance * float(own[place].square().sum()) for place, variance in zip(used, variances, strict=True))
        for own in gradients
    ]
    return torch.tensor(norms, dtype=torch.float64).view(len(outputs), -1).sum(1)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", sampled(MODELS, ["torchvision vit", "timm vit", "transformers gpt"]))
def test_every_model_is_scored_exactly(name):
    make, batch = MODELS[name]
    output = "identity" if "regression" in name else "softmax"
    model = made(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none is named as one that cannot be counted
        scores = noise_stability(model, [batch], passes="inf", directions="all", output=output)
    torch.testing.assert_close(scores.double(), expected_scores(model, batch, output), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name",
    sampled(
        ["torchvision vit", "transformers bert", "torch-uncertainty classification"],
        ["torch-uncertainty classification"],
    ),
)
def test_many_passes_rank_samples_the_same(name):
    make, batch = MODELS[name]
    model = made(make)
    batch = batch["input_ids"] if isinstance(batch, dict) else batch
    many = tokens(20, 6, below=40, seed=1) + 3 if name.endswith("bert") else normal(20, *batch.shape[1:], seed=1)
    passes = noise_stability(model, [many], passes=200)
    assert float(spearman_corrcoef(noise_stability(model, [many], passes="inf"), passes)) > 0.9


def test_segmentation_is_refused_with_a_way_out():
    model = made(partial(lraspp_mobilenet_v3_large, weights=None, weights_backbone=None, num_classes=CLASSES))
    with pytest.raises(ValueError, match=r"returns outputs of shape \(3, 32, 32\) for each sample.*passes=10"):
        noise_stability(model, [IMAGES], passes="inf")


def test_a_routine_is_scored_within_a_fit(tmp_path):
    from torch_uncertainty import routines as torch_uncertainty

    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))
    model = torch_uncertainty.ClassificationRoutine(
        model=net, num_classes=10, loss=nn.CrossEntropyLoss(), optim_recipe=torch.optim.Adam(net.parameters(), 1e-2)
    )
    dataset = TensorDataset(normal(40, 5).float(), torch.arange(40) % 10)
    data = ActiveLearningDataModule(dataset, initial_size=20, batch_size=6, val_dataset=dataset)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[NoiseStabilityAcquisition(5, passes="inf", selection="topk")],
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    query = data.pool.history[1]
    assert query.scores == sorted(query.scores, reverse=True)
    candidates = torch.tensor(sorted(set(range(40)) - set(data.pool.history[0].indices)))
    exact = noise_stability(net, [dataset.tensors[0][candidates]], passes="inf", directions="all")
    found = candidates[exact.topk(5).indices].tolist()
    assert len(set(found) & set(query.indices)) >= 4
