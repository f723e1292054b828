"""The same model computed by another runtime, and the choice among the runtimes that are installed.

A conversion has two parts, as `FGNet` has: one encodes sections, the other computes affinities from sections and their
features. So inference encodes each section once, whatever computes it. Gradients and training stay with PyTorch.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fgnet_lib.engines.export import EXAMPLE, noise, open_session, output_names, to_onnx
from fgnet_lib.fgnet import FGNet, FGNetOutput
from fgnet_lib.student import Student
from fgnet_lib.weights import fingerprint_weights

Engine = Literal["auto", "torch", "openvino", "openvino_bf16", "onnxruntime"]
BFLOAT16: Engine = "openvino_bf16"
PACKAGES = {
    "torch": ("torch",),
    "openvino": ("onnx", "openvino"),
    BFLOAT16: ("onnx", "openvino"),
    "onnxruntime": ("onnx", "onnxruntime"),
}
TOLERANCE = 1e-3  # largest difference of an affinity or attention value from PyTorch's
BFLOAT16_TOLERANCE = 5e-3  # largest mean difference of affinities: what moves VOI by 0.02 (docs/measured/trials.md)
MEASURED_ON = ("x86_64", "AMD64")  # where OpenVINO is known to be faster than PyTorch
WORTHWHILE = 2**25  # voxels to compute from which "auto" converts a model, which takes some seconds
T = TypeVar("T")
Network = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # a runtime with one part of a model


def installed_engines() -> list[str]:
    """Name the engines that can compute here, "torch" first: their packages are installed, and the processor fits."""
    return [
        engine
        for engine, packages in PACKAGES.items()
        if all(map(find_spec, packages)) and (engine != BFLOAT16 or computes_bfloat16())
    ]


@lru_cache(maxsize=1)
def computes_bfloat16() -> bool:
    """Tell whether OpenVINO finds instructions for bfloat16 in this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Converted(nn.Module):
    """A model that another runtime computes, with FGNet's interface as far as `inference` uses it; no gradients.

    Attributes:
        difference: Largest difference of an affinity or attention value from PyTorch's; in bfloat16 the mean difference
            of affinities, of A_s or A_r. NaN before it is compared.
        report: What computes, in a few words, and how exactly.
        megabytes: Size of the two parts as ONNX files, in 10^6 bytes.
    """

    def __init__(self, model: FGNet, engine: str, parts: tuple[bytes | None, bytes]) -> None:
        """Load the two parts of a model, as `record_parts` gives them, into an engine with PyTorch's threads."""
        super().__init__()
        self.model, self.config = model, model.config
        threads = torch.get_num_threads()
        # in bfloat16 the errors of the guide grow from block to block, and affinities feel them through attention
        precise = "openvino" if engine == BFLOAT16 else engine
        self._encoder = LOADERS[precise](parts[0], threads) if parts[0] else None
        self._decoder = LOADERS[engine](parts[1], threads)
        self.difference, self.report = float("nan"), engine
        self.megabytes = sum(len(part) for part in parts if part) / 1e6

    def encode(self, raw: Tensor) -> list[Tensor]:
        """Compute the features of every section, as `FGNet.encode` does."""
        return _run(self._encoder, [raw]) if self._encoder else []

    def forward(self, raw: Tensor, features: list[Tensor] | None = None) -> FGNetOutput:
        """Compute affinities and attention, as `FGNet.forward` does."""
        values = _run(self._decoder, [raw, *(self.encode(raw) if features is None else features)])
        maps = dict(zip(output_names(self.model), values, strict=True))
        return FGNetOutput(maps.pop("A_s", None), maps.pop("A_r", None), tuple(maps.values()))


@torch.no_grad()
def record_parts(model: FGNet) -> tuple[bytes | None, bytes]:
    """Record a model as two ONNX files: sections to features (None without SAM2), and both to affinities (logits)."""
    raw = noise(EXAMPLE)
    features = model.encode(raw)
    inputs = name_inputs([raw, *features])
    encoder = to_onnx(_Encoder(model), {"raw": raw}, list(inputs)[1:], free=True) if features else None
    return encoder, to_onnx(_Decoder(model), inputs, output_names(model), free=True)


def name_inputs(values: Sequence[T]) -> dict[str, T]:
    """Name what the two parts take: "raw", and the features S1, S2, S3."""
    return dict(zip(("raw", "S1", "S2", "S3"), values, strict=False))


