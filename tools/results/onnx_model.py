"""A model in ONNX Runtime, in floating point or with 8-bit whole numbers, that `predict` takes for an FGNet."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from fgnet_lib.fgnet import FGNet, FGNetOutput

LAYERS = ["MatMul", "Gemm", "Conv"]  # linear layers and convolutions, as `fgnet_lib.neighbours.quantisation` rounds
NAMES = ["raw", "S1", "S2", "S3"]


class _Encoder(nn.Module):
    """The part of a model that encodes sections."""

    def __init__(self, model: FGNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, raw: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode(raw))


class _Decoder(nn.Module):
    """The part of a model that makes affinities and attention of sections and their features."""

    def __init__(self, model: FGNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, raw: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        output = self.model(raw, list(features))
        return output.coarse, output.refined, *output.attention


class _Calibration(CalibrationDataReader):
    """Gives ONNX Runtime's calibration one set of inputs, once."""

    def __init__(self, inputs: list[Tensor]) -> None:
        self._batches: Iterator[dict] = iter([dict(zip(NAMES, (each.numpy() for each in inputs), strict=False))])

    def get_next(self) -> dict | None:
        return next(self._batches, None)


class OnnxFGNet(nn.Module):
    """The two parts of a model, computed by ONNX Runtime on one thread.

    Attributes:
        megabytes: Of the files of the encoder and of the rest, in 10^6 bytes.
    """

    @torch.no_grad()
    def __init__(self, model: FGNet, calibration: Tensor | None = None, decoder: bool = False) -> None:
        """Convert the weights that `model` has now.

        Args:
            model: In eval mode, with SAM2's encoder and both decoders.
            calibration: Sections (1, 1, D, H, W) in [0, 1] that decide the steps of 8-bit whole numbers; None for
                floating point.
            decoder: Whether the rest of the model gets whole numbers too, not only the encoder.
        """
        super().__init__()
        self.model = model
        raw = torch.rand(1, 1, 2, 64, 96) if calibration is None else calibration
        features = model.encode(raw)
        encoder = _to_onnx(_Encoder(model), [raw], NAMES[1:])
        rest = _to_onnx(_Decoder(model), [raw, *features], ["A_s", "A_r", "a1", "a2", "a3"])
        if calibration is not None:
            encoder = _to_int8(encoder, [raw])
            rest = _to_int8(rest, [raw, *features]) if decoder else rest
        self.megabytes = len(encoder) / 1e6, len(rest) / 1e6
        self._encoder, self._rest = _session(encoder), _session(rest)

    def encode(self, raw: Tensor) -> list[Tensor]:
        """Compute the features of every section, as `FGNet.encode` does."""
        return _run(self._encoder, [raw])

    def forward(self, raw: Tensor, features: list[Tensor] | None = None) -> FGNetOutput:
        """Compute affinities and attention, as `FGNet.forward` does."""
        coarse, refined, *attention = _run(self._rest, [raw, *(self.encode(raw) if features is None else features)])
        return FGNetOutput(coarse, refined, tuple(attention))


def _to_onnx(part: nn.Module, inputs: list[Tensor], outputs: list[str]) -> bytes:
    names, file = NAMES[: len(inputs)], io.BytesIO()
    axes = {name: {2: "z", 3: f"{name}_y", 4: f"{name}_x"} for name in (*names, *outputs)}
    settings = {"dynamo": False, "opset_version": 18, "dynamic_axes": axes}
    torch.onnx.export(part.eval(), tuple(inputs), file, input_names=names, output_names=outputs, **settings)
    return file.getvalue()


def _to_int8(graph: bytes, inputs: list[Tensor]) -> bytes:
    """Round the linear layers and convolutions of a graph, with a step for each output channel of the weights."""
    # Weights of 7 bits: without VNNI a processor adds two products in 16 bits, and 8 by 8 bits may overflow there.
    settings = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        before.write_bytes(graph)
        quant_pre_process(before, before, skip_symbolic_shape=True)
        quantize_static(before, after, _Calibration(inputs), op_types_to_quantize=LAYERS, **settings)
        return after.read_bytes()


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, inputs: list[Tensor]) -> list[Tensor]:
    given = dict(zip(NAMES, (each.contiguous().numpy() for each in inputs), strict=False))
    return [torch.from_numpy(array) for array in session.run(None, given)]
