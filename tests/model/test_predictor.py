import re
from collections import OrderedDict, UserDict, namedtuple

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_al.data.batch import INPUT_KEYS, LABEL_KEYS, OUTPUT_KEYS, describe, forward_arguments
from lightning_al.model.output import find_entry, take_entry, to_batch_class_positions
from lightning_al.model.predictor import Predictor
from lightning_al.testing import ToyClassifier

X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 0, 1])
MASK = torch.ones(4, 3)
Point = namedtuple("Point", ["coordinates", "label"])


def explained(found):
    """Match a message that shows what was found and names the three ways out."""
    return (
        rf"(?s){found}.*Three ways out: \(1\) define `acquisition_step\(self, batch\)`.*raw outputs \(logits\)"
        r".*\(2\) let `predict_step`.*\(3\) let `forward`"
    )


class Recorder(nn.Module):
    """What reached `forward`, by name; the subclasses differ in their signature."""

    def forward(self, x):
        return {"x": x}


class TakesOptional(Recorder):
    def forward(self, x, mask=None, labels=None):
        return {"x": x, "mask": mask, "labels": labels}


class TakesTwo(Recorder):
    def forward(self, left, right):
        return {"left": left, "right": right}


class TakesLengths(Recorder):
    def forward(self, x, lengths):
        return {"x": x, "lengths": lengths}


class TakesTargets(Recorder):
    def forward(self, image, target):
        return {"image": image, "target": target}


class TakesOthers(Recorder):
    def forward(self, x, **kwargs):
        return {"x": x, **kwargs}


class TakesKeywords(Recorder):
    def forward(self, **kwargs):
        return kwargs


class TakesAnything(Recorder):
    def forward(self, *args, **kwargs):
        return {"args": args, **kwargs}


class TakesBatch(Recorder):
    def forward(self, batch):
        return {"batch": batch}


def received(module, batch):
    args, kwargs = forward_arguments(module, batch)
    return module(*args, **kwargs)


