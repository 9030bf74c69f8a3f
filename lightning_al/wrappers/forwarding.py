"""Forward all hooks of Lightning to the acquisitions inside a wrapper."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lightning.pytorch import Callback

from lightning_al.acquisition.contract import Acquisition

WrapperT = TypeVar("WrapperT", bound=type[Acquisition])

# the wrapper runs the query itself, and has its own state
_NOT_FORWARDED = ("on_fit_end", "state_key", "state_dict", "load_state_dict")
FORWARDED_HOOKS = tuple(
    name
    for name, member in vars(Callback).items()
    if callable(member) and not name.startswith("_") and name not in _NOT_FORWARDED
)


def forward_lightning_hooks(get_inner: Callable[[Any], Sequence[Acquisition]]) -> Callable[[WrapperT], WrapperT]:
    """Return a class decorator: each hook of Lightning runs on the wrapper, then on every acquisition that it holds.

    Lightning calls the wrapper only, so an acquisition inside would miss a hook, also one of a later version, if the
    wrapper forwarded a fixed list of names. States are saved and restored together.

    Args:
        get_inner: Returns the acquisitions that an instance holds.

    """

    def decorate(wrapper: WrapperT) -> WrapperT:
        for name in FORWARDED_HOOKS:
            setattr(wrapper, name, _forwarded(getattr(wrapper, name), name, get_inner))

        def state_dict(self: Acquisition) -> dict[str, Any]:
            states = [acquisition.state_dict() for acquisition in get_inner(self)]
            return {"held": states} if any(states) else {}

        def load_state_dict(self: Acquisition, state_dict: dict[str, Any]) -> None:
            for acquisition, state in zip(get_inner(self), state_dict["held"], strict=True):
                acquisition.load_state_dict(state)

        setattr(wrapper, "state_dict", state_dict)  # noqa: B010  # mypy forbids assigning a method
        setattr(wrapper, "load_state_dict", load_state_dict)  # noqa: B010
        return wrapper

    return decorate


def _forwarded(hook: Callable[..., None], name: str, get_inner: Callable[[Any], Sequence[Acquisition]]) -> Any:
    def run(self: Acquisition, *args: Any, **kwargs: Any) -> None:
        hook(self, *args, **kwargs)
        for acquisition in get_inner(self):
            getattr(acquisition, name)(*args, **kwargs)

    run.__name__, run.__doc__ = name, f"Run `{name}` of the wrapper, then of each acquisition inside."
    return run
