"""Our encoder against the `sam2` package's own predictor, and everything that can be wrong with a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sam2.build_sam import build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch import Tensor

from fgnet_lib.sam2_encoder import SIZES, STRIDES, Sam2Encoder, build_encoder, load_checkpoint


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A whole SAM2.1 tiny with random weights, and its checkpoint as Meta writes it."""
    torch.manual_seed(0)
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", ckpt_path=None, device="cpu")
    path = tmp_path_factory.mktemp("sam2") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": model.state_dict()}, path)
    return model, path


@pytest.fixture
def mini() -> Sam2Encoder:
    torch.manual_seed(1)
    return build_encoder("mini")


def official_layout(encoder: Sam2Encoder) -> dict:
    return {"model": {**encoder.state_dict(), "sam_mask_decoder.iou_token.weight": torch.zeros(1, 256)}}


@pytest.mark.slow
def test_features_equal_the_official_predictor_s(official):
    sam2, path = official
    section = np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8)
    predictor = SAM2ImagePredictor(sam2)
    predictor.set_image(np.repeat(section[..., None], 3, axis=2))
    encoder = build_encoder("tiny", path).eval()
    with torch.no_grad():
        s4, s8, s16 = (f[:, :, 0] for f in encoder(torch.from_numpy(section / np.float32(255))[None, None, None]))
        ours = [sam2.sam_mask_decoder.conv_s0(s4), sam2.sam_mask_decoder.conv_s1(s8)]
        ours.append(s16 + sam2.no_mem_embed.view(1, -1, 1, 1))
    theirs = [*predictor._features["high_res_feats"], predictor._features["image_embed"]]
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "millions"), [("tiny", 26.8), ("small", 33.9), ("base_plus", 68.7), ("large", 212.1)])
def test_every_size_has_the_published_number_of_parameters(size, millions):
    trunk = build_encoder(size).image_encoder.trunk
    assert sum(p.numel() for p in trunk.parameters()) == pytest.approx(millions * 1e6, abs=0.06e6)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["fpn", "trunk"])
