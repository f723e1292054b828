# %% [markdown]
# # 02 · SAM2 features: look at electron microscopy through a network made for photographs
#
# <!-- badges -->
#
# **What you will learn**
# - what SAM2's image encoder is, what it was trained on, and which part of it FGNet uses;
# - what goes in (one section at a time) and what comes out: three maps, at strides 4, 8 and 16;
# - two ways to look at a map of many channels: principal components as three colours, and similarity to one pixel;
# - what a stride of 4, 8 or 16 voxels loses on a thin neurite;
# - how a number, instead of your eye, tells trained features from random ones, and what photographs teach about
#   membranes;
# - what a search by features finds: tissue that looks alike, not the same neuron.
#
# **Before you start.** Lesson 01 explains EM volumes and labels, but you can do without it. You need no GPU and no
# download.
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
# ## 1 · What SAM2 is
#
# **Segment Anything 2** (SAM2) takes a photograph or a video and a click, and outlines the object under the click. It
# was trained on a very large collection of natural images and videos; that collection has no electron micrographs. The
# network has several parts: an *image encoder* that turns each image into features, a memory that follows objects
# through a video, and a decoder that turns a click into a mask.
#
# FGNet takes **the image encoder only**, and needs no click. The encoder has two halves:
#
# - the **trunk**, *Hiera*: a vision transformer in four stages. Every stage after the first halves the map and doubles
#   the channels. So early stages see fine detail, and late stages see a wide surround. Most of its attention stays
#   inside small windows, which keeps it affordable;
# - the **neck**, a *feature pyramid network* (FPN): it brings all stages to the same number of channels.
#
# SAM2 comes in four official sizes. A fifth, `mini`, is ours: it uses the same classes, and is small enough to train
# on a laptop. It contains **none of SAM2's weights**. Here are all sizes but the largest.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.stats import mode

from fgnet_lib.affinities import widen_borders
from fgnet_lib.course import checks, quiz
from fgnet_lib.datasets import fetch
from fgnet_lib.metrics import roc_auc
from fgnet_lib.natural_encoder import build_natural_encoder
from fgnet_lib.sam2_encoder import STRIDES, build_encoder
from fgnet_lib.views import explorers, plots
from fgnet_lib.views.feature_maps import cosine_similarity, principal_components
from fgnet_lib.weights import PRETRAINED, load_pretrained

for size in ("mini", "tiny", "small", "base_plus"):
    encoder = build_encoder(size)
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    blocks = len(encoder.image_encoder.trunk.blocks)
    print(f"{size:10} {millions:5.1f} million parameters, {blocks:2} blocks, {encoder.channels[0]:3} channels out")

# %% [markdown]
# ## 2 · A section through it
#
# We cut eight sections from the middle of the volume. Height and width must be **multiples of 32**: the trunk lays
# windows of 8 × 8 pixels over a map of stride 4. (FGNet pads and crops by itself; here we simply cut.)

