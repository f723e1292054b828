# %% [markdown]
# # 15 · Between the voxels: does a network know where it is wrong?
#
# <!-- badges -->
#
# **What you will learn**
#
# - how a small network answers at *any* point of a section, and not only at the middles of voxels;
# - **Fourier coordinates**, and why waves that are finer than the grid are a danger (part 2, *Further*);
# - **Monte Carlo dropout**: a network asked several times, and a trap that sets all doubt to exactly 0;
# - which doubt sends you to the errors: chance, entropy, margin or variance, each with the same budget;
# - **calibration**: whether 0.8 means four of five, and what a single number, a temperature, can repair;
# - whether a decoder that was trained on half the resolution knows more than interpolation does.
#
# **Before you start.** Lesson 03 explains the model, lesson 05 what affinities are used for.
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
# ## 1 · A first look and a second look
#
# You look at a section twice: once quickly at everything, and then again where you were not sure. **I-MedSAM** gives this
# habit to a network. It takes the features of an encoder, and a point. A *coarse* MLP (a network of a few fully connected
# layers) answers for all points, several times over. Where its answers differ from one time to the next, a *fine* MLP
# looks again.
#
# Because it gets a point and not a voxel, the network can also be asked between the voxels. That is **continuous decoding**.
#
# | step | source |
# | --- | --- |
# | features and coordinates of a point → coarse MLP with dropout | I-MedSAM |
# | the 12.5 % of all points with the highest variance → fine MLP | I-MedSAM |
# | loss: 0.8 Dice + 0.2 cross entropy; its weight moves from coarse to fine in five epochs | I-MedSAM |
# | features: those that our shipped model gives to its last layer, frozen | ours |
# | what is decoded: is there a boundary between neurons at this point? | ours |
# | coarse MLP of 64 and 32 channels, where the paper's has 1024 and 512; a small fine MLP | ours |
#
# All numbers on this page are ours. None of them says how good I-MedSAM is on its own images.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.course import checks, quiz
from fgnet_lib.inference import predict
from fgnet_lib.neighbours import calibration, continuous
from fgnet_lib.neighbours.continuous import ContinuousDecoder, decode, dropout_alone, grid_points
from fgnet_lib.study import doubt
from fgnet_lib.study.statistics import permutation_p
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table
from fgnet_lib.volumes import is_anisotropic
from fgnet_lib.weights import load_pretrained

# %% [markdown]
# ## 2 · Where is a point?
#
# A point has two coordinates from −1 to 1. An MLP that reads only these two numbers changes slowly from place to place. So
# the coordinates are also given as waves, each twice as fast as the one before:
#
# $$\sin(2^k \pi p), \quad \cos(2^k \pi p), \qquad k = 0, 1, 2, \ldots$$
#
# At the beginning of the training only the slow waves are open, so that the network first learns what is coarse.

# %% [markdown]
# ### Further: waves that are shorter than a voxel
#
# **Exercise 15.1: coordinates as waves.** `p` has the shape (N,). Return an array (N, 2 · frequencies): for each $k$
# the sine and then the cosine. Only the first `opened * frequencies` frequencies, rounded down, are open. The columns
# of the others are 0.


# %% tags=["task"]
def my_waves(p, frequencies, opened):
    return ...


# %% tags=["solution"]
def my_waves(p, frequencies, opened):
    waves = np.zeros((len(p), 2 * frequencies))
    for k in range(int(opened * frequencies)):
        angle = 2**k * np.pi * p
        waves[:, 2 * k : 2 * k + 2] = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return waves


# %%
checks.coordinate_waves(my_waves)

# %% [markdown]
# Are more waves always better? Think of a row of voxels before you run the next cells.

# %%
quiz.ask("15", "waves")

