"""A model whose convolutions compute in integers of 8 bits: faster on processors with instructions for it (VNNI, AMX).

Scales come from calibration: the values that the layers have on sections of the training data. The affinities are not
PyTorch's any more, so `predict` never chooses this by itself; tools/benchmarks/measure_engines.py measures its VOI.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from fgnet_lib.engines.runtimes import Converted, name_inputs, record_parts
from fgnet_lib.fgnet import FGNet

LAYERS = ["Conv", "MatMul", "Gemm"]  # the rest is little work, and stays in float32


class _Samples:
    """Inputs, one after the other, as onnxruntime's calibration asks for them."""

    def __init__(self, inputs: Iterable[dict[str, np.ndarray]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


@torch.inference_mode()
def quantise(model: FGNet, windows: Sequence[np.ndarray], engine: str = "openvino") -> Converted:
    """Convert a model to 8 bits, calibrated on windows of training data; `inference.predict` takes it as a model.

    Args:
        model: An FGNet on the CPU, in eval mode.
        windows: uint8 (z, y, x), of the contrast that the model will meet; two dozen are enough.
        engine: "openvino" or "onnxruntime".

    Raises:
        ValueError: If there are no windows, or they are not uint8 volumes.
        ModuleNotFoundError: If onnxruntime, which calibrates, or the engine is not installed.
    """
    if not windows or any(window.dtype != np.uint8 or window.ndim != 3 for window in windows):
        raise ValueError("calibration needs windows of uint8 (z, y, x), at least one")
    raw = [torch.from_numpy(window)[None, None].float() / 255 for window in windows]
    features = [model.encode(window) for window in raw]
    with torch.inference_mode(False):
        encoder, decoder = record_parts(model)
    inputs = [name_inputs([value.numpy() for value in (window, *f)]) for window, f in zip(raw, features, strict=True)]
    if encoder:
        encoder = _to_8_bits(encoder, [{"raw": values["raw"]} for values in inputs])
    quantised = Converted(model, engine, (encoder, _to_8_bits(decoder, inputs))).eval()
    quantised.report = f"{engine}, 8 bits"
    return quantised


def _to_8_bits(content: bytes, inputs: Iterable[dict[str, np.ndarray]]) -> bytes:
    """Quantise one part, with a scale for each channel of the weights."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, _without_advice():  # onnxruntime reads and writes files
        file, quantised = Path(folder) / "part.onnx", Path(folder) / "part_int8.onnx"
        file.write_bytes(content)
        quantize_static(
            file, quantised, _Samples(inputs), quant_format=QuantFormat.QDQ, op_types_to_quantize=LAYERS,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
            reduce_range=True,  # weights of 7 bits: without VNNI, sums of products of 8 bits overflow
            extra_options={"MatMulConstBOnly": True},  # weights, but not products of two activations
        )  # fmt: skip
        return quantised.read_bytes()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep warnings out of the output: onnxruntime advises to simplify the graph first, for speed alone."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
