"""8 bits give other affinities than float32, but not far from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.packages import need

from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.engines.quantisation import quantise
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import predict


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


@pytest.mark.parametrize("windows", [[], [np.zeros((4, 64, 64), np.float32)], [np.zeros((64, 64), np.uint8)]])
def test_windows_that_are_none_are_refused(windows):
    with pytest.raises(ValueError, match=r"calibration needs windows of uint8 \(z, y, x\), at least one"):
        quantise(FGNet(FGNetConfig("mini")), windows)
