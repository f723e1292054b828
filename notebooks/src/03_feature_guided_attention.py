# %% [markdown]
# # 03 · Feature-guided attention: build the idea of FGNet from its equation, then look at what it learned
#
# <!-- badges -->
#
# **What you will learn**
# - why FGNet needs a second encoder, how its *DW Block* is built, and what that saves;
# - how the *Fine-Grained Encoder* (FGE) keeps full detail, and why it never pools along z;
# - *Feature-Guided Attention* (FGA): one equation, three small layers, and what each of them does to a section;
# - how to write these parts as modules that equal the library's, number for number;
# - how to read the attention maps a1, a2, a3 of a trained model, and how to measure whether they mark membranes.
#
# **Before you start.** Lesson 02 shows what SAM2's features are. A little PyTorch (`nn.Module`) helps.
#
# <!-- times -->

# %% tags=["parameters"]
PROFILE = "cpu"  # fast | cpu | gpu | full
DATASET = "phantom"  # phantom | fib25 | any name in fgnet_lib.datasets.DATASETS
DATA_DIR = ""  # folder with your data sets; empty: $FGNET_DATA_DIR
OUT_DIR = ""  # folder for results; empty: out/
DEVICE = "auto"  # auto | cpu | cuda | mps
SEED = 0

# %% tags=["setup"]
from fgnet_lib.course.session import start_session

session = start_session(PROFILE, DATASET, DATA_DIR, OUT_DIR, DEVICE, SEED)

# %% [markdown]
# ## 1 · Two encoders that lack what the other has
#
# SAM2's encoder has seen a great deal, but its finest map has a stride of 4 voxels, and it sees each section alone. A
# membrane is two or three voxels wide, and neurites run *through* sections. So FGNet adds a small encoder of its own,
# trained from scratch on EM, at full resolution and in 3D: the **Fine-Grained Encoder**. At strides 4, 8 and 16, where
# both encoders have a map, SAM2's features tell the fine ones where to look: **Feature-Guided Attention**.
#
# ```
# raw ─┬─ SAM2 encoder ────── S1 (stride 4)   S2 (stride 8)   S3 (stride 16)
#      │                       │               │               │
#      └─ FGE: stride 1 → 2 → FGA → F1' ────→ FGA → F2' ────→ FGA → F3'
#                              a1              a2              a3
# ```
#
# **What is the paper's and what is ours.** The paper (references below) gives the two encoders, the name "DW Block",
# attention made of element-wise additions and multiplications, and three maps a1, a2, a3. No official code is public.
# The inside of the DW Block, the exact attention formula and all widths below are **our reconstruction**.

# %%
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from fgnet_lib import fgnet
from fgnet_lib.affinities import widen_borders
from fgnet_lib.channel_norm import ChannelNorm
from fgnet_lib.course import checks, quiz
from fgnet_lib.inference import predict
from fgnet_lib.metrics import roc_auc
from fgnet_lib.probing import Inspector, WhatIf, attention_set_to
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.segmentation import segment
from fgnet_lib.views import explorers, plots
from fgnet_lib.views.attention import attention_grid, describe_attention, show_attention
from fgnet_lib.volumes import IGNORE
from fgnet_lib.weights import load_pretrained, pretrained_threshold

# %% [markdown]
# The model is the small one that ships with this repository. Its first encoder, **the guide**, is not SAM2: it is the
# stand-in of lesson 02, an encoder of photographs, fine-tuned on EM together with the rest. We say "the guide" where we
# mean this encoder, and "SAM2" where we mean the paper's. You will look at the volume from part 6 on.

# %%
torch.manual_seed(SEED)
# few sections where time is short, but so wide that a3, one value for 16 x 16 voxels, has 16 x 16 values
volume = session.volume("val", (8, 256, 256) if PROFILE == "fast" else None)
model = load_pretrained()
print(f"{volume.name}: {volume.shape} voxels of {volume.voxel_size} nm")
print("the trained model:", model.config)

# %% [markdown]
# A small piece is enough to build with: four sections of at most 192 × 192 voxels. Grey values become numbers from 0
# to 1.

