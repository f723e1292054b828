"""Histogram and spectrum, against waves and noise whose spectrum is known."""

from __future__ import annotations

import json

import measure_texture
import numpy as np
import pytest

from fgnet_lib.course.texture import GREY_BINS, WAVELENGTHS, grey_histogram, overlap, power_spectrum
from fgnet_lib.phantom import make_phantom


@pytest.mark.parametrize("wavelength", [32, 80, 200])
@pytest.mark.parametrize("nm", [4, 8, 10])
def test_a_wave_has_its_power_in_its_band(wavelength, nm):
    x = np.arange(2400 // nm) * nm
    wave = np.broadcast_to(128 + 50 * np.sin(2 * np.pi * x / wavelength), (2, len(x), len(x)))
    assert np.nanargmax(power_spectrum(wave, nm)) == np.searchsorted(-WAVELENGTHS, -wavelength) - 1


def test_white_noise_has_equal_power_whatever_its_contrast_and_pixel():
    noise = np.random.default_rng(0).normal(size=(4, 256, 256))
    np.testing.assert_allclose(power_spectrum(noise, 8), 64, rtol=0.3)
    np.testing.assert_allclose(power_spectrum(9 * noise + 100, 8), power_spectrum(noise, 8))
    np.testing.assert_allclose(power_spectrum(noise, 4)[6:], 16, rtol=0.3)


def test_waves_larger_than_the_section_are_unknown():
    power = power_spectrum(np.random.default_rng(0).normal(size=(1, 16, 16)), 8)
    assert np.isnan(power[0]) and np.isfinite(power[-1])


def test_a_blank_section_has_no_power():
    assert not power_spectrum(np.full((1, 128, 128), 7, np.uint8), 8).any()


def test_too_large_pixels_are_refused():
    with pytest.raises(ValueError, match="30 nm"):
        power_spectrum(np.zeros((1, 64, 64)), 30)


def test_histograms_sum_to_one_and_overlap_by_what_they_share():
    raw = np.array([0, 7, 8, 255], np.uint8)
    histogram = grey_histogram(raw)
    assert histogram.sum() == 1 and histogram[[0, 1, -1]].tolist() == [0.5, 0.25, 0.25]
    assert len(histogram) == len(GREY_BINS) - 1
    assert overlap(histogram, histogram) == 1
    assert overlap(histogram, grey_histogram(np.array([1, 100], np.uint8))) == 0.5


@pytest.mark.slow
def test_the_phantom_is_as_near_to_real_sections_as_other_real_ones_are():
    real = json.loads(measure_texture.TEXTURE.read_text(encoding="utf-8"))
    *others, sections = real.values()  # AC4, the one of serial sections, is the last
    phantom = make_phantom((8, 256, 256)).raw
    shared = overlap(grey_histogram(phantom), sections["histogram"])
    assert shared > 0.75 and shared > min(overlap(other["histogram"], sections["histogram"]) for other in others)
    far = apart(power_spectrum(phantom, 8), sections["power"])
    assert far < 0.2 and far < min(apart(other["power"], sections["power"]) for other in others)


@pytest.mark.slow
def test_the_committed_numbers_are_those_of_the_real_volumes(em_data):
    assert measure_texture.measure_textures() == json.loads(measure_texture.TEXTURE.read_text(encoding="utf-8"))


def apart(first, second) -> float:
    """Mean distance of two spectra in powers of ten."""
    return float(np.nanmean(np.abs(np.log10(np.array(first, float) / np.array(second, float)))))