# %%
whole = session.volume("val")
depth, height, width = whole.shape
first = max(0, depth // 2 - 4)
cut = slice(0, min(height, 512) // 32 * 32), slice(0, min(width, 512) // 32 * 32)
volume = whole[slice(first, first + 8), *cut]
z = volume.shape[0] // 2
print(f"{volume.name}: {volume.shape} voxels of {volume.voxel_size} nm")

# %% [markdown]
# SAM2 expects a colour photograph, normalised with the mean and the spread of the *ImageNet* photographs. An EM
# section has one grey channel, so we pass it three times. This is our choice, and the plainest one: it adds no
# weights.

# %%
grey = torch.from_numpy(volume.raw[z] / np.float32(255))
mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
spread = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
photograph = ((grey.expand(3, -1, -1) - mean) / spread)[None]
print("into the encoder:", tuple(photograph.shape), "= images, channels, y, x")

# %% [markdown]
# We load weights for the `mini` encoder that come with this course. It was pretrained without hand-drawn labels: it
# learned to paint hidden parts of EM sections, and then to predict the affinities of phantoms. First comes the trunk: a
# 7 × 7 convolution with stride 4 turns the image into *tokens*, one vector for each 4 × 4 voxels. Then the four stages
# follow.

# %%
mini = build_encoder("mini", PRETRAINED / "encoder_mini.pt").eval()
sam2 = mini.image_encoder  # the sam2 package's own class
with torch.no_grad():
    tokens = sam2.trunk.patch_embed(photograph)
    stages = sam2.trunk(photograph)
print("tokens (y, x, channels):", tuple(tokens.shape[1:]))
for number, stage in enumerate(stages, start=1):
    print(f"stage {number} (channels, y, x):", tuple(stage.shape[1:]))

# %% [markdown]
# The neck gives every stage the same number of channels by a 1 × 1 convolution, and adds the coarsest map (stride 32)
# to the map of stride 16. Then the coarsest map is dropped. **The three that remain** guide FGNet; the paper, too, has
# three attention maps.

# %%
quiz.ask("02", "one-pixel")

# %% [markdown]
# Here are the three maps:

# %%
with torch.no_grad():
    pyramid, _ = sam2.neck(stages)
for level, stride in zip(pyramid[:3], STRIDES, strict=True):
    nm = stride * volume.voxel_size[-1]
    print(f"stride {stride:2}: {tuple(level.shape[1:])}; one pixel of the map covers {nm:g} x {nm:g} nm")

# %% [markdown]
# The library's encoder does all of this for a whole stack, section by section: `(batch, 1, z, y, x)` goes in, three
# maps come out. Each section is encoded alone, so its features know **nothing of the sections above and below**. FGNet
# has an encoder of its own that adds this, and fine detail as well: part 5 shows why.

# %%
raw = torch.from_numpy(volume.raw / np.float32(255))[None, None]
with torch.no_grad():
    features = [level[0] for level in mini(raw)]
for level, by_hand in zip(features, pyramid, strict=False):
    torch.testing.assert_close(level[:, z], by_hand[0], atol=1e-4, rtol=1e-4)
print([tuple(level.shape) for level in features], "= channels, z, y, x")

# %% [markdown]
# **Exercise 2.1: the shape of a map.** A stack has the shape (z, y, x) in voxels, and every map has as many channels
# as the neck gives. Which shape does the map of a given stride have? Use the order of the shapes printed above.


# %% tags=["task"]
def my_map_shape(stack_shape, stride, channels):
    return ...


# %% tags=["solution"]
def my_map_shape(stack_shape, stride, channels):
    sections, rows, columns = stack_shape
    return channels, sections, rows // stride, columns // stride


# %%
checks.map_shape(my_map_shape)

# %% [markdown]
# ## 3 · Many channels as three colours
#
# A pixel of a feature map is a vector $f_p$ of $C$ numbers; a screen has three colours. *Principal component analysis*
# finds the three directions along which the vectors differ most. Centre the vectors, $\tilde f_p = f_p - \bar f$, and
# take the eigenvectors $u_1, u_2, u_3$ of $\sum_p \tilde f_p \tilde f_p^\top$ with the largest eigenvalues. The
# projections $u_k^\top \tilde f_p$ become red, green and blue. **Equal colours mean vectors that agree in these three
# directions**; which colour it is means nothing. The first line printed below tells you how much of the variance the
# colours show; what lies in the other directions stays hidden.

# %%
vectors = features[0].flatten(1).double()
vectors = vectors - vectors.mean(1, keepdim=True)
variances, directions = torch.linalg.eigh(vectors @ vectors.T)  # in rising order
share = variances.flip(0)[:3] / variances.sum()
print("share of the variance, first three of", len(variances), "directions:", share.numpy().round(2))

projected = (directions[:, -1] @ vectors).view(features[0].shape[1:]).numpy()
library = principal_components(features[0])[..., 0]
assert np.allclose(np.abs(projected), np.abs(library), atol=1e-6)  # the sign is arbitrary

# %% alt="A section and its features at strides 4, 8 and 16 as colours: at stride 4 outlines of cells and organelles, at stride 8 coarse spots, at stride 16 a mosaic of large squares."
figure, axes = plt.subplots(1, 4, figsize=(14, 4))
plots.show_section(axes[0], volume.raw, None, volume.voxel_size, z, f"EM, section {z}")
for ax, level, stride in zip(axes[1:], features, STRIDES, strict=True):
    colors = principal_components(level)[z]
    plots.pca_rgb(ax, colors, stride, volume.voxel_size, f"stride {stride}, {len(level)} channels")

# %% [markdown]
# **What to see.** At stride 4 the cells and their organelles have sharp outlines, in other colours than the cytoplasm.
# At stride 8 they fall apart into coarse spots. At stride 16 each pixel covers a large patch: you can tell regions
# apart, but you can hardly draw their borders. You may also find straight edges that belong to no cell. They are the
# *windows* of the trunk's attention: a pixel looks around only inside its own window. In the map at stride 16 a window
# is 8 × 8 pixels, so look for an edge after the eighth row or column.

# %% [markdown]
# ## 4 · Similarity to one pixel
#
# The second view asks a question: *which pixels look to the encoder like this one?* For two vectors the **cosine
# similarity** is
#
# $$\cos(f_p, f_q) = \frac{f_p^\top f_q}{\lVert f_p\rVert\,\lVert f_q\rVert} \in [-1, 1].$$
#
# **Exercise 2.2: cosine similarity.** The features are an array of shape (channels, y, x). Compute the similarity of
# every pixel to the pixel (y, x). `np.linalg.norm(..., axis=0)` gives the lengths of all vectors.


# %% tags=["task"]
def my_similarity(features, y, x):
    return ...


# %% tags=["solution"]
def my_similarity(features, y, x):
    unit_vectors = features / np.linalg.norm(features, axis=0)
    return (unit_vectors[:, y, x, None, None] * unit_vectors).sum(axis=0)


# %% alt="Cosine similarity of every pixel of a small section to a red cross: yours on the left, the expected map on the right."
checks.similarity(my_similarity)

# %% [markdown]
# For the picture we take a pixel of plain cytoplasm: the brightest spot well inside the largest neurite of the
# section. We find "well inside" by the *distance transform*, which gives every voxel its distance to the border.

# %%
labels = widen_borders(volume.labels)[z]  # 0 on borders
ids, areas = np.unique(labels[labels > 0], return_counts=True)
largest = ids[areas.argmax()]


def depth_inside(mask):
    """Distance of every voxel of a mask (y, x) to the mask's border, in voxels; the edge of the image is a border."""
    return distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


distance = depth_inside(labels == largest)
distance[int(0.85 * len(distance)) :] = 0  # where the scale bar lies
brightness = np.where(distance > distance.max() / 2, gaussian_filter(volume.raw[z].astype(float), 3), 0)
cross_y, cross_x = np.unravel_index(brightness.argmax(), brightness.shape)
print(f"neurite {largest}: {areas.max()} voxels in this section; the cross is at y = {cross_y}, x = {cross_x}")

# %%
quiz.ask("02", "similar")

# %% [markdown]
# Here is the similarity of every pixel to the pixel under the cross:

# %% alt="A section with outlined neurites, and three maps of similarity to one pixel of cytoplasm: cytoplasm of most neurites is similar, outlines and mitochondria are not. At stride 16 only blocks are left."
figure, axes = plt.subplots(1, 4, figsize=(14.5, 3.8))
plots.show_section(axes[0], volume.raw, volume.labels, volume.voxel_size, z, "EM with labels", fill=0)
for ax, level, stride in zip(axes[1:], features, STRIDES, strict=True):
    similarity = cosine_similarity(level[:, z], cross_y // stride, cross_x // stride)
    plots.show_similarity(ax, similarity, stride, volume.voxel_size, f"stride {stride}", colorbar=False)
figure.colorbar(axes[-1].images[0], ax=axes, label="cosine similarity", shrink=0.8)
for ax in axes:
    ax.plot(cross_x, cross_y, "+", color="red", markersize=14, markeredgewidth=2)

# %% [markdown]
# How much of this is the neurite, and how much is anything that looks alike? Compare the mean similarity over the same
# neurite, over all other neurites, and over the borders between them.

# %%
same, border = labels == largest, labels == 0
regions = {"same neurite": same, "other neurites": ~same & ~border, "borders": border}
gaps = []  # between other neurites and borders
for level, stride in zip(features, STRIDES, strict=True):
    similarity = cosine_similarity(level[:, z], cross_y // stride, cross_x // stride)
    similarity = similarity.repeat(stride, 0).repeat(stride, 1)
    means = ", ".join(f"{name} {similarity[region].mean():5.2f}" for name, region in regions.items())
    print(f"stride {stride:2}: {means}")
    gaps.append(similarity[regions["other neurites"]].mean() - similarity[border].mean())
assert DATASET != "phantom" or gaps[2] < gaps[0] / 2  # as the text says

# %% [markdown]
# **What to see.** At stride 4, cytoplasm is similar to the cross in most of the wide neurites. Outlines are not, even
# those of the cross's own neurite, and mitochondria are less similar than cytoplasm. So the features say *what* a pixel
# looks like (cytoplasm, membrane, mitochondrion, a wide or a thin process), not *whose* it is. At stride 16 a pixel
# covers several structures at once, and borders hardly stand out from other neurites: compare the means above. You
# cannot read a segmentation off the similarity. That is why FGNet predicts affinities, which ask only whether two
# neighbouring voxels belong together.

# %% [markdown]
# ## 5 · What a stride loses on a thin neurite
#
# Suppose the features were perfect. A map with stride $s$ still has one vector for $s \times s$ voxels. If it can only
# say one thing about them, the best it can say is the label that most of them have. So we can measure the loss without
# any network. We replace every block by its most frequent label, and compare the neurite $A$ with what became of it,
# $B$. The measure is the **intersection over union**, IoU $= |A \cap B|\,/\,|A \cup B|$: 1 if nothing changed, 0 if
# the neurite vanished.


# %%
def coarsen(section, stride):
    """The most frequent label of every stride x stride block, spread over the block again."""
    rows, columns = (size // stride for size in section.shape)
    blocks = section.reshape(rows, stride, columns, stride).swapaxes(1, 2).reshape(rows, columns, -1)
    return mode(blocks, axis=-1).mode.repeat(stride, 0).repeat(stride, 1)


thickness = {}  # id -> diameter (nm) of the largest disc that fits into the neurite in this section
section = volume.labels[z]
for i in np.unique(section[section > 0]):
    thickness[i] = 2 * depth_inside(section == i).max() * volume.voxel_size[-1]
thinnest, widest = min(thickness.values()), max(thickness.values())
print(f"{len(thickness)} neurites in the section, {thinnest:.0f} to {widest:.0f} nm thick")

# %%
coarse = {stride: coarsen(section, stride) for stride in (1, *STRIDES)}


def iou(i, stride):
    """Intersection over union of neurite i and what a map of this stride can hold of it."""
    a, b = section == i, coarse[stride] == i
    return np.sum(a & b) / np.sum(a | b)


for stride in STRIDES:
    values = np.array([iou(i, stride) for i in thickness])
    gone, poor, nm = np.mean(values == 0), np.mean(values < 0.5), stride * volume.voxel_size[-1]
    print(f"stride {stride:2} ({nm:4g} nm): {gone:4.0%} of the neurites vanish, {poor:4.0%} have an IoU below 0.5")

# %% [markdown]
# Now look at one thin neurite. Its *thickness* is the diameter of the widest disc that fits into it. Of the neurites
# that have at least 40 voxels and do not touch the edge, we take the one whose thickness is closest to 6 voxels. (In
# a small crop even that one may be thicker.)

# %%
edge = set(np.concatenate([section[0], section[-1], section[:, 0], section[:, -1]]))
candidates = [i for i in thickness if np.sum(section == i) >= 40]
thin = min(candidates, key=lambda i: (i in edge, abs(thickness[i] - 6 * volume.voxel_size[-1])))
y, x = np.unravel_index(depth_inside(section == thin).argmax(), section.shape)
top, left = (int(np.clip(p // 16 * 16 - 32, 0, n - 80)) for p, n in zip((y, x), section.shape, strict=True))
window = slice(top, top + 80), slice(left, left + 80)
print(f"neurite {thin}: {thickness[thin]:.0f} nm thick; the cross is at y = {y}, x = {x}")

# %% alt="Above: the labels around a thin neurite at full resolution and as blocks of 4, 8 and 16 voxels, where the neurite loses its shape. Below: the neurite alone, and how similar its surroundings are at each stride; at stride 16 one pixel is wider than the neurite."
figure, axes = plt.subplots(2, 4, figsize=(14, 7))
colors = plots.neighbour_colors(section)
for ax, stride in zip(axes[0], coarse, strict=True):
    title = "labels, every voxel" if stride == 1 else f"stride {stride}: IoU {iou(thin, stride):.2f}"
    ids = coarse[stride][window]
    plots.show_section(ax, volume.raw[z][window], ids, volume.voxel_size, title=title, fill=0.5, colors=colors)
alone = np.where(section == thin, section, 0)[window]
plots.show_section(axes[1, 0], volume.raw[z][window], alone, volume.voxel_size, title="the neurite", fill=0)
for ax, level, stride in zip(axes[1, 1:], features, STRIDES, strict=True):
    similarity = cosine_similarity(level[:, z], y // stride, x // stride).repeat(stride, 0).repeat(stride, 1)
    title = f"similarity to the cross, stride {stride}"
    plots.show_similarity(ax, similarity[window], 1, volume.voxel_size, title, colorbar=False)
    ax.contour(alone > 0, [0.5], colors="white", linewidths=1.5)
figure.colorbar(axes[1, 1].images[0], ax=axes, label="cosine similarity (lower row)", shrink=0.5)
for ax in axes.flat:
    ax.plot(x - left, y - top, "+", color="red", markersize=14, markeredgewidth=2)
assert iou(thin, 1) == 1 > iou(thin, 4) > iou(thin, 16)  # as the text says
assert DATASET != "phantom" or thickness[thin] < 16 * volume.voxel_size[-1]

# %% [markdown]
# **What to see.** The upper row shows what a perfect map of each stride could hold; the IoU is that of the neurite
# under the cross. Its shape is worse at stride 16 than at 4. The lower row shows what our features hold, with the neurite
# outlined in white. The pixel that the cross lies in has similarity 1, even if the cross lies in its corner. On the
# phantom, this single pixel is wider than the neurite at stride 16. Many channels help, since a vector can say
# "an edge runs through here", but the position of that edge is lost. This is why FGNet has a second encoder, the
# *Fine-Grained Encoder*, which works at full resolution: see lesson 03.

# %% [markdown]
# ### Further: choose a stride
#
# **Exercise 2.3: a stride that is fine enough.** You know how thick a neurite is. Of the strides 1, 4, 8 and 16,
# return the coarsest one at which a pixel is no wider than the neurite. If even stride 1 is too coarse, return 1.


# %% tags=["task"]
def my_stride(thickness_nm, voxel_nm):
    return ...


# %% tags=["solution"]
def my_stride(thickness_nm, voxel_nm):
    return max(stride for stride in (1, *STRIDES) if stride * voxel_nm <= thickness_nm or stride == 1)


# %%
checks.fine_stride(my_stride)

# %% [markdown]
# ## 6 · Random, trained on EM, trained on photographs
#
# Beautiful colours prove little: a network with **random** weights is a bank of filters, and its maps show edges too.
# So always compare an encoder with its *random twin*.
#
# The paper bets on photographs: SAM2's encoder, which has seen so many of them, should see membranes as well. SAM2.1's
# weights are too large for this repository, so it has a **stand-in** for the question: the first layers of
# EfficientNet-Lite0, which learned to name what is in the photographs of ImageNet
# ([the data page](../data/README.md) names its source). It is not SAM2, and it has never seen a micrograph. We look at
# it twice: as photographs left it, and as the shipped model's guide, fine-tuned inside FGNet on EM. (If
# `sam2.1_hiera_tiny.pt`, SAM2.1's official checkpoint, is in your data folder, it joins them. This lesson downloads
# nothing.)

# %%
torch.manual_seed(SEED)
photographs = build_natural_encoder(PRETRAINED / "encoder_natural.safetensors")
model = load_pretrained()
encoders = {"mini, random": build_encoder("mini"), "mini, pretrained on EM": mini}
encoders |= {"stand-in, random": build_natural_encoder(), "stand-in, photographs": photographs}
encoders["stand-in, fine-tuned on EM"] = model.encoder  # the guide of the shipped model
try:
    sam2_weights = fetch("sam2.1_hiera_tiny.pt", download=False)
    encoders |= {"tiny, random": build_encoder("tiny"), "tiny, SAM2.1": build_encoder("tiny", sam2_weights)}
except FileNotFoundError as missing:
    print(f"SAM2.1's weights are missing, so its pretrained encoder is not shown. {missing}")

with torch.no_grad():
    maps = {name: [f[0] for f in encoder.eval()(raw)] for name, encoder in encoders.items()}

# %% [markdown]
# ### A number beside the picture
#
# A *linear probe* asks what a **weighted sum of the channels** can tell, without training anything else. Let $x_p$ be
# the standardised features of a pixel and $t_p$ the share of border voxels in its block. Least squares over $N$ pixels
# with a small penalty has a closed solution, $w = (X^\top X + \varepsilon N I)^{-1} X^\top t$. We fit $w$ on the first
# half of the sections and test it on the second. The measure is the **area under the ROC curve** (AUC): how often a
# random border voxel scores higher than a random voxel inside a neurite. 0.5 is chance, 1 is perfect.

# %%
quiz.ask("02", "random")

# %% [markdown]
# We run it on every map:

# %%
borders = widen_borders(volume.labels) == 0
half = len(borders) // 2


def probe(level, stride):
    """AUC for borders of a linear probe, fitted on the first half of the sections and tested on the second."""
    x = level.double()
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    x = torch.cat([x, torch.ones_like(x[:1])])  # a constant, so that the sum may have an offset
    target = torch.nn.functional.avg_pool2d(torch.from_numpy(borders)[:half, None].double(), stride)
    fit = x[:, :half].flatten(1)
    penalty = 0.1 * fit.shape[1] * torch.eye(len(fit))
    w = torch.linalg.solve(fit @ fit.T + penalty, fit @ target.flatten())
    score = torch.tensordot(w, x[:, half:], 1).numpy()
    return roc_auc(score.repeat(stride, 1).repeat(stride, 2), borders[half:])


aucs = {
    name: [probe(level, stride) for level, stride in zip(levels, STRIDES, strict=True)] for name, levels in maps.items()
}
for name, (at4, at8, at16) in aucs.items():
    print(f"{name:27} stride 4: {at4:.3f}  stride 8: {at8:.3f}  stride 16: {at16:.3f}")

# %% [markdown]
# The maps as colours, with the AUC above each:

# %% alt="Above a section; below it one column for each encoder, random and trained, with its features at strides 4, 8 and 16 as colours and the AUC of a linear probe. Random encoders show outlines too; the trained ones have the higher AUCs."
figure, axes = plt.subplots(3, 1 + len(maps), figsize=(min(2.7 * (1 + len(maps)), 15), 9))
plots.show_section(axes[0, 0], volume.raw, None, volume.voxel_size, z, "EM")
for ax in axes[1:, 0]:
    ax.axis("off")
for column, (name, levels) in zip(axes[:, 1:].T, maps.items(), strict=True):
    for ax, level, stride, auc in zip(column, levels, STRIDES, aucs[name], strict=True):
        title = f"stride {stride}: AUC {auc:.2f}"
        title = f"{name}\n{title}" if stride == STRIDES[0] else title
        plots.pca_rgb(ax, principal_components(level)[z], stride, volume.voxel_size, title)

random, natural, tuned = (
    np.array(aucs[f"stand-in, {state}"]) for state in ("random", "photographs", "fine-tuned on EM")
)
print("photographs add to the AUC of random weights:", (natural - random).round(3), "at strides", STRIDES)
print("fine-tuning on EM adds to that:", (tuned - natural).round(3))
if DATASET in ("phantom", "fib25", "gala"):  # as the text says
    assert min((natural - random)[1:]) > 0.03 and tuned[0] > natural[0]
assert DATASET != "phantom" or all(at4 > 0.75 and at4 > at16 + 0.05 for at4, _, at16 in aucs.values())

# %% [markdown]
# **What to see.** First, random filters already do well: borders are dark, and a weighted sum finds dark pixels. What
# training has added is only the difference from the random twin, however good the colours look. It can be small, or
# even negative. (Compare each encoder with its own twin: the mini encoder has more channels at stride 4, and the probe
# may use them all.) Second, **photographs teach an encoder to see membranes**: at strides 8 and 16 the stand-in is
# clearly better than its random twin on micrographs that it has never seen, and fine-tuning on EM improves its finest
# map. This is the idea of the paper. Third, the AUC falls as the stride grows: with stride 16 even the best features
# cannot place a border to the voxel. (A few sections are a small test; trust clear gaps only.)

# %% [markdown]
# ## 7 · Explore
#
# Move the cross, with the sliders or by a click on the picture in JupyterLab. Change the section and the stride, play
# through the sections, or look at a single channel instead of the principal components. *save PNG* and *save GIF*
# write what you see to your results folder. If no kernel is running, for example in the pages that `make tutorial`
# makes, you see one of its pictures below.

# %%
explorer = explorers.feature_explorer(volume, [level.numpy() for level in features], session.out_dir)
explorer

# %% alt="A picture of the explorer at stride 8: the section with a cross, its features as colours, and the similarity of every pixel to the one under the cross."
explorer.draw(z=z, stride=8, y=y, x=x)

# %% [markdown]
# ## 8 · Further: find patches that look alike
#
# If similar tissue has similar vectors, a feature map is also a search engine: give it a patch, and it finds patches
# that look like it. A patch gets one vector, its **embedding**: here the mean of a map over the patch. To search,
# sort all patches of a *gallery* by the cosine between their embedding and that of the *query*. (First subtract the
# gallery's mean from all embeddings, because what all patches share does not tell them apart.)
#
# A search needs a score, and a score needs a truth. The phantom knows the neuron and the organelle of each patch, so
# we ask two questions. Does the search find patches of the *same neuron*? And does it find patches of the *same kind
# of organelle* in other neurons? (There are three kinds: clouds of vesicles, mitochondria and endoplasmic reticulum.
# A patch is called "none" if no organelle fills half of it.) Queries come from the first four sections, and the gallery
# from sections that lie at least 360 nm deeper, so that no answer is simply the same spot in the next section.

# %%
from fgnet_lib.neighbours.retrieval import commonest_ids, pool_patches, rank_gallery, recall_at
from fgnet_lib.phantom import ORGANELLES, label_organelles, make_phantom

tissue, side = make_phantom((20, 192, 192), seed=7), 16  # a patch has 16 x 16 voxels of a section
neurons = commonest_ids(tissue.labels, side)
kinds = commonest_ids(label_organelles(tissue.shape, seed=7), side, least=0.5)  # 0 where none fills half of the patch
sections = np.repeat(np.arange(len(tissue.raw)), len(neurons) // len(tissue.raw))
query, gallery = np.flatnonzero(sections < 4), np.flatnonzero(sections >= 12)
same_neuron = neurons[query, None] == neurons[gallery]
same_kind = (kinds[query, None] == kinds[gallery]) & (kinds[query, None] > 0) & ~same_neuron
print(f"{len(query)} queries, {len(gallery)} patches in the gallery;", end=" ")
print(", ".join(f"{np.sum(kinds[gallery] == i)} {name}" for i, name in enumerate(ORGANELLES)))

# %% [markdown]
# The score is **recall@k**: of all patches that a query should find, the share among the first $k$ answers. An order
# at random has $k/N$ in expectation, whatever you look for, and $k = N$ always gives 1.
# Recall ignores wrong answers: it only asks which share of the relevant patches you have found.
#
# **Exercise 2.4: recall of a search.** `ranks` holds the numbers of all patches of a gallery, the most similar first.
# `relevant` is an array of bools, one for each patch of the gallery in its own order: should the query find it? Return
# recall@k.


# %% tags=["task"]
def my_recall(ranks, relevant, k):
    return ...


# %% tags=["solution"]
def my_recall(ranks, relevant, k):
    return relevant[ranks[:k]].sum() / relevant.sum()


# %%
checks.recall(my_recall)

# %% [markdown]
# We compare the `mini` encoder, random and pretrained; the stand-in of part 6, as photographs left it and fine-tuned
# on EM; and FGNet's own encoder, the Fine-Grained Encoder of lesson 03, which the stand-in guides. A sixth description
# needs no network: the mean and the spread of a patch's grey values. It shows how little a search takes. (SAM2.1's
# encoder joins them if you have its weights.)

# %%
quiz.ask("02", "retrieval")

# %% [markdown]
# Now we describe every patch by what each source makes of it:

# %%
stack = torch.from_numpy(tissue.raw / np.float32(255))[None, None]
searched = [name for name in encoders if name != "stand-in, random"]


def embed_patches(part):
    """The embedding of each patch of a few sections, by source."""
    levels = {name: encoders[name](part)[0] for name in searched}
    levels["Fine-Grained Encoder"] = model.fine_encoder(part, model.encode(part))[0][
        2
    ]  # of its levels that at stride 4
    return {name: pool_patches(level[0].numpy(), side // 4) for name, level in levels.items()}


with torch.no_grad():
    parts = [embed_patches(part) for part in stack.split(4, dim=2)]  # four sections at a time, to save memory
embeddings = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
grey_mean, square = (pool_patches(values[0].numpy(), side)[:, 0] for values in (stack, stack**2))
embeddings["grey, mean and spread"] = np.stack([grey_mean, np.sqrt(square - grey_mean**2)], axis=1)

# %% [markdown]
# The gallery is sorted for each query, and the first 5% of the answers are counted:

# %%
ranks = {name: rank_gallery(vectors[query], vectors[gallery]) for name, vectors in embeddings.items()}
k, chance = len(gallery) // 20, len(gallery) // 20 / len(gallery)
print(f"recall@{k:<21}same neuron   same organelle\nat random{chance:23.3f}{chance:17.3f}")
recalls = {name: [recall_at(k, order, truth) for truth in (same_neuron, same_kind)] for name, order in ranks.items()}
for name, (neuron, kind) in recalls.items():
    print(f"{name:26}{neuron:6.3f}{kind:17.3f}")
by_neuron, by_kind = (dict(zip(recalls, column, strict=True)) for column in zip(*recalls.values(), strict=True))
by_grey, pretrained = by_kind["grey, mean and spread"], by_kind["mini, pretrained on EM"]
assert pretrained > 5 * chance and pretrained > 3 * by_neuron["mini, pretrained on EM"]  # as the text says
assert pretrained > 1.15 * by_grey and by_kind["stand-in, fine-tuned on EM"] < 1.1 * by_grey
assert all(by_grey > 1.5 * by_kind[name] > 3 * chance for name in ("stand-in, photographs", "Fine-Grained Encoder"))
assert max(by_neuron.values()) < 2 * chance and by_neuron["grey, mean and spread"] > 0.8 * max(by_neuron.values())

# %% alt="Two panels of recall against k, with the diagonal of a random order. Same neuron: all lines run just above the diagonal. Same organelle: all lines rise steeply at first, that of the pretrained mini encoder most; those of the photographs and of the Fine-Grained Encoder stay nearest to the diagonal."
figure, axes = plt.subplots(1, 2, figsize=(13, 4.2), sharey=True)
depths = np.linspace(1, len(gallery), 40).astype(int)
for ax, truth, title in zip(
    axes, (same_neuron, same_kind), ("same neuron", "same organelle, other neuron"), strict=True
):
    for name, order in ranks.items():
        ax.plot(depths, [recall_at(n, order, truth) for n in depths], label=name)
    ax.plot(depths, depths / len(gallery), color="black", ls="--", label="at random, k / N")
    ax.axvline(k, color="0.8", zorder=0)
    ax.set(xlabel="k, answers that you look at", title=title)
axes[0].set_ylabel("recall@k")
axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.show()

# %% [markdown]
# **What to see.** On the left, every line stays near the random order. The grey vertical line marks the first 5% of the
# answers: there, all searches find fewer than twice as many patches of the same neuron as chance does. Even that little
# is no knowledge of neurons, because grey values alone do nearly as well: the phantom gives each neuron a tint of its
# own. On the right, the pretrained mini encoder finds the same organelle more than five times as often as chance does.
# So a search by features finds *what* a patch shows, not *whose* it is. **And look at the simplest description:** of
# all sources, only the pretrained mini encoder clearly beats two numbers per patch. The encoder of photographs and the
# Fine-Grained Encoder find much less than grey values do: both see membranes, but they were never asked to tell
# organelles apart. A search that beats chance has not shown much until it beats grey values.
#
# Here is one query that shows a mitochondrion, with the first five answers of four sources. The red frame is the
# patch.


# %% alt="A query patch with a mitochondrion, and beside it in rows the five most similar patches of the gallery for each of four sources, every patch framed in red in its surroundings, with its organelle as a title."
def show_patch(ax, index, title):
    section, spot = divmod(int(index), len(neurons) // len(tissue.raw))
    corner = [side * at for at in divmod(spot, tissue.shape[2] // side)]
    top, left = (int(np.clip(at - side, 0, n - 3 * side)) for at, n in zip(corner, tissue.shape[1:], strict=True))
    plots.show_section(
        ax, tissue.raw[section, top:, left:][: 3 * side, : 3 * side], None, tissue.voxel_size, title=title
    )
    start = corner[1] - left - 0.5, corner[0] - top - 0.5
    ax.add_patch(plt.Rectangle(start, side, side, fill=False, color="red", linewidth=2))


asked = int(np.flatnonzero((kinds[query] == ORGANELLES.index("mitochondrion")) & same_kind.any(axis=1))[0])
shown = ["mini, pretrained on EM", "Fine-Grained Encoder", "stand-in, photographs", "grey, mean and spread"]
figure, axes = plt.subplots(len(shown), 6, figsize=(13, 9.5))
for row, name in zip(axes, shown, strict=True):
    show_patch(row[0], query[asked], f"{name}\nquery: {ORGANELLES[kinds[query[asked]]]}")
    for ax, answer in zip(row[1:], ranks[name][asked], strict=False):
        same = "\nsame neuron" * bool(same_neuron[asked, answer])
        show_patch(ax, gallery[answer], f"{ORGANELLES[kinds[gallery[answer]]]}{same}")
plt.show()
similar = gallery[ranks["grey, mean and spread"][asked][:5]]
assert max(grey_mean[query[asked]], *grey_mean[similar]) < grey_mean[gallery].mean()  # as the text says

# %% [markdown]
# **What to see.** A title says what fills more than half of the patch. Look at the answers that are called "none": most
# of them show the edge of a mitochondrion, or a membrane, where the query has its edge. So the features found what the
# truth of this score does not count. Grey values alone find patches that are darker than the average of the gallery, as
# the query is, whatever they show. And do not judge by one query: compare the rows here with the lines above.
#
# This is a small cousin of **MedFinder** (Chen et al. 2024), a search engine for medical images. There a doctor asks
# with a volume or in words, and gets the volumes that fit, out of 8,069 CT volumes with two million slices. It has one
# network for images and one for text, and it learns to bring an image and its report together. Two things differ here.
# We leave text out, because electron micrographs come without reports, so a network for text would have nothing to
# learn from. And we train nothing: we only ask what the features already know.

# %% [markdown]
# ## Your exercises

# %%
checks.report("02")

# %% [markdown]
# ## What you learned
#
# - FGNet uses SAM2's image encoder alone, a Hiera trunk and an FPN neck. It gives three maps at strides 4, 8 and 16,
#   section by section.
# - Principal components and cosine similarity make a map of many channels visible. They show *what* a pixel looks
#   like, not *whose* it is.
# - A coarse stride blurs or swallows thin neurites, however good the features are. You can measure that loss from the
#   labels alone.
# - Random features already look convincing. Compare with a random twin, and with a number.
# - An encoder of photographs sees membranes better than its random twin, though it has never seen a micrograph.
# - A search by embeddings finds the same kind of tissue. Compare it with chance, and with plain grey values.
#
# ## Try it
#
# 1. Move the cross onto a mitochondrion. Which stride tells mitochondria from cytoplasm best?
# 2. In part 6, leave out the neck: `build_encoder("mini", source="trunk")`. How many channels come out, and does the
#    probe change?
# 3. Make the section brighter and halve its contrast, `raw * 0.5 + 0.4`, before encoding. Which encoder's similarity
#    map changes least?
# 4. In part 8, search with an embedding that also holds the spread of each channel. Does recall rise?
# 5. With SAM2.1's checkpoint: how much better than its random twin does it find borders? Does it beat the stand-in?
#
# ## References
#
# - N. Ravi et al. *SAM 2: Segment Anything in Images and Videos.* ICLR 2025,
#   [arXiv:2408.00714](https://arxiv.org/abs/2408.00714).
# - C. Ryali et al. *Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles.* ICML 2023,
#   [arXiv:2306.00989](https://arxiv.org/abs/2306.00989).
# - T.-Y. Lin et al. *Feature Pyramid Networks for Object Detection.* CVPR 2017,
#   [arXiv:1612.03144](https://arxiv.org/abs/1612.03144).
# - G. Alain, Y. Bengio. *Understanding intermediate layers using linear classifier probes.* 2016,
#   [arXiv:1610.01644](https://arxiv.org/abs/1610.01644).
# - Y. Chen et al. *BIMCV-R: A Landmark Dataset for 3D CT Text-Image Retrieval.* MICCAI 2024,
#   [arXiv:2403.15992](https://arxiv.org/abs/2403.15992) (MedFinder).
# - Li et al. *Leveraging Feature-Guided Attention to Refine SAM2 for 3D EM Neuron Segmentation.* AAAI 2026,
#   [doi:10.1609/aaai.v40i8.37606](https://doi.org/10.1609/aaai.v40i8.37606).