# %% alt="Two waves over eight voxels. The slow one is high at some middles of voxels and low at others. The fast one has the same value at every middle, marked by dots, and other values at the points of a grid that is twice as fine, marked by crosses."
VOXELS = 8
line = torch.linspace(-1, 1, 801)
middles, between = (torch.from_numpy((2 * np.arange(n) + 1) / n - 1) for n in (VOXELS, 2 * VOXELS))
figure, axes = plt.subplots(2, 1, figsize=(10, 4.6), sharex=True, layout="constrained")
for ax, k in zip(axes, (1, 3), strict=True):
    ax.plot(line, torch.cos(2**k * torch.pi * line), color="0.6")
    ax.plot(between, torch.cos(2**k * torch.pi * between), "x", ms=8, label="grid of 2×")
    ax.plot(middles, torch.cos(2**k * torch.pi * middles), "o", ms=8, label="middles of voxels")
    ax.set(ylabel=f"cos($2^{k}$ π p)", ylim=(-1.3, 1.3))
    for edge in np.linspace(-1, 1, VOXELS + 1):
        ax.axvline(edge, color="0.9", lw=1, zorder=0)
axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
axes[1].set(xlabel=f"p, along a row of {VOXELS} voxels (grey lines: their edges)")
plt.show()
assert sum(2 / 2**k <= 2 / doubt.SIDE for k in range(10)) == 3  # waves no longer than one of 125 voxels

# %% [markdown]
# **What to see.** In the lower panel one wave is as long as a voxel. All dots have the same height, so this wave tells the
# training nothing. The crosses lie elsewhere: at the points of a finer grid the decoder reads values that it has never
# seen. With ten frequencies and a row of 125 voxels, three of the ten waves are shorter than a voxel. Parts 7 and 8 measure
# what they do.

# %% [markdown]
# ## 3 · Train a decoder on frozen features
#
# Now the features. We stop the shipped model in front of its last layer and take the 16 channels that arrive there. They
# stay frozen. A point between voxels gets features that are interpolated bilinearly.

# %%
SIDE, EPOCHS, STEPS = (96, 20, 8) if PROFILE == "fast" else (160, 25, 12)
model = load_pretrained().eval()
training, unseen = (session.volume(part, (8, SIDE, SIDE)) for part in ("train", "val"))
(truth, known), (target, target_known) = map(continuous.mark_boundaries, (unseen, training))
learned = continuous.label_sections(continuous.frozen_features(model, training.raw), target, target_known)
features = continuous.frozen_features(model, unseen.raw)
print(f"features (C, z, y, x): {tuple(features.shape)}; {truth.mean():.0%} of the voxels are on a boundary")

# %%
torch.manual_seed(SEED)
decoder = ContinuousDecoder(features.shape[0])
losses = continuous.train_decoder(decoder, learned, EPOCHS, STEPS, SEED)
print(f"loss {losses[0]:.2f} in the first epoch, {losses[-1]:.2f} in the last of {EPOCHS}")
print(f"{sum(parameter.numel() for parameter in decoder.parameters()):,} parameters")

# %% [markdown]
# **A check that must hold up to rounding.** Ask the decoder at the middles of voxels, by interpolation as for any point.
# That must give what the training grid gives, where nothing is interpolated. A grid that is shifted by half a voxel fails
# here, and such a shift is easy to make.

# %%
points = grid_points(unseen.shape[1:])
asked = decode(decoder, features[:, 0], points).coarse
with torch.no_grad():
    on_grid = torch.sigmoid(decoder.look(decoder.embed(features[:, 0].flatten(1).T, points))[1])
print(f"asked at 1× against the training grid: at most {(asked - on_grid).abs().max():.0e} apart")
assert torch.allclose(asked, on_grid, atol=1e-3)

# %% [markdown]
# ## 4 · Ask again: dropout, and its trap
#
# **Dropout** sets half of the hidden values to 0, another half in each pass, and doubles the rest, so that their mean
# stays the same. It is meant for training. If you leave it on afterwards, each pass is the answer of a slightly different
# network. Where all of them agree, the answer is robust. Where they disagree, the **variance** over $T$ passes is high.
# For $T = 2$ passes $a$ and $b$ it is $(a - b)^2 / 2$.
#
# Usually you call `eval()` before you use a network. What happens to the variance then?

# %%
quiz.ask("15", "eval")

# %%
inputs = decoder.embed(continuous.sample_features(features[:, 0], points), points).detach()
decoder.eval()
trapped = continuous.draw_passes(decoder, inputs, passes=2)
with dropout_alone(decoder):
    drawn = continuous.draw_passes(decoder, inputs, passes=2)