def same(found, expected):
    """Compare containers by content and tensors by identity: nothing is copied on the way."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found is expected or (not isinstance(expected, torch.Tensor) and found == expected)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("batch", [(X, Y), ({"image": X}, Y), {"image": X, "target": Y}])
def test_labels_of_the_pool_are_never_passed_to_a_model(batch):
    with pytest.raises(
        TypeError, match=r"(labels of the pool are never passed|Cannot tell which entry).*acquisition_step"
    ):
        received(TakesTargets(), batch)


@pytest.mark.parametrize(
    ("module", "batch", "expected"),
    [
        # a tensor; inputs and targets; inputs, targets and more
        (Recorder(), X, {"x": X}),
        (Recorder(), (X, Y), {"x": X}),
        (Recorder(), [X, Y], {"x": X}),
        (Recorder(), [X], {"x": X}),
        (Recorder(), (X, Y, MASK), {"x": X}),
        (Recorder(), Point(X, Y), {"x": X}),
        (TakesOptional(), (X, Y), {"x": X, "mask": None, "labels": None}),
        (TakesOthers(), (X, Y), {"x": X}),
        (TakesAnything(), (X, Y), {"args": (X,)}),
        # nested, and a forward that takes the targets
        (Recorder(), ((X, MASK), Y), {"x": (X, MASK)}),
        (TakesTwo(), ((X, MASK), Y), {"left": X, "right": MASK}),
        (TakesTwo(), ([X, MASK], Y), {"left": X, "right": MASK}),
        (TakesTwo(), (X, MASK, Y), {"left": X, "right": MASK}),
        (TakesTwo(), (Y, X, Y), {"left": Y, "right": X}),
        (TakesLengths(), (X, Y, Y), {"x": X, "lengths": Y}),
        (Recorder(), (X, Y, Y), {"x": X}),
        (Recorder(), (["a text"], Y, Y), {"x": ["a text"]}),
        (Recorder(), ({"x": X}, MASK, Y), {"x": X}),
        (TakesTwo(), ({"left": X, "right": MASK}, Y), {"left": X, "right": MASK}),
        (Recorder(), ({"image": X}, Y), {"x": X}),
        # mappings: the names of forward, the usual names, a single entry
        (Recorder(), {"x": X, "y": Y}, {"x": X}),
        (Recorder(), UserDict(x=X, y=Y), {"x": X}),
        (TakesOptional(), {"x": X, "mask": MASK, "labels": Y}, {"x": X, "mask": MASK, "labels": None}),
        (TakesOptional(), {"image": X, "label": Y}, {"x": X, "mask": None, "labels": None}),
        (TakesTwo(), {"right": MASK, "left": X, "id": Y}, {"left": X, "right": MASK}),
        (Recorder(), {"points": X, "label": Y}, {"x": X}),
        (TakesKeywords(), {"anything": X, "label": Y}, {"anything": X}),
        (TakesOthers(), {"x": X, "mask": MASK, "y": Y}, {"x": X, "mask": MASK}),
        (TakesOthers(), {"image": X, "label": Y}, {"x": X}),
        (TakesAnything(), {"image": X, "label": Y}, {"args": (), "image": X}),
        (TakesBatch(), {"a": X, "b": MASK, "label": Y}, {"batch": {"a": X, "b": MASK, "label": Y}}),
        # what is neither is passed on
        (Recorder(), "text", {"x": "text"}),
    ],
)
def test_forward_receives_the_inputs(module, batch, expected):
    assert same(received(module, batch), expected)


@pytest.mark.parametrize("key", INPUT_KEYS)
@pytest.mark.parametrize("label", LABEL_KEYS)
def test_the_usual_names_are_known(key, label):
    assert received(TakesOptional(), {label: Y, key: X, "id": Y})["x"] is X


@pytest.mark.parametrize(
    ("module", "batch", "found"),
    [
        (
            Recorder(),
            {"left": X, "right": Y},
            r"which entry of dict\(left: Tensor\(4, 3\) of torch\.float32, right: Tensor\(4,\) of torch\.int64\) is "
            r"the input of `Recorder\.forward\(x\)`",
        ),
        (Recorder(), {"image": X, "features": X}, r"dict\(image: Tensor"),
        (Recorder(), {"label": Y}, r"dict\(label: Tensor"),
        (Recorder(), {}, r"dict\(\)"),
        (TakesTwo(), {"left": X, "label": Y}, r"dict\(left: .* `TakesTwo\.forward\(left, right\)`"),
        (TakesTwo(), {"image": X}, r"`TakesTwo\.forward\(left, right\)`"),
        (TakesTwo(), [X], r"`TakesTwo\.forward` needs \['left', 'right'\], but the batch is a list\(Tensor\(4, 3\)"),
        (Recorder(), (Y, X, Y), r"which entries of tuple\(.*a Tensor\(4,\) of torch\.int64 before them may be"),
        (Recorder(), (["name"], X, Y), r"which entries of tuple\(.*a list\(str\) before them may be an input"),
        (Recorder(), ({"id": Y}, X, Y), r"which entries of tuple\(.*a dict\(id: .* before them may be an input"),
        (
            TakesTwo(),
            (X, Y, Y),
            r"which entries of tuple\(.*`right` would receive the targets of \(inputs, targets, in",
        ),
        (Recorder(), (), r"Expected a batch with inputs, got an empty tuple"),
        (Recorder(), [], r"Expected a batch with inputs, got an empty list"),
    ],
)
def test_a_batch_that_does_not_fit_is_shown(module, batch, found):
    with pytest.raises(TypeError, match=explained(found)):
        received(module, batch)


def test_values_pass_through_a_real_module():
    module = ToyClassifier().eval()
    expected = module(X)
    for batch in (X, (X, Y), {"points": X, "label": Y}, {"image": X, "label": Y}, ({"points": X}, Y)):
        assert torch.equal(Predictor(module)(batch), expected)


# ---------------------------------------------------------------- outputs

LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Gives(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs


def find_output(outputs):
    return take_entry(outputs, find_entry(outputs))


@pytest.mark.parametrize(
    "outputs",
    [
        LOGITS,
        [LOGITS],
        (torch.tensor(1.0), LOGITS),  # a loss
        (LOGITS, (X, X)),
        Point(LOGITS, Y),
        {"whatever": LOGITS},
        OrderedDict(loss=torch.tensor(1.0), logits=LOGITS, hidden_states=X),
        {"features": X, "out": LOGITS, "aux": X},
        UserDict(loss=torch.tensor(1.0), pred=LOGITS),
    ],
)
def test_predictions_are_found(outputs):
    assert find_output(outputs) is LOGITS
    assert torch.equal(Predictor(Gives(outputs))(X), LOGITS)


@pytest.mark.parametrize("key", OUTPUT_KEYS)
def test_the_usual_names_of_outputs_are_known(key):
    assert find_output({"loss": torch.tensor(1.0), "embedding": X, key: LOGITS}) is LOGITS


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (
            [{"boxes": torch.zeros(2, 4), "labels": Y}],
            r"got list\(dict\(boxes: Tensor\(2, 4\) of torch\.float32, labels",
        ),
        ([{"boxes": X}] * 9, r"got list\("),
        ({"loss": X, "features": X}, r"got dict\(loss: Tensor\(4, 3\)"),
        ({"logits": [X]}, r"got dict\(logits: list\(Tensor"),
        (None, r"got NoneType"),
        ((), r"got tuple\(\)"),
        ({}, r"got dict\(\)"),
        (["cat", "dog"], r"got list\(str, str\)"),
        ((None, X), r"got tuple\(NoneType, Tensor\(4, 3\)"),
        (np.zeros((4, 3)), r"got ndarray"),
        (0.7, r"got float"),
        (LOGITS.argmax(1), r"got Tensor\(4,\) of torch\.int64: class numbers say nothing about uncertainty"),
        ({"preds": LOGITS > 0}, r"got Tensor\(4, 5\) of torch\.bool: class numbers"),
    ],
)
def test_anything_else_is_shown(outputs, found):
    with pytest.raises(TypeError, match=explained(found)):
        find_output(outputs)
    with pytest.raises(TypeError, match=explained(found)):
        Predictor(Gives(outputs))(X)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6,), (6, 1)),
        ((6, 1), (6, 1)),
        ((6, 3), (6, 3)),
        ((6, 3, 4, 5), (6, 3, 4, 5)),
        ((6, 3, 2, 4, 5), (6, 3, 2, 4, 5)),
    ],
)
def test_outputs_come_with_the_classes_second(shape, expected):
    outputs = torch.arange(float(np.prod(shape))).reshape(shape)
    brought = to_batch_class_positions(outputs)
    assert brought.shape == expected
    assert torch.equal(brought.reshape(shape), outputs)
    if outputs.ndim > 2:
        assert torch.equal(to_batch_class_positions(outputs.movedim(1, -1), -1), outputs)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6, 7), (1, 1, 1, 1, 1, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(TypeError, match=explained(rf"Tensor{re.escape(str(shape))} of torch\.float32")):
        to_batch_class_positions(torch.zeros(shape))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_outputs_have_at_least_single_precision(dtype, expected):
    outputs = Predictor(Gives(LOGITS.to(dtype)))(X)
    assert outputs.dtype == expected
    assert torch.equal(outputs, LOGITS.to(dtype).to(expected))
    assert torch.equal(Predictor(Gives(LOGITS.to(dtype))).probabilities(X), LOGITS.to(dtype).to(expected).softmax(1))


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def hugging_face_models():
    import transformers  # which takes a second

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=20, max_position_embeddings=6, num_labels=3, **sizes)
    )
    tagger = transformers.BertForTokenClassification(
        transformers.BertConfig(vocab_size=20, max_position_embeddings=6, num_labels=3, **sizes)
    )
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)
    )
    return {"bert": bert.eval(), "tagger": tagger.eval(), "vit": vit.eval()}


class Holds(LightningModule):
    """How a Lightning user wraps a model of Hugging Face."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs)


