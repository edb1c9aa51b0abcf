from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb._util.files import save_result
from elude_nb.baselines.sae import Matryoshka, SparseAutoencoder, TopK, Transcoder
from elude_nb.baselines.sae_training import (
    Weights,
    _Run,
    auxiliary_loss,
    batches,
    hold_out,
    keep_strongest,
    project_out,
    squared_error,
    unit_rows,
)
from elude_nb.core.recording import Recording
from elude_nb.errors import NotFittedError, StoreError

ATOMS, ACTIVE, D = 32, 3, 24
QUICK: dict[str, Any] = {"steps": 600, "batch_size": 128, "learning_rate": 4e-3}
KINDS: dict[str, Callable[..., SparseAutoencoder]] = {
    "TopK": lambda width=48, k=ACTIVE, **more: TopK(width, k, **{**QUICK, **more}),
    "Matryoshka": lambda width=48, k=ACTIVE, **more: Matryoshka(width, k, prefixes=(0.25, 1), **{**QUICK, **more}),
}


def recording_of(channels: torch.Tensor, per_image: int = 8) -> Recording:
    numbers = torch.arange(len(channels))
    none = channels.new_zeros(len(channels), 0)
    return Recording(channels, none, torch.zeros_like(channels), numbers // per_image, numbers % per_image)


def planted(count: int, atoms: int = ATOMS, active: int = ACTIVE) -> tuple[Recording, torch.Tensor]:
    """Tokens that are sums of a few known directions, far from the origin and in large units."""
    generator = torch.Generator().manual_seed(100)
    directions = unit_rows(torch.randn(atoms, D, generator=generator))
    which = torch.rand(count, atoms, generator=generator).argsort(1)[:, :active]
    amounts = torch.zeros(count, atoms).scatter(1, which, 0.5 + torch.rand(count, active, generator=generator))
    noise = 0.02 * torch.randn(count, D, generator=generator)
    return recording_of(7 * (amounts @ directions + noise + torch.linspace(-1, 1, D))), directions


def unexplained(method: SparseAutoencoder, recording: Recording) -> float:
    """Literal: what is left over what there is, token by token."""
    pairs = list(zip(recording.channels.double(), method.reconstruct(recording).double(), strict=True))
    mean = sum(token for token, _ in pairs) / len(pairs)
    return float(sum(((a - b) ** 2).sum() for a, b in pairs) / sum(((a - mean) ** 2).sum() for a, _ in pairs))


@pytest.fixture(scope="module")
def data() -> tuple[Recording, Recording, torch.Tensor]:
    """Tokens to train on, tokens to test on, and the planted directions."""
    seen, atoms = planted(3000)
    first, rest = seen.parts(2400)
    return first, rest, atoms


@pytest.fixture(scope="module")
def fitted(data) -> dict[str, SparseAutoencoder]:
    return {name: make().fit(data[0]) for name, make in KINDS.items()}


# ------------------------------------------------------------------- published behaviour


def test_kinds_have_names_of_their_own(fitted) -> None:
    assert [method.name for method in fitted.values()] == ["TopK SAE", "Matryoshka SAE"]
    assert not any(method.lossless or method.needs_labels or method.needs_sources for method in fitted.values())
    assert TopK(4, 2, name="mine").name == "mine"


@pytest.mark.parametrize("kind", KINDS)
def test_more_latents_and_more_active_ones_leave_less(data, fitted, kind) -> None:
    seen, new, _ = data
    narrow = unexplained(KINDS[kind](width=12).fit(seen), new)
    sparse = unexplained(KINDS[kind](k=1).fit(seen), new)
    usual = unexplained(fitted[kind], new)
    assert usual < 0.75 * narrow
    assert usual < 0.75 * sparse
    assert usual < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_planted_directions_are_found(data, fitted, kind) -> None:
    cosines = data[2] @ fitted[kind].decoder_.T
    assert float(cosines.amax(1).mean()) > (0.85 if kind == "Matryoshka" else 0.9)  # its first latents are blends
    chance = data[2] @ unit_rows(torch.randn(48, D, generator=torch.Generator().manual_seed(0))).T
    assert float(chance.amax(1).mean()) < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_latents_die_if_they_are_revived(kind) -> None:
    seen = planted(2400, atoms=256, active=6)[0]  # more to learn than there are latents: none needs to die
    dead = {}
    for revive in (True, False):
        method = KINDS[kind](width=128, k=2, learning_rate=2e-2, steps=400, revive=revive).fit(seen)
        dead[revive] = float((method.encode(seen).amax(0) <= 0).float().mean())
    assert dead[True] < 0.5 * dead[False]
    assert dead[False] > 0.05


def test_topk_has_exactly_k_active_latents(data, fitted) -> None:
    active = (fitted["TopK"].encode(data[1]) != 0).sum(1)
    assert int(active.max()) == ACTIVE
    assert float((active == ACTIVE).float().mean()) > 0.99  # fewer only where fewer are positive


def test_a_matryoshka_has_k_active_latents_on_average_and_not_at_every_token(data, fitted) -> None:
    active = (fitted["Matryoshka"].encode(data[0]) != 0).sum(1)
    assert float(active.double().mean()) == pytest.approx(ACTIVE, rel=0.03)
    assert len(active.unique()) > 2


def test_the_first_latents_of_a_matryoshka_do_better_alone(data, fitted) -> None:
    new, errors = data[1], {}
    for kind in ("Matryoshka", "TopK"):
        first = fitted[kind].encode(new)
        first[:, 12:] = 0
        errors[kind] = squared_error(new.channels - fitted[kind].decode(first))
    assert errors["Matryoshka"] < 0.9 * errors["TopK"]


# ------------------------------------------------------------------- against a literal second implementation


def slow_units(method: SparseAutoencoder, token: torch.Tensor) -> list[float]:
    """One token at a time, in float64, from the formulas."""
    encoder, bias = method.encoder_.double(), method.bias_.double()
    centred = token.double() - method.centre_.double()
    values = [float(sum(centred * encoder[:, i])) + float(bias[i]) for i in range(encoder.shape[1])]
    if isinstance(method, TopK):
        kept = sorted(range(len(values)), key=lambda i: -values[i])[: method.k]
        return [max(value, 0.0) if i in kept else 0.0 for i, value in enumerate(values)]
    least = float(method.threshold_) if isinstance(method, Matryoshka) else 0.0
    return [value if value > 0 and value >= least else 0.0 for value in values]


@pytest.mark.parametrize("kind", KINDS)
def test_units_and_channels_are_those_of_a_slow_implementation(data, fitted, kind) -> None:
    method, new = fitted[kind], next(data[1].parts(40))
    units = method.encode(new)
    expected = torch.tensor([slow_units(method, token) for token in new.channels], dtype=torch.float64)
    torch.testing.assert_close(units.double(), expected, rtol=1e-4, atol=1e-4)
    decoded = [
        sum(float(z) * row.double() for z, row in zip(token, method.decoder_, strict=True)) + method.centre_.double()
        for token in units
    ]
    torch.testing.assert_close(method.reconstruct(new).double(), torch.stack(decoded), rtol=1e-5, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(b=st.integers(1, 6), u=st.integers(1, 8), k=st.integers(1, 8), seed=st.integers(0, 1000))
def test_what_is_active_in_a_batch(b, u, k, seed) -> None:
    k = min(k, u)
    values = torch.randn(b, u, generator=torch.Generator().manual_seed(seed))
    places = [(row, column) for row in range(b) for column in range(u)]
    best = sorted(places, key=lambda place: -float(values[place]))[: k * b]
    expected = torch.zeros(b, u)
    for place in best:
        expected[place] = max(float(values[place]), 0.0)
    assert torch.equal(Matryoshka(u, k).activate(values), expected)
    rows = torch.cat([Matryoshka(u, k).activate(row[None]) for row in values])
    assert torch.equal(TopK(u, k).activate(values), rows)


def drawn_weights(seed: int = 0, d: int = 5, u: int = 7) -> tuple[Weights, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = Weights.random(d, d, u, generator)
    weights.centre.normal_(generator=generator)
    return weights, torch.randn(6, d, generator=generator), torch.rand(6, u, generator=generator)


def test_random_weights_are_tied_unit_directions() -> None:
    weights = drawn_weights()[0]
    assert torch.equal(weights.encoder, weights.decoder.T)
    torch.testing.assert_close(weights.decoder.norm(dim=1), torch.ones(7))
    assert not weights.bias.any()


def test_losses_are_their_formulas() -> None:
    weights, tokens, latents = drawn_weights()

    def error(prefix: int) -> float:
        total = 0.0
        for token, latent in zip(tokens, latents, strict=True):
            found = weights.centre.clone()
            for i in range(prefix):
                found += latent[i] * weights.decoder[i]
            total += float(((token - found) ** 2).sum())
        return total / len(tokens)

    assert float(TopK(7, 2).loss(tokens, latents, weights)[0]) == pytest.approx(error(7), rel=1e-5)
    nested = Matryoshka(7, 2, prefixes=(0.01, 0.5, 1))
    assert nested.ends() == [1, 4, 7]
    loss, left = nested.loss(tokens, latents, weights)
    assert float(loss) == pytest.approx((error(1) + error(4) + error(7)) / 3, rel=1e-5)
    torch.testing.assert_close(left, tokens - weights.decode(latents))
    assert float(Matryoshka(7, 2, prefixes=(1,)).loss(tokens, latents, weights)[0]) == pytest.approx(error(7), rel=1e-5)


@pytest.mark.parametrize("dead", [[], [2], [0, 3, 6], list(range(7))])
def test_auxiliary_loss_asks_the_strongest_dead_latents_for_what_is_left(dead) -> None:
    weights, tokens, values = drawn_weights(3)
    values = values - 0.3
    left = tokens.requires_grad_()
    mask = torch.isin(torch.arange(7), torch.tensor(dead))
    expected = 0.0
    for token, value in zip(left.detach(), values, strict=True):
        best = sorted(dead, key=lambda i: -float(value[i]))[: 5 // 2]
        found = sum((max(float(value[i]), 0.0) * weights.decoder[i] for i in best), torch.zeros(5))
        expected += float(((token - found) ** 2).sum()) / len(tokens) if dead else 0.0
    loss = auxiliary_loss(left, values, mask, weights.decoder.requires_grad_())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    if dead:
        loss.backward()
        assert left.grad is None  # what is left counts as given
        gradient = weights.decoder.grad
        assert gradient is not None
        assert not gradient[~mask].any()
        assert gradient[mask].any()


def test_the_threshold_is_the_mean_over_batches_of_the_smallest_active_latent(data) -> None:
    seen = data[0]
    method = Matryoshka(16, 2, steps=30, batch_size=len(seen)).fit(seen)  # one batch: no order of batches matters
    values = (seen.channels - method.centre_) @ method.encoder_ + method.bias_
    positive = sorted((value for value in values.flatten().tolist() if value > 0), reverse=True)
    assert float(method.threshold_) == pytest.approx(positive[2 * len(seen) - 1], rel=1e-3)


# ------------------------------------------------------------------- training


def test_the_gradient_of_the_decoder_only_turns_its_rows() -> None:
    weights, tokens, latents = drawn_weights()
    weights.decoder.requires_grad_()
    squared_error(tokens - weights.decode(latents)).backward()
    gradient = weights.decoder.grad
    assert gradient is not None
    before, rows = gradient.clone(), weights.decoder.detach()
    assert float((before * rows).sum(1).abs().max()) > 0.1
    project_out(weights.decoder)
    torch.testing.assert_close((gradient * rows).sum(1), torch.zeros(7), atol=1e-6, rtol=0)
    taken = before - gradient  # lies along the rows
    torch.testing.assert_close(taken, (taken * rows).sum(1, keepdim=True) * rows, atol=1e-6, rtol=0)


def test_rows_of_the_decoder_keep_length_one(data, fitted) -> None:
    method = TopK(9, 2, learning_rate=0.5)
    seen, new = data[0].channels, data[1].channels
    run = _Run(method, (seen, seen), (new, new), torch.Generator())
    for rows in torch.arange(60).split(20):
        run.step(rows)
        torch.testing.assert_close(run.weights.decoder.norm(dim=1), torch.ones(9))
    for method in fitted.values():
        torch.testing.assert_close(method.decoder_.norm(dim=1), torch.ones(48))


def test_whole_images_are_held_out() -> None:
    images = torch.tensor([5, 5, 9, 9, 9, 2, 2, 2, 2, 7])
    held = [hold_out(images, torch.Generator().manual_seed(seed)) for seed in range(20)]
    for found in held:
        assert len(images[found].unique()) == 1
        assert not set(images[found].tolist()) & set(images[~found].tolist())
    assert len({tuple(found.tolist()) for found in held}) == 4
    many = torch.arange(50).repeat_interleave(3)
    assert int(hold_out(many, torch.Generator()).sum()) == 15


def test_a_pass_takes_no_token_twice() -> None:
    drawn = batches(10, 4, torch.Generator().manual_seed(0))
    passes = [torch.cat([next(drawn), next(drawn)]).tolist() for _ in range(30)]
    assert all(len(set(numbers)) == 8 for numbers in passes)
    assert {number for numbers in passes for number in numbers} == set(range(10))
    assert sorted(next(batches(3, 100, torch.Generator())).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_bits_and_another_seed_others(data, kind) -> None:
    few = next(data[0].parts(600))
    state = torch.get_rng_state()
    first, again, other = (KINDS[kind](steps=60, seed=seed).fit(few) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name in first.learns:
        assert torch.equal(first.learned(f"{name}_"), again.learned(f"{name}_"))
    assert not torch.equal(first.decoder_, other.decoder_)


def test_training_stops_early_and_keeps_the_best_weights(data, monkeypatch) -> None:
    noise = torch.randn(240, D, generator=torch.Generator().manual_seed(0))  # nothing that held-out tokens share
    recording, losses = recording_of(noise), list[float]()
    real = _Run.evaluate

    def evaluate(run: _Run) -> float:
        losses.append(real(run))
        return losses[-1]

    monkeypatch.setattr(_Run, "evaluate", evaluate)
    method = TopK(200, 20, steps=3000, patience=3, batch_size=128).fit(recording)
    assert len(losses) < 30  # of 60
    assert losses.index(min(losses)) < len(losses) - 1
    held = hold_out(recording.images, torch.Generator().manual_seed(0))
    left = (noise - method.reconstruct(recording))[held] / method.scale_
    assert float(squared_error(left)) == pytest.approx(min(losses), rel=1e-4)
    losses.clear()
    TopK(200, 20, steps=600, patience=100, batch_size=128).fit(recording)
    assert len(losses) == 12


def test_units_are_in_the_units_of_the_channels(data, fitted) -> None:
    seen = data[0]
    moved = recording_of(4 * seen.channels)
    for kind, method in fitted.items():
        scaled = KINDS[kind]().fit(moved)
        torch.testing.assert_close(scaled.encode(moved), 4 * method.encode(seen), rtol=1e-4, atol=1e-3)
        assert scaled.scale_ == pytest.approx(4 * method.scale_)


def test_dtypes_go_in_and_out(data, fitted) -> None:
    seen = next(data[1].parts(50))
    double = recording_of(seen.channels.double())
    for kind, method in fitted.items():
        assert method.encoder_.dtype == torch.float32
        assert torch.equal(method.encode(double), method.encode(seen).double())
        assert method.reconstruct(double).dtype == torch.float64
        assert KINDS[kind](width=8, steps=5).fit(double).decoder_.dtype == torch.float32
    assert fitted["TopK"].encode(recording_of(seen.channels[:0])).shape == (0, 48)


def test_many_tokens_are_encoded_in_parts(monkeypatch, data, fitted) -> None:
    whole = {kind: method.encode(data[1]) for kind, method in fitted.items()}
    monkeypatch.setattr("elude_nb.baselines.sae._TOKENS_AT_ONCE", 7)
    for kind, method in fitted.items():
        torch.testing.assert_close(method.encode(data[1]), whole[kind], rtol=1e-5, atol=1e-5)


def test_progress_is_shown_only_if_asked_for(data, capsys, monkeypatch) -> None:
    monkeypatch.setattr("elude_nb._util.progress._EVERY", 1e-9)  # a log has a line every ten seconds
    few = next(data[0].parts(80))
    TopK(8, 2, steps=5).fit(few)
    assert not capsys.readouterr().err
    TopK(8, 2, steps=5, progress=True).fit(few)
    assert "TopK SAE" in capsys.readouterr().err


# ------------------------------------------------------------------- to and from files


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_autoencoder_comes_back_bit_for_bit(tmp_path, data, fitted, kind) -> None:
    method = fitted[kind]
    path = method.save(tmp_path / "sub" / "it.safetensors")
    for load in (SparseAutoencoder.load, type(method).load):
        found = load(path)
        assert type(found) is type(method)
        assert found.settings() == method.settings()
        assert found.scale_ == method.scale_
        for name in method.learns:
            assert torch.equal(found.learned(f"{name}_"), method.learned(f"{name}_"))
        assert torch.equal(found.encode(data[1]), method.encode(data[1]))
        assert found.size_in_bytes() == method.size_in_bytes() > 48 * D * 8


def test_a_damaged_or_foreign_file_is_refused(tmp_path, fitted) -> None:
    path = fitted["TopK"].save(tmp_path / "it.safetensors")
    with pytest.raises(StoreError, match=r"'TopK'.*'Matryoshka'"):
        Matryoshka.load(path)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="SHA-256"):
        TopK.load(path)
    path.write_bytes(raw[:-40])
    with pytest.raises(StoreError, match="it"):
        TopK.load(path)
    save_result(path, "something else", {"a": torch.zeros(1)}, {})
    with pytest.raises(StoreError, match="something else"):
        TopK.load(path)
    with pytest.raises(FileNotFoundError):
        TopK.load(tmp_path / "nowhere.safetensors")


# ------------------------------------------------------------------- bad input


def test_nothing_works_before_fit(tmp_path, data) -> None:
    for make in KINDS.values():
        method = make()
        with pytest.raises(NotFittedError, match=method.name):
            method.encode(data[1])
        with pytest.raises(NotFittedError, match=method.name):
            method.decode(torch.zeros(2, 48))
        with pytest.raises(NotFittedError, match=method.name):
            method.save(tmp_path / "it.safetensors")
        assert method.size_in_bytes() == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("channels", "per_image", "message"),
    [
        (torch.rand(9, 4), 3, "9 tokens .* width=10"),
        (torch.rand(20, 4), 20, "1 image"),
        (torch.full((20, 4), 0.3), 4, "tokens"),
        (torch.full((20, 4), math.nan), 4, "NaN or infinite"),
        (torch.full((20, 4), math.inf), 4, "NaN or infinite"),
        (torch.rand(20, 4, 2), 4, r"\(20, 4, 2\)"),
        (torch.rand(20, 0), 4, r"\(20, 0\)"),
    ],
)
def test_tokens_that_cannot_be_learned_from_are_refused(channels, per_image, message) -> None:
    method = TopK(10, 2, steps=2)
    with pytest.raises(ValueError, match=message):
        method.fit(recording_of(channels, per_image))
    with pytest.raises(NotFittedError):
        method.decode(torch.zeros(1, 10))


def test_a_training_that_runs_away_is_an_error(data) -> None:
    with pytest.raises(ValueError, match=r"50 steps.*learning_rate=1e\+30"):
        TopK(8, 2, steps=100, learning_rate=1e30).fit(data[0])


def test_tokens_of_another_site_are_refused(data, fitted) -> None:
    with pytest.raises(ValueError, match=r"24 .* 23"):
        fitted["TopK"].encode(recording_of(data[1].channels[:, 1:]))
    spoiled = data[1].channels.clone()
    spoiled[3, 3] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        fitted["TopK"].encode(recording_of(spoiled))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(4, 5), "k=5 .* 4"),
        (lambda: Matryoshka(4, 0), "k=0"),
        (lambda: TopK(0, 1), "width=0"),
        (lambda: TopK(4, 2, steps=0), "steps=0"),
        (lambda: TopK(4, 2, batch_size=0), "batch_size=0"),
        (lambda: TopK(4, 2, patience=0), "patience=0"),
        (lambda: TopK(4, 2, seed=-1), "seed=-1"),
        (lambda: TopK(4, 2, learning_rate=0), "learning_rate=0.0"),
        (lambda: TopK(4, 2, learning_rate=math.nan), "learning_rate=nan"),
        (lambda: Matryoshka(4, 2, prefixes=(0.5, 0.25, 1)), "prefixes="),
        (lambda: Matryoshka(4, 2, prefixes=(0.25, 0.5)), "prefixes="),
        (lambda: Matryoshka(4, 2, prefixes=(0, 1)), "prefixes="),
        (lambda: Matryoshka(4, 2, prefixes=(0.5, 2)), "prefixes=2.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="k "):
        TopK(4, 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="learning_rate "):
        TopK(4, 2, learning_rate="much")


def test_batches_are_no_larger_than_what_there_is() -> None:
    few = recording_of(torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), per_image=4)
    method = Matryoshka(6, 2, steps=40).fit(few)  # batches of 512 of 20 tokens
    assert float((method.encode(few) > 0).sum(1).double().mean()) == pytest.approx(2, abs=0.5)


def test_largest_values_that_are_not_positive_are_not_active() -> None:
    assert not keep_strongest(torch.tensor([[-1.0, -2.0]]), 2).any()


# ------------------------------------------------------------------- the transcoder


def layer(count: int = 1200, s: int = 12, hidden: int = 5) -> tuple[Recording, torch.Tensor]:
    """Sources far from 0 that drive channels through a few sparse features: what a transcoder is to find."""
    generator = torch.Generator().manual_seed(5)
    which = torch.rand(count, hidden, generator=generator).argsort(1)[:, :1]
    amounts = torch.zeros(count, hidden).scatter(1, which, 1 + torch.rand(count, 1, generator=generator))
    inwards, outwards = (unit_rows(torch.randn(hidden, size, generator=generator)) for size in (s, D))
    noise = 0.05 * torch.randn(count, s, generator=generator)
    recording = recording_of(20 * amounts @ outwards + 3)
    return Recording(
        recording.channels, 4 * (amounts @ inwards + noise) - 2, recording.entering, recording.images,
        recording.positions,
    ), outwards  # fmt: skip


@pytest.fixture(scope="module")
def transcoder() -> Transcoder:
    return Transcoder(16, 1, **QUICK).fit(layer()[0])


def test_a_transcoder_predicts_channels_from_sources_alone(transcoder) -> None:
    seen, outwards = layer()
    assert unexplained(transcoder, seen) < 0.05
    assert float((outwards @ transcoder.decoder_.T).amax(1).mean()) > 0.95
    blind = Recording(0 * seen.channels, seen.sources, seen.entering, seen.images, seen.positions)
    assert transcoder.encode(blind).equal(transcoder.encode(seen))
    assert transcoder.needs_sources
    assert int((transcoder.encode(seen) > 0).sum(1).max()) == 1
    other = seen.sources.roll(1, 0)  # a token's channels do not follow from another's sources
    wrong = Recording(seen.channels, other, seen.entering, seen.images, seen.positions)
    assert unexplained(transcoder, wrong) > 1


def test_a_transcoders_units_are_those_of_a_slow_implementation(transcoder) -> None:
    seen = next(layer()[0].parts(20))
    for token, units in zip(seen.sources.double(), transcoder.encode(seen), strict=True):
        values = [
            float(sum(token * column) + bias)
            for column, bias in zip(transcoder.encoder_.double().T, transcoder.bias_.double(), strict=True)
        ]
        best = max(range(16), key=lambda i: values[i])
        expected = [max(values[i], 0.0) if i == best else 0.0 for i in range(16)]
        assert units.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_transcoder_comes_back_from_its_file_and_asks_for_sources(tmp_path, transcoder) -> None:
    seen = layer()[0]
    found = SparseAutoencoder.load(transcoder.save(tmp_path / "it.safetensors"))
    assert type(found) is Transcoder
    assert found.encode(seen).equal(transcoder.encode(seen))
    without = Recording(seen.channels, seen.sources[:, :0], seen.entering, seen.images, seen.positions)
    for call in (transcoder.encode, Transcoder(4, 1).fit):
        with pytest.raises(ValueError, match=r"sources.*\(1200, 0\)"):
            call(without)
    fewer = Recording(seen.channels, seen.sources[:, 1:], seen.entering, seen.images, seen.positions)
    with pytest.raises(ValueError, match=r"12 sources.* 11"):
        transcoder.encode(fewer)


def test_files_of_kinds_that_are_gone_say_so(tmp_path, transcoder) -> None:
    tensors = {name: transcoder.learned(f"{name}_") for name in transcoder.learns}
    path = save_result(tmp_path / "it", "sparse autoencoder", tensors, {"class": "ReLU", "settings": {}, "scale": 1.0})
    with pytest.raises(StoreError, match="'ReLU'"):
        SparseAutoencoder.load(path)