for name, passes in (("after eval()", trapped), ("with dropout alone switched on", drawn)):
    print(f"{name:31} mean variance {passes.var(0).mean():.6f}, points with variance 0: {(passes.var(0) == 0).sum()}")
corner = continuous.choose_doubtful(trapped.var(0))
print(f"after eval() the second look goes to points 0 to {corner.max()}: the first rows of the section")
assert (trapped.var(0) == 0).all() and corner.max() == len(corner) - 1
assert torch.allclose(drawn.var(0), (drawn[0] - drawn[1]) ** 2 / 2)

# %% [markdown]
# **What to see.** The variance is exactly 0 everywhere, and nothing complains. The second look is spent on the top of the
# picture. The code that was released with the paper compares two passes and calls `eval()` before its tests. So look for
# this trap wherever you meet Monte Carlo dropout. The right way switches dropout back on, and nothing else: layers such as
# batch norm must stay in their evaluation mode.
#
# There is a second trap. Dropout belongs *behind a hidden layer*. Behind the last layer, it drops the answer itself. A logit
# $x$ then becomes $2x$ or $0$, each half of the time, and the variance is $x^2$, whatever the network knows:

# %%
logits = torch.tensor([0.1, 1.0, 3.0])  # hardly sure, rather sure, very sure
dropped = F.dropout(logits.expand(200_000, 3), 0.5)
print("logit:                   ", *(f"{x:8.2f}" for x in logits))
print("variance of its dropout: ", *(f"{x:8.2f}" for x in dropped.var(0)))
print("square of the logit:     ", *(f"{x:8.2f}" for x in logits.square()))
assert torch.allclose(dropped.var(0), logits.square(), rtol=0.05)

# %% [markdown]
# Such a "doubt" is largest where the network is most certain.
#
# **Exercise 15.2: where to look again.** `passes` has the shape (T, N): the answers of T passes at N points. Return the
# indices of the points with the highest variance over the passes, the highest first: `share * N` of them, rounded down.


# %% tags=["task"]
def my_chosen(passes, share):
    return ...


# %% tags=["solution"]
def my_chosen(passes, share):
    variance = passes.var(axis=0)
    budget = int(share * passes.shape[1])
    return np.argsort(-variance)[:budget]


# %%
checks.second_look(my_chosen)

# %% [markdown]
# Now for the whole volume. From left to right: the section, where the decoder doubts, where it is wrong, and what it
# looked at again.

# %% alt="Four panels of one section: grey values, the variance over passes, in the phantom bright along boundaries, the wrong voxels in red, in the phantom as thin broken lines along boundaries, and the points that were looked at again, in orange."
decodings = [decode(decoder, section, points) for section in features.unbind(1)]
fine, variance = (
    torch.stack([getattr(d, name) for d in decodings]).reshape(truth.shape) for name in ("fine", "variance")
)
wrong = ((fine.numpy() >= 0.5) != truth) & known
again = torch.zeros(len(points)).index_fill(0, decodings[4].chosen, 1).reshape(truth.shape[1:])
figure, axes = plt.subplots(1, 4, figsize=(15, 4.3), layout="constrained")
panels = {"grey values": None, "variance": None, "wrong": wrong[4], "looked at again (12.5 %)": again}
for ax, (title, mask) in zip(axes, panels.items(), strict=True):
    ax.imshow(unseen.raw[4], cmap="gray", vmin=0, vmax=255)
    if mask is not None:
        shown = np.ma.masked_equal(mask, 0)
        ax.imshow(shown, cmap="autumn", vmin=title == "wrong", vmax=2, interpolation="none")  # red, orange
    plots.frame(ax, unseen.voxel_size, title)
axes[1].imshow(variance[4], cmap="magma", vmin=0)
axes[1].set_title(f"variance: black 0, brightest {variance[4].max():.2f}")
plt.show()

# %% [markdown]
# **What to see.** On the phantom, doubt and errors both lie along boundaries. So doubt narrows the search down to a part
# of the section. But does it find the errors *within* this part? And does it beat simpler scores? That needs counting.
#
# ## 5 · Which doubt finds the errors?
#
# You may inspect only some of the voxels. A score says which ones come first: those where it is highest.
#
# | score | its value at a voxel with probability $p$ |
# | --- | --- |
# | random | a random number |
# | entropy | $-p \log_2 p - (1 - p) \log_2 (1 - p)$, 1 bit at $p = 0.5$ |
# | margin | minus the distance between $p$ and $1 - p$ |
# | variance | that of the passes |
#
# The **oracle** knows the truth and inspects only wrong voxels. No score can be better.