# %%
depth, height, width = volume.shape
first = max(0, depth // 2 - 2)
sides = [min(192, size // 32 * 32) for size in (height, width)]
piece = volume[first : first + 4, : sides[0], : sides[1]]
raw = torch.from_numpy(piece.raw / np.float32(255))[None, None]
print("raw:", tuple(raw.shape), "= batch, channel, z, y, x")

# %% [markdown]
# ## 2 · The DW Block
#
# A dense 3 × 3 × 3 convolution from $C$ to $C$ channels has $27\,C^2$ weights: every channel looks at every neighbour
# in every channel. A **depthwise** convolution splits the work. First each channel looks only at its own neighbours.
# Then a **pointwise** (1 × 1 × 1) pair of layers mixes the channels, and widens them by a factor $e$ in between:
#
# $$\mathrm{DW}(x) = x + W_2\,\mathrm{GELU}\bigl(W_1\,\mathrm{norm}(\mathrm{depthwise}(x))\bigr), \qquad W_1: C \to eC,\quad W_2: eC \to C.$$
#
# The input is added at the end (a *residual*), so the block only has to learn a correction. The block takes far fewer
# weights than a dense convolution; the folded section below counts them.
#
# `norm` keeps features in bounds: it divides the $C$ channels of each voxel by their root mean square,
# $x_c / \sqrt{\frac{1}{C} \sum_k x_k^2}$, and then each channel has a weight and an offset. The usual GroupNorm takes its
# statistics from the whole window instead, so a voxel's features would change with what lies in a far corner. Here is
# the block as a module:


# %%
class DWBlock(nn.Module):
    def __init__(self, channels, expand=2):
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.norm = ChannelNorm(channels)
        self.widen = nn.Conv3d(channels, expand * channels, 1)
        self.narrow = nn.Conv3d(expand * channels, channels, 1)

    def forward(self, x):
        x_filtered = self.norm(self.depthwise(x))
        return x + self.narrow(F.gelu(self.widen(x_filtered)))


# %% [markdown]
# ### Further: what it saves, and whether it is the library's
#
# **Exercise 3.1: the weights of a DW Block.** How many weights do its three convolutions have together, for $C$
# channels and a factor $e$? Leave out biases and norm.


# %% tags=["task"]
def my_weights(channels, expand):
    return ...


# %% tags=["solution"]
def my_weights(channels, expand):
    return 27 * channels + 2 * expand * channels**2


# %%
checks.dw_weights(my_weights)

# %% [markdown]
# By what factor is that smaller than a dense convolution? The mini model has up to 96 channels, and $e = 2$.

# %%
quiz.ask("03", "fewer-weights")

# %% [markdown]
# Count the parameters of the module, and those of one dense convolution:

# %%
for channels in model.config.widths[::2]:
    ours, dense = DWBlock(channels), nn.Conv3d(channels, channels, 3)
    count, count_dense = (sum(p.numel() for p in module.parameters()) for module in (ours, dense))
    print(f"{channels:3} channels: DW Block {count:7,} parameters, one dense convolution {count_dense:8,}")
assert round(count_dense / count) == 6  # with 96 channels, as the prediction says

# %% [markdown]
# **Does the norm see the window?** Do a voxel's features stay the same in a smaller window? The second line is all of
# `ChannelNorm` before its weight and offset:

# %%
x = torch.randn(1, 32, 4, 24, 24)
by_hand = x / x.square().mean(dim=1, keepdim=True).sqrt()  # dim 1 holds the channels
torch.testing.assert_close(ChannelNorm(32)(x), by_hand, atol=1e-3, rtol=1e-3)
for norm, stays in ((ChannelNorm(32), True), (nn.GroupNorm(4, 32), False)):
    of_window, of_corner = norm(x)[..., :12, :12], norm(x[..., :12, :12])
    largest = (of_window - of_corner).abs().max().item()
    print(f"{type(norm).__name__:11} features of the same voxels differ by at most {largest:.1e}")
    assert (largest < 1e-5) == stays

# %% [markdown]
# **Does it equal the library's?** Take the weights of a block in the trained model, load them into the class above,
# and compare the outputs. If the names of the layers differ, loading fails; if the numbers differ, the comparison
# fails.

# %%
trained_block = model.fine_encoder.blocks[3]
ours = DWBlock(channels=model.config.widths[3])
ours.load_state_dict(trained_block.state_dict())
x = torch.randn(1, model.config.widths[3], 4, 24, 24)
with torch.no_grad():
    torch.testing.assert_close(ours(x), trained_block(x))
print("equal: our DW Block and the library's")

# %% [markdown]
# ## 3 · The Fine-Grained Encoder, without guidance yet
#
# A stem gives the first channels at full resolution. It is a 1 × 5 × 5 convolution, in-plane only, because the first
# thing to see is the section. Full resolution has so many voxels that it gets no block of its own before the decoder.
# Four levels follow. Each halves y and x by a convolution with stride (1, 2, 2), and adds a block. **z is never
# pooled**: sections are often much thicker than voxels are wide (look at the voxel size above), and detail that is lost
# along z can hardly be recovered. The 3 × 3 × 3 filters do see the neighbouring sections: here the network learns that
# neurites continue.
#
# At its finest levels, where channels are few and maps are large, the mini model has a *dense block* instead of the DW
# Block (our choice: `dense_levels`), because it had to be trained on a CPU:


# %%
class DenseBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.dense = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm = ChannelNorm(channels)
        self.mix = nn.Conv3d(channels, channels, 1)

    def forward(self, x):
        return x + self.mix(F.gelu(self.norm(self.dense(x))))


# %%
widths = model.config.widths
stem = nn.Conv3d(1, widths[0], (1, 5, 5), padding=(0, 2, 2))
halve = nn.Conv3d(widths[0], widths[1], (1, 2, 2), stride=(1, 2, 2))
with torch.no_grad():
    level0 = F.gelu(stem(raw))
    level1 = DenseBlock(widths[1])(halve(level0))
print("stride 1:", tuple(level0.shape), "  stride 2:", tuple(level1.shape), "  z keeps its", raw.shape[2], "sections")

# %% [markdown]
# ### Further: which block is quicker?
#
# Do fewer weights take less time? Not everywhere. A depthwise filter computes little for each number that it fetches,
# so a CPU may spend most of its time waiting for memory. This is why EfficientNetV2 begins with dense convolutions.
# Which block is quicker on *this* machine, at full resolution with few channels, and in a smaller map with twice as
# many?

# %%
import time

for channels, size in zip(model.config.widths[:2], ((16, 128, 128), (8, 64, 64)), strict=True):
    x = torch.randn(1, channels, *size, requires_grad=True)  # as in training: gradients go on to earlier layers
    counts = []
    for block in (DWBlock(channels), DenseBlock(channels)):
        block(x).sum().backward()  # the first time has set-up in it
        start = time.perf_counter()
        for _ in range(3):
            block(x).sum().backward()
        milliseconds = (time.perf_counter() - start) / 3 * 1000
        counts.append(sum(p.numel() for p in block.parameters()))
        name = f"{channels} channels at {size}: {type(block).__name__:10}"
        print(f"{name} {counts[-1]:6,} parameters, {milliseconds:4.0f} ms")
    assert 3.5 < counts[1] / counts[0] < 6.5  # "about five times", as the text says

# %% [markdown]
# **What to see.** Compare the two lines of each shape. The DW Block has about five times fewer weights, but that does
# not tell you which block is quicker: the shape of the map and the machine decide. So measure it where you want to use
# the block.

# %% [markdown]
# ## 4 · Feature-Guided Attention, from the equation
#
# At strides 4, 8 and 16 we have two maps of the same size: $S_i$ from the guide and $F_i$ from the FGE. We want one
# number between 0 and 1 for every pixel, which says how much of the fine features goes on. Three demands lead to the
# formula:
#
# 1. **Both must have a say**, but they have different channels. So project both to the same number of channels and
#    *add*: $W_s S_i + W_f F_i$.
# 2. **The two must be able to interact**: "an edge, but only if the guide does not see the inside of a mitochondrion".
#    A sum alone cannot say "but only if"; a sum followed by $\mathrm{ReLU}$ can.
# 3. **The result is a weight**: mix the channels into one ($W_a$), and squash it to $[0, 1]$ by a sigmoid.
#
# $$a_i = \sigma\bigl(W_a\,\mathrm{ReLU}(W_s S_i + W_f F_i)\bigr), \qquad F_i' = F_i \odot a_i.$$
#
# The features meet only in additions and multiplications, as the paper says. A weight of 0 **erases** the fine
# features of a pixel, and a weight of 1 keeps them. So attention can erase, but it can never stress a feature beyond
# what it was. And there is no way around the map: whatever the decoder gets from these strides has passed through it.
# A network that is trained in this form has to make good maps. We go through it step by step, at stride 4 of the
# trained model:

# %%
fga = model.fine_encoder.guides[0]  # stride 4
with torch.no_grad():
    S = model.encode(raw)[0]
    fine = F.gelu(model.fine_encoder.stem(raw))
    for level in (1, 2):
        fine = model.fine_encoder.blocks[level](model.fine_encoder.downs[level](fine))
    says_guide, says_fine = fga.from_guide(S), fga.from_fine(fine)
    together = F.relu(says_guide + says_fine)
    a1 = torch.sigmoid(fga.to_map(together))
for name, tensor in {"S1": S, "F1": fine, "Ws S1": says_guide, "Wf F1": says_fine, "a1": a1}.items():
    print(f"{name:6} {tuple(tensor.shape)}, from {tensor.min():6.2f} to {tensor.max():5.2f}")

# %% [markdown]
# Which of the two says more about *where*? Before the ReLU they are simply added, so you can compare how much each varies
# from pixel to pixel. The pictures show the mean over the channels.

# %% alt="A section, and the steps of attention at stride 4: the guide's part, dark along outlines; the fine part; the ReLU of their sum; the attention a1, whose bright lines run along the membranes."
over_pixels = [part.var(dim=(2, 3, 4)).sum() for part in (says_guide, says_fine)]
share = over_pixels[0] / sum(over_pixels)
print(f"the guide's part of the two variances together: {share:.0%}")
assert DATASET not in ("phantom", "fib25") or share > 0.75  # as the text says

z = raw.shape[2] // 2
figure, axes = plt.subplots(1, 5, figsize=(15, 4.2))
plots.show_section(axes[0], piece.raw, None, piece.voxel_size, z, f"EM, section {first + z}")
steps = {"$W_s S_1$ (guide)": says_guide, "$W_f F_1$ (fine)": says_fine, "ReLU of the sum": together, "$a_1$": a1}
for ax, (title, tensor) in zip(axes[1:], steps.items(), strict=True):
    shown = tensor[0].mean(0).numpy()
    limits = tuple(np.percentile(shown, (1, 99)))
    show_attention(ax, shown[z], STRIDES[0], title, limits)
for ax, label in zip(axes, ("grey value", *["mean over channels"] * 3, "attention"), strict=True):
    figure.colorbar(ax.images[0], ax=ax, location="bottom", label=label)

# %% [markdown]
# Do the two parts see membranes, and does a1? Words should follow from numbers, so here are both. The **AUC** says how
# often a random voxel on a membrane has a higher value than a random voxel elsewhere: 0.5 means no difference, 0 that
# membranes are always lower, and 1 that they are always higher. Exercise 3.3 comes back to it.


# %%
def on_voxels(a, stride):
    """A map at `stride`, every value spread over its voxels."""
    return a.repeat(stride, 1).repeat(stride, 2)[:, :height, :width]


edges = widen_borders(piece.labels) == 0
of_parts = []
for name, tensor in {"The guide's part": says_guide, "The fine part": says_fine, "a1": a1}.items():
    of_parts.append(roc_auc(on_voxels(tensor[0].mean(0).numpy(), STRIDES[0]), edges))
    print(describe_attention(name, {"on membranes": of_parts[-1]}))
assert DATASET not in ("phantom", "fib25") or abs(of_parts[2] - 0.5) > max(abs(auc - 0.5) for auc in of_parts[:2])

# %% [markdown]
# **What to see.** If the first two sentences say *lower* or *higher*, both encoders see membranes. The ReLU and $W_a$
# turn their sum into one weight per pixel, $a_1$, and it draws the membranes more clearly than the mean of either part
# does. The percentage above the figure is the guide's part of the two variances together: on the phantom and on FIB-25
# it is over three quarters, so **what varies from pixel to pixel before the ReLU comes mostly from the guide**.
#
# **Exercise 3.2: feature-guided attention.** Now write it as a module. The layers are given; write the two equations
# above. Return the guided features $F'$ and the attention map $a$. The check gives your module the weights of the
# library's module, and compares what the two compute.


# %% tags=["task"]
class MyAttention(nn.Module):
    def __init__(self, guide_channels, channels):
        super().__init__()
        self.from_guide = nn.Conv3d(guide_channels, channels, 1)  # W_s
        self.from_fine = nn.Conv3d(channels, channels, 1)  # W_f
        self.to_map = nn.Conv3d(channels, 1, 1)  # W_a

    def forward(self, fine, guide):
        return ...


# %% tags=["solution"]
class MyAttention(nn.Module):
    def __init__(self, guide_channels, channels):
        super().__init__()
        self.from_guide = nn.Conv3d(guide_channels, channels, 1)  # W_s
        self.from_fine = nn.Conv3d(channels, channels, 1)  # W_f
        self.to_map = nn.Conv3d(channels, 1, 1)  # W_a

    def forward(self, fine, guide):
        mixed = F.relu(self.from_guide(guide) + self.from_fine(fine))
        a = torch.sigmoid(self.to_map(mixed))
        return fine * a, a


# %%
checks.attention(MyAttention)

# %% [markdown]
# The library's module does the same as our steps by hand:

# %%
with torch.no_grad():
    guided, a = fga(fine, S)
torch.testing.assert_close(a, a1)
torch.testing.assert_close(guided, fine * a1)
print(f"equal: attention by hand and by the library's {type(fga).__name__}")

# %% [markdown]
# ### Further: other forms of the last step
#
# The paper does not print its formula, so other last steps are possible. `FGNetConfig.attention` has them:
#
# | `attention` | $F'$ | where $a = 0$ | where $a = 1$ |
# | --- | --- | --- | --- |
# | `"plain"` (the shipped model) | $F \odot a$ | erased | kept |
# | `"residual"` (the default of `FGNetConfig`) | $F + F \odot a$ | kept | doubled |
# | `"additive"` | $F + W_v S \odot a$ | kept | the guide's own features are added |
#
# Check the last two columns yourself: we force the map to 0 and to 1, and compare the length of $F'$ with that of $F$.

# %%
features, guide = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 24, 2, 8, 8)
for form in ("plain", "residual", "additive"):
    module = fgnet.FeatureGuidedAttention(24, 16, form).requires_grad_(False)
    module.to_map.weight.zero_()
    lengths = []
    for logit in (-50, 50):  # the sigmoid makes 0 and 1 of them
        module.to_map.bias.fill_(logit)
        lengths.append((module(features, guide)[0].norm() / features.norm()).item())
    print(f"{form:9} length of F' / length of F: {lengths[0]:.2f} where a = 0, {lengths[1]:.2f} where a = 1")
    assert np.isclose(lengths[0], 0 if form == "plain" else 1)

# %% [markdown]
# **Why not the residual form?** It trains easily, because $F$ always has a way through. But for the same reason the
# network can do *without* the map. We trained two models that differ in this form only, around the same encoder of
# photographs. After 2300 iterations we replaced one map after the other by its mean, on FIB-25's sections 120-139. By
# how many bits did VOI rise? (VOI measures errors of the segmentation, as lesson 05 explains: lower is better.)
#
# | form | a1 | a2 | a3 |
# | --- | --- | --- | --- |
# | residual | -0.01 | +0.23 | -0.02 |
# | plain | +0.14 | +2.62 | -0.03 |
#
# The plain model needs a1 and a2 where they are; the residual one hardly needs its a1. This is one training of each, so
# we do not know how much chance is in it ([the record](../docs/measured/trials.md) has the details). In the additive
# form more than one number per pixel of the guide passes, so *what* comes in can count more than *where*.

# %% [markdown]
# ## 5 · Further: the whole guided encoder
#
# Put together: from stride 4 on, every level is guided, and the **guided** map $F_i'$ goes on to the next level (and
# later to the decoder). So $a_1$ also has a say in what the coarser levels see.


# %%
class GuidedEncoder(nn.Module):
    def __init__(self, widths, guide_channels, dense_levels):
        super().__init__()
        self.stem = nn.Conv3d(1, widths[0], (1, 5, 5), padding=(0, 2, 2))
        pairs = zip(widths[:-1], widths[1:], strict=True)
        halve = [nn.Conv3d(a, b, (1, 2, 2), stride=(1, 2, 2)) for a, b in pairs]
        self.downs = nn.ModuleList([nn.Identity(), *halve])
        blocks = [(DenseBlock if i < dense_levels else DWBlock)(width) for i, width in enumerate(widths)]
        self.blocks = nn.ModuleList([nn.Identity(), *blocks[1:]])
        guided = zip(guide_channels, widths[2:], strict=True)
        self.guides = nn.ModuleList(fgnet.FeatureGuidedAttention(s, f, "plain") for s, f in guided)

    def forward(self, raw, guides):
        x = F.gelu(self.stem(raw))
        pyramid, attention = [x], []
        for level in range(1, 5):
            x = self.blocks[level](self.downs[level](x))
            if level >= 2:  # strides 4, 8, 16: the guide has a map
                x, a = self.guides[level - 2](x, guides[level - 2])
                attention.append(a)
            pyramid.append(x)
        return pyramid, attention


# %%
ours = GuidedEncoder(model.config.widths, model.encoder.channels, model.config.dense_levels)
ours.load_state_dict(model.fine_encoder.state_dict())
with torch.no_grad():
    guides = model.encode(raw)
    pyramid, attention = ours(raw, guides)
    library_pyramid, library_attention = model.fine_encoder(raw, guides)
torch.testing.assert_close(pyramid, library_pyramid)
torch.testing.assert_close(tuple(attention), library_attention)
for stride, tensor in zip((1, 2, *STRIDES), pyramid, strict=True):
    print(f"stride {stride:2}: {tuple(tensor.shape)}")
print("attention:", [tuple(a.shape) for a in attention])

# %% [markdown]
# ## 6 · What the trained model attends to
#
# You have written the heart of FGNet. The rest of `fgnet_lib/fgnet.py` puts it into an encoder of five levels, and adds
# two decoders. One reads only the guide's maps and gives the coarse affinities $A_s$. The other reads the guided
# features through skip connections and gives the refined affinities $A_r$. Before you look at the maps of the trained
# model:

# %%
quiz.ask("03", "sign")

# %% [markdown]
# `predict` takes the whole volume through the network in overlapping tiles. The figure has the layout of Figure 4 of
# the paper. Each row is a section, and the rows follow each other from top to bottom. The columns are EM, ground truth,
# and a1, a2, a3 in warm colours: **black is a weight of 0, which erases; bright is a high weight**. The numbers under
# each colour bar are the weights. Over a2 and a3 thin blue lines outline the ground truth; a1 has none, so that you can
# see what it draws by itself. Between pixels the display is smooth; `smooth=False` shows the true grid.

# %% alt="Three successive sections, one row each: EM, ground truth, and the attention maps a1, a2, a3 in warm colours. a1 draws the membranes as bright lines; a2 is bright inside neurites and dark along membranes; a3 has few broad bright spots."
prediction = predict(model, volume.raw, device=session.device)
model.cpu()  # as all other steps of this lesson
middle = depth // 2
sections = list(range(max(0, middle - 1), min(depth, middle + 2)))
figure = attention_grid(volume.raw, volume.labels, prediction.attention, sections, volume.voxel_size)

# %% [markdown]
# **Which map marks what?** We ask about three structures: membranes, the middle of wide neurites (over 150 nm in-plane
# from every membrane), and dark organelles (the darkest tenth of what lies over 30 nm in-plane from any). Membranes
# are compared with all other voxels, the other two with the rest of the interiors.

# %%
widened = widen_borders(volume.labels)
known, borders = widened != IGNORE, widened == 0
inside = known & ~borders
to_border = np.stack([ndimage.distance_transform_edt(section, volume.voxel_size[1:]) for section in ~borders])
cytoplasm = inside & (to_border > 30)  # nm, within each section
organelles = cytoplasm & (volume.raw < np.percentile(volume.raw[cytoplasm], 10))
structures = {
    "on membranes": (borders, known),
    "in the middle of wide neurites": (inside & (to_border > 150), inside),
    "on dark organelles": (organelles, inside),
}
for level, (a, stride) in enumerate(zip(prediction.attention, STRIDES, strict=True), start=1):
    weights = on_voxels(a, stride)
    by_structure = {where: roc_auc(weights[among], mask[among]) for where, (mask, among) in structures.items()}
    print(describe_attention(f"a{level}", by_structure))
    print(f"    It is below 0.1 in {np.mean(a < 0.1):.0%} of its pixels.")
    if DATASET in ("phantom", "fib25"):  # as the text says
        membranes, middles, _ = by_structure.values()
        assert np.mean(a < 0.1) > 0.2 and (membranes > 0.8, membranes < 0.25, middles > 0.7)[level - 1]

# %% [markdown]
# **What to see.** On the phantom and on FIB-25, **a1 is bright along membranes**: you could draw the cells after it.
# Inside cells it also lights up on organelles, which have membranes of their own. **a2 is the reverse**: bright inside
# neurites, dark along membranes. **a3 is bright in the middle of wide neurites**: its pixels are too coarse for more.
# So the levels have shared the work: fine features go on where an edge may be, coarse ones where there is none. Nobody
# told the network to do this; the loss asks for affinities only. The sentences above are computed from the maps, so
# they hold for the data and the model in front of you, whatever those are.
# At each level the features of many pixels are nearly erased: read the shares below 0.1.
#
# ## 7 · Measured: how much attention falls on membranes
#
# A picture persuades too easily. The question is simple enough for a number: **is attention higher on borders between
# neurites than inside them?** Borders are the voxels where `widen_borders` of lesson 01 writes 0, one voxel to each
# side of in-plane contacts. For each map we measure
#
# - the **AUC**: how often a random border voxel has a higher weight than a random interior voxel. 0.5 means that
#   attention says nothing about borders, 1 that borders are always brighter, and **0 that they are always darker**;
# - the mean weight on borders, divided by the mean inside.
#
# **Exercise 3.3: the AUC.** Write it as it is defined above: take every pair of a border voxel and an interior voxel.
# How often does the border voxel have the higher weight? Equal weights count half. (`p[:, None] > q` compares all
# pairs of two small arrays.)


# %% tags=["task"]
def my_auc(weights, borders):
    p, q = weights[borders], weights[~borders]
    return ...


# %% tags=["solution"]
def my_auc(weights, borders):
    p, q = weights[borders], weights[~borders]
    return np.mean((p[:, None] > q) + 0.5 * (p[:, None] == q))


# %%
checks.auc(my_auc)

# %% [markdown]
# The sign is arbitrary! Nothing in the loss says that attention must be *high* on membranes. A map that is low there
# can carry as much, if the filters go with it. So both signs count as structure, and we report which one each map of
# this model has.

# %%
on_border = borders[known]
print(f"borders are {on_border.mean():.0%} of the volume")
aucs = []
for level, (a, stride) in enumerate(zip(prediction.attention, STRIDES, strict=True), start=1):
    weights = on_voxels(a, stride)[known]
    aucs.append(roc_auc(weights, on_border))
    ratio = weights[on_border].mean() / weights[~on_border].mean()
    sign = "higher" if aucs[-1] > 0.5 else "lower"
    print(f"a{level}: AUC {aucs[-1]:.3f}, mean on borders / inside {ratio:.2f}: weights on borders are {sign}")
if DATASET in ("phantom", "fib25"):
    assert aucs[0] > 0.8 and aucs[1] < 0.25 and aucs[1] < aucs[2] < 0.5  # as the text below says

# %% [markdown]
# **What to see.** On the phantom and on FIB-25, a1 is nearly a map of membranes, and a2 nearly its negative: two maps
# of one model have opposite signs, and both know membranes well. a3 is lower on borders, too, but its AUC is nearer to
# 0.5. Two limits keep an AUC away from 0 and 1. A pixel of stride 16 covers many voxels of both kinds, so a3 cannot
# separate them well whatever it has learned (lesson 02, part 5). And attention need not mark membranes: it learned what
# helps the affinities.
#
# **A caution.** Attention shows where a factor is large. It does not prove that this is *why* the network decides as
# it does. To test that, we have to change the attention and see whether the affinities change with it. Part 8 does
# this.

# %% [markdown]
# ### Further: the distributions behind the AUC
#
# Many weights lie near 0, so the vertical axis is logarithmic:

# %% alt="Histograms of a1, a2 and a3, on borders and inside neurites: borders lie to the right in a1 and to the left in a2, and in a3 the two overlap widely; the vertical axis is logarithmic."
figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), sharey=True)
axes[0].set(ylabel="share of voxels (%)", yscale="log", ylim=(0.01, 150))
for level, (ax, a, stride) in enumerate(zip(axes, prediction.attention, STRIDES, strict=True), start=1):
    weights = on_voxels(a, stride)[known]
    bins = np.linspace(*np.percentile(weights, (0.1, 99.9)), 50)
    for name, mask in {"inside": ~on_border, "borders": on_border}.items():
        percent = np.full(mask.sum(), 100 / mask.sum())
        ax.hist(weights[mask], bins, weights=percent, label=name, alpha=0.6)
    ax.set(title=f"$a_{level}$ (stride {stride}): AUC {aucs[level - 1]:.2f}", xlabel="attention")
    ax.legend()