def choose_engine(model: FGNet, engine: str, size: Sequence[int], voxels: int) -> FGNet | Converted:
    """Give the model, or the same model converted to the engine and compared with PyTorch on one window.

    "auto" is OpenVINO on processors of Intel's kind where it is installed and the work is worth a conversion, and
    PyTorch otherwise; so the same machine chooses the same engine again. It is never "openvino_bf16", whose affinities
    are other ones. A conversion is kept while the process runs and the weights stay as they are.

    Args:
        model: In eval mode, on its device.
        engine: One of `Engine`.
        size: Voxels z, y, x of a window.
        voxels: How many voxels will be computed in all windows.

    Raises:
        ValueError: If the engine is unknown, only PyTorch can compute this model, or the processor has no bfloat16.
        ModuleNotFoundError: If the engine is not installed.
        ArithmeticError: If the engine's affinities or attention differ from PyTorch's by more than `TOLERANCE`, or its
            affinities in bfloat16 on average by more than `BFLOAT16_TOLERANCE`.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"unknown engine {engine!r}: choose one of {', '.join(get_args(Engine))}")
    reason, wanted = only_torch(model), engine
    if engine == "auto":
        suits = not reason and voxels >= WORTHWHILE and platform.machine() in MEASURED_ON
        engine = "openvino" if suits and "openvino" in installed_engines() else "torch"
    if engine == "torch":
        return model
    if reason:
        raise ValueError(f"engine {engine!r} cannot compute this model: {reason}; use engine='torch'")
    if engine not in (installed := installed_engines()):
        if engine == BFLOAT16 and "openvino" in installed:
            raise ValueError(f"engine {engine!r}: this processor computes no bfloat16; use engine='openvino'")
        raise ModuleNotFoundError(
            f"engine {engine!r} needs the packages {' and '.join(PACKAGES[engine])}: run "
            "`pip install -r requirements-engines.txt`, or use engine='torch'"
        )
    converted = _convert(_Weights(_checksum(model), engine, tuple(size), model))
    tolerance = BFLOAT16_TOLERANCE if engine == BFLOAT16 else TOLERANCE
    if converted.difference <= tolerance:
        return converted
    if wanted == "auto":
        return model
    raise ArithmeticError(
        f"engine {engine!r} differs from PyTorch by {converted.difference:.2g}{' on average' * (engine == BFLOAT16)}, "
        f"more than {tolerance}; use engine='torch'"
    )


def only_torch(model: nn.Module) -> str | None:
    """Say why only PyTorch can compute a model; None if other engines can."""
    if type(model) not in (FGNet, Student):
        return f"it is of class {type(model).__name__}, and the other engines know FGNet and Student alone"
    if (device := next(model.parameters()).device).type != "cpu":
        return f"it is on {device}, and the other engines compute on the CPU"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "a hook changes or watches a part of it, as probing.attention_set_to does"
    return None


@dataclass(frozen=True)
class _Weights:
    """What a conversion depends on; the model itself is compared by its checksum."""

    checksum: str
    engine: str
    size: tuple[int, ...] = field(compare=False)  # of the window that proves it
    model: FGNet = field(compare=False)
    threads: int = field(default_factory=torch.get_num_threads)


@lru_cache(maxsize=2)
def _convert(weights: _Weights) -> Converted:
    """Convert a model, and compare it with PyTorch on one window of noise."""
    with torch.inference_mode(False), torch.no_grad():
        converted = Converted(weights.model, weights.engine, record_parts(weights.model)).eval()
        raw = noise(weights.size)
        ours, theirs = (_compute(network, raw) for network in (weights.model, converted))
    differences = {k: (a - b).abs() for k, a, b in zip(output_names(weights.model), ours, theirs, strict=True)}
    if weights.engine == BFLOAT16:  # one value says nothing here, and attention cuts no neuron
        counted = [values.mean() for name, values in differences.items() if name in ("A_s", "A_r")]
    else:
        counted = [values.max() for values in differences.values()]
    converted.difference = float(torch.stack(counted).max())  # NaN if a value is
    converted.report = f"{weights.engine}, differs from PyTorch by {converted.difference:.0e}"
    converted.report += " on average" * (weights.engine == BFLOAT16)
    return converted


def _compute(network: Callable[[Tensor], FGNetOutput], raw: Tensor) -> list[Tensor]:
    """Compute affinities and attention in [0, 1]."""
    output = network(raw)
    return [*(logits.sigmoid() for logits in (output.coarse, output.refined) if logits is not None), *output.attention]


def _checksum(model: FGNet) -> str:
    return f"{model.config} {fingerprint_weights(model.state_dict())}"


class _Encoder(nn.Module):
    """The part of a model that encodes sections."""

    def __init__(self, model: FGNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, raw: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode(raw))


class _Decoder(nn.Module):
    """The part of a model that computes affinities (as logits) and attention from sections and their features."""

    def __init__(self, model: FGNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, raw: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        output = self.model(raw, list(features))
        return (*(logits for logits in (output.coarse, output.refined) if logits is not None), *output.attention)


def _run(network: Network, tensors: list[Tensor]) -> list[Tensor]:
    inputs = name_inputs([tensor.detach().contiguous().numpy() for tensor in tensors])
    return [torch.from_numpy(array) for array in network(inputs)]


def _load_openvino(content: bytes, threads: int, arithmetic: str) -> Network:
    import openvino

    # by itself, OpenVINO would compute in bfloat16 wherever the processor has it
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": arithmetic, "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda inputs: list(compiled(inputs).to_tuple())


def _load_onnxruntime(content: bytes, threads: int) -> Network:
    session = open_session(content, threads)
    return lambda inputs: session.run(None, inputs)


LOADERS: dict[str, Callable[[bytes, int], Network]] = {
    "openvino": partial(_load_openvino, arithmetic="f32"),
    BFLOAT16: partial(_load_openvino, arithmetic="bf16"),
    "onnxruntime": _load_onnxruntime,
}
