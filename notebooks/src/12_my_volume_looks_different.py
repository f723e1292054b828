# %% [markdown]
# # 12 · My volume looks different: what helps without a single label
#
# <!-- badges -->
#
# **What you will learn**
#
# - why a model that is good on its own tissue fails on yours: grey values, feature statistics, or weights;
# - the baselines that come first: voxel size, histogram matching, CLAHE;
# - **test-time adaptation** by style and structure, with norm layers alone and an average over history;
# - how it **collapses** when the steps are too large, and which volumes it makes worse;
# - how to detect and pair synapses when all that you have is points.
#
# **Before you start.** Lesson 02 shows what features are, and lesson 05 what VOI measures.
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
# ## 1 · What looks different?
#
# Your volume comes from another animal, another microscope, another laboratory. You have no labels, so you cannot train.
# What can you still do? You can change **what the model sees** (grey values), **what it computes from it** (statistics of
# features), or **the model** (a few of its weights). This lesson tries all three, and counts what each one changes.
#
# **What is the papers' and what is ours.** Style guidance, structure guidance and the average over history come from a
# paper about registering histological images (Zhou et al., below). The way from points to synapses comes from AdaSyn
# (Chen et al., below). Using them on affinities, and on the phantom's synapses, is ours.

# %%
import warnings
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

from fgnet_lib.course import checks, quiz
from fgnet_lib.datasets import fetch, open_dataset
from fgnet_lib.files.annotations import read_partners
from fgnet_lib.files.formats import read_volume
from fgnet_lib.metrics import evaluate
from fgnet_lib.neighbours import synapses
from fgnet_lib.neighbours import target_adaptation as adaptation
from fgnet_lib.segmentation import segment
from fgnet_lib.study import targets
from fgnet_lib.study.evaluation import VOLUMES, predict_rescaled, rescale_sections
from fgnet_lib.study.statistics import summary
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table
from fgnet_lib.volumes import Region
from fgnet_lib.weights import load_pretrained, pretrained_threshold

# %% [markdown]
# Two words first: the **source** is what the model was trained on, and the **target** is the volume that you want to
# segment. The model is the shipped one, trained mostly on FIB-25. If your `DATASET` is the phantom, the target is a
# phantom in another stain: paler, less sharp, unevenly lit. We made this difference ourselves, and the model was trained
# on phantoms, too, with random contrast. So it begins well here, and you mainly see what *hurts*. On a real data set, the
# target is that data set.

# %%
shape = (8, 128, 128) if PROFILE == "fast" else (16, 192, 192)
volume = session.volume("val", shape)
target = adaptation.restain(volume, SEED) if DATASET == "phantom" else volume
rescale = VOLUMES.get(DATASET, True)  # whether its voxels are far from those of training
model, threshold = load_pretrained(), pretrained_threshold()
source = adaptation.read_source(adaptation.SHIPPED_SOURCE)
print(f"target: {target.name}, {target.shape} voxels of {target.voxel_size} nm")
print(
    f"of the source we have {source.histogram.size} counts of grey values and {len(source.levels)} levels of features"
)

# %% [markdown]
# The training sections themselves are not needed. The model's file also holds their histogram, and the mean and the
# standard deviation of each feature channel, 12 kB in all. **These statistics travel with the weights.**

# %% alt="Left: a section of the target, pale and less sharp. Right: two histograms of grey values; that of the target is a narrow peak in the middle of that of the source."
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 3), layout="constrained")
plots.show_section(axes[0], target.raw, voxel_size=target.voxel_size, title=target.name)
shares = {"source (training)": source.histogram, "target": np.bincount(target.raw.ravel(), minlength=256)}
for name, counts in shares.items():
    axes[1].plot(100 * counts / counts.sum(), label=name)
axes[1].set(xlabel="grey value", ylabel="voxels (%)", title="grey values")
axes[1].legend(frameon=False)
plt.show()
grey = np.arange(256)
centre = np.average(grey, weights=source.histogram)
contrast = target.raw.std() / np.sqrt(np.average((grey - centre) ** 2, weights=source.histogram))
print(f"standard deviation of the target's grey values: {contrast:.2f} times the source's")
assert DATASET != "phantom" or contrast < 0.7  # as the text says

# %% [markdown]
# **What to see.** The phantom in its other stain uses only the middle of the source's grey values: its contrast is lower.
# On a volume of yours, also look where the target's curve leaves that of the source: such grey values the model hardly
# met in training.
#
# ## 2 · Change the grey values
#
# **Voxel size first.** A membrane that is 10 pixels wide is not what the model knows. Lesson 08 rescales your sections
# with `ADAPT = "voxel_size"`, and the model sees rescaled ones below. (The phantom is left as it is: the model was
# trained on voxels of its size, too.)
#
# **Histogram matching** replaces each grey value by the source's value of the same rank: the darkest tenth becomes as
# dark as the source's darkest tenth. **CLAHE** equalises contrast in small neighbourhoods, and knows nothing about the
# source.
#
# **Exercise 12.1: grey values by rank.** `raw` holds grey values from 0 to 255, `histogram` counts those of the source.
# For each voxel, return the smallest source value whose cumulative share is at least the cumulative share of the voxel's
# own value.