# %%
quiz.ask("15", "binary")

# %% [markdown]
# **Exercise 15.3: errors per place inspected.** `scores` and `wrong` (bool) have the shape (N,). Inspect the
# `share * N` places (rounded down) with the highest scores. Which share of *all* errors do you see?


# %% tags=["task"]
def my_inspected(scores, wrong, share):
    return ...


# %% tags=["solution"]
def my_inspected(scores, wrong, share):
    inspected = np.argsort(-scores)[: int(share * len(scores))]
    return wrong[inspected].sum() / wrong.sum()


# %%
checks.inspected_errors(my_inspected)

# %% [markdown]
# Now with all voxels of the unseen sections, for budgets from 0.2 % to everything:

# %% alt="Share of wrong boundary voxels that were seen against the share of voxels inspected, on a logarithmic axis. The oracle rises first, entropy and variance follow close together, and random rises last."
shares = np.sort([*np.geomspace(0.002, 1, 60), doubt.BUDGET])
scores = {"oracle": torch.from_numpy(wrong.astype(float))}
scores |= {kind: continuous.score_doubt(kind, fine, torch.zeros(2, 1)) for kind in ("entropy", "margin", "random")}
scores["variance"] = variance
curves = {name: calibration.errors_found(score.numpy()[known], wrong[known], shares) for name, score in scores.items()}
figure, ax = plt.subplots(figsize=(11, 5), layout="constrained")
charts.errors_inspected(ax, shares, {name: curve[None] for name, curve in curves.items()}, doubt.BUDGET)
plt.show()
assert np.allclose(curves["entropy"], curves["margin"], atol=0.01)
for name in ("entropy", "variance"):
    first, at_budget = curves[name][0] / curves["oracle"][0], curves[name][np.searchsorted(shares, doubt.BUDGET)]
    print(f"{name}: {first:.0%} of the first {shares[0]:.1%} of the voxels are wrong")
    assert DATASET != "phantom" or (0.1 < first < 0.75 and at_budget > 0.5)  # as the text says

# %% [markdown]
# **What to see.** Begin at the grey line. With an eighth of all voxels, chance shows you an eighth of the errors. On the
# phantom, doubt shows you most of them. Then look at the left end, and at the printed numbers. There the oracle sees about
# twice as many errors, or more: **of the most doubtful voxels, no more than about half are wrong**, because a voxel at $p = 0.5$ is a
# coin toss. Entropy and margin are one curve, as they must be. Variance judges the first look, entropy the answer after
# the second. Compare their curves. Part 8 does so with five seeds.
#
# The same scores answer another question: what if you leave doubtful voxels out? The error rate of what is kept is the
# **risk**, and the share that is kept is the **coverage**.

# %%
print(f"{'risk at coverage':18}", *(f"{share:>8.1%}" for share in (0.5, 0.875, 1)))
for name in ("oracle", "entropy", "variance", "random"):
    coverage, risk = calibration.risk_coverage(scores[name].numpy()[known], wrong[known])
    kept = [risk[int(share * len(risk)) - 1] for share in (0.5, 0.875, 1)]
    print(f"{name:18}", *(f"{value:8.2%}" for value in kept))
    assert name != "oracle" or (np.diff(risk) >= -1e-12).all()

# %% [markdown]
# ### Further: a queue for proofreading
#
# A person does not inspect voxels but places. So we take the most doubtful voxel, skip its neighbourhood, take the next,
# and so on. `queue_places` does that with any score. Averaged over a few voxels, a score is less jumpy.

