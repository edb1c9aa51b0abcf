"""Hooks on a network: the one place that knows whether a network is listened to or edited, and by whom.

- `Tap` listens to a site, and `intercept` changes what a module puts out. Both are bound to the thread that set them,
  can be entered again inside themselves, and leave nothing behind.
- `check_pristine` is the one check of everything that measures or writes a model.
- `clean_copy` copies a network without the hooks of this library.

Torch's forward hooks serve for listening. For changes they do not: Dynamo does not guard on hooks, so one that is set
after `torch.compile` has traced a module is not noticed. It does guard on an instance's own ``forward``, so that is
what is put in, and taken out again.
"""

from __future__ import annotations

import copy
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import MethodType
from typing import Any, Self

import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb.errors import EditError
from elude_nb.models.outputs import first_tensor
from elude_nb.models.sites import STREAM, Site

_LOCK = threading.RLock()
_OURS = "_elude_nb_hook"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


# ---------------------------------------------------------------- who may run what


def in_backward() -> bool:
    """Say whether a layer is running again during the backward pass (activation checkpointing)."""
    return bool(torch._C._current_graph_task_id() != -1)


def is_edited(network: nn.Module) -> bool:
    """Say whether an edit is active on any module of a network, in whichever thread it was entered."""
    points = (_POINTS.get(module) for module in network.modules())
    return any(point is not None and point.editors for point in points)


def check_pristine(network: nn.Module, purpose: str) -> None:
    """Check that a network runs as it is: no edit is active on it.

    Parameters
    ----------
    network
        The network.
    purpose
        What needs the model as it is, such as ``"verify"``; the message begins with it.

    Raises
    ------
    EditError
        If an edit is active, in whichever thread.
    """
    if is_edited(network):
        raise EditError(
            f"{purpose} needs the model as it is, and an edit is active on it. Leave the edit's with block first."
        )


def clean_copy(network: nn.Module) -> nn.Module:
    """Return a deep copy of a network without this library's hooks; hooks that others have set are copied too."""
    with _LOCK:
        made = copy.deepcopy(network)
        pairs = list(zip(network.modules(), made.modules(), strict=True))
        for module, copied in pairs:
            point = _POINTS.get(module)
            if point is not None:
                vars(copied).pop("forward", None)
                if point.previous is not None:
                    copied.forward = copy.deepcopy(point.previous, {id(module): copied})
            for kind, hooks in vars(copied).items():
                if kind.endswith("_hooks") and isinstance(hooks, dict):
                    for key in [key for key, hook in hooks.items() if hasattr(hook, _OURS)]:
                        del hooks[key]
    return made


def without_hooks(network: nn.Module) -> nn.Module:
    """Return a network itself if it has none of this library's hooks, else a `clean_copy`."""
    hooks = (hook for module in network.modules() for kind in _HOOKS for hook in vars(module)[kind].values())
    return clean_copy(network) if is_intercepted(network) or any(hasattr(hook, _OURS) for hook in hooks) else network


# ---------------------------------------------------------------- contexts


class Reentrant:
    """A context that may be entered again inside itself: it attaches once, and detaches after the last exit.

    Subclasses say what to attach in `attach`.

    Raises
    ------
    RuntimeError
        If a second thread enters it; make one for each thread.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._owner: int | None = None
        self._attached = ExitStack()

    def attach(self, stack: ExitStack) -> None:
        """Attach hooks, and push onto ``stack`` what removes them."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        here = threading.get_ident()
        with _LOCK:
            if self._depth and self._owner != here:
                raise RuntimeError(
                    f"This {type(self).__name__} is entered in another thread; make one for each thread."
                )
            if not self._depth:
                self._attached, self._owner = ExitStack(), here
                try:
                    self.attach(self._attached)
                except BaseException:  # an interrupt too: what is attached already is removed
                    self._attached.close()
                    raise
            self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        with _LOCK:
            if self._depth:
                self._depth -= 1
                if not self._depth:
                    self._attached.close()