# %% [markdown]
# **What to see.** In a1 borders lie to the right of interiors, in a2 to the left, and in a3 the two overlap widely. The
# further apart the two histograms are, on either side, the more attention knows about borders. The AUC also sees what a
# histogram hides: it compares the tiny weights that share the leftmost bar.

# %% [markdown]
# ## 8 · Explore
#
# Slide or play through the sections, switch between a1, a2 and a3, enlarge, and outline the ground truth or the
# segmentation. Move the cross with the sliders, or by a click in JupyterLab. The explorer answers three questions about
# that point. What are the weights of all levels? (The table.) Which pixels look similar to the guide? (The third
# picture.) How strongly do the guided fine features respond? (The fourth picture: the length of $F'$.) The line under
# the pictures tells the values at your mouse and the keys that work after a click.
#
# *xz* cuts through all sections. *range*, *gamma* and *rank* bring out weak differences, and *smooth* hides the pixels
# of a map. *save PNG*, *save GIF* and *save arrays* (.npy and TIFF, with the settings) write what you see to your
# results folder. *open here in neuroglancer* shows the same place in 3D, and *own image* puts an image of yours in the
# volume's place.
#
# Move the cross into the cytoplasm of a cell: which pixels turn yellow in the third picture? And what is left of the
# guided features there, in the fourth?
#
# The cross begins on a membrane that depends on attention: of all membrane voxels of the middle section, 32 voxels or
# more from its edge, the one around which the affinities change most if a1 is set to 0. Below, under *What if?*, you
# see this change.