# %% alt="Four small pictures around the first places of the queue: grey values, boundaries of the ground truth in blue, boundaries of the decoder in orange, and a cross in the middle of each. Close to most crosses the two lines disagree, or, in FIB-25, only one of them is there."
pooled = F.avg_pool2d(variance[:, None], 5, stride=1, padding=2)[:, 0].numpy()
pooled[:, :20], pooled[:, -20:], pooled[:, :, :20], pooled[:, :, -20:] = 0, 0, 0, 0  # so that pictures fit
places = calibration.queue_places(pooled, count=4, apart=(2, 20, 20))
figure, axes = plt.subplots(1, 4, figsize=(15, 4.3), layout="constrained")
for number, (ax, (z, y, x)) in enumerate(zip(axes, places, strict=False), start=1):
    cut = z, slice(y - 20, y + 21), slice(x - 20, x + 21)
    ax.imshow(unseen.raw[cut], cmap="gray", vmin=0, vmax=255)
    ax.contour(truth[cut], [0.5], colors="deepskyblue", linewidths=1)
    ax.contour(fine[cut], [0.5], colors="orange", linewidths=1)
    ax.plot(20, 20, "w+", ms=12)
    near = wrong[z, y - 2 : y + 3, x - 2 : x + 3].mean()
    plots.frame(ax, unseen.voxel_size, f"place {number}: {near:.0%} wrong nearby")
plots.color_legend(axes[1], {"truth": "deepskyblue", "decoder": "orange"})
plt.show()

# %% [markdown]
# **What to see.** At each cross, ask what a person would decide there. Some places are real errors. At others
# the decoder came out right, although it was in doubt. Both are worth a look. A place where *all* passes make the same
# mistake comes last in this queue. **Doubt finds what the network could have decided otherwise, and not what it has never learned.**

# %% [markdown]
# ## 6 · Does 0.8 mean four of five?
#
# To order voxels, any score will do. To trust a single number, you must know what it means. Take all affinities for
# which the shipped model says about 0.8. If 80 % of these pairs of voxels are joined, the model is **calibrated** there.
# Over all bins of probabilities, the **expected calibration error** is the mean gap, weighted by the samples in each bin:
#
# $$\mathrm{ECE} = \sum_b \frac{n_b}{N}\, \left| \bar p_b - \bar t_b \right|,$$
#
# where bin $b$ holds $n_b$ of the $N$ samples, $\bar p_b$ is their mean probability, and $\bar t_b$ is the share of them
# that is true.

# %% [markdown]
# ### Further: a calibration error by hand
#
# **Exercise 15.4: the calibration error.** `probabilities` and `truth` (bool) have the shape (N,). `bins` bins of equal
# width divide 0 to 1. A probability on an edge belongs to the upper bin, and 1 to the last one. Empty bins count
# nothing. Return the ECE.


# %% tags=["task"]
def my_calibration(probabilities, truth, bins):
    return ...


# %% tags=["solution"]
def my_calibration(probabilities, truth, bins):
    index, error = np.minimum((probabilities * bins).astype(int), bins - 1), 0
    for k in range(bins):
        inside = index == k
        if inside.any():
            announced, came = probabilities[inside].mean(), truth[inside].mean()
            error += inside.mean() * abs(announced - came)
    return error


# %%
checks.expected_calibration(my_calibration)

# %% [markdown]
# ### One number for all logits
#
# What if the error is large? **Temperature scaling** divides all logits by one number, chosen on sections with labels.
# Above 1 it pulls all probabilities towards 0.5, and below 1 it pushes them away.

# %%
quiz.ask("15", "temperature")

# %%


def affinities_and_truth(volume):
    borders = widen_borders(volume.labels, in_3d=not is_anisotropic(volume.voxel_size))
    mask = affinity_mask(volume.labels)
    return predict(model, volume.raw, progress=False).refined[mask], affinities_from_labels(borders)[mask] > 0


temperature = calibration.fit_temperature(*affinities_and_truth(training))
announced, joined = affinities_and_truth(unseen)
cooled = calibration.set_temperature(announced, temperature)
print(f"temperature, chosen on training sections: {temperature:.2f}")
assert ((announced >= 0.5) == (cooled >= 0.5)).all()  # no decision changes

# %% [markdown]
# What was announced, and what came? A calibrated model lies on the diagonal:

# %% alt="Share of joined pairs against the announced affinity, before and after temperature scaling, with the diagonal of a calibrated model; below it a histogram of how many affinities lie in each bin."
figure, (ax, below) = plt.subplots(2, 1, figsize=(6.5, 6.5), height_ratios=(3, 1), sharex=True, layout="constrained")
ax.plot([0, 1], [0, 1], ":", color="black", label="calibrated")
for name, values in (("before", announced), (f"temperature {temperature:.2f}", cooled)):
    counts, mean, share = calibration.reliability(values, joined).T
    error = calibration.calibration_error(values, joined)
    ax.plot(mean, share, "o-", label=f"{name}: ECE {error:.3f}")
    parts = counts / counts.sum() * np.abs(mean - share)  # of the error
    if DATASET == "phantom":  # as the text says
        assert np.mean(share > mean) > 0.8 and counts[[0, -1]].sum() > counts[1:-1].sum()
        assert np.nansum(parts[1:-1]) > parts[0] + parts[-1]
    below.stairs(counts / counts.sum(), np.linspace(0, 1, len(counts) + 1))
ax.set(ylabel="share that is joined", title="affinities of the shipped model, new sections")
below.set(xlabel="announced affinity", ylabel="share of all\naffinities", yscale="log")
below.yaxis.set_minor_formatter("")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# **What to see.** Where the curve is below the diagonal, the model is too sure that two voxels belong together. Where it
# is above, the model is not sure enough. On the phantom, the curve is above the diagonal nearly everywhere. A temperature
# acts alike on both sides of 0.5, so it cannot repair such a curve: it brings one side nearer and moves the other away.
# Why does the curve lie there? Our training loss gives half of its weight to separate pairs, although joined pairs are
# far more frequent. That makes the model say "joined" too rarely.
#
# The histogram shows where most affinities are: in the first and the last bin. On the phantom the gap is small there, so
# most of the ECE comes from the bins between them, which hold few affinities.
#
# ## 7 · Trained at half, judged at full resolution
#
# Is continuous decoding more than a smooth picture? Nobody has the truth at twice the resolution of a microscope. So we go
# the other way. We take the mean of each 2 × 2 voxels, train a decoder on that, and ask it at the full resolution, where we
# do have the truth. The rival is simple: linear interpolation of the decoder's own answers.

# %%
full_training, full = (session.volume(part, (8, 2 * SIDE, 2 * SIDE)) for part in ("train", "val"))


def halved(volume):
    raw = continuous.halve_sections(volume.raw).round().astype(np.uint8)
    boundary, seen = map(continuous.halve_sections, continuous.mark_boundaries(volume))
    return continuous.frozen_features(model, raw), boundary >= 0.5, seen == 1


coarse_sections = continuous.label_sections(*halved(full_training))
half_features = halved(full)[0][:, 4]
sharp = continuous.mark_boundaries(full)[0][4]
half_points, full_points = (grid_points(tuple(half_features.shape[1:]), factor) for factor in (1, 2))
size = tuple(2 * n for n in half_features.shape[1:])
sharp = sharp[: size[0], : size[1]]

# %% [markdown]
# Two decoders: one with ten frequencies, and one without any, which gets the two coordinates just as they are:


# %%
def dice(probability):
    marked = probability >= 0.5
    return 2 * (marked & sharp).sum() / (marked.sum() + sharp.sum())


answers = {}
for frequencies in (10, 0):
    torch.manual_seed(SEED)
    half_decoder = ContinuousDecoder(features.shape[0], frequencies)
    continuous.train_decoder(half_decoder, coarse_sections, EPOCHS, STEPS, SEED)
    at_half = decode(half_decoder, half_features, half_points).fine.reshape(1, 1, *half_features.shape[1:])
    linear = F.interpolate(at_half, scale_factor=2, mode="bilinear", align_corners=False)[0, 0].numpy()
    asked = decode(half_decoder, half_features, full_points).fine.reshape(size).numpy()
    answers[frequencies] = {"linear interpolation": linear, "asked at 2×": asked}
    for name, probability in answers[frequencies].items():
        print(f"{frequencies:2} frequencies, {name:20} Dice at full resolution {dice(probability):.3f}")
    print("   nearer to the truth:", max(answers[frequencies], key=lambda name: dice(answers[frequencies][name])))