# %% tags=["task"]
def my_matched(raw, histogram):
    return ...


# %% tags=["solution"]
def my_matched(raw, histogram):
    own = np.cumsum(np.bincount(raw.ravel(), minlength=256)) / raw.size
    theirs = np.cumsum(histogram) / histogram.sum()
    return np.searchsorted(theirs, own)[raw]


# %%
checks.matched_values(my_matched)

# %% [markdown]
# Now we segment the target with each of them. The threshold of agglomeration stays as it is, because choosing another
# one would need labels. (We do have labels here, but only to count.)


# %%
def boundary_and_voi(model, part, statistics=None):
    with adaptation.standardise_levels(model, statistics) if statistics else nullcontext():
        affinities = predict_rescaled(model, part, rescale, engine="torch").refined
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what has collapsed looks like another order of channels
        segmentation = segment(affinities, part.voxel_size, threshold, strict=False)
    scores = evaluate(segmentation, part.labels)
    return 1 - affinities[1:].mean(0), scores.voi_split + scores.voi_merge


inputs = {
    "unchanged": target.raw,
    "histogram matching": adaptation.match_histogram(target.raw, source.histogram),
    "CLAHE": adaptation.equalise_locally(target.raw),
}
boundaries, vois = {}, {}
for name, raw in inputs.items():
    boundaries[name], vois[name] = boundary_and_voi(model, replace(target, raw=raw))
    print(f"{name}: VOI {vois[name]:.3f}")

# %% alt="Three columns: the unchanged target, after histogram matching, and after CLAHE. Above, the section; below, the boundary that the model predicts for it."
figure, axes = plt.subplots(2, 3, figsize=(12, 8), layout="constrained")
middle = len(target.raw) // 2
for column, (name, raw) in zip(axes.T, inputs.items(), strict=True):
    column[0].imshow(raw[middle], cmap="gray", vmin=0, vmax=255)
    column[0].set(title=name)
    image = column[1].imshow(boundaries[name][middle], cmap="magma", vmin=0, vmax=1)
    column[1].set(title=f"predicted boundary; VOI {vois[name]:.2f}")
    for ax in column:
        plots.scale_bar(ax, target.voxel_size)
        ax.set(xticks=[], yticks=[])
figure.colorbar(image, ax=axes[1], label="1 - mean affinity along y and x")
plt.show()
assert DATASET != "phantom" or vois["CLAHE"] < vois["unchanged"]  # as the text says

# %% [markdown]
# **What to see.** Compare the lower row: membranes that are missing become merges, and lines inside neurites become
# splits. The VOI above each picture (in the whole crop, not in this section alone) counts both. On the phantom CLAHE
# lowers it. Histogram matching lowers it in one crop and raises it in another: it also matches what should differ, if the
# crop happens to hold other structures than the source.
#
# ## 3 · Change the statistics of features
#
# The model makes 16 to 96 channels of features at five levels. In training each channel had a mean $\mu$ and a deviation
# $\sigma$. On the target both are different. Before we change any weight, we can correct the features directly: take
# away their own mean, divide by their own deviation, and give them those of the source.
#
# **Exercise 12.2: the source's statistics.** `features` is a NumPy array (channels, voxels). Return features whose channels
# have the given `mean` and `deviation`, one number each for each channel. (A deviation here is the standard deviation
# that divides by $n$, as `np.std` does.)


# %% tags=["task"]
def my_standardised(features, mean, deviation):
    return ...


# %% tags=["solution"]
def my_standardised(features, mean, deviation):
    centred = features - features.mean(1, keepdims=True)
    return centred / features.std(1, keepdims=True) * deviation[:, None] + mean[:, None]


# %%
checks.standardised_features(my_standardised)

# %% [markdown]
# How far is the target from the source? The **style loss** says it in one number for each level $f$ of features:
#
# $$L_\mathrm{style} = |\mu(f) - \mu_\mathrm{source}|^2 + |\sigma(f) - \sigma_\mathrm{source}|^2.$$


# %%
def style_of_levels(raw):
    raw = rescale_sections(replace(target, raw=raw)) if rescale else raw
    section = torch.from_numpy(raw[:8, :128, :128] / np.float32(255))[None, None]
    with torch.no_grad(), adaptation.observe_levels(model) as levels:
        model(section)
        return [
            adaptation.style_loss([level], [stored]).item() for level, stored in zip(levels, source.levels, strict=True)
        ]


styles = {name: style_of_levels(raw) for name, raw in inputs.items()}

# %% alt="Bars for five levels of features: the style loss of the unchanged target, after histogram matching, and after CLAHE, on a logarithmic axis."
figure, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
for k, (name, losses) in enumerate(styles.items()):
    ax.bar(np.arange(5) + 0.27 * (k - 1), losses, 0.25, label=name)