@pytest.mark.parametrize("wrap", [lambda model: model, Holds])
def test_transformers_need_no_adapter(hugging_face_models, wrap):
    from transformers import BatchEncoding

    tokens = {"input_ids": torch.arange(8).reshape(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])}
    pixels = {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    for name, inputs in (("bert", tokens), ("tagger", tokens), ("vit", pixels)):
        model = hugging_face_models[name]
        predictor = Predictor(wrap(model))
        expected = model(**inputs).logits
        labels = torch.zeros(expected.shape[:-1], dtype=torch.int64)
        for batch in (inputs, {**inputs, "labels": labels}, BatchEncoding({**inputs, "labels": labels})):
            outputs = predictor(batch)
            assert torch.equal(outputs, expected.movedim(2, 1) if expected.ndim == 3 else expected)
            assert torch.allclose(predictor.probabilities(batch).sum(1), torch.ones(()))


# ---------------------------------------------------------------- which method is called


class OnlyForward(LightningModule):
    def forward(self, x):
        return x + 1


class WithPredictStep(OnlyForward):
    def predict_step(self, batch, batch_idx):
        assert batch_idx == 0
        return batch[0] + 2


class WithAcquisitionStep(WithPredictStep):
    def acquisition_step(self, batch):
        return {"logits": batch[0] + 3, "features": batch[1]}


def test_the_most_specific_method_is_called():
    assert torch.equal(Predictor(OnlyForward())((X, Y)), X + 1)
    assert torch.equal(Predictor(WithPredictStep())((X, Y)), X + 2)
    assert torch.equal(Predictor(WithAcquisitionStep())((X, Y)), X + 3)


class PlainModule(nn.Module):
    def forward(self, x):
        return x + 1

    def predict_step(self, batch, batch_idx):
        raise AssertionError("only a LightningModule has a `predict_step`")


class PlainWithAcquisitionStep(PlainModule):
    def acquisition_step(self, batch):
        return batch[0] + 3


def test_a_plain_module_has_no_predict_step():
    assert torch.equal(Predictor(PlainModule())((X, Y)), X + 1)
    assert torch.equal(Predictor(PlainWithAcquisitionStep())((X, Y)), X + 3)


class One(OnlyForward):
    def predict_step(self, batch):
        return batch[0] + 10


class Two(OnlyForward):
    def predict_step(self, batch, batch_idx):
        return batch[0] + 20 + batch_idx


class Three(OnlyForward):
    def predict_step(self, batch, batch_idx, dataloader_idx):
        return batch[0] + 30 + batch_idx + dataloader_idx


class ThreeWithDefault(OnlyForward):
    def predict_step(self, batch, batch_idx, dataloader_idx=7):
        return batch[0] + 40 + dataloader_idx


class AnyNumber(OnlyForward):
    def predict_step(self, batch, *args):
        return batch[0] + 50 + len(args)


class Keywords(OnlyForward):
    def predict_step(self, batch, batch_idx, *, scale=1, **kwargs):
        return batch[0] + 60 * scale + len(kwargs)


@pytest.mark.parametrize(
    ("cls", "added"), [(One, 10), (Two, 20), (Three, 30), (ThreeWithDefault, 40), (AnyNumber, 52), (Keywords, 60)]
)
def test_predict_step_may_take_what_it_wants(cls, added):
    assert torch.equal(Predictor(cls())((X, Y)), X + added)


class NoForward(LightningModule):
    def training_step(self, batch, batch_idx):
        return None


class PredictsOnly(NoForward):
    def predict_step(self, batch, batch_idx):
        return batch[0]


def test_a_module_without_forward_is_told_what_to_define():
    with pytest.raises(TypeError, match=explained(r"^NoForward defines no `forward`\.")):
        Predictor(NoForward())((X, Y))
    assert torch.equal(Predictor(PredictsOnly())((X, Y)), X)


class PredictsClasses(OnlyForward):
    def predict_step(self, batch, batch_idx):
        return batch[0].argmax(1)


def test_class_numbers_are_refused():
    with pytest.raises(TypeError, match=explained(r"Expected raw outputs, got Tensor\(4,\) of torch\.int64")):
        Predictor(PredictsClasses())((X, Y))


# ---------------------------------------------------------------- probabilities


class Identity(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 2)])
def test_logits_become_probabilities(shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    predictor = Predictor(Identity())
    assert torch.equal(predictor.probabilities(logits), logits.softmax(1))
    assert torch.equal(predictor.output(logits, "softmax"), logits.softmax(1))
    assert torch.equal(predictor.output(logits, "sigmoid"), logits.sigmoid())
    assert torch.equal(predictor.output(logits, "identity"), logits)


@pytest.mark.parametrize("outputs", [X[:, 0], X[:, :1], X[:, :1, None, None]])
def test_one_output_has_no_softmax(outputs):
    predictor = Predictor(Identity())
    message = r'Identity has one output per sample.*always 1.*binary logit pass `output="sigmoid"`.*output="identity"'
    with pytest.raises(ValueError, match=message):
        predictor.probabilities(outputs)
    with pytest.raises(ValueError, match=message):
        predictor.output(outputs, "softmax")
    assert torch.equal(predictor.output(outputs, "identity"), outputs if outputs.ndim > 1 else outputs[:, None])
    assert torch.equal(predictor.output(outputs, "sigmoid").flatten(), outputs.sigmoid().flatten())


# ---------------------------------------------------------------- descriptions


def test_descriptions_are_short():
    assert describe(X.bfloat16()) == "Tensor(4, 3) of torch.bfloat16"
    assert describe([1] * 9) == "list(int, int, int, int)"
    assert describe({str(number): None for number in range(20)}).count("NoneType") == 8
    assert describe(UserDict(a=(X, "b"))) == "UserDict(a: tuple(Tensor(4, 3) of torch.float32, str))"
    assert describe(None) == "NoneType"


def test_a_parameter_named_batch_takes_the_whole_batch():
    class Whole(nn.Module):
        def forward(self, batch):
            return batch[0].sum(1, keepdim=True) + batch[1][:, None]

    points, labels = torch.ones(4, 3), torch.arange(4.0)
    assert Predictor(Whole())((points, labels)).flatten().tolist() == [3.0, 4.0, 5.0, 6.0]


def test_a_squeezed_output_of_one_sample_is_still_one_row():
    assert Predictor(nn.Flatten(0))(torch.tensor(2.5)).shape == (1, 1)
    assert to_batch_class_positions(torch.tensor(2.5)).tolist() == [[2.5]]
