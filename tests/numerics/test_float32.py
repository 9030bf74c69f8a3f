from typing import Any

import pytest
import torch

from lightning_al.numerics.float32 import computes_in_low_precision, true_float32

CPU = torch.device("cpu")

# ---------------------------------------------------------------- true_float32

backends: Any = torch.backends
NEW = hasattr(backends.cudnn, "conv")  # torch 2.9
SWITCHES = {
    "all": lambda: backends,
    "cuda": lambda: backends.cudnn,
    "cuda matmul": lambda: backends.cuda.matmul,
    "cuda conv": lambda: backends.cudnn.conv,
    "cuda rnn": lambda: backends.cudnn.rnn,
    "mkldnn": lambda: backends.mkldnn,
    "mkldnn matmul": lambda: backends.mkldnn.matmul,
    "mkldnn conv": lambda: backends.mkldnn.conv,
    "mkldnn rnn": lambda: backends.mkldnn.rnn,
}
SWITCHES = {name: owner() for name, owner in SWITCHES.items()} if NEW else {}
OPERATORS = [name for name in SWITCHES if " " in name]


def switches() -> dict[str, str]:
    return {name: owner.fp32_precision for name, owner in SWITCHES.items()}


@pytest.fixture
def fresh_switches():
    """Put every switch back by hand, children to what only they were set to."""
    before = switches()
    yield before
    torch.set_float32_matmul_precision("highest")
    for name, owner in SWITCHES.items():
        owner.fp32_precision = before[name]


def inside_is_exact() -> None:
    if NEW:
        assert {name: SWITCHES[name].fp32_precision for name in OPERATORS} == dict.fromkeys(OPERATORS, "ieee")
    else:
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cudnn.allow_tf32


def test_float32_is_exact_inside_and_as_before_outside(fresh_switches):
    with true_float32(CPU):
        inside_is_exact()
    assert switches() == fresh_switches


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_the_old_matmul_switch_is_restored(fresh_switches, precision):
    torch.set_float32_matmul_precision(precision)
    before = switches()
    with true_float32(CPU):
        inside_is_exact()
    assert switches() == before
    assert torch.get_float32_matmul_precision() == precision
    assert backends.cuda.matmul.allow_tf32 == (precision != "highest")  # raises where old and new switches differ
    with pytest.raises(KeyError), true_float32(CPU):
        raise KeyError
    assert switches() == before
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("name", SWITCHES)
def test_a_new_switch_is_restored_also_after_an_exception(fresh_switches, name):
    SWITCHES[name].fp32_precision = "tf32"
    before = switches()
    assert before[name] == "tf32"
    with true_float32(CPU):
        inside_is_exact()
    assert switches() == before
    with pytest.raises(KeyError), true_float32(CPU):
        raise KeyError
    assert switches() == before


@pytest.mark.skipif(not NEW, reason="torch 2.9 brought switches that follow others")
def test_a_switch_that_follows_its_parent_still_does_so_afterwards(fresh_switches):
    # restoring the value that was read would turn an inherited value into one of the switch's own
    for first, second in (("tf32", "ieee"), ("ieee", "tf32")):
        backends.fp32_precision = first
        followers = [name for name, value in switches().items() if value == first]
        assert {"mkldnn conv", "cuda"} <= set(followers)
        with true_float32(CPU):
            inside_is_exact()
        backends.fp32_precision = second
        assert {name: switches()[name] for name in ("mkldnn conv", "cuda")} == {"mkldnn conv": second, "cuda": second}


def test_nothing_is_lost_on_versions_of_torch_without_the_new_switches(monkeypatch, fresh_switches):
    # before torch 2.9 there is only the old pair, whose `allow_tf32` would read "medium" and restore "high"
    monkeypatch.delattr(type(backends.cudnn), "conv", raising=False)
    torch.set_float32_matmul_precision("medium")
    with true_float32(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "medium"
    assert backends.cudnn.allow_tf32


def test_autocast_is_left_and_entered_again():
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with true_float32(CPU):
            assert (left @ right).dtype == torch.float32
        assert (left @ right).dtype == torch.bfloat16
        with pytest.raises(KeyError), true_float32(CPU):
            raise KeyError
        assert (left @ right).dtype == torch.bfloat16


class AutocastBody(torch.nn.Module):
    """Enters autocast by itself, as many published models do."""

    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(8, 32), torch.nn.Linear(32, 3)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.body(x).relu()
        return self.head(hidden.float())


def test_a_forward_that_enters_autocast_sees_the_weights_as_they_are_now():
    model, x = AutocastBody(), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), true_float32(CPU):
        clean = model(x)
        model.body.weight.mul_(2)  # autocast would remember the cast of the clean weights
        moved = model(x)
    with torch.no_grad():
        expected = model(x)
    assert not torch.equal(moved, clean)
    assert torch.equal(moved, expected)


def test_low_precision_inside_of_a_forward_is_noticed():
    x = torch.ones(2, 8)
    assert computes_in_low_precision(lambda: AutocastBody()(x))
    assert computes_in_low_precision(lambda: x.half().float())
    assert not computes_in_low_precision(lambda: torch.nn.Linear(8, 2)(x))


def test_kernels_are_not_chosen_by_trial_while_scoring():
    before = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = True
        with true_float32(CPU):
            assert torch.backends.cudnn.benchmark is False
        assert torch.backends.cudnn.benchmark is True
    finally:
        torch.backends.cudnn.benchmark = before
