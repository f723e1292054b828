"""Other runtimes give what PyTorch gives, through `predict` and through blocks; PyTorch computes what they cannot."""

from __future__ import annotations

import re
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import Echo
from helpers.packages import need

from fgnet_lib import inference
from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.engines import runtimes
from fgnet_lib.engines.export import noise
from fgnet_lib.engines.runtimes import Converted, choose_engine, computes_bfloat16, installed_engines
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import lay_windows, predict, predict_windows
from fgnet_lib.probing import attention_set_to
from fgnet_lib.student import Student, StudentConfig

NARROW = (8, 8, 16, 16, 16)
SIZE = (4, 64, 64)
PLENTY = runtimes.WORTHWHILE
pytestmark = need("openvino")


@pytest.fixture(scope="module")
def model() -> FGNet:
    torch.manual_seed(0)
    return FGNet(FGNetConfig("natural", widths=NARROW, norm="channel", dense_levels=1)).eval()


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (7, 100, 70), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_prediction_is_the_same_by_every_engine(engine, model, raw, capsys):
    ours = predict(model, raw, SIZE, 0.5, progress=False, engine="torch")
    theirs = predict(model, raw, SIZE, 0.5, engine=engine)
    for a, b in zip((ours.refined, ours.coarse, *ours.attention), (theirs.refined, theirs.coarse, *theirs.attention),
                    strict=True):  # fmt: skip
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert f"{engine}, " in capsys.readouterr().err  # the progress bar names it


@pytest.mark.slow
def test_a_student_is_the_same_by_another_engine(raw):
    torch.manual_seed(0)
    student = Student(StudentConfig((8, 8, 16, 16))).eval()
    for volume in (raw, raw[:1]):
        ours, theirs = (
            predict(student, volume, SIZE, 0.5, progress=False, engine=engine) for engine in ("torch", "openvino")
        )
        np.testing.assert_allclose(ours.refined, theirs.refined, atol=1e-4)
        assert theirs.coarse is None and theirs.attention == ours.attention


@pytest.mark.slow
def test_a_conversion_is_kept_until_weights_change(model, raw, monkeypatch):
    converted = choose_engine(model, "openvino", SIZE, 1)
    assert isinstance(converted, Converted) and choose_engine(model, "openvino", SIZE, 1) is converted
    windows = lay_windows(raw.shape, SIZE, 0.5)
    affinities = [predict_windows(network, raw, windows, {}) for network in (model, converted)]
    np.testing.assert_allclose(*affinities, atol=1e-4)  # what a block computes
    first, twin = deepcopy(model), deepcopy(model)
    runtimes._convert.cache_clear()
    predict(first, raw, SIZE, 0.5, progress=False, engine="openvino")
    first.to("meta")  # as to a GPU: the twin is converted already, and computes here
    predict(twin, raw, SIZE, 0.5, progress=False, engine="openvino")
    torch.manual_seed(1)  # other weights than the model's
    trained = FGNet(model.config).eval()
    assert choose_engine(trained, "openvino", SIZE, 1) is not converted
    monkeypatch.setattr(runtimes, "TOLERANCE", 0)
    with pytest.raises(ArithmeticError, match="'openvino' differs from PyTorch by .* use engine='torch'"):
        choose_engine(trained, "openvino", SIZE, 1)
    monkeypatch.setattr(runtimes.platform, "machine", lambda: "x86_64")
    assert choose_engine(trained, "auto", SIZE, PLENTY) is trained


@pytest.mark.slow
def test_bfloat16_is_close_on_average_and_refused_where_it_is_not(model, raw, monkeypatch, capsys):
    if not computes_bfloat16():
        pytest.skip("this processor has no bfloat16")
    ours = predict(model, raw, SIZE, 0.5, progress=False, engine="torch").refined
    theirs = predict(model, raw, SIZE, 0.5, engine="openvino_bf16").refined
    difference = np.abs(theirs - ours)
    assert difference.mean() < runtimes.BFLOAT16_TOLERANCE and difference.max() > 1e-4  # it is other arithmetic
    assert re.search("openvino_bf16, differs from PyTorch by .* on average", capsys.readouterr().err)
    converted = choose_engine(model, "openvino_bf16", SIZE, 1)
    window = noise(SIZE)
    with torch.no_grad():
        outputs = model(window), converted(window)
        for ours, theirs in zip(model.encode(window), converted.encode(window), strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)  # the guide keeps float32
    ours, theirs = ((output.coarse.sigmoid(), output.refined.sigmoid()) for output in outputs)
    means = [float((a - b).abs().mean()) for a, b in zip(ours, theirs, strict=True)]
    assert converted.difference == pytest.approx(max(means))
    monkeypatch.setattr(runtimes, "BFLOAT16_TOLERANCE", 0.9 * max(means))
    with pytest.raises(ArithmeticError, match="'openvino_bf16' differs from PyTorch by .* on average, more than"):
        choose_engine(model, "openvino_bf16", SIZE, 1)


def test_bfloat16_needs_a_processor_that_has_it(model, monkeypatch):
    monkeypatch.setattr(runtimes, "computes_bfloat16", lambda: False)
    assert "openvino" in installed_engines() and "openvino_bf16" not in installed_engines()
    with pytest.raises(ValueError, match="this processor computes no bfloat16; use engine='openvino'"):
        choose_engine(model, "openvino_bf16", SIZE, 1)


def test_auto_is_openvino_where_it_is_faster_and_worth_a_conversion(model, monkeypatch):
    converted = SimpleNamespace(difference=0.0)
    monkeypatch.setattr(runtimes, "_convert", lambda weights: converted)
    for machine, voxels, chosen in (
        ("AMD64", PLENTY, converted),
        ("AMD64", PLENTY - 1, model),
        ("arm64", PLENTY, model),
    ):
        monkeypatch.setattr(runtimes.platform, "machine", lambda machine=machine: machine)
        assert choose_engine(model, "auto", SIZE, voxels) is chosen
    monkeypatch.setattr(runtimes.platform, "machine", lambda: "x86_64")
    assert choose_engine(model, "auto", SIZE, PLENTY) is converted
    monkeypatch.setattr(runtimes, "installed_engines", lambda: ["torch", "onnxruntime"])
    assert choose_engine(model, "auto", SIZE, PLENTY) is model


def test_what_only_pytorch_computes_is_left_to_it(model):
    echo = Echo()
    assert choose_engine(echo, "auto", SIZE, PLENTY) is echo
    with attention_set_to(model, 1, 0.5):
        assert choose_engine(model, "auto", SIZE, PLENTY) is model
        with pytest.raises(ValueError, match="a hook changes or watches a part of it.*; use engine='torch'"):
            choose_engine(model, "openvino", SIZE, 1)
    with pytest.raises(ValueError, match="it is of class Echo, .*; use engine='torch'"):
        predict(Echo(), np.zeros((2, 32, 32), np.uint8), SIZE, progress=False, engine="openvino")


def test_engines_that_are_unknown_or_missing_are_named(model, raw, monkeypatch):
    with pytest.raises(
        ValueError, match="unknown engine 'tensorrt': choose one of auto, torch, openvino, openvino_bf16, "
    ):
        predict(model, raw, progress=False, engine="tensorrt")
    monkeypatch.setattr(runtimes, "find_spec", lambda package: None if package == "openvino" else object())
    assert installed_engines() == ["torch", "onnxruntime"]
    with pytest.raises(ModuleNotFoundError, match="'openvino' needs the packages onnx and openvino: run"):
        predict(model, raw, progress=False, engine="openvino")
    assert inference.choose_engine(model, "auto", SIZE, PLENTY) is model
