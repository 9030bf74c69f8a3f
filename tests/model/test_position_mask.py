"""Padding does not count: the same scores for any batch size, and a warning where nothing says what is padding."""

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lightning_al import functional, strategies
from lightning_al.formulas.disagreement import predictive_entropy
from lightning_al.functional import noise_stability
from lightning_al.model.dropout import dropout_passes
from lightning_al.model.position_scores import score_passes
from lightning_al.model.predictor import Predictor
from lightning_al.perturbation.backend_choice import make_backend
from lightning_al.perturbation.deviations import deviation_vectors
from lightning_al.perturbation.noise import Noise

GENERATOR = torch.Generator().manual_seed(0)
TEXTS = [
    torch.randint(1, 9, (length,), generator=GENERATOR) for length in (3, 9, 2, 7, 7, 5, 1, 8, 4, 6, 2, 3, 9, 5, 4, 8)
]


class Tagger(nn.Module):
    """Classes second (a convolution) or last (a linear layer), at each token; padding itself is most uncertain."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8, padding_idx=0)
        self.drop, self.second = nn.Dropout(0.3), second
        self.conv, self.linear = nn.Conv1d(8, 3, 1, bias=False), nn.Linear(8, 3, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = 6 * self.drop(self.embedding(input_ids))
        return self.conv(hidden.mT) if self.second else self.linear(hidden)


class Masked(Tagger):
    def acquisition_mask(self, batch: Any) -> Tensor:
        return batch != 0


def tagger(kind: type[Tagger] = Tagger, second: bool = True) -> Tagger:
    torch.manual_seed(0)
    return kind(second).eval()


def padded(texts: list[Tensor]) -> Tensor:
    return pad_sequence(texts, batch_first=True)


def with_attention(texts: list[Tensor]) -> dict[str, Tensor]:
    return {"input_ids": padded(texts), "attention_mask": (padded(texts) != 0).long()}


def with_targets(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    return padded(texts), pad_sequence([text % 3 for text in texts], batch_first=True, padding_value=-100)


def scored(name: str, model: Tagger, make: Any, size: int) -> Tensor:
    batches = [make(TEXTS[start : start + size]) for start in range(0, len(TEXTS), size)]
    if name == "noise stability":
        return noise_stability(model, batches, passes=3)
    predictor, scores = Predictor(model), []
    for batch in batches:
        if name == "deviations":
            seeds = [(0,), (1,)]
            backend = make_backend(predictor, batch, noise=Noise(), seeds=seeds)
            with torch.no_grad():
                vectors = deviation_vectors(backend, [batch], seeds, True, predictor.position_mask)
            scores.append(vectors.square().sum(1))
        elif name in ("softmax", "sigmoid"):
            passes = dropout_passes(predictor, batch, [(0,), (1,)], name)
            scores.append(score_passes(predictive_entropy, predictor, batch, passes, name))
        else:
            scores.append(getattr(strategies, name)(1).measure(predictor, batch))
    return torch.cat(scores).detach()


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize(
    ("kind", "make"),
    [(Tagger, with_attention), (Tagger, with_targets), (Masked, padded)],
    ids=["attention", "-100", "m"],
)
@pytest.mark.parametrize(
    "name", ["EntropyAcquisition", "MarginAcquisition", "noise stability", "deviations", "softmax"]
)
def test_the_ranking_of_padded_sequences_does_not_depend_on_the_batch_size(name, kind, make, second):
    model = tagger(kind, second)
    one, *others = [scored(name, model, make, size) for size in (1, 4, 16)]
    for scores in others:
        assert scores.argsort().tolist() == one.argsort().tolist()
        torch.testing.assert_close(scores, one, rtol=2e-3, atol=1e-6)


def test_masked_scores_are_those_of_the_texts_by_themselves():
    model = tagger()
    expected = [functional.entropy(model(text[None]).softmax(1)).item() for text in TEXTS]
    assert scored("EntropyAcquisition", model, with_attention, 16).tolist() == pytest.approx(expected, rel=1e-5)
    labels = [
        functional.entropy(torch.stack([(-z).sigmoid(), z.sigmoid()], 1)).item() for z in map(_alone(model), TEXTS)
    ]
    found = strategies.EntropyAcquisition(1, output="sigmoid").measure(Predictor(model), with_attention(TEXTS))
    assert found.tolist() == pytest.approx(labels, rel=1e-5)


def _alone(model: Tagger) -> Any:
    return lambda text: model(text[None])


@pytest.mark.parametrize(
    "batches",
    [
        [padded(TEXTS)],
        [(padded(TEXTS), padded(TEXTS) % 3)],  # targets are padded with a class
        [(padded(TEXTS), torch.full((16, 9), -100))],  # no target is known
        [torch.ones(2, 5).long(), torch.ones(2, 4).long()],
    ],
)
def test_unknown_padding_is_warned_of_once(batches):
    predictor = Predictor(tagger())

    def masks() -> list[Tensor | None]:
        return [predictor.position_mask(batch, predictor(batch)) for batch in batches]

    with pytest.warns(UserWarning, match=r"every position of sequences whose lengths vary.*`acquisition_mask"):
        assert masks() == [None] * len(batches)
    assert masks() == [None] * len(batches)  # a second warning would be an error here


@pytest.mark.parametrize(
    "batches",
    [
        [with_attention(TEXTS), with_attention(TEXTS[:3])],
        [with_targets(TEXTS), with_targets(TEXTS[3:5])],  # of one length
        [torch.stack(TEXTS[3:5])],
        [text[None] for text in TEXTS],
        [(torch.stack(TEXTS[3:5]), torch.tensor([[0] * 7, [1, 2, *[0] * 5]]))],  # what targets end in does not matter
    ],
)
def test_nothing_is_warned_of_where_nothing_is_padded_or_it_is_known(batches):
    predictor = Predictor(tagger())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches:
            predictor.position_mask(batch, predictor(batch))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 7), r"expected the shape (2, 5) of the positions, got (2, 7)"),
        (torch.tensor([[1] * 5, [0] * 5]), "excludes all positions of the sample in row 1, which then has no score"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, message):
    model = tagger(Masked)
    model.acquisition_mask = lambda batch: mask
    with pytest.raises(
        ValueError, match="^" + re.escape("`Masked.acquisition_mask(batch)`") + ".*" + re.escape(message)
    ):
        strategies.EntropyAcquisition(1).measure(Predictor(model), torch.ones(2, 5).long())


def test_none_declares_that_all_positions_count():
    model, batch = tagger(Masked), padded(TEXTS)
    model.acquisition_mask = lambda batch: None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Predictor(model).position_mask(batch, model(batch)) is None