ax.set(
    xlabel="level (in-plane stride)", ylabel="style loss", yscale="log", title="how far features are from the source"
)
ax.set_xticks(range(5), [1, 2, 4, 8, 16])
ax.legend(frameon=False)
plt.show()
boundaries["feature statistics"], vois["feature statistics"] = boundary_and_voi(model, target, source.levels)
print(f"features re-standardised at every level: VOI {vois['feature statistics']:.3f}")
if DATASET == "phantom":  # as the text says
    matched, untouched, equalised = (styles[name] for name in ("histogram matching", "unchanged", "CLAHE"))
    assert matched[0] < untouched[0] / 2 and all(np.greater(equalised, untouched)[:4])
    assert vois["feature statistics"] > vois["CLAHE"]

# %% [markdown]
# **What to see.** On the phantom, histogram matching makes the bar of stride 1 less than half as long (mind the
# logarithmic axis): features there are closest to grey values. At coarser levels it changes less. **Short bars do not
# mean a good segmentation.** CLAHE makes all bars but the last longer, and yet it has lowered VOI. Re-standardised
# features have no bars, since their style loss is 0 by construction, and yet a higher VOI than CLAHE.
#
# There is a trick that looks similar, and that does nothing here. Predict first:

# %%
quiz.ask("12", "batch")


