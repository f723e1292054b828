"""A model as an ONNX file, which runs without PyTorch: in OpenVINO, in onnxruntime, in a web page.

A file holds the model's operations as one example records them (`torch.onnx.export`'s tracing). Sizes stay free in it,
so one file serves every volume; where a runtime wants fixed sizes, they are written into the file.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.sam2_encoder import STRIDES

OPSET = 18  # of ONNX; the oldest that has all operations of the model, so that older runtimes read the file, too
TOLERANCE = 1e-4  # largest difference of an affinity or attention value from PyTorch's, in float32
EXAMPLE = (2, 64, 96)  # voxels z, y, x that an operation is recorded with: all different, none of them 1


class Affinities(nn.Module):
    """A model from grey values to what `output_names` names, all in [0, 1], as programs without our library need it."""

    def __init__(self, model: FGNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Compute A_s, A_r (B, 3, D, H, W) and a1, a2, a3 (B, 1, D, h, w) from raw (B, 1, D, H, W) in [0, 1]."""
        output = self.model(raw)
        return (*(torch.sigmoid(logits) for logits in (output.coarse, output.refined) if logits is not None),
                *output.attention)  # fmt: skip


def output_names(model: FGNet) -> list[str]:
    """Name what `Affinities` gives for this model, in its order.

    Example:
        >>> from fgnet_lib.configuration import MINI
        >>> from fgnet_lib.student import Student, StudentConfig
        >>> output_names(FGNet(MINI))
        ['A_s', 'A_r', 'a1', 'a2', 'a3']
        >>> output_names(Student(StudentConfig()))
        ['A_r']
    """
    coarse, refined = model.config.encoder is not None, model.config.refined
    if not coarse:
        return ["A_r"]
    return ["A_s", "A_r", *(f"a{i + 1}" for i in range(len(STRIDES)))] if refined else ["A_s"]


def export_onnx(model: FGNet, path: str | Path, shape: tuple[int, int, int] | None = None) -> Path:
    """Write a model as one ONNX file from "raw" to `output_names`, and prove that it computes what PyTorch does.

    The input is float32 (1, 1, z, y, x) in [0, 1], grey value / 255; sides are padded inside, and outputs are cropped.

    Args:
        model: Any FGNet, or a student; put into eval mode, and moved to the CPU.
        path: Of the file; its folder is made if there is none.
        shape: Voxels z, y, x that the file is for, for runtimes that want them fixed; None leaves them free.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: If onnx or onnxruntime is not installed.
        ValueError: If a size is not positive.
        ArithmeticError: If an output differs from PyTorch's by more than `TOLERANCE`; nothing is written then.
    """
    if shape is not None and (len(shape) != 3 or min(shape) < 1):
        raise ValueError(f"shape is voxels along z, y, x, each at least 1; got {shape}")
    path, affinities = Path(path).expanduser(), Affinities(model.cpu().eval())
    example = noise(shape or EXAMPLE)
    content = to_onnx(affinities, {"raw": example}, output_names(model), free=shape is None)
    check_onnx(content, affinities, example)
    with atomic(path) as part:
        part.write_bytes(content)
    return path


def noise(shape: Sequence[int]) -> Tensor:
    """Return random grey values (1, 1, z, y, x) in [0, 1], the same for a shape; PyTorch's own sequence goes on."""
    return torch.rand((1, 1, *shape), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def check_onnx(content: bytes, module: nn.Module, raw: Tensor) -> float:
    """Compare what an ONNX file computes in onnxruntime with PyTorch.

    Returns:
        The largest difference of any output.

    Raises:
        ModuleNotFoundError: If onnxruntime is not installed.
        ArithmeticError: If it is above `TOLERANCE`.
    """
    pairs = zip(open_session(content).run(None, {"raw": raw.numpy()}), module(raw), strict=True)
    difference = max(float((torch.from_numpy(theirs) - ours).abs().max()) for theirs, ours in pairs)
    if not difference <= TOLERANCE:
        raise ArithmeticError(f"the exported model differs from PyTorch's by {difference:.2g}, more than {TOLERANCE}")
    return difference


def open_session(content: bytes, threads: int = 0) -> Any:
    """Open an ONNX file in onnxruntime, on the CPU; 0 threads leave their number to it.

    Raises:
        ModuleNotFoundError: If onnxruntime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors: the tracer guesses some shapes, and onnxruntime warns that it knows better
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def to_onnx(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], free: bool) -> bytes:
    """Record a module as ONNX.

    Args:
        module: In eval mode, on the CPU.
        inputs: Examples (1, C, D, h, w) by name, in the order of the module's arguments.
        outputs: Names of what the module gives, in its order.
        free: Leave D, h and w free; False fixes them to the example's.
    """
    axes = {name: {2: "z", 3: f"{name}_y", 4: f"{name}_x"} for name in (*inputs, *outputs)} if free else {}
    file: Any = io.BytesIO()  # taken as a file is, though the type hints of `export` do not know it
    # Of its age, of shapes and of constants: whether the file is right, the comparison with PyTorch decides. The newer
    # exporter takes minutes where sizes are free.
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            module, tuple(inputs.values()), file,
            dynamo=False, opset_version=OPSET,
            input_names=list(inputs), output_names=list(outputs), dynamic_axes=axes,
        )  # fmt: skip
    return file.getvalue()
