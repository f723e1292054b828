"""A model as a package of bioimage.io (format 0.5), which ilastik, deepImageJ, napari and BioEngine load.

The package is a zip: the model as ONNX, a description of its axes, a card, and arrays to test it with, made from a
phantom of ours. The description is JSON, which every reader of YAML reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgnet_lib.engines.export import OPSET, TOLERANCE, Affinities, check_onnx, output_names, to_onnx
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.phantom import make_phantom
from fgnet_lib.sam2_encoder import MULTIPLE

FORMAT = "0.5.3"  # has all that is used here, so that older readers accept it
NAME = re.compile(r"[A-Za-z0-9_+\- ()]{5,128}")  # bioimage.io's rule for names of models
LICENCE = re.compile(r"[A-Za-z0-9.+-]+")  # how identifiers of SPDX look; whether there is such a one is not checked
TESTED = (4, 64, 96)  # voxels z, y, x of the arrays in the package
CITE = [
    {"text": "Li et al., Leveraging Feature-Guided Attention to Refine SAM2 for 3D EM Neuron Segmentation, AAAI 2026",
     "doi": "10.1609/aaai.v40i8.37606"},
]  # fmt: skip


def export_bioimageio(
    model: FGNet, path: str | Path, name: str, card: str, licence: str = "CC-BY-4.0", authors: tuple[str, ...] = ()
) -> Path:
    """Write a model as a bioimage.io package, a zip that `bioimageio test` accepts.

    The package takes raw as uint8, and y and x are multiples of 32. Its outputs are called as `export.output_names`
    calls them, in lower case. As in `predict`, what a model says near the rim of a window is worth less.

    Args:
        model: Any FGNet; put into eval mode, and moved to the CPU.
        path: Of the zip; its folder is made if there is none.
        name: Of the model, as users of bioimage.io read it: 5 to 128 of the characters that `NAME` allows.
        card: Markdown: training data and their licences, recipe, scores, limits.
        licence: Of the weights, an SPDX identifier such as "CC-BY-4.0".
        authors: Of the weights; the developers of this repository, if none is named.

    Returns:
        The path.

    Raises:
        ValueError: A name or a licence that bioimage.io does not accept.
        ModuleNotFoundError, ArithmeticError: As `export_onnx`.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"name is {name!r}; bioimage.io takes 5 to 128 letters, digits, spaces and signs of _+-()")
    if not LICENCE.fullmatch(licence):
        raise ValueError(f"licence is {licence!r}; give an identifier of https://spdx.org/licenses, such as CC-BY-4.0")
    affinities = Affinities(model.cpu().eval())
    raw = make_phantom(TESTED, seed=0).raw[None, None]
    scaled = torch.from_numpy(raw).float() / 255
    onnx = to_onnx(affinities, {"raw": scaled}, output_names(model), free=True)
    check_onnx(onnx, affinities, scaled)
    with torch.no_grad():
        outputs = dict(zip(map(str.lower, output_names(model)), affinities(scaled), strict=True))
    files = {"model.onnx": onnx, "README.md": card.encode(), "raw.npy": _npy(raw)}
    files |= {f"{output}.npy": _npy(values.numpy()) for output, values in outputs.items()}
    description: dict[str, Any] = {
        "type": "model",
        "format_version": FORMAT,
        "name": name,
        "description": "Affinities of voxels in electron microscopy, from which a watershed makes neurons.",
        "authors": [{"name": author} for author in authors or ("The FGNet Tutorials developers",)],
        "cite": CITE,
        "license": licence,
        "tags": ["electron-microscopy", "neurons", "segmentation", "3d", "fgnet"],
        "documentation": "README.md",
        "inputs": [_describe_input(files)],
        "outputs": [_describe_output(output, values.shape, files) for output, values in outputs.items()],
        "weights": {"onnx": {**_entry("model.onnx", files), "opset_version": OPSET}},
        "config": {"bioimageio": {"reproducibility_tolerance": [{"absolute_tolerance": TOLERANCE}]}},
    }
    path = Path(path).expanduser()
    with atomic(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as package:
        for file, content in {"rdf.yaml": json.dumps(description, indent=1).encode(), **files}.items():
            package.writestr(file, content)
    return path


def _describe_input(files: dict[str, bytes]) -> dict[str, Any]:
    """Describe raw: which axes it has, which sizes they may have, and what is done with the grey values."""
    multiples = {"z": 1, "y": MULTIPLE, "x": MULTIPLE}
    space = [{"type": "space", "id": axis, "size": {"min": n, "step": n}} for axis, n in multiples.items()]
    return {
        "id": "raw",
        "description": "grey values of sections",
        "axes": [{"type": "batch", "size": 1}, {"type": "channel", "channel_names": ["raw"]}, *space],
        "data": {"type": "uint8", "range": [0, 255]},
        "preprocessing": [
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
            {"id": "scale_linear", "kwargs": {"gain": 1 / 255}},
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},  # or the format adds one of uint8 at the end
        ],
        "test_tensor": _entry("raw.npy", files),
    }


def _describe_output(name: str, shape: Sequence[int], files: dict[str, bytes]) -> dict[str, Any]:
    """Describe affinities, or an attention map, whose pixels are mostly larger than voxels."""
    stride, is_map = TESTED[-1] // shape[-1], name[1].isdigit()
    names = [f"attention{i + 1}" for i in range(shape[1])] if is_map else ["z", "y", "x"]
    space = [
        {"type": "space", "id": axis, "scale": stride if axis != "z" else 1,
         "size": {"tensor_id": "raw", "axis_id": axis}}
        for axis in "zyx"
    ]  # fmt: skip
    return {
        "id": name,
        "description": f"attention at stride {stride}" if is_map else "does a voxel join its predecessor?",
        "axes": [{"type": "batch", "size": 1}, {"type": "channel", "channel_names": names}, *space],
        "data": {"type": "float32", "range": [0, 1]},
        "test_tensor": _entry(f"{name}.npy", files),
    }


def _entry(file: str, files: dict[str, bytes]) -> dict[str, str]:
    return {"source": file, "sha256": hashlib.sha256(files[file]).hexdigest()}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
