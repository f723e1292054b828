"""8 bits give other affinities than float32, but not far from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.packages import need

from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.engines.quantisation import quantise
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import choose_tile, predict


@pytest.mark.slow
@need("openvino", "onnxruntime")
def test_affinities_of_8_bits_are_near(capsys):
    torch.manual_seed(0)
    model = FGNet(FGNetConfig("natural", widths=(8, 8, 16, 16, 16), dense_levels=1)).eval()
    raw = np.random.default_rng(0).integers(0, 255, (5, 64, 96), np.uint8)
    quantised = predict(quantise(model, [raw[:4, :64, :64], raw[1:, :64, 32:]]), raw, (4, 64, 64))
    difference = np.abs(quantised.refined - predict(model, raw, (4, 64, 64), progress=False).refined)
    assert 1e-5 < difference.mean() < 0.02
    assert "openvino, 8 bits" in capsys.readouterr().err


@need("onnxruntime")
@pytest.mark.parametrize("norm", ["group", "channel"])
def test_windows_of_8_bits_are_those_of_the_model(norm):
    model = FGNet(FGNetConfig(None, widths=(4, 4, 8, 8, 8), dense_levels=1, norm=norm)).eval()
    quantised = quantise(model, [np.zeros((2, 32, 32), np.uint8)], "onnxruntime")
    assert choose_tile(quantised, torch.device("cpu")) == choose_tile(model, torch.device("cpu"))


@pytest.mark.parametrize("windows", [[], [np.zeros((4, 64, 64), np.float32)], [np.zeros((64, 64), np.uint8)]])
def test_windows_that_are_none_are_refused(windows):
    with pytest.raises(ValueError, match=r"calibration needs windows of uint8 \(z, y, x\), at least one"):
        quantise(FGNet(FGNetConfig("mini")), windows)