# %%
inspector = Inspector(model, volume.raw)  # it computes for the explorer
usual, without_a1 = (inspector.section(middle, question).affinities for question in (None, WhatIf((1,), 0.0)))
change = ndimage.uniform_filter(np.abs(without_a1 - usual).mean(axis=0), 5)  # around each voxel
change[~borders[middle]] = 0
rim = 32  # voxels; nearer to the edge of the picture the model sees less, and so do you
y, x = (
    rim + int(k) for k in np.unravel_index(change[rim:-rim, rim:-rim].argmax(), (height - 2 * rim, width - 2 * rim))
)
print(f"the cross begins at y = {y}, x = {x}; the mean of its affinities is {usual[:, y, x].mean():.2f},", end=" ")
print(f"and {without_a1[:, y, x].mean():.2f} if a1 is set to 0")
if DATASET in ("phantom", "fib25"):  # as the text below says
    assert borders[middle, y, x] and change[y, x] > 5 * np.abs(without_a1 - usual).mean()

# %%
threshold = pretrained_threshold()
neurons = segment(prediction.refined, volume.voxel_size, threshold)
explorer = explorers.attention_explorer(volume, model, neurons, session.out_dir)
explorer.change(y=y, x=x, outlines="nothing", smooth=True, opacity=0.8)  # outlines would hide what a1 draws
explorer

