"""The sparse autoencoders of overcomplete behind our interface, against overcomplete itself and planted directions."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from elude_nb.baselines import METHODS, Overcomplete, Plan
from elude_nb.baselines import overcomplete as adapter
from elude_nb.baselines.overcomplete import KINDS
from elude_nb.baselines.sae_training import unit_rows
from elude_nb.core.recording import Recording
from elude_nb.errors import NotFittedError
from tests.baselines.test_sae import ACTIVE, ATOMS, D, planted, recording_of

if sys.version_info >= (3, 13):
    pytest.skip("overcomplete asks for Python below 3.13", allow_module_level=True)

QUICK: dict[str, Any] = {"steps": 300, "batch_size": 128, "learning_rate": 4e-3}


@pytest.fixture(scope="module")
def data() -> tuple[Recording, Recording, torch.Tensor]:
    seen, atoms = planted(1800)
    first, rest = seen.parts(1500)
    return first, rest, atoms


@pytest.fixture(scope="module")
def fitted(data) -> dict[str, Overcomplete]:
    return {kind: Overcomplete(kind, 48, ACTIVE, **QUICK).fit(data[0]) for kind in KINDS}


def unexplained(method: Overcomplete, recording: Recording) -> float:
    left = recording.channels - method.reconstruct(recording)
    return float(left.square().sum() / (recording.channels - recording.channels.mean(0)).square().sum())


@pytest.mark.parametrize("kind", KINDS)
def test_planted_directions_are_found_and_little_is_left(data, fitted, kind) -> None:
    method = fitted[kind]
    assert unexplained(method, data[1]) < 0.35
    chance = data[2] @ unit_rows(torch.randn(48, D, generator=torch.Generator().manual_seed(0))).T
    found = (data[2] @ unit_rows(method.decoder_).T).amax(1).mean()
    assert float(found) > float(chance.amax(1).mean()) + 0.08


def test_kinds_have_the_sparsity_that_was_asked_for(data, fitted) -> None:
    for kind in ("TopK", "matching pursuit", "archetypal", "relaxed archetypal"):
        assert int((fitted[kind].encode(data[1]) != 0).sum(1).max()) == ACTIVE
    for kind in ("BatchTopK", "JumpReLU"):
        active = (fitted[kind].encode(data[0]) != 0).sum(1).double()
        assert float(active.mean()) == pytest.approx(ACTIVE, rel=0.25)
        assert len(active.unique()) > 2
    few = Overcomplete("ReLU", 48, l1=1.0, **QUICK).fit(data[0]).encode(data[1])
    assert float((few > 0).sum(1).double().mean()) < 0.5 * float(
        (fitted["ReLU"].encode(data[1]) > 0).sum(1).double().mean()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_units_and_channels_are_overcompletes_own(data, fitted, kind) -> None:
    """Its module on tokens less their mean over their scale, and scaled back."""
    method, new = fitted[kind], data[1]
    codes = method.sae_.encode((new.channels - method.mean_) / method.scale_)[1]
    torch.testing.assert_close(method.encode(new), codes * method.scale_)
    made = method.sae_.decode(codes) * method.scale_ + method.mean_
    torch.testing.assert_close(method.reconstruct(new), made, rtol=1e-4, atol=1e-3)
    assert method.size_in_bytes() == sum(value.nbytes for value in method.sae_.state_dict().values()) > 48 * D * 4


def test_atoms_of_an_archetypal_autoencoder_are_mixtures_of_tokens(fitted) -> None:
    for kind, far in (("archetypal", 1e-5), ("relaxed archetypal", 1.001)):
        dictionary: Any = fitted[kind].sae_.dictionary
        weights = dictionary.W.relu()
        torch.testing.assert_close(weights.sum(1), torch.ones(48))
        mixtures = weights @ dictionary.C * dictionary.multiplier.exp()
        away = (fitted[kind].decoder_ - mixtures).norm(dim=1) / dictionary.multiplier.exp()
        assert float(away.max()) < far
    assert float(away.max()) > 1e-3  # relaxed indeed


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_settles_it_and_the_global_generator_is_left_alone(data, kind) -> None:
    few = next(data[0].parts(400))
    state = torch.get_rng_state()
    first, again, other = (Overcomplete(kind, 16, 2, steps=20, seed=seed).fit(few) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.encode(few).equal(again.encode(few))
    assert not first.decoder_.equal(other.decoder_)


def test_training_works_where_gradients_are_off_and_dtypes_go_in_and_out(data) -> None:
    few = next(data[0].parts(400))
    with torch.no_grad():
        method = Overcomplete("TopK", 16, 2, steps=20).fit(few)
    double = recording_of(few.channels.double())
    assert method.encode(double).dtype == method.reconstruct(double).dtype == torch.float64
    torch.testing.assert_close(method.encode(double), method.encode(few).double())
    assert not method.encode(few).requires_grad
    assert method.encode(recording_of(few.channels[:0])).shape == (0, 16)


def test_nothing_works_before_fit_and_bad_tokens_are_refused(data) -> None:
    method = Overcomplete("TopK", 10, 2, steps=2)
    for call in (lambda: method.encode(data[1]), lambda: method.decode(torch.zeros(1, 10)), method.size_in_bytes):
        with pytest.raises(NotFittedError, match="'TopK SAE'"):
            call()
    with pytest.raises(ValueError, match=r"9 tokens .* width=10"):
        method.fit(recording_of(torch.rand(9, 4)))
    with pytest.raises(ValueError, match="same"):
        method.fit(recording_of(torch.full((20, 4), 0.3)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        method.fit(recording_of(torch.full((20, 4), math.nan)))
    with pytest.raises(ValueError, match=r"24 channels.* 23"):
        method.fit(data[0]).encode(recording_of(data[1].channels[:, 1:]))
    with pytest.raises(ValueError, match="lower learning_rate"):
        Overcomplete("ReLU", 10, 2, steps=30, learning_rate=1e37).fit(data[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Overcomplete("TopKK", 4), "'TopKK'.*'TopK'"),
        (lambda: Overcomplete("TopK", 4, 5), "k=5 .* 4"),
        (lambda: Overcomplete("TopK", 4, 2, steps=0), "steps=0"),
        (lambda: Overcomplete("ReLU", 4, 2, l1=-1.0), "l1=-1.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_without_the_package_the_error_says_what_to_type(monkeypatch, vit32) -> None:
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    plan = Plan(vit32, None)  # type: ignore[arg-type]
    for name in ("BatchTopK SAE", "ReLU SAE", "matching pursuit SAE"):
        with pytest.raises(ImportError, match=rf"'{name}'.*pip install 'elude-nb\[baselines\]'"):
            METHODS[name](plan)
    METHODS["TopK SAE"](plan)
    METHODS["transcoder"](plan)


def test_a_package_that_cannot_be_imported_says_so(monkeypatch, data) -> None:
    monkeypatch.setitem(sys.modules, "overcomplete.sae", None)
    with pytest.raises(ImportError, match=r"elude-nb\[baselines\].*overcomplete"):
        Overcomplete("TopK", 16, 2, steps=2).fit(data[0])


def test_it_is_imported_only_where_it_is_used_and_matplotlib_stays_as_it_was() -> None:
    code = (
        "import sys, matplotlib.cm; before = hasattr(matplotlib.cm, 'get_cmap')\n"
        "import elude_nb.baselines; assert 'overcomplete' not in sys.modules\n"
        "from elude_nb.baselines import overcomplete as o; o.Overcomplete('TopK', 4, 2)\n"
        "assert 'overcomplete' not in sys.modules; o._import_sae('x')\n"
        "assert hasattr(matplotlib.cm, 'get_cmap') == before and 'overcomplete' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_our_topk_is_no_worse_than_theirs(data, fitted) -> None:
    """Same tokens, latents and active latents: what ours leaves unexplained beside theirs."""
    from elude_nb.baselines import TopK

    ours = TopK(48, ACTIVE, **QUICK).fit(data[0])
    left = data[1].channels - ours.reconstruct(data[1])
    ours_left = float(left.square().sum() / (data[1].channels - data[1].channels.mean(0)).square().sum())
    assert ours_left < 1.2 * unexplained(fitted["TopK"], data[1])
    assert ATOMS < 48
