# %% [markdown]
# # 13 · Five sections: what helps when almost nothing is labelled
#
# <!-- badges -->
#
# **What you will learn**
#
# - why unlabelled sections are free and time is not, and what that means for a fair comparison;
# - **consistency pretraining**: two views of a patch that should lead to the same features;
# - what two contrastive losses really reward, shown exactly: one of them does not reward alignment at all;
# - **inflation**: how the weights of a 2D network become weights of a 3D network, and what stays the same;
# - **snake convolution** (part 6, *Further*): a kernel that bends with a thin neurite, and where it is worth its price;
# - whether any of these beats a plain U-Net that trains for as long, with 1, 5 and 20 labelled sections.
#
# **Before you start.** Lesson 04 trains a network, and lesson 07 explains what seeds and *p* are.
#
# <!-- times -->

# %% tags=["parameters"]
PROFILE = "cpu"  # fast | cpu | gpu | full
DATASET = "phantom"  # phantom | fib25 | any name in fgnet_lib.datasets.DATASETS with a part "train"
DATA_DIR = ""  # folder with your data sets; empty: $FGNET_DATA_DIR
OUT_DIR = ""  # folder for results; empty: out/
DEVICE = "auto"  # auto | cpu | cuda | mps
SEED = 0

# %% tags=["setup"]
from fgnet_lib.course.session import start_session

session = start_session(PROFILE, DATASET, DATA_DIR, OUT_DIR, DEVICE, SEED)

# %% [markdown]
# ## 1 · What is free, and what is not
#
# A person needs hours to label one section of dense tissue. The microscope gives you thousands of sections that nobody
# has labelled. So whatever learns from those looks like a **free lunch**. It is not quite free: it takes computing time,
# and a plain network could have trained on the labels for that time. **So we compare at about equal time, and our
# pretraining counts.**
#
# There are four candidates:
#
# | start | what it learns from first | source |
# | --- | --- | --- |
# | masked painting | hidden squares of unlabelled sections | SimMIM, as in our encoder's pretraining |
# | consistency | two views of an unlabelled patch | MS-Con |
# | inflation | a 2D network that painted sections | I3D, ViViT, DINeuro |
# | photographs | ImageNet, by a 2D network that is inflated | EfficientNet-Lite0 |
#
# **What is the papers' and what is ours.** The losses, the two inflations and the snake are the papers', written from
# their equations. The network is ours: FGNet's Fine-Grained Encoder and decoder without SAM2, which is a plain 3D U-Net.
# Our runs are tiny, and all numbers on this page are ours.

# %%
from time import process_time

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from fgnet_lib.augment import Augment
from fgnet_lib.course import checks, quiz
from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import build_natural_encoder
from fgnet_lib.neighbours import few_labels
from fgnet_lib.neighbours.few_labels import Reconstruction, SnakeConv3d, VolumeEncoder
from fgnet_lib.patches import PatchDataset
from fgnet_lib.phantom import make_phantom
from fgnet_lib.study import few_sections
from fgnet_lib.study.pretraining import MaskedSections, painting_loss
from fgnet_lib.training import TrainConfig, fit, patch_loss
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table
from fgnet_lib.weights import PRETRAINED

# %% [markdown]
# ## 2 · Consistency: two views, one patch
#
# MS-Con makes two **views** of an unlabelled patch: a weak one and a strong one, with other contrast and more noise. A
# network sees each of them and has to satisfy three terms:
#
# - **reconstruction**: from both views it paints the clean patch (mean squared error);
# - **cosine**: at each place, the features of both views point in the same direction;
# - **soft matching**: cross-attention mixes the tokens of one view until they resemble a token of the other,
#   $\mathrm{softmax}(q k^\top / \sqrt{C})\, k$, and the mixture should agree with that token. (A token is the vector of
#   $C$ features at one place; $q$ holds the tokens of the other view, and $k$ those that are mixed.)
#
# The last two are computed at three scales. Here are a section and both of its views:

# %% alt="A section of the volume, its weak view with slightly different contrast and little noise, and its strong view with clearly more noise."
volume = session.volume("train")
start = [size // 2 - 48 for size in volume.shape[1:]]
cut = volume.raw[:8, start[0] : start[0] + 96, start[1] : start[1] + 96]
patch = torch.from_numpy(cut.astype(np.float32) / 255)[None, None]
torch.manual_seed(SEED)
views = {"clean": patch, "weak view": few_labels.distort(patch, 0.5), "strong view": few_labels.distort(patch, 1.0)}
figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for ax, (name, view) in zip(axes, views.items(), strict=True):
    ax.imshow(view[0, 0, 4], cmap="gray", vmin=0, vmax=1)
    plots.frame(ax, volume.voxel_size, name)
plt.show()

# %% [markdown]
# An untrained network: how far do its features of both views disagree? Each printed number is the cosine term plus the
# term of soft matching.

# %%
network = Reconstruction(FGNet(few_sections.STARTS["unet"].config))
with torch.no_grad():
    weak, strong = (network.reconstruct(views[name])[1] for name in ("weak view", "strong view"))
for level, (first, second) in enumerate(zip(weak, strong, strict=True)):
    same, different = few_labels.inconsistency(first, first), few_labels.inconsistency(first, second)
    print(f"stride {4 * 2**level:2}: a view with itself {same:.3f}, both views {different:.3f}")

# %% [markdown]
# **What to see.** A view agrees with itself at each place, but not quite after soft matching: the mixture also contains
# tokens of other places. A loss that is never 0 does no harm. But a *constant* feature map would make both terms 0.
# **That is the collapse, and reconstruction prevents it**: nothing can be painted from a constant.
#
# ## 3 · What do two contrasts reward?
#
# MS-Con adds a contrastive term: features of the same place in both views form a **positive pair**, and a good loss pulls
# the two together. The code that its authors released takes the similarities $s_1, \ldots, s_N$ of the positive pairs,
# divided by a **temperature** (a small number, which makes differences count more), and computes
#
# $$L_\mathrm{released} = -\frac{1}{N} \sum_i \log \frac{e^{s_i}}{\sum_j e^{s_j}}.$$

# %%
quiz.ask("13", "equal")

# %% [markdown]
# **Exercise 13.1: the released loss.** `similarities` is a NumPy array of shape (N,). Return $L_\mathrm{released}$ as a
# number.


# %% tags=["task"]
def my_released(similarities):
    return ...


# %% tags=["solution"]
def my_released(similarities):
    shares = np.exp(similarities) / np.exp(similarities).sum()
    return -np.log(shares).mean()


# %%
checks.released_loss(my_released)

# %% [markdown]
# **InfoNCE** asks another question. Take all similarities $S_{ij}$ between sample $i$ of one view and sample $j$ of the
# other. The partner $S_{ii}$ should win against its *rivals* in the same row:
#
# $$L_\mathrm{InfoNCE} = -\frac{1}{N} \sum_i \log \frac{e^{S_{ii}}}{\sum_j e^{S_{ij}}}.$$
#
# **Exercise 13.2: InfoNCE.** `similarities` is a NumPy array of shape (N, N) with partners on its diagonal. Return the
# loss.


# %% tags=["task"]
def my_info_nce(similarities):
    return ...


# %% tags=["solution"]
def my_info_nce(similarities):
    weights = np.exp(similarities)
    shares = weights.diagonal() / weights.sum(axis=1)
    return -np.log(shares).mean()


# %%
checks.info_nce_loss(my_info_nce)

# %% [markdown]
# Now turn one knob: all positive pairs get the same similarity, from opposite (−1) to identical (1), and all rivals have
# similarity 0. The temperature is 0.1. (With natural logarithms the unit of these losses is called *nat*.)

# %% alt="Two losses against the similarity of eight positive pairs: the released loss is a flat line at the logarithm of eight, InfoNCE falls from about twelve to nearly zero as the pairs become similar."
PAIRS, TEMPERATURE = 8, 0.1
knob = torch.linspace(-1, 1, 81)
released = [few_labels.released_contrast(s.expand(PAIRS) / TEMPERATURE) for s in knob]
info_nce = [few_labels.info_nce(s * torch.eye(PAIRS) / TEMPERATURE) for s in knob]
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
ax.plot(knob, info_nce, label="InfoNCE")
ax.plot(knob, released, "--", label="released: positive pairs alone")
ax.axhline(np.log(PAIRS), color="black", ls=":", lw=1)
ax.annotate(f"log {PAIRS} = {np.log(PAIRS):.2f}", (-0.98, np.log(PAIRS)), (0, 5), textcoords="offset points")
ax.set(xlabel="cosine similarity of all positive pairs", ylabel="loss (nats)", title="rivals have similarity 0")
ax.legend()
plt.show()
assert max(released) - min(released) < 1e-4 and info_nce[-1] < 0.01
assert TEMPERATURE < 0.1 or (np.diff(info_nce) < 0).all()  # at lower temperatures the last values round to 0

# %% [markdown]
# **What to see.** The released loss is flat. Opposite pairs cost as much as identical ones, because adding a constant to
# all similarities changes no share. It only asks that all pairs be *equally* similar, and then it has its least value,
# $\log N$. So it cannot pull two views together. The cosine term has to do that. InfoNCE falls all the way.
#
# What if the network collapses, and gives all $N$ samples the same features? Then partners and rivals are equally similar,
# and InfoNCE is $\log N$ again. Here this is a warning: training should bring the loss below $\log N$.

# %%
collapsed = few_labels.info_nce(torch.ones(PAIRS, PAIRS) / TEMPERATURE)
print(f"InfoNCE of {PAIRS} identical pairs: {collapsed:.4f}; log {PAIRS} = {np.log(PAIRS):.4f}")
similarities = torch.randn(PAIRS)
shifts = [few_labels.released_contrast(similarities + c).item() for c in (-5, 0, 5)]
print("released loss with -5, 0 and 5 added to all similarities:", *(f"{loss:.4f}" for loss in shifts))
assert torch.isclose(collapsed, torch.tensor(float(PAIRS)).log()) and np.ptp(shifts) < 1e-4

# %% [markdown]
# ## 4 · Inflation: from two dimensions to three
#
# 2D networks are cheap to pretrain, and many exist already. To carry their weights $w_2$ into a 3D kernel of depth $k$:
#
# - **centre**: $w_3[k // 2] = w_2$, and 0 in all other sections. The 3D layer begins as the 2D layer on each section.
# - **average**: $w_3[z] = w_2 / k$ in all sections. The layer begins as the 2D layer on the *mean* of $k$ sections.
#
# **Exercise 13.3: inflation.** `weight` is a NumPy array (outputs, inputs, y, x), `depth` is odd, and `way` is "centre" or
# "average". Return the kernel in the shape (outputs, inputs, depth, y, x).


# %% tags=["task"]
def my_inflate(weight, depth, way):
    return ...


# %% tags=["solution"]
def my_inflate(weight, depth, way):
    if way == "average":
        return np.repeat(weight[:, :, None], depth, axis=2) / depth
    kernel = np.zeros((*weight.shape[:2], depth, *weight.shape[2:]))
    kernel[:, :, depth // 2] = weight
    return kernel


# %%
checks.inflated_kernel(my_inflate)

# %% [markdown]
# Before you use them: membranes are rarely upright. What does that mean for the two ways?

# %%
quiz.ask("13", "oblique")

# %% [markdown]
# Three identities tell you whether an inflation is right. Each holds up to rounding:

# %%
weight = torch.randn(4, 1, 3, 3)
sections = F.conv2d(patch[0].transpose(0, 1), weight, padding=1).transpose(0, 1)  # (4, D, H, W)
centre = F.conv3d(patch, few_labels.inflate(weight, 3, "centre"), padding=1)[0]
constant = patch[:, :, 4:5].expand_as(patch)  # the same section eight times
average = F.conv3d(constant, few_labels.inflate(weight, 3, "average"), padding=1)[0]
shifted = torch.stack([few_labels.inflate(weight, 3, "centre").roll(shift, 2) for shift in (-1, 0, 1)])
differences = {
    "centre against the 2D filter on each section": centre - sections,
    "average against the 2D filter, equal sections, inside": average[:, 1:-1] - sections[:, 4:5],
    "mean of three shifted centres against the average": shifted.mean(0) - few_labels.inflate(weight, 3, "average"),
}
for identity, difference in differences.items():
    print(f"{identity}: {difference.abs().max():.0e}")
    assert difference.abs().max() < 1e-5

# %% [markdown]
# Does it work for networks that somebody else trained? The encoder of photographs (lesson 11) has 2D convolutions only.
# Each kernel that looks around in the plane gets a section above and one below, and is inflated at the centre:

# %%
photographs = build_natural_encoder(PRETRAINED / "encoder_natural.safetensors").eval()
encoder = VolumeEncoder().eval()
few_labels.transfer_weights(encoder, photographs, "centre")
with torch.no_grad():
    pairs = list(zip(photographs(patch), encoder(patch), strict=True))
print(f"2D and 3D features differ by at most {max((a - b).abs().max().item() for a, b in pairs):.0e}")
for name, each in (("2D", photographs), ("3D", encoder)):
    print(f"{name}: {sum(parameter.numel() for parameter in each.parameters()):,} parameters")
assert all(torch.allclose(a, b, atol=1e-3) for a, b in pairs)
counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (photographs, encoder)]
assert 1.1 < counts[1] / counts[0] < 1.3

# %% [markdown]
# **What to see.** Most weights of this network sit in 1 × 1 convolutions, which do not look around. So its 3D form is
# only about a fifth larger. Before training, it knows exactly what the 2D network knew, and nothing yet about depth.
#
# ## 5 · Try it: one labelled section
#
# We label a single section of your data set and use its neighbours only for their grey values. A single section says
# nothing about affinities along z, so only those in the plane are learned. Three networks get the same time:
#
# - from scratch, on the label all the time;
# - inflated at the centre and by averaging, after a 2D network has painted sections for half of the time.

# %%
seconds = {"fast": 3, "cpu": 20, "gpu": 20}.get(PROFILE, 120)
side = 64 if PROFILE == "fast" else 96
config = few_sections.STARTS["unet"].config


def recipe(share):
    return TrainConfig(
        (8, side, side),
        iterations=10_000,
        minutes=share * seconds / 60,
        learning_rate=2e-3,
        warmup=10,
        freeze_encoder=False,
        checkpoint_every=100_000,
        seed=SEED,
    )


def folder(name):
    return session.out_dir / f"13_{DATASET}_{PROFILE}_{SEED}_{name}"


# %% [markdown]
# First the 2D network paints. It is the same network with kernels that see only their own section:

# %%
torch.manual_seed(SEED)
scratch = FGNet(config).to(session.device)
twin = few_labels.without_depth(scratch)
painted = MaskedSections([volume], (8, side, side), SEED)
history = fit(Reconstruction(twin), painted, painting_loss, recipe(0.5), folder("painting"))
errors = np.mean(history.loss[:5]), np.mean(history.loss[-5:])
print(f"painting in 2D: {len(history)} iterations; error {errors[0]:.2f} at first, {errors[1]:.2f} at the end")

# %% [markdown]
# Now all of them learn from the labelled section. How good they are is measured on sections that none of them has seen:
# the loss of lesson 04, over affinities in the plane.

# %%
labelled = few_sections.label_few(volume, 1)
unseen = session.volume("val")
judges = [PatchDataset([unseen], (8, side, side), None, SEED)[k] for k in range(6)]
models = {"from scratch": (scratch, 1.0)}
for way in ("centre", "average"):
    inflated = FGNet(config).to(session.device)
    few_labels.transfer_weights(inflated, twin, way)
    models[f"2D painting, {way}"] = (inflated, 0.5)
for name, (model, share) in models.items():
    samples = PatchDataset([labelled], (8, side, side), Augment(), SEED)
    history = fit(model, samples, patch_loss, recipe(share), folder(name))
    losses = []
    with torch.no_grad():
        for raw, target, mask in judges:
            mask[0] = False  # no affinity along z was learned
            batch = (tensor[None].to(session.device) for tensor in (raw, target, mask))
            losses.append(patch_loss(model, tuple(batch)).item())
    print(f"{name:20} {len(history):4} iterations on the label, loss on new sections {np.mean(losses):.3f}")

# %% [markdown]
# **What to see.** The inflated networks had about half as many iterations on the label, because painting took the
# other half of the time. **Painting has paid for itself only if they pass the network from scratch.** Look at the
# two errors of painting, too: with `PROFILE = "fast"` it has hardly begun to learn. **One run proves nothing**:
# change `SEED`, and the order may change. Part 7 has five seeds of each.

# %% [markdown]
# ## 6 · Further: a kernel that bends
#
# Thin neurites wander. A straight kernel along z leaves them after a few sections. A **snake** lets each tap move:
# from the middle outwards, each tap begins where the one before it ended, and moves at most one voxel in y and x.
# Values between voxels are sampled trilinearly. DINeuro uses such kernels for neurons in light microscopy, where
# thin bright fibres cross a dark volume. So we judge it on something similar: the thin neurites of the phantom, in
# voxels of 40 × 16 × 16 nm.
#
# **Exercise 13.4: the offsets of a snake.** `steps` is a NumPy array (2, K − 1), in y and x: the first half belongs to
# the taps below the middle one, from the lowest on, the second half to the taps above. Limit each step to −1 to 1,
# add them up from the middle outwards, and return the offsets of all taps, (2, K). The middle tap has 0.


# %% tags=["task"]
def my_offsets(steps):
    return ...


# %% tags=["solution"]
def my_offsets(steps):
    half = steps.shape[1] // 2
    short = np.clip(steps, -1, 1)
    below = np.cumsum(short[:, :half][:, ::-1], axis=1)[:, ::-1]
    above = np.cumsum(short[:, half:], axis=1)
    middle = np.zeros((len(steps), 1))
    return np.concatenate([below, middle, above], axis=1)


# %%
checks.snake_offsets(my_offsets)

# %% [markdown]
# With all steps 0 a snake is the straight kernel. That is how ours begins (our choice):

# %%
snake = SnakeConv3d(2, 3, taps=9)
features = torch.randn(1, 2, 12, 16, 16)
difference = (snake(features) - snake.straight(features)).abs().max().item()
print(f"a snake that has learned nothing against a straight kernel: at most {difference:.0e}")
assert difference < 1e-4

# %% [markdown]
# What can bending gain at most? Let an oracle steer: the steps are those of the neurite's own middle line. We count how
# many of the nine taps lie inside the neurite.

# %%
TAPS, VOXEL = 9, (40.0, 16.0, 16.0)
tissue = make_phantom((32, 96, 96), SEED, VOXEL)


def thin_neurites(labels, largest=40):
    boxes = ndimage.find_objects(labels.astype(int))
    depths = np.array([box[0].stop - box[0].start for box in boxes])
    areas = np.bincount(labels.ravel().astype(int))[1:] / depths
    return 1 + np.flatnonzero((depths > 0.6 * len(labels)) & (areas < largest))


def middle_line(mask):
    return np.array([np.argwhere(section).mean(0) if section.any() else [np.nan, np.nan] for section in mask])


def oracle_taps(line, z):
    steps = np.diff(line[z - TAPS // 2 : z + TAPS // 2 + 1], axis=0).T
    steps[:, : TAPS // 2] *= -1  # outwards, so downwards, from the middle
    cubes = torch.from_numpy(steps)[None, :, :, None, None, None]
    return few_labels.accumulate_offsets(cubes.clamp(-1, 1))[0, :, :, 0, 0, 0].numpy()


# %%
straight_share, snake_share, longest = [], [], (0, None)  # longest: the largest gain, and where it is
for i in thin_neurites(tissue.labels):
    mask = tissue.labels == i
    line = middle_line(mask)
    for z in range(TAPS // 2, len(line) - TAPS // 2):
        rows = np.arange(z - TAPS // 2, z + TAPS // 2 + 1)
        if np.isnan(line[rows]).any():
            continue
        bent = np.round(line[z][:, None] + oracle_taps(line, z)).astype(int).clip(0, 95)
        middle = np.round(line[z]).astype(int)
        straight_share.append(mask[rows, middle[0], middle[1]].mean())
        snake_share.append(mask[rows, bent[0], bent[1]].mean())
        shares = straight_share[-1], snake_share[-1]
        longest = max(longest, (shares[1] - shares[0], (i, z, *shares)), key=lambda pair: pair[0])
print(f"{len(thin_neurites(tissue.labels))} thin neurites, {len(straight_share)} kernels on their middle lines")
print(
    f"taps inside the neurite: straight {np.mean(straight_share):.0%}, snake with an oracle {np.mean(snake_share):.0%}"
)

# %% [markdown]
# Here is the kernel that gains most by bending, seen from the side:

# %% alt="A thin neurite seen from the side, z upwards: nine taps of a straight kernel form a vertical line and leave the neurite, nine taps of a snake bend with it and stay inside."
i, z, *inside = longest[1]
mask, line = tissue.labels == i, middle_line(tissue.labels == i)
taps, axis = np.arange(z - TAPS // 2, z + TAPS // 2 + 1), int(np.abs(oracle_taps(line, z)[:, [0, -1]]).max(1).argmax())
figure, ax = plt.subplots(figsize=(6.5, 5.5), layout="constrained")
ax.imshow(mask.max(2 - axis), cmap="Greys", vmax=2, origin="lower", aspect=VOXEL[0] / VOXEL[1])
ax.plot([], [], "s", ms=12, color="0.5", label="the neurite")
ax.plot(np.full(TAPS, line[z, axis]), taps, "s", label="straight kernel")
ax.plot(line[z, axis] + oracle_taps(line, z)[axis], taps, "o", label="snake, steered by an oracle")
ax.set(xlim=line[z, axis] + np.array([-16, 16]), ylim=(z - 6, z + 6), xlabel=f"{'yx'[axis]} (voxels of 16 nm)")
straight, bent = (round(share * TAPS) for share in inside)
ax.set(ylabel="z (sections of 40 nm)", title=f"taps in the neurite:\nstraight {straight}, snake {bent} of {TAPS}")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.show()

# %% [markdown]
# **What to see.** Where the neurite is slanted, the straight kernel looks into the tissue beside it. The snake stays
# inside. The figure shows the case in which it gains most. The mean above says what it gains on all thin neurites.
#
# An oracle is not a network. Can a network learn to steer? As in light microscopy, only the thin neurites are
# stained, and the picture is noisy. Two tiny networks are equal except for this layer, and take the same number of
# steps:

# %%
quiz.ask("13", "snake")

# %%
STEPS, SEEDS = (20, 1) if PROFILE == "fast" else (40, 3)


def stain(seed):
    labels = make_phantom((24, 40, 40), seed, VOXEL).labels
    mask = torch.from_numpy(np.isin(labels, thin_neurites(labels)))[None, None].float()
    return mask + 1.5 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)), mask


def train_tracer(bend, seed, samples):
    torch.manual_seed(seed)
    layer = SnakeConv3d(8, 8, TAPS, bend)
    tracer = nn.Sequential(
        nn.Conv3d(1, 8, (1, 5, 5), padding=(0, 2, 2)), nn.GELU(), layer, nn.GELU(), nn.Conv3d(8, 1, 1)
    )
    optimizer = torch.optim.AdamW(tracer.parameters(), 1e-2)
    for step in range(STEPS):
        noisy, mask = samples[step % len(samples)]
        F.binary_cross_entropy_with_logits(tracer(noisy), mask).backward()
        optimizer.step()
        optimizer.zero_grad()
    return tracer


# %% [markdown]
# Both learn from three volumes and are judged on a fourth one, by Dice: 1 is perfect. The third line is what a network
# gets that gives every voxel the same value, the share of stained voxels.

# %%
samples, (noisy, truth) = [stain(seed) for seed in (100, 101, 102)], stain(200)
dice = {"straight": [], "snake": []}
for name, values in dice.items():
    spent = 0.0  # seconds of the CPU
    for seed in range(SEED, SEED + SEEDS):
        started = process_time()
        tracer = train_tracer(name == "snake", seed, samples)
        spent += process_time() - started
        predicted = torch.sigmoid(tracer(noisy)).detach()
        values.append(2 * (predicted * truth).sum().item() / (predicted.square() + truth.square()).sum().item())
    step = 1000 * spent / SEEDS / STEPS
    print(f"{name:9} {step:5.0f} ms of CPU time a step, Dice on a new volume:", *(f"{value:.3f}" for value in values))
print(f"constant guess, Dice: {2 * truth.mean() ** 2 / (truth.mean() ** 2 + truth.mean()):.3f}")
if SEEDS > 1:
    overlap = max(map(min, dice.values())) <= min(map(max, dice.values()))
    print("the scores of both", "overlap" if overlap else "do not overlap")

# %% [markdown]
# **What to see.** Compare the gap between the two rows of scores with the spread within a row. If the scores overlap, the
# snake has not learned to gain from its bends in so few steps. (With `PROFILE = "fast"` there is a single seed, and both
# have only begun to learn.) A snake also costs more, as the times of a step say: it has a layer that steers, and it
# samples nine times. **In dense EM we promise nothing**: there, most neurites are thick, and a U-Net sees the plane at
# five scales.

# %% [markdown]
# ## 7 · Measured: is there a free lunch?
#
# The networks below are trained on 1, 5 and 20 sections of FIB-25, with five seeds each. We chose the number of steps so
# that all U-Nets take about the same time of one core, pretraining included. What is measured, what is missing, and how
# long did a run really take?

# %%
rows = few_sections.read_few_rows()
print(few_sections.describe_missing_runs(rows))
points = {}
for name, start in few_sections.STARTS.items():
    vois = {n: few_sections.few_scores(rows, name, n) for n in few_sections.LABELLED_SECTIONS}
    points[start.title] = {n: values for n, values in vois.items() if values}
    times = [run["core_seconds"] for n in vois for run in rows.get((name, n), [])]
    if times:
        print(f"{start.title:40} {np.mean(times):4.0f} seconds of one core")
        assert 60 <= np.mean(times) <= 120  # as the text says

# %% alt="VOI on FIB-25 against the number of labelled sections, 1, 5 and 20, on a logarithmic axis: one line for each start, with a dot for every seed."
figure, ax = plt.subplots(figsize=(11, 5), layout="constrained")
charts.against_sections(ax, {title: amounts for title, amounts in points.items() if amounts})
ax.set(ylabel="VOI on FIB-25, validation part (bits)", title="about equal time of one core; every seed a dot")
if not rows:
    ax.text(0.5, 0.5, "no run is measured yet", transform=ax.transAxes, ha="center")
plt.show()

# %% [markdown]
# **How to read it.** Lower is better. Squares are means, bars standard deviations. Look at one number of sections at a
# time: do the dots of a start lie below those of the U-Net from scratch, or among them? The network of photographs has
# another architecture and another time (see above), so compare it first with the same network from scratch.
#
# The sentences are computed from the rows. A start is *better* or *worse* if it differs from the 3D U-Net from scratch
# with *p* below 0.05. *p* is counted by permutation, as in lesson 07:

# %%
for n in few_sections.LABELLED_SECTIONS:
    print(f"{n:2} labelled: {few_sections.judge_free_lunch(rows, n)}")
assert few_sections.CERTAIN == 0.05  # as the text says
groups = {}
for n in few_sections.LABELLED_SECTIONS:
    answers = {q: few_sections.few_answer(rows, pair, n) for q, pair in few_sections.QUESTIONS_OF_FEW.items()}
    groups[f"{n} labelled"] = [[question, *answer] for question, answer in answers.items() if answer]
heads = ["question", "VOI of the first", "of the second", "difference", "p"]
fold_table(heads, groups, few_sections.describe_missing_runs(rows))

# %% [markdown]
# [few_sections.md](../docs/measured/few_sections.md) has every row, with the time that it took. [Which of these should I
# try first?](../docs/understand/which_first.md) puts this beside what needs no label.
#
# **Limits.** A run takes one to two minutes of one core, and MS-Con was pretrained on four large data sets. More
# pretraining may turn the order around: our rows say what minutes can do. The threshold is chosen on 20 more labelled
# sections, the same for all rows. Affinities along z come from the volume turned on its side, which needs isotropic
# voxels. No learning rate was tuned.
#
# ## Your exercises

# %%
checks.report("13")

# %% [markdown]
# ## What you learned
#
# - Unlabelled sections are free, time is not. A pretraining has to beat a network that trains on labels meanwhile.
# - Consistency needs something that prevents a collapse; in MS-Con that is reconstruction.
# - A softmax over positive pairs alone does not reward alignment. InfoNCE does, because it has rivals.
# - Inflated at the centre, a network begins as the 2D network on each section; by averaging, as the 2D network on the
#   mean of sections.
# - A snake stays in a thin neurite where a straight kernel leaves it. Whether it can learn to steer is another question
#   (part 6).
#
# ## Try it
#
# 1. Label five sections in part 5: `few_sections.label_few(volume, 5)`. Does the order of the three networks change? (A run
#    is kept in its `folder`. Give the folders of part 5 new names, so that runs begin anew.)
# 2. Replace `painting_loss` by `few_labels.consistency_loss` in part 5, with new folders, too. How many iterations fit into
#    the same time?
# 3. Lower `TEMPERATURE` in part 3. Which curve changes, and what does that do to a gradient?
# 4. In part 6, change `largest` of `thin_neurites` (pixels) to 100. What happens to the gain of the oracle, and why?
#
# ## References
#
# - Y. Chen, W. Huang, X. Liu, S. Deng, Q. Chen, Z. Xiong. *Learning Multiscale Consistency for Self-supervised Electron
#   Microscopy Instance Segmentation.* ICASSP 2024, [arXiv:2308.09917](https://arxiv.org/abs/2308.09917) (MS-Con).
# - Y. S. Cheng et al. *DINeuro: Distilling Knowledge from 2D Natural Images via Deformable Tubular Transferring Strategy
#   for 3D Neuron Reconstruction.* [arXiv:2410.22078](https://arxiv.org/abs/2410.22078).
# - J. Carreira, A. Zisserman. *Quo Vadis, Action Recognition?* CVPR 2017,
#   [arXiv:1705.07750](https://arxiv.org/abs/1705.07750) (inflation by averaging).
# - A. Arnab et al. *ViViT: A Video Vision Transformer.* ICCV 2021, [arXiv:2103.15691](https://arxiv.org/abs/2103.15691)
#   (inflation at the centre).
# - A. van den Oord, Y. Li, O. Vinyals. *Representation Learning with Contrastive Predictive Coding.* 2018,
#   [arXiv:1807.03748](https://arxiv.org/abs/1807.03748) (InfoNCE).
# - Y. Qi et al. *Dynamic Snake Convolution Based on Topological Geometric Constraints for Tubular Structure
#   Segmentation.* ICCV 2023, [arXiv:2307.08388](https://arxiv.org/abs/2307.08388).
