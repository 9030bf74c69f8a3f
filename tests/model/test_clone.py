import copy
import os
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn

from lightning_al.model.checkpoint import load_weights
from lightning_al.model.clone import clone_module
from lightning_al.testing import ToyClassifier
from tests.snapshot import module_picture

CPU = torch.device("cpu")

# ---------------------------------------------------------------- clones


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.layer[0].weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.history = [torch.zeros(1)]


def test_a_clone_shares_nothing_with_the_module():
    module = Held().train()
    module.layer[2].eval()
    before = module_picture(module)
    clone = clone_module(module, CPU)
    assert not any(child.training for child in clone.modules())
    assert clone.tied.weight is clone.layer[0].weight
    assert not clone.frozen.requires_grad
    ours = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    assert ours.isdisjoint(tensor.data_ptr() for tensor in (*clone.parameters(), *clone.buffers()))
    with torch.no_grad():
        for tensor in (*clone.parameters(), *clone.buffers()):
            tensor.fill_(7)
    clone.history[0].fill_(7)
    assert module_picture(module) == before
    assert module.history[0].item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_clone_has_at_least_single_precision(dtype):
    module = Held().to(dtype)
    module.register_buffer("precise", torch.ones(1, dtype=torch.float64))
    module.register_buffer("count", torch.ones(1, dtype=torch.int16))
    clone = clone_module(module, CPU)
    assert {parameter.dtype for parameter in clone.parameters()} == {torch.float32}
    assert clone.layer[1].running_mean.dtype == torch.float32
    assert (clone.precise.dtype, clone.count.dtype) == (torch.float64, torch.int16)
    assert clone.tied.weight is clone.layer[0].weight
    assert torch.equal(clone.tied.weight, module.tied.weight.float())
    assert module.tied.weight.dtype == dtype


def test_a_module_that_cannot_be_copied_is_refused_with_the_reason():
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    with pytest.raises(
        TypeError, match=r"Linear cannot be copied for scoring \(TypeError: cannot pickle '_thread.lock"
    ):
        clone_module(module, CPU)
    module = nn.Linear(2, 2)
    module.cache = SimpleNamespace(loss=module(torch.ones(1, 2)).sum())
    with pytest.raises(TypeError, match=r"Linear cannot be copied.*tensors with a graph \(use `.detach\(\)`\)"):
        clone_module(module, CPU)


def test_tensors_with_a_graph_are_copied_without_it():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old form of the normalization
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2)), nn.utils.spectral_norm(nn.Linear(2, 2)))
    points = torch.ones(1, 2)
    module.eval()
    module[1].maps = {"attention": [module(points)], "loss": module(points).sum()}
    clone = clone_module(module, CPU)
    assert torch.equal(clone(points), module(points))
    assert clone[1].maps["loss"].grad_fn is None
    assert torch.equal(clone[1].maps["attention"][0], module[1].maps["attention"][0])
    assert module[1].maps["loss"].grad_fn is not None


def test_compiled_children_are_hooked_in_the_clone_and_load_weights_of_either_form(tmp_path):
    module, points = ToyClassifier().eval(), torch.ones(4, 3)
    plain = copy.deepcopy(module)
    module.net = torch.compile(module.net, backend="eager")
    module(points)  # from now on its graph is cached
    clone = clone_module(module, CPU)
    calls = []
    clone.get_submodule("net.4").register_forward_hook(lambda *arguments: calls.append(arguments))
    assert torch.equal(clone(points), plain(points))
    assert len(calls) == 1
    torch.save(module.state_dict(), tmp_path / "compiled.pt")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    for target in (module, clone):
        for name in ("compiled.pt", "plain.pt"):
            next(target.parameters()).data.zero_()
            load_weights(target, tmp_path / name)
            assert torch.equal(target(points), plain(points))


def test_a_clone_of_a_compiled_lightning_module_calls_itself():
    # the functions that Lightning puts into a compiled module are closures over the module itself
    module = ToyClassifier().train()
    plain = clone_module(module, CPU)
    compiled = from_compiled(torch.compile(module, backend="eager"))
    assert compiled is module
    before = module_picture(module)
    clone = clone_module(module, CPU)
    with torch.no_grad():
        assert torch.equal(clone(torch.ones(4, 3)), plain(torch.ones(4, 3)))
        clone.net[4].bias.add_(1)
        torch.testing.assert_close(clone(torch.ones(4, 3)), plain(torch.ones(4, 3)) + 1)
    assert module_picture(module) == before  # in training mode its statistics would have moved


def test_weights_come_from_a_checkpoint_or_a_state_dict(tmp_path):
    source, target = ToyClassifier(), ToyClassifier()
    torch.save(source.state_dict(), tmp_path / "state.pt")
    load_weights(target, tmp_path / "state.pt")
    assert all(map(torch.equal, target.state_dict().values(), source.state_dict().values()))
    partial = {name: tensor + 1 for name, tensor in source.state_dict().items() if name.startswith("net.4")}
    torch.save({"state_dict": partial, "hyper_parameters": {"anything": threading.Thread}}, tmp_path / "partial.ckpt")
    with pytest.raises(ValueError, match=r"partial\.ckpt holds Python objects beside weights.*trust_checkpoints=True"):
        load_weights(target, tmp_path / "partial.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"net\.0\.weight\""):
        load_weights(target, tmp_path / "partial.ckpt", trusted=True)
    target.strict_loading = False
    load_weights(target, tmp_path / "partial.ckpt", trusted=True)
    assert torch.equal(target.net[4].bias, source.net[4].bias + 1)
    assert torch.equal(target.net[0].bias, source.net[0].bias)


# ---------------------------------------------------------------- batches


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_crafted_checkpoint_runs_nothing(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Command(tmp_path / "executed")}, tmp_path / "crafted.ckpt")
    with pytest.raises(ValueError, match="could run any code"):
        load_weights(ToyClassifier(), tmp_path / "crafted.ckpt")
    assert not (tmp_path / "executed").exists()