# %% alt="Four panels of a small part of a section at full resolution: the true boundaries, linear interpolation of the half-resolution answer, the decoder with ten frequencies asked at twice the grid, and the decoder without frequencies."
crowded = F.avg_pool2d(torch.from_numpy(sharp).float()[None], 64, stride=8)[0].numpy()  # where boundaries are many
row, column = (8 * int(i) for i in np.unravel_index(crowded.argmax(), crowded.shape))
zoom = slice(row, row + 64), slice(column, column + 64)
panels = {"true boundary": sharp, "half resolution, linear": answers[10]["linear interpolation"]}
panels |= {f"asked at 2×, {n} frequencies": answers[n]["asked at 2×"] for n in (10, 0)}
figure, axes = plt.subplots(1, 4, figsize=(15, 4.3), layout="constrained")
for ax, (title, picture) in zip(axes, panels.items(), strict=True):
    ax.imshow(picture[zoom], cmap="gray", vmin=0, vmax=1, interpolation="none")
    plots.frame(ax, full.voxel_size, title)
plt.show()

# %% [markdown]
# **What to see.** Compare the second picture with the third. Asked between the voxels, the decoder draws sharper edges, but
# a sharp edge in the wrong place is no gain, and it does not split a boundary in two where the half resolution showed one.
# The phantom's faint dots are points where the second look disagrees with the first, beside points that were not looked
# at again. They are there without waves, too. The printed lines say which picture is nearer to the truth here. One training and one
# section prove little, so we did it several times.
#
# ## 8 · Measured: five seeds, four volumes
#
# The decoders below were trained on FIB-25 and judged on its validation part; the affinities are those of the shipped
# model. What is measured, and what is missing?

# %%
rows = doubt.read_doubt()
print(doubt.describe_missing_doubt(rows))

# %% [markdown]
# **Errors per place inspected.** Each line is the mean over the seeds that are measured, with a band from the least to the
# greatest:

# %% alt="Share of wrong boundary voxels seen against the share inspected on FIB-25, from one to fifty percent: oracle on top, entropy and variance close together below it, random at the bottom; bands show the spread over seeds."
figure, ax = plt.subplots(figsize=(11, 5), layout="constrained")
seen = {name: doubt.found_shares(rows, name) for name in ("oracle", *doubt.SCORES)}
charts.errors_inspected(ax, doubt.SHARES, seen, doubt.BUDGET)
if not rows:
    ax.text(0.5, 0.5, "no run is measured yet", transform=ax.transAxes, ha="center")
plt.show()
print(doubt.judge_doubt(rows))
assert (seen["entropy"].mean(0) > seen["variance"].mean(0)).all()  # as the text says

# %% [markdown]
# **Are fewer errors left if the second look goes where the network doubts?** All rows look again at 12.5 % of the points;
# they differ in how these are chosen ("anywhere" and "random" mean by chance). **And between the voxels**: is asking at full
# resolution better than interpolation? *p* is counted by permutation, as in lesson 07. The sentences call a difference
# real where *p*, before it is rounded, is below 0.05.

# %%
removed = {
    name: np.subtract(*(doubt.wrong_percent(rows, (name, look)) for look in ("coarse", "fine"))).mean()
    for name in ("variance", "random")
}
for name, percent in removed.items():
    print(f"second look by {name}: {percent:.3f} % of all voxels fewer wrong than after the first look")
assert removed["random"] < removed["variance"] / 10  # as the text says
print(doubt.judge_second_look(rows))
print(doubt.judge_between(rows))
assert "fewer" not in doubt.judge_second_look(rows) + doubt.judge_between(rows)  # as the text says
without, with_ten = (doubt.wrong_percent(rows, (row, "asked")) for row in ("half_0", "half_10"))
assert permutation_p(without, with_ten) < 0.05 and np.mean(without) < np.mean(with_ten)
compared = {question: doubt.doubt_answer(rows, question) for question in doubt.QUESTIONS_OF_DOUBT}
groups = {"percent of all voxels that are wrong": [[question, *cells] for question, cells in compared.items() if cells]}
heads = ["question", "% wrong, expected better", "its rival", "difference", "p"]
fold_table(heads, groups, doubt.describe_missing_doubt(rows))

