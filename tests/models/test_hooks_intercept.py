from __future__ import annotations

import copy
import gc
import weakref
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elude_nb.models.hooks import intercept, is_intercepted


def layer() -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    made = nn.Linear(3, 3).double()
    with torch.no_grad():
        made.weight.copy_(torch.randn(3, 3, generator=generator))
    return made


INPUTS = torch.arange(6, dtype=torch.float64).reshape(2, 3)


def test_before_sees_the_inputs_and_after_the_output() -> None:
    module = layer()
    seen: list[Any] = []
    plain = module(INPUTS)

    def after(output: Tensor) -> Tensor:
        seen.append(output)
        return 2 * output

    remove = intercept(
        module,
        before=lambda which, inputs: seen.append((which, inputs)),
        after=after,
    )
    assert module(INPUTS).equal(2 * plain)
    (which, inputs), output = seen
    assert which is module
    assert inputs[0] is INPUTS
    assert output.equal(plain)
    remove()
    assert module(INPUTS).equal(plain)
    assert len(seen) == 2


def test_nothing_is_left_and_removing_twice_does_no_harm() -> None:
    module = layer()
    before = dict(vars(module))
    first, second = intercept(module), intercept(module)
    assert is_intercepted(nn.Sequential(module))
    first()
    first()
    assert is_intercepted(module)
    second()
    second()
    assert vars(module) == before
    assert not is_intercepted(module)
    third = intercept(module, after=lambda output: output + 1)
    first()
    second()
    assert is_intercepted(module)  # what was removed before does not take away who came later
    third()
    assert vars(module) == before


def test_afters_run_in_the_order_in_which_they_came() -> None:
    module = layer()
    plain = module(INPUTS)
    removers = [intercept(module, after=lambda x: x + 1), intercept(module, after=lambda x: x * 3)]
    assert module(INPUTS).equal((plain + 1) * 3)
    removers[0]()
    assert module(INPUTS).equal(plain * 3)
    removers[1]()
    assert module(INPUTS).equal(plain)


def test_one_who_leaves_during_the_pass_does_no_harm() -> None:
    module = layer()
    plain = module(INPUTS)
    removers: list[Any] = []
    removers.append(intercept(module, before=lambda *_: removers[0]()))
    assert module(INPUTS).equal(plain)
    assert "forward" not in vars(module)


def test_hooks_still_run_outside_of_it() -> None:
    module = layer()
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    remove = intercept(module, after=lambda output: output + 1)
    found = module(INPUTS)
    remove()
    handle.remove()
    assert seen[0] is found


def test_keyword_arguments_go_through() -> None:
    class Adds(nn.Module):
        def forward(self, one: Tensor, *, other: Tensor) -> Tensor:
            return one + other

    module = Adds()
    remove = intercept(module, after=lambda x: -x)
    assert module(INPUTS, other=INPUTS).equal(-2 * INPUTS)
    remove()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_goes_through_and_the_next_pass_works(error: type[BaseException]) -> None:
    module = layer()
    plain = module(INPUTS)
    wrong = [True]

    def before(*_: object) -> None:
        if wrong.pop() if wrong else False:
            raise error

    remove = intercept(module, before=before, after=lambda x: x + 1)
    with pytest.raises(error):
        module(INPUTS)
    assert module(INPUTS).equal(plain + 1)
    remove()
    assert "forward" not in vars(module)


def test_a_forward_that_someone_else_put_in_comes_back() -> None:
    module = layer()
    plain = module(INPUTS)

    def theirs(self: nn.Linear, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight, self.bias) * 5

    for put in (MethodType(theirs, module), lambda inputs: theirs(module, inputs)):
        module.forward = put  # type: ignore[method-assign]
        remove = intercept(module, after=lambda x: x + 1)
        assert module(INPUTS).equal(plain * 5 + 1)
        remove()
        assert module(INPUTS).equal(plain * 5)
        assert vars(module)["forward"] is put


def test_a_copy_made_meanwhile_runs_its_own_weights() -> None:
    module = layer()
    plain = module(INPUTS)
    remove = intercept(module, after=lambda x: x + 1)
    made = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    remove()
    assert module(INPUTS).equal(plain)
    assert made(INPUTS).equal(2 * plain)


def test_a_copy_of_a_copy_runs_its_own_weights_too() -> None:
    """The first copy keeps a forward of its own; a copy of it, made while it is intercepted, must not run it."""
    module = layer()
    plain = module(INPUTS)
    remove = intercept(module)
    first = copy.deepcopy(module)
    remove()
    remove = intercept(first, after=lambda x: x + 1)
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(2)
    remove()
    assert first(INPUTS).equal(plain)
    assert second(INPUTS).equal(2 * plain)


def test_an_intercepted_module_is_freed() -> None:
    module = layer()
    gone = weakref.ref(module)
    remove = intercept(module, after=lambda x: x + 1)
    del module
    gc.collect()
    assert gone() is None
    remove()


def test_state_dicts_are_the_same() -> None:
    module = layer()
    keys = list(module.state_dict())
    remove = intercept(module)
    assert list(module.state_dict()) == keys
    remove()


@pytest.mark.parametrize("compiled_first", [True, False])
def test_compiled_models_notice(compiled_first: bool) -> None:
    torch.compiler.reset()
    module = nn.Sequential(layer(), nn.Tanh())
    plain = module(INPUTS)
    compiled = torch.compile(module, backend="eager")
    if compiled_first:
        assert compiled(INPUTS).equal(plain)
    remove = intercept(module[0], after=lambda x: x + 1)
    expected = module(INPUTS)
    assert not expected.equal(plain)
    assert compiled(INPUTS).equal(expected)
    remove()
    assert compiled(INPUTS).equal(plain)