# %% [markdown]
# If no kernel is running, for example in the pages that `make tutorial` makes, you see one of its pictures here:

# %% alt="A picture of the attention explorer: the section, the section under the map a1, whose bright lines run along membranes, both with a cross; the similarity to the pixel under the cross; the response of the guided features, strong along membranes."
explorer.draw(z=middle, level="a1")

# %% [markdown]
# **Without a kernel.** The next cell writes EM, a1, a2, a3 and the guide's features into one HTML file. It opens in any
# browser, also on a phone, and you can send it to a colleague. Point at a picture: the cross and the values follow in
# all of them. Click: the last picture shows where the guide sees something similar.

# %%
from fgnet_lib.views.attention_page import export_attention

page = export_attention(volume, model, session.out_dir / "attention.html")
print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")

# %% [markdown]
# **What if?** Choose *what if a is 0*: this replaces the map of that level before it is multiplied, and the rest of the
# network computes again. The pictures to the right show the new affinities and their change: purple where voxels are
# now joined more, orange where they are joined less. The table says how many affinities cross 0.5. Drag over a picture
# to change the map only where you paint (*brush radius* is in voxels). *gradient of* asks the question the other way
# round: which pixels of the map would change the affinity at the cross, and could the map flip it at all?

# %%
quiz.ask("03", "zero")