class _Flags:
    """Training flags of a network that is in eval mode for as long as any thread needs it so."""

    def __init__(self, network: nn.Module) -> None:
        self.users = 0
        self.flags = [(module, module.training) for module in network.modules()]


_EVALUATING: weakref.WeakKeyDictionary[nn.Module, _Flags] = weakref.WeakKeyDictionary()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module in eval mode without gradients; afterwards each has its own training flag again.

    Where several threads do so at once, that is after the last of them. The network runs in its own dtype, whatever
    autocast is around, and as it was written, even if it was compiled: what is compiled tells nothing of its modules.
    """
    with _LOCK:
        found = _EVALUATING.get(network)
        if found is None:
            found = _EVALUATING[network] = _Flags(network)
        found.users += 1
        network.eval()
    try:
        with own_arithmetic(), torch.no_grad(), _as_written(network):
            yield
    finally:
        with _LOCK:
            found.users -= 1
            if not found.users:
                _EVALUATING.pop(network, None)
                for module, flag in found.flags:
                    module.training = flag


def _as_written(network: nn.Module) -> AbstractContextManager[Any]:
    if not any(getattr(module, "_compiled_call_impl", None) for module in network.modules()):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _aside() -> AbstractContextManager[None]:
    """Compute beside a pass of the user, whose autocast and default dtype are not for this; compiled code has none."""
    return nullcontext() if torch.compiler.is_compiling() else own_arithmetic()


# ---------------------------------------------------------------- listening


def listen(
    module: nn.Module,
    *,
    before: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None] | None = None,
    after: Callable[[nn.Module, tuple[Any, ...], Any], Any] | None = None,
) -> Callable[[], None]:
    """Call ``before(module, inputs, named inputs)`` and ``after(module, inputs, output)`` in passes of this thread.

    What ``after`` returns, unless it is ``None``, takes the output's place. Passes of other threads, and layers that
    run again during backward, are not heard.

    Returns
    -------
    Callable
        Removes the hooks.
    """
    owner = threading.get_ident()

    def heard() -> bool:
        return threading.get_ident() == owner and not in_backward()

    def unpacked(tensor: Tensor) -> Tensor:
        return tensor

    def apart() -> AbstractContextManager[None]:
        """Keep what a listener saves for its gradient out of what checkpointing counts, since it does not run again."""
        hooks = torch.autograd.graph.saved_tensors_hooks(unpacked, unpacked)
        return hooks if torch.is_grad_enabled() else nullcontext()

    # Plain functions, so that copying a network does not copy what listens to it.
    # A pass of another thread may meet the hook before torch has noted that it takes named inputs.
    def tell_before(here: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any] | None = None) -> None:
        if before is not None and heard():
            with apart(), _aside():
                before(here, inputs, named or {})

    def tell_after(here: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if after is None or not heard():
            return None
        with apart(), _aside():
            return after(here, inputs, output)

    stack = ExitStack()
    with _LOCK:
        if before is not None:
            setattr(tell_before, _OURS, True)
            stack.callback(module.register_forward_pre_hook(tell_before, with_kwargs=True).remove)
        if after is not None:
            setattr(tell_after, _OURS, True)
            stack.callback(module.register_forward_hook(tell_after).remove)
    return stack.close


class Tap(Reentrant):
    """Listen to a site during forward passes of this thread; hooks are removed on exit, whatever happens.

    Each captured tensor is handed at once to a function that keeps what is wanted of it, so that the inputs of
    24 layers are never held together.

    Parameters
    ----------
    network, site
        The network and its site.
    on_source
        Called with (number of the term, its sources as (n, t, s_term * kernel)).
    on_channels
        Called with the channels (n, t, d).
    on_entering
        For a stream: called with what enters the window, (n, t, d).
    any_size
        Whether images of any size may pass: for what is done alike at every token. Otherwise the tokens that come are
        compared with the site's layout.

    Raises
    ------
    ImageError
        In a forward pass, if its images have other tokens than the layout.
    """

    def __init__(
        self,
        network: nn.Module,
        site: Site,
        *,
        on_source: Callable[[int, Tensor], None] | None = None,
        on_channels: Callable[[Tensor], None] | None = None,
        on_entering: Callable[[Tensor], None] | None = None,
        any_size: bool = False,
    ) -> None:
        super().__init__()
        self._network, self._site = network, site
        self._on_source, self._on_channels, self._on_entering = on_source, on_channels, on_entering
        self._any_size = any_size

    def attach(self, stack: ExitStack) -> None:
        """Set the hooks."""
        network, site = self._network, self._site

        def checked(tokens: Tensor, *, channels_last: bool = True) -> Tensor:
            if not self._any_size:
                site.layout.check(tokens.shape, channels_last=channels_last)
            return tokens

        on_source, on_channels, on_entering = self._on_source, self._on_channels, self._on_entering
        if on_source is not None:
            for number, term in enumerate(site.terms):

                def source(layer: nn.Module, inputs: tuple[Any, ...], _: Any, number: int = number) -> None:
                    tokens = source_tokens(layer, inputs[0])
                    checked(tokens if isinstance(layer, nn.Conv2d) else inputs[0])
                    on_source(number, tokens)

                stack.callback(listen(network.get_submodule(term.layer), before=source))
        if on_entering is not None and site.kind == STREAM:

            def entering(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                on_entering(as_tokens(checked(inputs[0] if inputs else next(iter(named.values())))))

            stack.callback(listen(network.get_submodule(site.entry), before=entering))
        if on_channels is not None:
            channels_last = site.kind != "convolution"

            def channels(_: nn.Module, __: Any, output: Any) -> None:
                found = checked(first_tensor(output), channels_last=channels_last)
                on_channels(site.outputs(network, as_tokens(found, channels_last=channels_last)))

            stack.callback(listen(network.get_submodule(site.exit), after=channels))


# ---------------------------------------------------------------- changing


Before = Callable[[nn.Module, tuple[Any, ...]], None]
After = Callable[[Any], Any]


class _Point:
    """All who intercept one module; its forward is replaced while there are any."""

    def __init__(self, module: nn.Module) -> None:
        self.module = weakref.ref(module)
        self.previous = vars(module).get("forward")  # someone else may have put one in
        self.calls: dict[int, tuple[Before | None, After | None]] = {}

        self.editors: dict[int, int] = {}  # thread of each call that is an edit

    def install(self, module: nn.Module) -> None:
        point, previous = self, self.previous

        def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
            for before, _ in tuple(point.calls.values()):
                if before is not None:
                    before(self, inputs)
            # A copy of the module made meanwhile runs its own weights, not those of the module copied.
            if previous is None:
                output = type(self).forward(self, *inputs, **named)
            elif isinstance(previous, MethodType) and previous.__self__ is point.module():
                output = previous.__func__(self, *inputs, **named)
            else:
                output = previous(*inputs, **named)
            for _, after in tuple(point.calls.values()):
                if after is not None:
                    output = after(output)
            return output

        # Left out of compiled graphs: who intercepts is looked up anew in every pass.
        disable: Any = torch.compiler.disable
        module.forward = MethodType(disable(forward), module)

    def remove(self, key: int) -> None:
        with _LOCK:
            self.calls.pop(key, None)
            self.editors.pop(key, None)
            module = self.module()
            if self.calls or module is None or _POINTS.get(module) is not self:
                return
            del _POINTS[module]
            vars(module).pop("forward", None)
            if self.previous is not None:
                module.forward = self.previous


_POINTS: weakref.WeakKeyDictionary[nn.Module, _Point] = weakref.WeakKeyDictionary()
_KEYS = itertools.count()
_EDITORS: weakref.WeakKeyDictionary[nn.Module, list[int]] = weakref.WeakKeyDictionary()
"""The threads that edit each network, one entry for each interception."""


def intercept(
    module: nn.Module, *, before: Before | None = None, after: After | None = None, edits: nn.Module | None = None
) -> Callable[[], None]:
    """Call ``before(module, inputs)`` at each forward pass of this thread and hand its output through ``after``.

    Several may intercept one module: their ``after`` run in the order in which they came. Layers that run again during
    backward are intercepted too, so that what is computed again is what was computed.

    Parameters
    ----------
    module
        What to intercept.
    before, after
        What to call.
    edits
        The network that a user edits by this, if it is an edit: then a pass of a thread that has no edit of its own on
        the network raises `EditError`, rather than be edited, or not be edited, without a word. Otherwise passes of
        other threads go by.

    Returns
    -------
    Callable
        Removes the interception; calling it twice does no harm.
    """
    owner = threading.get_ident()

    def own() -> bool:
        here = threading.get_ident()
        if here == owner:
            return True
        threads = set() if edits is None else set(_EDITORS.get(edits, ()))
        if in_backward():  # on a GPU, backward has threads of its own
            return threads in (set(), {owner})
        if edits is not None and here not in threads:
            raise EditError(
                "An edit is active on this model in another thread, and none in this one. Enter the edit in the thread "
                "that runs the model, or give this thread a model of its own."
            )
        return False

    def own_before(here: nn.Module, inputs: tuple[Any, ...]) -> None:
        if before is not None and own():
            with _aside():
                before(here, inputs)

    def own_after(output: Any) -> Any:
        if after is None or not own():
            return output
        with _aside():
            return after(output)

    with _LOCK:
        found = _POINTS.get(module) or _Point(module)
        if not found.calls:
            found.install(module)
            _POINTS[module] = found
        key = next(_KEYS)
        found.calls[key] = None if before is None else own_before, None if after is None else own_after
        if edits is not None:
            found.editors[key] = owner
            _EDITORS.setdefault(edits, []).append(owner)

    def remove() -> None:
        with _LOCK:
            if edits is not None and key in found.editors:
                _EDITORS[edits].remove(owner)
            found.remove(key)

    return remove


def is_intercepted(network: nn.Module) -> bool:
    """Say whether any module of a network is intercepted."""
    return any(module in _POINTS for module in network.modules())


# ---------------------------------------------------------------- tensors


def as_dtype(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a batch in another precision; whole numbers, which are names of tokens, stay as they are."""
    return batch.to(dtype) if batch.is_floating_point() else batch


