"""Adapt a frozen encoder with few parameters: low-rank updates, a gate for each image, and a frequency adapter.

The mechanism is that of I-MedSAM (Wei et al., ECCV 2024, arXiv 2311.17081), from its equations:

    LoRA (by peft):     W x + g(x) B A x, with B = 0 at first, so that nothing changes before training
    gate:               g(x) = sigmoid(w . mean token + b), a number for each image and block
    frequency adapter:  x_f = up(GELU(down(patches of the amplitude spectrum))), added to a block's output as 0.5 x_f

Ours: LoRA on Hiera's fused query, key and value, where the paper takes query and value; the mean over tokens of the
spectrum where a block has a coarser grid than the patches; `up` is 0 at first. On the guide that knows photographs,
which has no attention, LoRA changes the 1 x 1 convolutions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import NaturalEncoder
from fgnet_lib.sam2_encoder import Sam2Encoder
from fgnet_lib.weights import fingerprint_weights, save_tensors

Spectrum = Literal["raw", "log1p"]
Regime = Literal["frozen", "adapters", "norms", "full"]
Encoder = Sam2Encoder | NaturalEncoder

NARROWER = 4  # the frequency adapter's hidden layer has a quarter of the patch embedding's channels
FREQUENCY_WEIGHT = 0.5


@dataclass(frozen=True)
class AdapterConfig:
    """Which adapters an encoder gets; a file of adapters holds it too.

    Attributes:
        rank: Of the low-rank updates; 0 means none.
        gate: Whether a number for each image scales the updates of a block (SAM2's encoder only).
        spectrum: What the frequency adapter sees, the amplitude as it is ("raw") or its logarithm ("log1p"); None
            leaves this adapter out (SAM2's encoder only).
    """

    rank: int = 4
    gate: bool = False
    spectrum: Spectrum | None = None

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 0:
            raise ValueError(f"rank is {self.rank!r}; expected a whole number from 0")
        if self.spectrum not in (None, *get_args(Spectrum)):
            raise ValueError(f"spectrum is {self.spectrum!r}; choose one of {', '.join(get_args(Spectrum))}, or None")
        if self.gate and not self.rank:
            raise ValueError("a gate scales low-rank updates, and rank 0 has none; choose a rank from 1, or gate=False")


def amplitude_spectrum(sections: Tensor, spectrum: Spectrum) -> Tensor:
    """Compute the amplitudes of sections in the Fourier domain, frequency 0 in the middle, scaled to 0 to 1 in each.

    Moving a section cyclically, as `torch.roll` does, changes its phases alone, so the amplitudes stay as they are.

    Args:
        sections: Float (..., H, W).
        spectrum: "raw" keeps the amplitudes, of which the mean grey value has by far the largest; "log1p" takes
            log(1 + amplitude).

    Returns:
        float32 of the same shape.
    """
    amplitudes = torch.fft.fftshift(torch.fft.fft2(sections.float()).abs(), dim=(-2, -1))
    if spectrum == "log1p":
        amplitudes = amplitudes.log1p()
    least, most = amplitudes.amin((-2, -1), keepdim=True), amplitudes.amax((-2, -1), keepdim=True)
    return (amplitudes - least) / (most - least).clamp(min=1e-12)


class ImageGate(nn.Module):
    """A number from 0 to 1 for each image, which scales the low-rank update of one block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Linear(channels, 1)
        self.value: Tensor | None = None  # of the images that are in the block just now

    def observe(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Compute the gate from the tokens (B, h, w, C) that enter the block."""
        self.value = torch.sigmoid(self.score(inputs[0].mean((1, 2))))  # (B, 1)

    def scale(self, update: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Multiply B A x by the gate; attention has cut each image into windows, which lie one after the other."""
        assert self.value is not None  # `observe` ran when the block began
        gate, self.value = self.value, None
        return output * gate.repeat_interleave(len(output) // len(gate), dim=0)[:, :, None, None]


class FrequencyAdapter(nn.Module):
    """Features of the amplitude spectrum for every block of a Hiera trunk, through its own frozen patch embedding."""

    def __init__(self, trunk: nn.Module, spectrum: Spectrum) -> None:
        super().__init__()
        self.spectrum: Spectrum = spectrum
        channels = trunk.blocks[0].dim
        widths = [block.dim_out for block in trunk.blocks]
        self.branches = nn.ModuleList(_branch(channels, width) for width in widths)
        self.tokens: Tensor | None = None  # of the sections that are in the encoder just now

    def observe(self, encoder: Sam2Encoder, inputs: tuple[Tensor, ...]) -> None:
        """Embed the spectra of the sections (B, 1, D, H, W) that enter the encoder."""
        sections = inputs[0].transpose(1, 2).flatten(0, 1)  # (B D, 1, H, W)
        amplitudes = amplitude_spectrum(sections, self.spectrum).expand(-1, 3, -1, -1)
        with torch.no_grad():
            tokens = encoder.image_encoder.trunk.patch_embed((amplitudes - encoder.mean) / encoder.std)
        self.tokens = tokens.permute(0, 3, 1, 2)  # (B D, C, H / 4, W / 4)

    def add(self, level: int, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Add 0.5 x_f to the output (B D, h, w, C) of block number `level`."""
        assert self.tokens is not None  # `observe` ran when the encoder began
        tokens = F.adaptive_avg_pool2d(self.tokens, output.shape[1:3]).permute(0, 2, 3, 1)
        if level == len(self.branches) - 1:
            self.tokens = None
        return output + FREQUENCY_WEIGHT * self.branches[level](tokens)


def _branch(channels: int, outputs: int) -> nn.Sequential:
    """Down, GELU, up; up is 0 at first."""
    up = nn.Linear(channels // NARROWER, outputs)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return nn.Sequential(nn.Linear(channels, channels // NARROWER), nn.GELU(), up)


class Adapters(nn.Module):
    """What `attach_adapters` adds to SAM2's encoder beside peft's layers: the gates and the frequency adapter."""

    def __init__(self, encoder: Sam2Encoder, config: AdapterConfig) -> None:
        super().__init__()
        trunk = encoder.image_encoder.trunk
        self.gates = nn.ModuleList(ImageGate(block.dim) for block in trunk.blocks) if config.gate else None
        self.frequency = FrequencyAdapter(trunk, config.spectrum) if config.spectrum else None
        self.hooks = []
        if self.frequency:
            self.hooks.append(encoder.register_forward_pre_hook(self.frequency.observe))
            for level, block in enumerate(trunk.blocks):
                self.hooks.append(block.register_forward_hook(partial(self.frequency.add, level)))
        for gate, block in zip(self.gates or (), trunk.blocks, strict=False):
            self.hooks.append(block.register_forward_pre_hook(gate.observe))
            self.hooks.append(block.attn.qkv.lora_B["default"].register_forward_hook(gate.scale))


def attach_adapters(encoder: Encoder, config: AdapterConfig) -> None:
    """Give an encoder adapters, in place, and freeze everything else in it; before training nothing changes.

    Random weights of the adapters follow `torch.manual_seed`.

    Args:
        encoder: SAM2's of any size, or the guide that knows photographs; without adapters.
        config: Which adapters.

    Raises:
        ValueError: The encoder has adapters already, or is the guide that knows photographs, which has neither tokens
            nor blocks for a gate or a frequency adapter.
    """
    if has_adapters(encoder):
        raise ValueError("the encoder has adapters already: take them off by detach_adapters or merge_adapters")
    if isinstance(encoder, NaturalEncoder) and (config.gate or config.spectrum):
        raise ValueError("the guide that knows photographs has no attention: give it low-rank updates alone")
    encoder.requires_grad_(False)
    if config.rank:
        layers = ["qkv"] if isinstance(encoder, Sam2Encoder) else ["widen", "narrow"]
        from peft import LoraConfig, inject_adapter_in_model  # imports transformers, which takes seconds

        lora = LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=layers)  # alpha = r: no further factor
        inject_adapter_in_model(lora, encoder)
    if isinstance(encoder, Sam2Encoder):
        encoder.adapters = Adapters(encoder, config).to(next(encoder.parameters()).device)


def _updated_layers(encoder: Encoder) -> dict[str, Any]:
    """The layers with low-rank updates, by name; peft's are the only layers with a base layer."""
    return {name: layer for name, layer in encoder.named_modules() if hasattr(layer, "get_base_layer")}


def has_adapters(encoder: Encoder) -> bool:
    """Whether an encoder has adapters of any kind."""
    return hasattr(encoder, "adapters") or bool(_updated_layers(encoder))


def detach_adapters(encoder: Encoder) -> None:
    """Take all adapters off an encoder, which is then the frozen one that it was before `attach_adapters`."""
    _remove(encoder, merge=False)


def merge_adapters(encoder: Encoder) -> None:
    """Add B A to the weights W and take the adapters off: the same features without any further computation.

    Raises:
        ValueError: There is a gate or a frequency adapter. Both depend on the image, so no weights can hold them.
    """
    adapters = getattr(encoder, "adapters", None)
    if adapters and (adapters.gates or adapters.frequency):
        raise ValueError(
            "a gate or a frequency adapter depends on the image: only plain low-rank updates can be merged"
        )
    _remove(encoder, merge=True)


def _remove(encoder: Encoder, merge: bool) -> None:
    for name, layer in _updated_layers(encoder).items():
        if merge:
            layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(encoder, "adapters"):
        for hook in encoder.adapters.hooks:
            hook.remove()
        del encoder.adapters


def train_only(model: FGNet, regime: Regime) -> None:
    """Choose what training changes in a model's encoder; its decoders always learn.

    Args:
        model: With adapters on its encoder if the regime asks for them.
        regime: "frozen" for nothing, "adapters", "norms" for weights and biases of its layer norms, "full" for all.

    Raises:
        ValueError: The encoder has nothing of the kind, or an unknown regime.
    """
    if regime not in get_args(Regime):
        raise ValueError(f"regime is {regime!r}; choose one of {', '.join(get_args(Regime))}")
    if model.encoder is None:
        raise ValueError("the model has no encoder to adapt")
    model.freeze_encoder(regime == "frozen")
    if regime == "norms":
        chosen = {f"{name}." for name, module in model.encoder.named_modules() if isinstance(module, nn.LayerNorm)}
    else:
        chosen = {"adapters.", "lora_"}
    parameters = dict(model.encoder.named_parameters())
    trained = {name for name in parameters if any(part in name for part in chosen)}
    if regime in ("adapters", "norms"):
        if not trained:
            raise ValueError(f"the encoder has no {regime}, so it would stay frozen")
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trained)


def save_adapters(model: nn.Module, path: str | Path, config: AdapterConfig, notes: dict[str, Any]) -> Path:
    """Write all that was trained, and nothing of the base model, as one safetensors file.

    Args:
        model: Its parameters that require gradients are written: adapters, and decoders where they were trained.
        path: Of the file.
        config: That the adapters were attached with.
        notes: What JSON can hold about the training: tissue, sections, scores.

    Returns:
        The path.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in trained}
    metadata = {
        "adapters": json.dumps(asdict(config)),
        "base": base_fingerprint(model, trained),
        "notes": json.dumps(notes),
    }
    return save_tensors(tensors, path, metadata)


def load_adapters(model: FGNet, path: str | Path) -> dict[str, Any]:
    """Put what `save_adapters` wrote into a base model, in place of other adapters if it has some; returns the notes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or not ours, or belongs to another base model. The model then has no adapters.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of adapters")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
        config, notes = AdapterConfig(**json.loads(metadata["adapters"])), json.loads(metadata["notes"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of adapters, or damaged ({error}); write it with save_adapters") from error
    if model.encoder is None:
        raise ValueError(f"{path} adapts an encoder, and the model has none")
    detach_adapters(model.encoder)
    attach_adapters(model.encoder, config)
    state = model.state_dict()
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    unknown = sorted(name for name, tensor in tensors.items() if kinds.get(name) != (tensor.shape, tensor.dtype))
    if unknown or metadata.get("base") != base_fingerprint(model, set(tensors)):
        detach_adapters(model.encoder)
        reason = f"its {unknown[0]} does not fit" if unknown else "other weights beside the trained ones"
        raise ValueError(f"{path} belongs to another base model ({reason}): load the model that it was trained on")
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        detach_adapters(model.encoder)
        raise ValueError(f"{path}: {broken[0]} holds NaN or infinite values; train it again")
    model.load_state_dict(tensors, strict=False)
    return notes


def base_fingerprint(model: nn.Module, trained: set[str]) -> str:
    """Compute a checksum of all weights of a model but the trained ones, by the names that they have without adapters.

    Args:
        model: With or without adapters.
        trained: Names of the weights that a file of adapters brings along.
    """
    base = {
        name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items() if name not in trained
    }
    return fingerprint_weights(base)