# %% [markdown]
# With 0 the fine features of this level are erased everywhere. With 1 they are kept everywhere. With *mean* only the
# *where* is lost. Here a1 is set to 0:

# %% alt="The explorer with a1 set to 0: the section under an even map, the affinities that follow, and their change in purple and orange, above all along borders."
explorer.draw(z=middle, level="a1", what_if="0")

# %% [markdown]
# **What to see.** Most of the last picture is pale, and what changes lies along membranes. Around the cross, the
# affinities change several times as much as on average (on the phantom and on FIB-25 more than five times): whether the
# model sees this membrane depends on a1.
#
# The same in numbers, for the small piece of part 1. The explorer uses `attention_set_to`: inside the `with`, the
# model computes with another map.

# %%
with torch.no_grad():
    before = model(raw).refined.sigmoid()
    crossed = {}
    for level, value in product((1, 2, 3), (0, 1, "mean")):
        with attention_set_to(model, level, value):
            after = model(raw).refined.sigmoid()
        share = crossed[level, value] = ((after > 0.5) != (before > 0.5)).float().mean().item()
        change = (after - before).abs().mean()
        print(f"a{level} set to {value!s:4}: mean change {change:.3f}, {share:.2%} of the affinities cross 0.5")
if DATASET in ("phantom", "fib25"):  # as the text below says
    assert crossed[2, "mean"] > max(crossed[1, "mean"], crossed[3, "mean"]) and crossed[1, "mean"] > 0.01
    assert min(crossed[2, 0], crossed[2, 1]) > 0.1