def as_tokens(tensor: Tensor, *, channels_last: bool = True) -> Tensor:
    """Bring (n, d), (n, t, d), (n, h, w, d), or (n, d, h, w) with ``channels_last=False``, to (n, t, d)."""
    if not channels_last:
        return tensor.flatten(2).transpose(1, 2)
    return tensor[:, None] if tensor.ndim == 2 else tensor.flatten(1, -2)


def from_tokens(tokens: Tensor, like: Tensor, *, channels_last: bool = True) -> Tensor:
    """Undo `as_tokens`: bring (n, t, d) to the shape of ``like``."""
    return tokens.reshape(like.shape) if channels_last else tokens.transpose(1, 2).reshape(like.shape)


def source_tokens(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return a layer's input as sources (n, t, s * kernel): for a convolution, the patch under its kernel."""
    if not isinstance(layer, nn.Conv2d):
        return as_tokens(inputs)
    if _pointwise(layer):
        strided = inputs[:, :, :: layer.stride[0], :: layer.stride[1]]
        return as_tokens(strided, channels_last=False)
    padded, padding = inputs, layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        # The layer knows how much to pad on each side; only "zeros" with numbers is what unfold does by itself.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        sides = layer._reversed_padding_repeated_twice
        padded, padding = nn.functional.pad(inputs, list(sides), mode=mode), (0, 0)
    columns = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, padding, layer.stride)
    return columns.transpose(1, 2)


def _pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.padding in {(0, 0), "valid"}


def for_analysis(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU and in at least float32: for what is small, and is looked at there."""
    return widened(tensor.cpu())


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in at least float32, on its device: sums over many tokens would not survive half precision.

    Sums are kept in float64; a device that has none, as MPS, leaves the work to the CPU.
    """
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
