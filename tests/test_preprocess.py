"""Standardising and whitening against their definitions in float64, and back again."""

import numpy as np
import pytest
import torch

from iadd_lab.data import preprocess as module
from iadd_lab.data.preprocess import (
    PREPROCESSES,
    Standardise,
    Zca,
    as_float,
    fit_preprocess,
    preprocess_fingerprint,
    preprocess_from_tensors,
    preprocess_tensors,
)
from iadd_lab.store.artefacts import load_artefact, save_artefact
from tests.samples import assert_refused

KINDS = sorted(PREPROCESSES)
DTYPES = [torch.uint8, torch.float32]


def correlated(count=60, *, channels=3, size=4, dtype=torch.uint8, seed=0):
    """Images whose neighbouring pixels and channels go together, as real ones' do; no two channels alike."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(count, 1, size, size, generator=generator).cumsum(3).cumsum(2) / size**2
    noise = torch.rand(count, channels, size, size, generator=generator)
    level = torch.linspace(0.2, 0.5, channels)[:, None, None]
    images = level * smooth + 0.3 * level * noise + 0.1
    return (255 * images).to(torch.uint8) if dtype is torch.uint8 else images


def standardised(images):
    """In float64 and NumPy: each channel to mean 0, (population) standard deviation 1."""
    images = images.double().numpy() / (255 if images.dtype is torch.uint8 else 1)
    axes = (0, 2, 3)
    return (images - images.mean(axes, keepdims=True)) / images.std(axes, keepdims=True)


def principal(images):
    """The directions (in columns) and variances of the centred pixels in [0, 1]; and these images."""
    flat = images.double().numpy().reshape(len(images), -1) / (255 if images.dtype is torch.uint8 else 1)
    flat = flat - flat.mean(0)
    _, values, directions = np.linalg.svd(flat, full_matrices=True)
    variances = np.zeros(flat.shape[1])
    variances[: len(values)] = values**2 / (len(flat) - 1)
    return directions.T, variances, flat


def test_as_float_scales_bytes_alone():
    assert torch.equal(as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0, 0.2, 1]))
    images = torch.tensor([-1.0, 0.5, 2.0])
    assert torch.equal(as_float(images), images)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_standardised_channels_have_mean_0_and_deviation_1(channels, dtype):
    images = correlated(channels=channels, dtype=dtype)
    fitted = Standardise.fit(images)
    found = fitted.apply(images)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - standardised(images)).max() < 1e-5
    other = as_float(correlated(5, channels=channels, dtype=dtype, seed=1))
    expected = (other - fitted.mean.view(-1, 1, 1)) / fitted.deviation.view(-1, 1, 1)
    assert torch.equal(fitted.apply(other), expected)


@pytest.mark.parametrize("count", [60, 20], ids=["more images than pixels", "fewer images than pixels"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zca_equals_its_definition(dtype, count):
    images = correlated(count, dtype=dtype)
    directions, variances, flat = principal(images)
    expected = flat @ (directions / np.sqrt(variances + 0.1)) @ directions.T
    fitted = Zca.fit(images)
    found = fitted.apply(images)
    assert (found.dtype, found.shape) == (torch.float32, images.shape)
    assert np.abs(expected).max() > 0.1
    assert np.abs(found.flatten(1).numpy() - expected).max() < 1e-4
    # Rounding would make variances negative in directions that have none.
    assert (fitted.eigenvalues >= 0).all()
    assert fitted.eigenvalues.flip(0).numpy() == pytest.approx(variances, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_invert_undoes_apply_and_apply_undoes_invert(kind, channels, dtype):
    fitted = fit_preprocess(kind, correlated(channels=channels))
    other = correlated(7, channels=channels, dtype=dtype, seed=1).to(dtype)
    applied = fitted.apply(other)
    assert applied.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert (fitted.invert(applied) - as_float(other)).abs().max() < 1e-5
    # Distilled images lie anywhere.
    distilled = 5 * torch.randn(4, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    assert (fitted.apply(fitted.invert(distilled)) - distilled).abs().max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_stored_state_carries_its_kind_and_applies_bit_for_bit(kind, tmp_path):
    images = correlated()
    fitted = fit_preprocess(kind, images)
    state = preprocess_tensors(fitted)
    assert {name.rsplit("/", 1)[0] for name in state} == {f"preprocess/{kind}"}
    among = state | {"images": torch.ones(2), "alpha": torch.tensor(0.1)}
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=among, metadata={})
    found = preprocess_from_tensors(load_artefact(path, kind="toy").tensors)
    assert type(found) is type(fitted)
    assert torch.equal(found.apply(images), fitted.apply(images))
    assert torch.equal(found.invert(fitted.apply(images)), fitted.invert(fitted.apply(images)))
    assert preprocess_fingerprint(found) == preprocess_fingerprint(fitted)


def test_a_fingerprint_sees_the_kind_and_every_part_of_the_state():
    found, parts = set(), 0
    for kind in KINDS:
        fitted = fit_preprocess(kind, correlated())
        assert preprocess_fingerprint(fit_preprocess(kind, correlated())) == preprocess_fingerprint(fitted)
        found.add(preprocess_fingerprint(fitted))
        state = preprocess_tensors(fitted)
        for name, tensor in state.items():
            nudged = tensor.clone()
            nudged.view(-1)[0] += 1e-3
            found.add(preprocess_fingerprint(preprocess_from_tensors(state | {name: nudged})))
        parts += 1 + len(state)
    assert len(found) == parts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "level"), [(60, 0), (60, 77), (60, 255), (1, 77)])
def test_a_constant_channel_or_a_single_image_stays_small(kind, count, level):
    """As the blank channel of a converted image is; unseen images may differ there, by little."""
    images = correlated(count)
    images[:, 1] = level
    fitted = fit_preprocess(kind, images)
    assert fitted.apply(images)[:, 1].abs().max() < 1e-2
    assert (fitted.invert(fitted.apply(images)) - as_float(images)).abs().max() < 1e-5
    other = correlated(5, seed=1)
    assert fitted.apply(other).isfinite().all()
    assert fitted.apply(other).abs().max() < 5e3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_change_nothing(kind, dtype, monkeypatch):
    images = correlated(4099, channels=2, size=2, dtype=dtype)
    chunked = fit_preprocess(kind, images)
    found = chunked.apply(images)
    monkeypatch.setattr(module, "_CHUNK", len(images))
    whole = fit_preprocess(kind, images)
    for name, tensor in whole.tensors().items():
        if name != "eigenvectors":  # their signs are free
            assert (chunked.tensors()[name] - tensor).abs().max() < 1e-5, name
    assert found.shape == images.shape
    assert (found - chunked.apply(images)).abs().max() < 1e-5
    assert (found - whole.apply(images)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_whole_whatever_falls_into_them(kind, monkeypatch):
    images = correlated(300)
    fitted = fit_preprocess(kind, images)
    whole = fitted.prepare(images)
    monkeypatch.setattr(type(fitted), "kept", 0)
    lazy, rows = fitted.prepare(images), torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert lazy.images is images  # no copy, let alone as floats
    assert lazy.shape == whole.shape
    for batch in (1, 7, 64, 256, 300):
        found = torch.cat([lazy[some] for some in rows.split(batch)]), torch.cat([*lazy.split(batch)])
        if kind == "standardise":
            assert torch.equal(found[0], whole[rows])
            assert torch.equal(found[1], whole)
        assert (found[0] - whole[rows]).abs().max() < 1e-5
        assert (found[1] - whole).abs().max() < 1e-5


def test_zca_of_too_many_pixels_is_refused_before_any_work(monkeypatch):
    images = torch.zeros((), dtype=torch.uint8).expand(50_000, 3, 65, 65)
    message = r"^ZCA of \(3, 65, 65\) images needs a 12675×12675 matrix; .*images\.$"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_chunks", lambda images: pytest.fail("it began to work"))
        assert_refused(message, fit_preprocess, "zca", images)
    monkeypatch.setattr(module, "_ZCA_LIMIT", 48)  # values per image
    assert Zca.fit(correlated(channels=3)).centre.shape == (48,)
    assert_refused("at most 48 values per image", Zca.fit, correlated(channels=4))


@pytest.mark.parametrize("kind", KINDS)
def test_incomplete_or_unknown_state_is_refused(kind):
    states = {each: preprocess_tensors(fit_preprocess(each, correlated())) for each in KINDS}
    whole = states[kind]
    lacking = [{name: whole[name] for name in whole if name != missing} for missing in whole]
    other = {name.replace(kind, "other"): tensor for name, tensor in whole.items()}
    both = states["standardise"] | states["zca"]
    foreign, bare = {"images": torch.ones(2)}, {f"preprocess/{kind}": torch.ones(1)}
    for stored in (*lacking, other, both, {}, foreign, bare):
        assert_refused("carries no complete preprocessing", preprocess_from_tensors, stored)
    wrong = f"{kind}a"
    assert_refused(f"^unknown preprocess '{wrong}' .did you mean '{kind}'", fit_preprocess, wrong, whole)