# %% [markdown]
# **Calibration of the shipped model.** The temperature is chosen five times, each time on another part of the training
# sections. The model has never seen the parts of the volumes that are judged here, but it was trained on other parts of
# FIB-25 and of gala. AC4 and CREMI B are wholly new to it:

# %%
print(doubt.judge_calibration(rows))
table = doubt.calibration_rows(rows)
heads = ["volume", "ECE before", "after temperature", "temperature"]
lowered = [
    title
    for volume, title in doubt.CALIBRATED.items()
    if np.mean(doubt.calibration_errors(rows, volume, "after")) < doubt.calibration_errors(rows, volume, "before")[0]
]
assert lowered == ["AC4"]  # as the text says
fold_table(heads, {"refined affinities": table}, doubt.describe_missing_doubt(rows))

# %% [markdown]
# **What to see.** Entropy, after the second look, sees more errors than the variance of eight passes, whatever the
# budget. A second look by variance removes a few errors, and one by chance hardly any; but in the errors that are left
# we could not see a difference. Asking between the voxels could not be told apart from interpolation, with waves or
# without them, but of the decoders that were asked there, the one without waves made fewer errors than the one with ten.
# And the temperature lowered the calibration error on AC4 only; on the other three volumes the error grew, FIB-25
# included, from which the temperature comes. **So measure the error on labelled sections before you trust a
# temperature.**
# [doubt.md](../docs/measured/doubt.md) has every row.
#
# **Limits.** The decoder is tiny and its features were trained for affinities of the same tissue, so it starts with what
# another network knows. Wrong voxels at a boundary are often off by one voxel, which costs no neuron: an error of the map
# is not yet an error of the segmentation. The seeds differ in the decoder's start and in the sections that it learns from,
# and the shipped model has one training only. AC4 and CREMI B are small crops.
#
# ## Your exercises

# %%
checks.report("15")

# %% [markdown]
# ## What you learned
#
# - A decoder that reads coordinates can be asked anywhere. It must give the training grid's answers on the training grid.
# - A wave as long as a voxel tells the training nothing, and yet it has other values between the middles of voxels
#   (part 2).
# - `eval()` sets the variance of Monte Carlo dropout to exactly 0, without a word. Switch dropout alone back on.
# - With two classes, entropy and margin are one score. Judge a score by the errors that you see per place inspected.
# - A temperature changes no decision and no order. It may make probabilities more honest, or less: measure it.
# - Doubt does not see what the network has never learned.
#
# ## Try it
#
# 1. Give `decode` in part 4 `passes=2`, 8 and 32. How many more errors does the variance find in part 5 each time, and does
#    it reach the entropy?
# 2. Set `choice="random"` in part 3: `ContinuousDecoder(features.shape[0], choice="random")`. What does a second look gain?
#    (Each of the `decodings` in part 4 has the probabilities before it, `coarse`, and after it, `fine`.)
# 3. In part 5, queue places by entropy instead of variance. How many of the first ten are the same?
# 4. Choose the temperature on one data set and use it on another. When does it make things worse?
#
# ## References
#
# - X. Wei, J. Cao, Y. Jin, M. Lu, G. Wang, S. Zhang. *I-MedSAM: Implicit Medical Image Segmentation with Segment Anything.*
#   ECCV 2024, [arXiv:2311.17081](https://arxiv.org/abs/2311.17081).
# - B. Mildenhall et al. *NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis.* ECCV 2020,
#   [arXiv:2003.08934](https://arxiv.org/abs/2003.08934) (Fourier coordinates).
# - Y. Gal, Z. Ghahramani. *Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning.* ICML
#   2016, [arXiv:1506.02142](https://arxiv.org/abs/1506.02142).
# - M. P. Naeini, G. F. Cooper, M. Hauskrecht. *Obtaining Well Calibrated Probabilities Using Bayesian Binning.* AAAI 2015.
# - C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger. *On Calibration of Modern Neural Networks.* ICML 2017,
#   [arXiv:1706.04599](https://arxiv.org/abs/1706.04599) (temperature scaling).
# - Y. Geifman, R. El-Yaniv. *Selective Classification for Deep Neural Networks.* NeurIPS 2017,
#   [arXiv:1705.08500](https://arxiv.org/abs/1705.08500) (risk against coverage).