@pytest.mark.parametrize("size", ["mini", "tiny"])
def test_shapes_are_what_the_attributes_promise(size, source):
    encoder = build_encoder(size, source=source).eval()
    with torch.no_grad():
        features = encoder(torch.rand(2, 1, 3, 64, 96))
    expected = [(2, c, 3, 64 // s, 96 // s) for c, s in zip(encoder.channels, STRIDES, strict=True)]
    assert [tuple(f.shape) for f in features] == expected


@pytest.mark.slow
@settings(max_examples=10)
@given(batch=st.integers(1, 2), depth=st.integers(1, 3), tiles=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_every_section_is_encoded_on_its_own(batch, depth, tiles):
    torch.manual_seed(2)
    encoder = build_encoder("mini").eval()
    raw = torch.rand(batch, 1, depth, 32 * tiles[0], 32 * tiles[1])
    with torch.no_grad():
        together = encoder(raw)
        alone = encoder(raw[-1:, :, -1:])
    for features, single in zip(together, alone, strict=True):
        torch.testing.assert_close(features[-1:, :, -1:], single, atol=1e-5, rtol=1e-5)


def test_random_weights_repeat_from_the_seed():
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        states.append(build_encoder("mini").state_dict()["image_encoder.trunk.patch_embed.proj.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_gradients_reach_the_encoder_only_when_it_is_not_frozen(mini):
    raw = torch.rand(1, 1, 1, 32, 32)
    sum(f.sum() for f in mini(raw)).backward()
    assert all(p.grad is not None for p in mini.parameters() if p.requires_grad)
    assert not any(f.requires_grad for f in mini.requires_grad_(False)(raw))


@pytest.mark.parametrize(
    "raw",
    [
        torch.rand(1, 1, 2, 200, 192),
        torch.rand(1, 1, 2, 192, 250),
        torch.rand(1, 3, 2, 64, 64),
        torch.rand(1, 1, 64, 64),
        torch.zeros(1, 1, 2, 64, 64, dtype=torch.uint8),
    ],
    ids=["height", "width", "colour", "2d", "uint8"],
)
def test_wrong_input_is_refused(mini, raw):
    with pytest.raises(ValueError, match="multiples of 32|expected float"):
        mini(raw)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=f"'huge'.*{', '.join(SIZES)}"):
        build_encoder("huge")
    with pytest.raises(ValueError, match="'neck'.*'fpn' or 'trunk'"):
        build_encoder("mini", source="neck")


def test_a_checkpoint_of_the_official_layout_loads_wholly(mini, tmp_path):
    torch.save(official_layout(mini), tmp_path / "mini.pt")
    torch.manual_seed(3)
    loaded = build_encoder("mini", tmp_path / "mini.pt")
    for key, value in mini.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


class RunsCode:
    def __reduce__(self):
        return Path.touch, (Path("code_was_run"),)


def spoil(content: dict, value) -> dict:
    """Give one key of the encoder another value; a function is given the old one."""
    key = "image_encoder.trunk.patch_embed.proj.bias"
    content["model"][key] = value(content["model"][key]) if callable(value) else value
    return content


def missing_key(content: dict) -> dict:
    del content["model"]["image_encoder.neck.convs.3.conv.bias"]
    return content


BROKEN = {
    "layout": (lambda content: content["model"], "key 'model'"),
    "list": (lambda content: [1, 2], "key 'model'"),
    "empty": (lambda content: {"model": {}}, "no SAM2 image encoder.*expected size 'mini'"),
    "key": (missing_key, "1 tensors differ or are missing, first image_encoder.neck.convs.3.conv.bias"),
    "integer key": (lambda content: {"model": {101: torch.zeros(1)}}, "no SAM2 image encoder"),
    "text": (
        lambda content: spoil(content, "wide"),
        "1 tensors differ or are missing, first image_encoder.trunk.patch",
    ),
    "no axis": (lambda content: spoil(content, torch.tensor(1.0)), "1 tensors differ or are missing"),
    "dtype": (
        lambda content: spoil(content, Tensor.int),
        "patch_embed.proj.bias is torch.int32, expected torch.float32",
    ),
    "NaN": (lambda content: spoil(content, lambda bias: bias * torch.nan), "patch_embed.proj.bias holds NaN"),
    "code": (lambda content: {**content, "extra": RunsCode()}, "may carry code"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_changes_nothing(fault, mini, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, message = BROKEN[fault]
    torch.save(change(official_layout(build_encoder("mini"))), "broken.pt")
    before = {key: value.clone() for key, value in mini.state_dict().items()}
    with pytest.raises(ValueError, match=f"broken.pt.*{message}"):
        load_checkpoint(mini, Path("broken.pt"))
    assert all(torch.equal(value, before[key]) for key, value in mini.state_dict().items())
    assert not Path("code_was_run").exists()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.text().map(str.encode), st.binary(), st.binary().map(b"\x80\x02".__add__)))
@example(content=b"eighty bytes of text, which are the beginning of an email about a file of weights")
@example(content=b"version https://git-lfs.github.com/spec/v1\noid sha256:7402\nsize 156008466\n")
def test_a_file_of_something_else_is_refused_with_its_name(mini, tmp_path, content):
    (tmp_path / "other.pt").write_bytes(content)
    with pytest.raises(ValueError, match="other.pt is (damaged|not)"):
        load_checkpoint(mini, tmp_path / "other.pt")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_good_file_is_not_called_damaged(error, mini, tmp_path, monkeypatch):
    torch.save(official_layout(mini), tmp_path / "good.pt")

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error), match=str(error.args[-1])):
        load_checkpoint(mini, tmp_path / "good.pt")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named_as_such(kept, mini, tmp_path):
    path = tmp_path / "cut.pt"
    torch.save(official_layout(mini), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="cut.pt is damaged or cut short"):
        load_checkpoint(mini, path)


@pytest.mark.slow
def test_a_checkpoint_of_another_size_says_which(official, mini):
    with pytest.raises(ValueError, match="holds an image encoder of size 'tiny', expected size 'mini'"):
        load_checkpoint(mini, official[1])


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        build_encoder("mini", tmp_path / "nowhere.pt")