# %%
def count_moved(other):
    return sum(not torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


learner = deepcopy(model).train()
section = torch.from_numpy(target.raw[:4, :64, :64] / np.float32(255))[None, None]
with torch.no_grad():
    for _ in range(3):
        learner(section)
    difference = (learner(section).refined - model(section).refined).abs().max()
moved = count_moved(learner)
print(f"tensors that moved in training mode: {moved} of {len(model.state_dict())}; logits change by {difference:.0e}")
assert moved == 0 and difference < 1e-3

# %% [markdown]
# ## 4 · Change the weights: style
#
# So far the style loss was only a number. Now we take its gradient and change weights with it. **Only norm layers may
# move**, a weight and a bias for each channel, because they can correct statistics, but can forget little of what the
# model knows about membranes. (The guide, which learned from photographs, stays frozen.) What happens at home, that is, on data
# with exactly the source's statistics?

# %%
quiz.ask("12", "home")

# %%
home = Region.at((0, 0, 0), section.shape[2:])
stored = adaptation.measure_source(model, target.raw, [home]).levels
config = adaptation.TargetConfig(structure=0.0, rate=0.1, steps=2, window=home.shape)
teacher, losses = adaptation.adapt_norms(model, target.raw[home], stored, config, SEED)
moved = count_moved(teacher)
norms = sum(parameter.numel() for parameter in adaptation.norm_parameters(model))
print(f"style loss where the statistics are the stored ones: {losses[-1]['style']}; tensors that moved: {moved}")
print(f"norm layers behind the guide: {norms:,} of {sum(p.numel() for p in model.parameters()):,} parameters")
assert moved == 0

# %% [markdown]
# ## 5 · Change the weights: structure
#
# Style says nothing about *where* a boundary is. **Structure guidance** compares directions: where the section has a
# dark line, the predicted boundary should have a bright line in the same direction. Directions are measured by
# a histogram of oriented gradients (HOG): in each cell of 8 × 8 pixels, gradients are added up by their angle, and the
# sums of 2 × 2 neighbouring cells are scaled to length 1. Angles have no sign, so dark on bright and bright on dark agree.
# Brightness and contrast drop out:

# %%
picture = torch.from_numpy(target.raw[middle : middle + 1] / np.float32(255))
reference = adaptation.oriented_gradients(picture)
brighter = (adaptation.oriented_gradients(3 * picture + 5) - reference).abs().max()
inverted = (adaptation.oriented_gradients(1 - picture) - reference).abs().mean()
print(f"contrast times 3, brightness plus 5: HOG changes by at most {brighter:.0e}, inverted by {inverted:.0e}")
assert brighter < 1e-3 and inverted < 1e-2

# %% [markdown]
# ### Further: the directions in a section and in its boundary
#
# Here are both, with the strongest edge of each cell as a short line: vermilion where the cell holds predicted boundary,
# blue where it does not.

# %%
pictures = {"section": picture[0].float(), "predicted boundary": torch.from_numpy(boundaries["unchanged"][middle])}
directions = {}
for name, image in pictures.items():
    bins = adaptation.oriented_gradients(image[None].float())[0, ..., :9]  # of the first cell of each block
    angle = torch.deg2rad((bins.argmax(-1) + 0.5) * 20 + 90)  # an edge runs across its gradient
    directions[name] = angle.numpy(), bins.max(-1).values.numpy()
rows, columns = bins.shape[:2]
by_cell = pictures["predicted boundary"][: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).mean((1, 3)).numpy()
on_boundary = by_cell > 0.2
turn = np.abs(directions["section"][0] - directions["predicted boundary"][0]) % np.pi
apart = np.rad2deg(np.minimum(turn, np.pi - turn))
print(f"angle between both lines of a cell: {apart[on_boundary].mean():.0f}° on the boundary, ", end="")
print(f"{apart[~on_boundary].mean():.0f}° elsewhere (at random it would be 45°)")
assert DATASET != "phantom" or apart[on_boundary].mean() < apart[~on_boundary].mean()  # as the text says

# %% alt="Left: a section of the target with a short line in each cell along its strongest edge. Right: the predicted boundary with the lines of its own. Lines on the boundary are vermilion, and those of both pictures agree; lines inside neurites are blue."
figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
y, x = np.mgrid[:rows, :columns] * 8 + 3.5  # the middle of each cell
arms = {"pivot": "mid", "headwidth": 0, "headlength": 0, "headaxislength": 0, "scale": 14, "width": 0.006}
colors = np.where(on_boundary, plots.MERGE, plots.SPLIT).ravel()
for ax, (name, image) in zip(axes, pictures.items(), strict=True):
    angle, strength = directions[name]
    ax.imshow(image, cmap="gray")
    ax.quiver(x, y, strength * np.cos(angle), strength * np.sin(angle), angles="xy", color=colors, **arms)
    plots.scale_bar(ax, target.voxel_size)
    ax.set(title=f"{name}: the strongest edge of each cell", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# **What to see.** On the boundary, the lines of both pictures mostly run in the same direction. Inside neurites, the
# section's noise has directions, too, and the boundary should *not* follow them. This is the weakness of structure
# guidance. (The last row and column have no line: no block begins there.)

# %% [markdown]
# ## 6 · A teacher that remembers
#
# Windows of the target arrive one after the other, and each one pulls the student in its own direction. So a second copy
# predicts: the **teacher**, an exponential moving average (EMA) of the student's history,
#
# $$\theta_\mathrm{teacher} \leftarrow d\,\theta_\mathrm{teacher} + (1 - d)\,\theta_\mathrm{student}.$$
#
# **Exercise 12.3: an average over history.** `first` holds the teacher's weights before anything arrives, `students`
# those of the student after each step (steps, weights), and `decay` is $d$. Return the teacher's weights at the end.


# %% tags=["task"]
def my_average(first, students, decay):
    return ...


# %% tags=["solution"]
def my_average(first, students, decay):
    teacher = first
    for student in students:
        teacher = decay * teacher + (1 - decay) * student
    return teacher


# %%
checks.averaged_weights(my_average)

# %% [markdown]
# ## 7 · Adapt, and collapse
#
# Everything together: style, structure, norm layers, teacher. The **learning rate** is the one thing that nobody can
# choose without labels. So we take four, from careful to reckless, and watch one more number at each step: the **share
# of boundary**, the mean of the boundary that the student predicts in the window that has just arrived. (The pictures
# and VOI are the teacher's.)
#
# The phantom takes part without its other stain: the model segments it well, and nothing that we added explains what
# you will see. Its statistics still differ from those of FIB-25, so there is something to adapt to. A real data set
# takes part as it is.

# %%
steps = 8 if PROFILE == "fast" else 16
config = adaptation.TargetConfig(steps=steps, window=(8, 64, 64))
raw = rescale_sections(volume) if rescale else volume.raw
edges, outcomes, histories = {}, {}, {}
edges["before"], outcomes["before"] = boundary_and_voi(model, volume)
for rate in (0.001, 0.01, 0.1, 1.0):
    name = f"rate {rate:g}"
    teacher, histories[name] = adaptation.adapt_norms(model, raw, source.levels, replace(config, rate=rate), SEED)
    edges[name], outcomes[name] = boundary_and_voi(teacher, volume)
    print(f"{name}: VOI {outcomes[name]:.3f}, before it was {outcomes['before']:.3f}")

# %% alt="Five pictures of the predicted boundary in one section: before adaptation, and after it with four learning rates. At rate 0.1 boundaries appear inside neurites, at rate 1 little is left of the membranes."
figure, axes = plt.subplots(1, len(edges), figsize=(15, 3.8), layout="constrained")
for ax, (name, edge) in zip(axes, edges.items(), strict=True):
    ax.imshow(edge[middle], cmap="magma", vmin=0, vmax=1)
    plots.scale_bar(ax, volume.voxel_size)
    ax.set(title=f"{name}; VOI {outcomes[name]:.2f}", xticks=[], yticks=[])
figure.colorbar(plt.cm.ScalarMappable(cmap="magma"), ax=axes, shrink=0.8, label="predicted boundary")
plt.show()

# %% [markdown]
# Would anything have warned you? These curves need no label:

# %% alt="Three panels with four curves each, one for each learning rate, against the step: the style loss, the structure loss, and the share of boundary with a dotted line at its value before adaptation. The curve of rate 1 leaves the others within a few steps."
figure, axes = plt.subplots(1, 3, figsize=(15, 3.9), layout="constrained")
labels = {"style": "style loss", "structure": "structure loss", "boundary": "share of boundary"}
for ax, (kind, label) in zip(axes, labels.items(), strict=True):
    for name, history in histories.items():
        ax.plot(np.arange(1, steps + 1), [step[kind] for step in history], "o-", ms=3, label=name)
    ax.set(xlabel="step (window that arrives)", ylabel=label)
axes[0].set_yscale("log")
axes[2].axhline(edges["before"].mean(), color="black", ls=":", label="before, whole volume")
axes[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()
late = {name: np.mean([step["style"] for step in history[steps // 2 :]]) for name, history in histories.items()}
if DATASET == "phantom":  # as the text says
    assert abs(outcomes["rate 0.001"] - outcomes["before"]) < 0.05 and late["rate 0.01"] < late["rate 0.001"]
    assert outcomes["rate 1"] > outcomes["before"] + 1 and late["rate 1"] > late["rate 0.001"]
    assert outcomes["rate 0.01"] > outcomes["before"] - 0.02 and abs(outcomes["rate 0.1"] - outcomes["before"]) < 0.1
    assert max(step["boundary"] for step in histories["rate 0.1"]) > 1.5 * edges["before"].mean()

# %% [markdown]
# **What to see.** On the phantom, a careful rate changes nearly nothing. A middle rate brings the style loss down, as it
# should, but VOI gets no better. At 0.1 both losses still look healthy, and VOI changes little, but the share of boundary
# leaves the dotted line: boundaries grow inside neurites. At 1 everything **collapses** within a few steps: VOI is higher
# by more than a bit.
#
# **A loss without labels can fall while the segmentation gets worse.** On AC4, 0.1 was already too much: within 24 steps
# both losses fell to less than half, and VOI more than doubled. The share of boundary rose, and watching it costs
# nothing. But windows differ, so look at the trend, and do not take a steady share as proof.

# %% [markdown]
# ## 8 · Further: arrows, before and after
#
# Here is every VOI of parts 2, 3 and 7, as an arrow that begins where nothing was changed:

# %% alt="Two panels with a row for each method and an arrow from VOI before to VOI after it: blue arrows to the left are better, vermilion arrows to the right are worse. Left: methods on the target. Right: four learning rates, the last of them far to the right."
figure, axes = plt.subplots(1, 2, figsize=(13, 3.2), layout="constrained")
before = {"unchanged": vois, "before": outcomes}
for ax, part, (start, values) in zip(axes, (target, volume), before.items(), strict=True):
    charts.changes_of_voi(ax, values[start], {name: [voi] for name, voi in values.items() if name != start})
    ax.set_title(f"{part.name} (left is better)")
plt.show()

# %% [markdown]
# **What to see.** Blue arrows help, vermilion arrows hurt, and grey ones change less than 0.005 bits. This is one small
# piece of one volume, so do not choose a method by it.

# %% [markdown]
# ## 9 · Measured on four volumes
#
# The same methods on FIB-25's validation part, gala, AC4 and CREMI B, on all sections that we have of each. Where windows
# arrive one by one, we try three orders. A *cell* is one method on one volume in one order.

# %% alt="A panel for each volume: arrows from VOI at the training voxel size to VOI after each method. Blue arrows to the left are better, vermilion arrows to the right are worse; dots are orders of arrival."
cells = targets.read_targets()
print(targets.describe_missing_cells(cells))
measured = [key for key in targets.TARGET_METHODS if targets.target_changes(cells, key) and key != targets.BASELINE]
after = {
    volume_name: {
        targets.TARGET_METHODS[key].title: targets.target_scores(cells, volume_name, key)
        for key in measured
        if key not in ("as_is", "both_0.1")  # not a method; and the collapse, which has a figure of its own
    }
    for volume_name in targets.TARGET_VOLUMES
    if targets.target_scores(cells, volume_name, targets.BASELINE)
}
figure, axes = plt.subplots(1, max(1, len(after)), figsize=(15, 4.6), sharey=True, squeeze=False, layout="constrained")
for ax, (volume_name, methods) in zip(axes[0], after.items(), strict=False):
    before = float(np.mean(targets.target_scores(cells, volume_name, targets.BASELINE)))
    charts.changes_of_voi(ax, before, methods)
    ax.set_title(f"{targets.TARGET_VOLUMES[volume_name]}: {before:.2f} before")
plt.show()

# %% [markdown]
# **How to read it.** The dotted line is the model as it ships, at the voxel size of training. Blue arrows help, vermilion
# arrows hurt, and grey ones change less than 0.005 bits. A dot is one order, and an arrow ends at their mean. The rate 0.1
# has a figure of its own below. FIB-25 is the model's own tissue: a method that moves it to the right hurts even where
# nothing was wrong.
#
# **Which should you try first?** A number in brackets is the change of VOI, below 0 if the method helps. (*The same*:
# up to 0.020 bits. *As it is*: not even the voxel size was changed.)
# [This page](../docs/understand/which_first.md) adds what labels can do.

# %%
for key in measured:
    print(f"{targets.TARGET_METHODS[key].title}: {targets.describe_changes(cells, key)}")
changes = {key: targets.target_changes(cells, key) for key in measured}
assert [key for key in measured if targets.advise(cells, key).startswith("try it")] == ["both_0.01", "both_0.001"]
assert min(changes["as_is"].values()) > 0.3  # as the text says
assert changes["histogram"]["ac4"] < -0.4 < 0.4 < changes["histogram"]["cremi_b_mini"]
assert changes["clahe"]["cremi_b_mini"] < -0.1 and all(
    changes["clahe"][name] > 0.05 for name in ("fib25", "gala", "ac4")
)
assert changes["both_0.01"]["ac4"] < -0.3 and changes["both_0.01"]["gala"] > 0.3
assert max(map(abs, changes["both_0.001"].values())) < 0.05 and min(changes["both_0.1"].values()) > 0.2
others = {name: change for name, change in changes["structure_0.01"].items() if name != "ac4"}
assert changes["structure_0.01"]["ac4"] < -0.3 and min(others.values()) > 0.05
assert targets.NOISE == 0.02  # as the text above says

# %% [markdown]
# **What came out.** AC4 and CREMI B are new to the model. **The right voxel size helps on both**: left as they are, both
# are worse by more than 0.3 bits. No change of grey values helped on both: histogram matching gains much on AC4 and loses
# nearly as much on CREMI B, and CLAHE helps on CREMI B alone. Gradient steps depend on their rate. At 0.001 nearly nothing
# happens, at 0.1 every volume gets worse. At 0.01 AC4 gains more than 0.3 bits, and gala, where nothing was wrong, loses
# about as much.
# **So the rate decides between a gain and a ruin, and no loss tells you which.**
#
# **Limits.** Four volumes are few; FIB-25 and gala are the model's own. AC4 and CREMI B have 10 and 5 sections.
# Rates and weights of the losses were not tuned: that needs labels. [targets.md](../docs/measured/targets.md) has all
# numbers.

# %% [markdown]
# ### Further: every number, and the collapse
#
# VOI after 24 windows, against the learning rate (squares are means over orders, bars standard deviations):

# %% alt="VOI against the learning rate on a logarithmic axis: a line for each volume, with a dot for each order of arrival. The legend gives VOI before adaptation."
lines = {}
for volume_name, title in targets.TARGET_VOLUMES.items():
    if scores := targets.scores_by_rate(cells, volume_name):
        before = np.mean(targets.target_scores(cells, volume_name, targets.BASELINE))
        lines[f"{title}, {before:.2f} before"] = scores
if lines:
    figure, ax = plt.subplots(figsize=(10, 4), layout="constrained")
    charts.against_sections(ax, lines)
    ax.set(xlabel="learning rate", title="style and structure, norm layers, 24 windows")
    plt.show()
else:
    print(f"No rate is measured yet, so there is no picture. {targets.describe_missing_cells(cells)}")

# %% [markdown]
# The same in numbers, with all other methods:

# %%
groups = {}
for volume_name, title in targets.TARGET_VOLUMES.items():
    scores = {key: targets.target_scores(cells, volume_name, key) for key in targets.TARGET_METHODS}
    groups[title] = [
        [targets.TARGET_METHODS[key].title, summary(values), str(len(values))]
        for key, values in scores.items()
        if values
    ]
fold_table(["method", "VOI (bits)", "orders"], groups)

# %% [markdown]
# Why did AC4 gain so much at 0.01? Look at the two parts of its VOI:

# %%
for key in (targets.BASELINE, "both_0.01"):
    scores = [cells[cell]["scores"] for cell in cells if cell[:2] == ("ac4", key)]
    merged, split = (np.mean([score[kind] for score in scores]) for kind in ("voi_merge", "voi_split"))
    print(f"AC4, {targets.TARGET_METHODS[key].title}: {merged:.2f} bits of merges, {split:.2f} of splits")
    assert merged > 2 * split if key == targets.BASELINE else merged < split

# %% [markdown]
# Its VOI was mostly merges, and gradient steps trade them for splits. (A lower threshold would do that, too, and to
# choose it you need labels.) The structure loss alone brings AC4 nearly as much, and makes the other three volumes worse:
# affinities that follow every edge help only where membranes were missed.
#
# And could the losses have warned you of the ruin at 0.1? These are means over three orders:

# %%
rows = [cells["ac4", "both_0.1", order]["losses"] for order in targets.ORDERS]
change = {}
for kind, label in labels.items():
    first, last = (
        np.mean([[step[kind] for step in row[part]] for row in rows]) for part in (slice(1), slice(-3, None))
    )
    change[kind] = last / first
    print(f"AC4, rate 0.1: {label} {first:.2f} in the first window, {last:.2f} in the last three")
before, after = (np.mean(targets.target_scores(cells, "ac4", key)) for key in (targets.BASELINE, "both_0.1"))
print(f"AC4, rate 0.1: VOI {before:.2f} before, {after:.2f} after")
assert max(change["style"], change["structure"]) < 0.5 and change["boundary"] > 1 and after > 2 * before  # part 7

# %% [markdown]
# ## 10 · Further: synapses, when all that you have is points
#
# Now another task with the same problem. Synapses are annotated as points: one **pre-synaptic** site, where vesicles
# wait, and one **post-synaptic** site on the other side of the membrane. (A fly's synapse has several post-synaptic
# sites. Ours has one.) We draw synapses into phantoms, so that every point is exact, and show the second phantom in
# another stain: it is the target, and its points are used for scores alone.

# %%
crop = Region.at((8, 32, 32), (16, 160, 160) if PROFILE == "fast" else (24, 192, 192))
tissue, points = {}, {}
for name, part in (("source", "train"), ("target", "val")):
    phantom = open_dataset("phantom", part)[crop]
    points[name] = synapses.place_synapses(phantom, SEED)
    tissue[name] = synapses.stain_synapses(phantom, points[name], SEED)
tissue["target"] = adaptation.restain(tissue["target"], SEED)
print({name: f"{len(of.pre)} synapses in {tissue[name].shape} voxels" for name, of in points.items()})

# %% alt="Two sections, of the source and of the target in its other stain, each with blue dots at pre-synaptic sites, vermilion squares at post-synaptic sites, and a line between partners."
figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
for ax, (name, (pre, post)) in zip(axes, points.items(), strict=True):
    z = np.bincount(pre[:, 0]).argmax()
    plots.show_section(ax, tissue[name].raw, voxel_size=tissue[name].voxel_size, z=z, title=f"{name}, section {z}")
    for a, b in zip(pre[pre[:, 0] == z], post[pre[:, 0] == z], strict=True):
        ax.plot([a[2], b[2]], [a[1], b[1]], "-", color="white", lw=1)
        ax.plot(a[2], a[1], "o", color=plots.SPLIT, label="pre")
        ax.plot(b[2], b[1], "s", color=plots.MERGE, label="post")
    ax.legend(*[[*of][:2] for of in ax.get_legend_handles_labels()], loc="upper left")
plt.show()

# %% [markdown]
# **What to see.** Vesicles, small rings, gather around the pre-synaptic site. Between the two sites, on the post-synaptic
# side, the membrane is thick and dark. In the target's stain both are hard to see.
#
# ### Points, balls, detections
#
# A network cannot learn from single voxels, so each point becomes a **ball** of radius 3, 123 voxels. The network gives
# two maps, pre and post. Balls are rare, so in the cross-entropy they weigh as much as all other voxels together. Peaks
# of the maps are detections. A detection is right if a true point lies within 100 nm, and each point counts once.
#
# - **Precision**: which share of the detections is right. **Recall**: which share of the points was detected.
# - **F1**: $2PR / (P + R)$, which is high only if both are.

# %%
iterations = {"fast": 80, "cpu": 400}.get(PROFILE, 1000)
shape = tissue["source"].shape
balls = np.stack([synapses.draw_balls(of, shape) for of in points["source"]])
detector, losses = synapses.train_detector(tissue["source"].raw, balls, iterations, SEED)
print(f"loss {np.mean(losses[:10]):.3f} in the first ten steps, {np.mean(losses[-10:]):.3f} in the last ten")


def detect(detector, name, threshold=0.7):
    maps = synapses.predict_sites(detector, tissue[name].raw)
    return synapses.Synapses(*(synapses.detect_points(of_site, threshold) for of_site in maps))


def score_sites(detections, name):
    for site, detected, truth in zip(("pre", "post"), detections, points[name], strict=True):
        scores = synapses.match_detections(detected, truth, tissue[name].voxel_size, distance=100)
        print(
            f"  {name}, {site}: {len(detected)} detections, precision {scores.precision:.2f}, "
            f"recall {scores.recall:.2f}, F1 {scores.f1:.2f}"
        )


before = {name: detect(detector, name) for name in tissue}
for name, detections in before.items():
    score_sites(detections, name)

# %% [markdown]
# ### Square pseudo-labels on the target
#
# AdaSyn's second stage needs no label of the target. What the network detects there becomes its new training data:
# **squares** of 7 × 7 pixels around the detections, a shape of its own that does not copy the network's blurred maps.
# Training goes on with them, on the target.

# %%
squares = np.stack([synapses.draw_squares(of, shape) for of in before["target"]])
adapted, _ = synapses.train_detector(tissue["target"].raw, squares, iterations // 4, SEED, detector)
print("before:")
score_sites(before["target"], "target")
print("after pseudo-labels:")
after_squares = detect(adapted, "target")
score_sites(after_squares, "target")

# %% [markdown]
# **What to see.** Pseudo-labels repeat what the first network believes. They can make it surer of what it detected, but a
# synapse that it missed on the target counts as background from then on. If the numbers fall, this is why. (With `fast`
# the detector has hardly begun to learn, and its numbers show only that everything runs.)
#
# ### Who talks to whom?
#
# Each post-synaptic site needs a partner. AdaSyn takes the **nearest** pre-synaptic site. The alternative is the
# **optimal assignment**: every site gets a partner of its own, so that all distances together are as short as possible.
#
# **Exercise 12.4: partners in nanometres.** `pre` (n, 3) and `post` (m, 3) are points in voxels z, y, x, and `voxel_size`
# is in nm. For each post-synaptic site, return the number of the row of `pre` that is nearest.


# %% tags=["task"]
def my_partners(pre, post, voxel_size):
    return ...


# %% tags=["solution"]
def my_partners(pre, post, voxel_size):
    away = (post[:, None] - pre) * voxel_size
    return np.linalg.norm(away, axis=-1).argmin(1)


# %%
checks.synapse_partners(my_partners)

# %% [markdown]
# Two synapses side by side are enough for a difference. The first post-synaptic site belongs to the first pre-synaptic
# one, the second to the second. An arrow goes from each to the partner that a rule chooses: black if it is right,
# vermilion if it is wrong.

# %% alt="Left: two pairs of sites in a row; both post-synaptic sites choose the same nearest pre-synaptic one, which is wrong for the first. Right: the optimal assignment gives each its own partner."
pre, post = np.array([[0, 0, 0], [0, 0, 10]]), np.array([[0, 0, 6], [0, 0, 16]])
partners = {
    "nearest": synapses.pair_nearest(pre, post, (40.0, 8.0, 8.0)),
    "optimal assignment": synapses.pair_optimally(pre, post, (40.0, 8.0, 8.0)),
}
figure, axes = plt.subplots(1, 2, figsize=(12, 2.4), sharey=True, layout="constrained")
for ax, (name, rows) in zip(axes, partners.items(), strict=True):
    for k, row in enumerate(rows):
        color = "black" if row == k else plots.MERGE
        ax.annotate("", (8 * pre[row, 2], 0), (8 * post[k, 2], 1), arrowprops={"arrowstyle": "-|>", "color": color})
    ax.plot(8 * pre[:, 2], [0, 0], "o", ms=11, color=plots.SPLIT)
    ax.plot(8 * post[:, 2], [1, 1], "s", ms=11, color=plots.MERGE)
    ax.set(title=f"{name}: {sum(rows == [0, 1])} of 2 right", xlabel="x (nm)", ylim=(-0.5, 1.5))
    ax.set_yticks([0, 1], ["pre", "post"])
plt.show()

# %% [markdown]
# And on the target's true points, where partners are known?

# %%
pre, post = points["target"]
size = tissue["target"].voxel_size
for name, rule in (("nearest", synapses.pair_nearest), ("optimal", synapses.pair_optimally)):
    print(f"{name}: {np.mean(rule(pre, post, size) == np.arange(len(post))):.0%} of {len(post)} partners are right")

# %% [markdown]
# **What to see.** Where synapses are far apart, both rules agree. In a crowd, assignment avoids a partner that is taken.
# But it has a price: with several post-synaptic sites for each pre-synaptic one, as in a fly, it leaves sites without a
# partner, and there the nearest one is the better rule.

# %% [markdown]
# ### CREMI's own annotations
#
# The three training samples of [CREMI](https://cremi.org) hold real synapses of a fly, as points in nm: pre-synaptic
# and post-synaptic sites, and which belong together. A sample takes some hundred MB, so nothing is downloaded here. If
# `sample_A_20160501.hdf` lies in `DATA_DIR`, or if you have worked with `DATASET = "cremi_a"`, this cell reads it.
# Otherwise it tells you where to get it.

# %%
try:
    sample_file = fetch("sample_A_20160501.hdf", download=False)
except FileNotFoundError as error:
    sample_file = None
    print(error)
if sample_file:
    sample = read_volume(sample_file)
    contacts = synapses.Synapses(*read_partners(sample_file, sample))
    sites, owners = np.unique(contacts.pre, axis=0, return_inverse=True)
    print(f"{len(sites)} pre-synaptic sites with {len(contacts.post) / len(sites):.1f} partners each")
    for name, rule in (("nearest", synapses.pair_nearest), ("optimal", synapses.pair_optimally)):
        rows = rule(sites, contacts.post, sample.voxel_size)
        print(f"{name}: {np.mean(rows == owners.ravel()):.0%} of {len(rows)} partners are right")

# %% [markdown]
# **What to see,** if you have the file. A site with several partners is the case of the last paragraph: assignment gives
# each site one partner, so it cannot be right for the others. The points are in the same form as those of the phantom.
# So you can draw balls around them and train the detector on a crop: `read_partners(sample_file, sample[0:24, 0:512,
# 0:512])` gives those inside it.

# %% [markdown]
# ## Your exercises

# %%
checks.report("12")

# %% [markdown]
# ## What you learned
#
# - Begin with what costs nothing: voxel size, then grey values.
# - Statistics of features travel with the weights, so that a model can be adapted without its training data.
# - The style loss moves nothing at home. Norm layers alone, small steps and a teacher limit the damage elsewhere.
# - Losses without labels can fall while the segmentation gets worse: the rate is a risk that only labels can measure.
# - Points become balls, and detections become squares. Nearest partners fail in a crowd, and assignment fails where one
#   site has several partners.
#
# ## Try it
#
# The first three change part 7. Take out its block `if DATASET == "phantom":`, which checks the lesson as it is.
#
# 1. Give `TargetConfig` in part 7 `decay=0.0`, so that the student itself predicts. Which rate collapses now?
# 2. Match histograms first and adapt afterwards. Do the two changes of VOI add up?
# 3. Set `structure=0.0` there, then `style=0.0`. Which of the two losses does the damage at a large rate?
# 4. Draw balls instead of squares as pseudo-labels. Does F1 on the target change?
#
# ## References
#
# - S. Zhou, Z. Xiong, F. Wu. *Test-Time Adaptation via Style and Structure Guidance for Histological Image
#   Registration.* AAAI 2024.
# - Q. Chen, W. Huang, Y. Zhang, Z. Xiong. *Domain Adaptive Synapse Detection with Weak Point Annotations.* ISBI 2024,
#   [arXiv:2308.16461](https://arxiv.org/abs/2308.16461).
# - N. Dalal, B. Triggs. *Histograms of Oriented Gradients for Human Detection.* CVPR 2005.
# - scikit-image, histogram matching and CLAHE: [scikit-image.org](https://scikit-image.org) (BSD).