# %% [markdown]
# **What to see.** The model uses *where* it attends. With a2 set to its mean, more affinities cross 0.5 than with any
# other mean, and with a2 set to 0 or 1, more than a tenth of all affinities do. A segmentation feels this more than
# affinities show, because one wrong bridge merges two neurons: on FIB-25's sections 120-139, VOI rises by 0.42 bits
# with the mean of a1, by 2.23 with that of a2, and by 0.11 with that of a3 ([the record](../docs/measured/trials.md));
# on its validation part by 0.14, 2.06 and -0.01.
#
# So the decoder relies on the maps. But that does not say that the model would segment worse if it had been **trained**
# without the map. That is another experiment: an ablation. And it says nothing about other trainings: [lesson
# 07](07_ablations_and_results.ipynb) asks the same of every model that `make results` trains.

# %% [markdown]
# ## Your exercises

# %%
checks.report("03")

# %% [markdown]
# ## What you learned
#
# - A DW Block splits a 3D convolution into a look at the neighbours (depthwise) and a mix of the channels (pointwise).
#   This takes far fewer weights.
# - The Fine-Grained Encoder works at full resolution and never pools z.
# - Feature-Guided Attention is $F' = F \odot \sigma(W_a\,\mathrm{ReLU}(W_s S + W_f F))$: the guide's features and the
#   fine ones decide together which fine features to keep. With a residual, a network can do without its maps.
# - In the shipped model a1 marks membranes, and a2 the insides of neurites. Measure attention maps; do not only look at
#   them. Their sign is arbitrary.
# - Replace a map to see whether the model uses it. Train a model without it to see whether it is worth having.
#
# ## Try it
#
# 1. **Cut the guide.** With `guides` of part 5, call `model.fine_encoder(raw, [torch.zeros_like(s) for s in guides])`.
#    How much do the maps change? At which stride does the guide matter most?
# 2. **Two models at once.** `explorers.attention_explorer(volume, {"trained": model, "untrained":
#    fgnet.FGNet(model.config)})` shows both on the same sliders and in the same colours, and their difference. What did
#    training change in these pictures?
# 3. Train two small models as in lesson 04, one with `attention="residual"` in its `FGNetConfig`, one with `"plain"`.
#    Set their maps to the mean, as in part 8. Which of the two uses where it attends?
# 4. In [the playground](https://fgnet-tutorials.github.io/fgnet-tutorials/playground/), set a1, a2 and a3 to 0, to
#    their mean and to 1, one after the other. Which map changes the neurons most?
# 5. If you have another real volume, for example gala, run this notebook with `DATASET = "gala"`. Do the AUCs of part 7
#    cross 0.5 there?
#
# ## References
#
# - Li, Chen, Sun, Li, Hu. *Leveraging Feature-Guided Attention to Refine SAM2 for 3D EM Neuron Segmentation.* AAAI
#   2026, [doi:10.1609/aaai.v40i8.37606](https://doi.org/10.1609/aaai.v40i8.37606),
#   [arXiv:2511.13063](https://arxiv.org/abs/2511.13063).
# - N. Ravi et al. *SAM 2: Segment Anything in Images and Videos.* ICLR 2025,
#   [arXiv:2408.00714](https://arxiv.org/abs/2408.00714).
# - A. G. Howard et al. *MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications.* 2017,
#   [arXiv:1704.04861](https://arxiv.org/abs/1704.04861) (depthwise separable convolutions).
# - O. Oktay et al. *Attention U-Net: Learning Where to Look for the Pancreas.* 2018,
#   [arXiv:1804.03999](https://arxiv.org/abs/1804.03999) (the family of additive attention gates).
