"""A model as an ONNX file computes what PyTorch computes, at sizes that it was not recorded with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.packages import need

from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.engines import export
from fgnet_lib.engines.export import Affinities, check_onnx, export_onnx, output_names
from fgnet_lib.fgnet import FGNet
from fgnet_lib.student import Student, StudentConfig
from fgnet_lib.weights import load_pretrained

pytestmark = [pytest.mark.slow, need("onnxruntime")]
NARROW = (8, 8, 16, 16, 16)
CONFIGS = {
    "natural": FGNetConfig("natural", widths=NARROW),
    "channel norm": FGNetConfig("mini", widths=NARROW, norm="channel", dense_levels=2),
    "no SAM2": FGNetConfig(None, widths=NARROW),
    "SAM2 alone": FGNetConfig("mini", refined=False),
    "SAM2.1 tiny, a map per channel": FGNetConfig("tiny", widths=NARROW, attention="per_channel"),
    "student": StudentConfig(NARROW[:4]),
    "student of one section": StudentConfig(NARROW[:4], sections=1),
}


def values(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand((1, 1, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow  # exports, and computes at several sizes
def test_one_file_of_the_shipped_model_serves_every_size(tmp_path):
    model = load_pretrained()
    file = export_onnx(model, tmp_path / "new folder" / "model.onnx")
    for shape in ((3, 70, 50), (1, 160, 96), (9, 33, 128)):
        assert 0 < check_onnx(file.read_bytes(), Affinities(model), values(shape)) < export.TOLERANCE
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    assert [output.name for output in session.get_outputs()] == ["A_s", "A_r", "a1", "a2", "a3"]
    a_s, a_r, a1, *_, a3 = session.run(None, {"raw": values((3, 70, 50)).numpy()})
    assert a_s.shape == a_r.shape == (1, 3, 3, 70, 50)
    assert a1.shape == (1, 1, 3, 18, 13) and a3.shape == (1, 1, 3, 5, 4)
    assert min(a_r.min(), a1.min()) >= 0 and max(a_r.max(), a1.max()) <= 1


@pytest.mark.slow  # exports
def test_sizes_can_be_fixed(tmp_path):
    model = FGNet(CONFIGS["channel norm"])
    file = export_onnx(model, tmp_path / "model.onnx", (4, 64, 32))
    import onnxruntime

    (raw,) = onnxruntime.InferenceSession(file).get_inputs()
    assert raw.shape == [1, 1, 4, 64, 32]
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        check_onnx(file.read_bytes(), Affinities(model), values((4, 64, 64)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_can_be_exported(name, tmp_path):
    torch.manual_seed(0)
    config = CONFIGS[name]
    model = (Student(config) if isinstance(config, StudentConfig) else FGNet(config)).eval()
    content = export_onnx(model, tmp_path / "model.onnx").read_bytes()
    for shape in ((3, 40, 100), (1, 32, 32)):  # a single section, too: the file was recorded with two
        assert check_onnx(content, Affinities(model), values(shape)) < export.TOLERANCE
    with torch.no_grad():
        assert len(Affinities(model)(values((1, 32, 32)))) == len(output_names(model))


def test_what_computes_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 0)
    with pytest.raises(ArithmeticError, match="differs from PyTorch's by"):
        export_onnx(FGNet(FGNetConfig(None, widths=NARROW)), tmp_path / "model.onnx")
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize("shape", [(0, 64, 64), (64, 64), (4, -32, 32)])
def test_sizes_that_are_none_are_refused(shape, tmp_path):
    with pytest.raises(ValueError, match="shape is voxels along z, y, x"):
        export_onnx(FGNet(MINI), tmp_path / "model.onnx", shape)
