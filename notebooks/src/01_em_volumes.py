# %% [markdown]
# # 01 · EM volumes: from grey values to training targets
#
# <!-- badges -->
#
# **What you will learn**
#
# - what an electron micrograph of brain tissue shows, and what it does not show;
# - why the voxels of many volumes are longer in z than in-plane, and what that does to neurons;
# - how a volume is stored in an HDF5 file, by hand and with the library;
# - why a network learns affinities and not neuron ids, and how to make targets, mask them and augment them;
# - three comparisons that show you how a synthetic volume differs from real ones.
#
# **Before you start.** You need some NumPy, but no other lesson, no GPU and no download. Lesson 00 shows where all
# this leads.
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
# ## 1 · What EM shows
#
# The finest branches of neurons are thinner than 100 nm. Visible light blurs everything below about 200 nm, so an
# ordinary light microscope cannot follow them. An electron microscope resolves a few nanometres. To make tissue
# visible to electrons, it is fixed, soaked in heavy metals and embedded in plastic. The metals bind to membranes and
# to proteins. There they scatter electrons, and the picture is **dark**. Watery cytoplasm stays **bright**.
#
# A *volume* is many such pictures, one behind the other. In **serial-section EM** a diamond knife cuts slices of 30 to
# 50 nm, and each slice is imaged. In **FIB-SEM** an ion beam removes about 10 nm at a time from a block, and the fresh
# face is imaged.

# %% alt="One EM section: bright profiles of many sizes, packed without gaps, with thin dark outlines; dark ovals and small rings inside some of them."
import matplotlib.pyplot as plt
import numpy as np

from fgnet_lib.course import checks, quiz
from fgnet_lib.views import plots

volume = session.volume("val")
middle = volume.shape[0] // 2
figure, ax = plt.subplots(figsize=(7.5, 7.5))
plots.show_section(ax, volume.raw, voxel_size=volume.voxel_size, z=middle, title=f"{volume.name}, section {middle}")
plt.show()

# %% [markdown]
# Try to find:
#
# - **membranes**: the thin dark lines. Each closed outline is the *profile* of a neurite, cut by the section. A
#   neurite is any branch of a neuron. Two neighbours each have a membrane; at this resolution the two often look like
#   one line.
# - **mitochondria**: dark, oval, with a darker rim. They lie *inside* a neurite. Their rims are membranes too, but not
#   borders between neurites. This is the first thing that a naive edge detector gets wrong.
# - **vesicles**: rings a few pixels across, in clouds. They hold the transmitter that one neuron releases to the next.
# - **endoplasmic reticulum**: bright tubes with a thin dark rim, wider than a vesicle and paler than a mitochondrion.
#   They belong to the neurite, too.
# - **grey smears instead of lines**: here a membrane runs obliquely through the section, so its shadow is spread out.
#   This is the second thing that an edge detector gets wrong.
#
# EM shows *all* neurites at once, packed with hardly any space between them. That is why it is used to map circuits.
# It is also what makes segmentation hard: any gap in a line joins two neurons.
#
# ## 2 · Anisotropy: z is not like y and x
#
# The library keeps a volume as a small object. It has grey values `raw`, neuron ids `labels`, the size of a voxel in
# nm, and the offset of the first voxel in nm. The order is always **z, y, x**.

# %%
size = np.array(volume.shape) * volume.voxel_size / 1000
print("voxels (z, y, x)  ", volume.shape)
print("voxel size in nm  ", volume.voxel_size)
print("whole volume in µm", size.round(2))
print(f"a voxel is {volume.voxel_size[0] / volume.voxel_size[2]:.2g} times as long in z as in x")

# %% [markdown]
# Here are the three planes through one point, drawn to scale. In the two side views each section is a line (xz) or a
# column (yz), one voxel thick. If voxels are much longer in z (*anisotropic*), the side views look like a pile of
# boards. If voxels are cubes (*isotropic*), all three views look alike.

# %% alt="Three planes through one point, to scale: the section in fine pixels, and two side views, which in the phantom are coarse along z."
plots.orthogonal_views(volume.raw, volume.voxel_size)
plt.show()

# %% [markdown]
# How far apart are two neighbouring voxels *for a neuron*? We can ask the labels: how often does the id change in one
# step along each axis? If it changes more often along z, a method that treats all axes alike must fail more often
# along z.

# %%
quiz.ask("01", "most-changes")

# %% [markdown]
# We count:

# %%
labels, changes = volume.labels, {}
for axis, name in enumerate("zyx"):
    ids = np.moveaxis(labels, axis, 0)
    changes[name] = np.mean(ids[1:] != ids[:-1])
    print(f"{changes[name]:6.1%} of the steps of {volume.voxel_size[axis]:g} nm along {name} change neuron")
assert DATASET != "phantom" or changes["z"] > 1.2 * max(changes["y"], changes["x"])  # as the text says

# %% [markdown]
# In the phantom the neuron changes more often along z than along y or x. That is why FGNet, like other networks for
# such data, begins with a filter that lies within one section, and never pools along z. It is also why the watershed of
# lesson 05 works section by section if the data are anisotropic.
#
# Move the slider and follow one profile from section to section. Does it branch? Does it squeeze between two others?

# %%
import ipywidgets as widgets
from matplotlib.figure import Figure

from fgnet_lib.views.interactive import explore

colors = plots.neighbour_colors(labels)  # neurons that touch differ in colour


def draw(z):
    figure = Figure(figsize=(5.5, 5.5))
    title = f"section {z}"
    plots.show_section(figure.subplots(), volume.raw, labels, volume.voxel_size, z, title, fill=0.3, colors=colors)
    return figure


explore(draw, z=widgets.IntSlider(middle, 0, volume.shape[0] - 1, description="section"))

# %% [markdown]
# Without a running kernel the slider does nothing. These three sections show the same:

# %% alt="Three sections, each two apart, with tinted profiles: most colours come back in all three, a little moved or deformed."
figure, axes = plt.subplots(1, 3, figsize=(14, 5))
for ax, z in zip(axes, (middle - 2, middle, middle + 2), strict=True):
    title = f"section {z}"
    plots.show_section(ax, volume.raw, labels, volume.voxel_size, z, title, fill=0.3, colors=colors)
plt.show()

# %% [markdown]
# ## 3 · A volume on disk
#
# Real volumes are too large for memory. They are stored in **chunked** files: the array is split into little boxes,
# the chunks, and each chunk is compressed by itself. When you cut out a part, only the chunks that it touches are
# read. HDF5 is such a format. We first write a file *by hand*, in the layout of the CREMI challenge, which is common
# in the field.

# %%
import h5py

path = session.out_dir / "01_by_hand.h5"
with h5py.File(path, "w") as file:
    for name, array in {"volumes/raw": volume.raw, "volumes/labels/neuron_ids": labels}.items():
        chunks = tuple(min(have, want) for have, want in zip(array.shape, (8, 64, 64), strict=True))
        dataset = file.create_dataset(name, data=array, chunks=chunks, compression="gzip")
        dataset.attrs["resolution"] = volume.voxel_size  # nm, z y x
        dataset.attrs["offset"] = volume.offset  # nm, z y x

# %% [markdown]
# An HDF5 file is a tree, like folders and files. Let us look at what is inside, as you would with a file from someone
# else. Without `resolution`, the numbers are only a block of grey values: **always look for the voxel size**.

# %%
with h5py.File(path, "r") as file:
    file.visititems(lambda name, item: print(name, item.shape, item.dtype) if isinstance(item, h5py.Dataset) else None)
    raw = file["volumes/raw"]  # nothing is read yet
    print("resolution", raw.attrs["resolution"], "nm; one chunk is", raw.chunks)
    cut = raw[2:4, 50:100, 50:100]  # this reads two sections of a small square
print("the cut:", type(cut).__name__, cut.shape, cut.dtype)
print(f"on disk {path.stat().st_size / 1e6:.1f} MB, in memory {(volume.raw.nbytes + labels.nbytes) / 1e6:.1f} MB")

# %% [markdown]
# The labels shrink a lot, because all values inside a neuron are equal. The library does the same in one line. It also
# reads other layouts: FIB-25, TIFF, Zarr, and padded CREMI files, whose labels cover less than the raw data and whose
# offset says where they lie. If you cut a `Volume`, you get a `Volume`, and its offset moves along.
#
# A lazy volume keeps its file open, and HDF5 does not let you rewrite an open file. So delete the variable as soon as
# you have cut what you need.

# %%
from fgnet_lib.files.formats import read_volume, write_volume

lazy = read_volume(path)
corner = lazy[2:4, 50:100, 50:100]
print(f"opened: {type(lazy.raw).__name__} at {lazy.offset} nm; cut: {type(corner.raw).__name__} at {corner.offset} nm")
np.testing.assert_array_equal(corner.raw, cut)
del lazy  # closes the file, so that you can run this part again
again = write_volume(corner, session.out_dir / "01_corner.zarr")  # the suffix chooses the format
print(again.name, read_volume(again).voxel_size)

# %% [markdown]
# ## 4 · Labels
#
# Each voxel has the id of the neuron that it lies in. A person assigned it; in a synthetic volume the generator did.
# The ids are *names*, not measurements: 7 is not nearer to 8 than to 800.
#
# Two values are special. **0** means "no neuron", such as a membrane or the space outside of cells, and **2⁶⁴ − 1**
# means "nobody looked here". Some data sets use neither, and give each half of a membrane to its own neuron; such
# labels are called *dense*.

# %% alt="A section with coloured labels; beside it the volumes of all neurites, largest first: the largest is more than ten times as large as half of them."
from fgnet_lib.volumes import IGNORE

ids, voxels = np.unique(labels[(labels > 0) & (labels != IGNORE)], return_counts=True)
cubic_microns = np.sort(voxels * np.prod(volume.voxel_size) / 1e9)[::-1]
share = np.cumsum(cubic_microns) / cubic_microns.sum()
print(f"{len(ids)} neurites; {np.mean(labels == 0):.1%} of the voxels are 0")
print(f"largest neurites that together fill half of the labelled volume: {np.searchsorted(share, 0.5) + 1}")
assert DATASET != "phantom" or np.median(cubic_microns) < cubic_microns[0] / 10  # few are thick, many are thin
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), width_ratios=(1, 1.3))
title = "labels: neighbours differ in colour"
plots.show_section(left, volume.raw, labels, volume.voxel_size, middle, title, fill=0.5, colors=colors)
right.plot(range(1, len(ids) + 1), cubic_microns, ".-")
right.set(yscale="log", xlabel="neurites, largest first", ylabel="volume in this crop (µm³)", title="sizes")
plt.show()

# %% [markdown]
# A few thick branches fill much of the volume, and many thin ones share the rest. The thin ones matter just as much:
# an axon of 100 nm carries the messages of a whole neuron. Remember this curve when you read a score that counts
# voxels.
#
# ## 5 · Why affinities
#
# What should a network predict, voxel by voxel? The obvious answers fail.
#
# **The ids?** Give the neurons new names: the tissue is the same, but every target has changed. No function leads from
# grey values to ids.
#
# **"Membrane or not"?** Then one class separates all neurons. But labels may be dense, so that no voxel is a border.
# And where a membrane is oblique and grey, or thinner than a voxel, no voxel between two neurons is clearly
# "membrane".
#
# **Whether two neighbours belong together!** This question has a yes or no answer, which does not depend on names, and
# the border may lie *between* voxels. With $\ell(p)$ the label at voxel $p$ and $e_c$ one step along axis
# $c \in \{z, y, x\}$,
#
# $$a_c(p) = \begin{cases} 1 & \text{if } \ell(p) = \ell(p - e_c) \text{ and } \ell(p) > 0 \\ 0 & \text{otherwise.}\end{cases}$$
#
# So each voxel has three numbers: its **affinities** to its predecessors. The first voxel of a row has no predecessor
# and gets 0. We start with a row of nine voxels:

# %%
row = np.array([4, 4, 4, 9, 9, 0, 0, 2, 2])
affinity = np.zeros(len(row), int)
affinity[1:] = (row[1:] == row[:-1]) & (row[1:] > 0)
print("labels    ", *row)
print("affinities", *affinity)

# %% [markdown]
# Read it from the left. The second and the third 4 are each joined to the voxel before. No membrane voxel lies between
# 4 and 9, and yet the 0 under the first 9 separates them. Two zeros are not joined, because "no neuron" is not a
# neuron.
#
# In 3D we do the same along three axes.
#
# **Exercise 1.1: the affinity target.** Complete the function: from labels (z, y, x) to affinities (3, z, y, x), with
# channel 0 along z, 1 along y and 2 along x. Replace the three dots, run the cell, and then run the check below it.
# Your answer may use anything that the lesson has imported up to here. You may also skip it: nothing that follows
# needs your answer.


# %% tags=["task"]
def my_affinities(labels):
    affinities = np.zeros((3, *labels.shape), np.uint8)
    # for each axis: 1 where a voxel and its predecessor have the same label, and this label is not 0
    return ...


# %% tags=["solution"]
def my_affinities(labels):
    affinities = np.zeros((3, *labels.shape), np.uint8)
    for axis, channel in enumerate(affinities):
        ids = np.moveaxis(labels, axis, 0)  # a view, in which this axis is the first
        np.moveaxis(channel, axis, 0)[1:] = (ids[1:] == ids[:-1]) & (ids[1:] > 0)
    return affinities


# %% alt="Affinities of a small phantom, yours on the left and the expected ones on the right: white inside neurites, dark along membranes."
checks.affinities(my_affinities)

# %% [markdown]
# Now the library's function. We apply it first to the row from before, which has an x axis only, and then to the
# volume:

# %%
from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.volumes import is_anisotropic

np.testing.assert_array_equal(affinities_from_labels(row[None, None])[2, 0, 0], affinity)
affinities = affinities_from_labels(labels)
print("shape", affinities.shape, "= channel (z, y, x), z, y, x")

# %% [markdown]
# And now the proof that names do not matter: shuffle all ids, and the affinities stay exactly as they were.

# %%
known, index = np.unique(labels, return_inverse=True)
shuffled = np.where(known > 0, np.random.default_rng(SEED).permutation(len(known)) + 1, 0)
renamed = shuffled[index].reshape(labels.shape).astype(np.uint64)
print(f"{np.mean(renamed != labels):.0%} of the voxels have a new label,", end=" ")
print(f"{np.sum(affinities_from_labels(renamed) != affinities)} affinities have changed")

# %% [markdown]
# Here are the three channels in one section. White is 1, joined; black is 0, separated. The last panel shows all three
# at once, z as red, y as green and x as blue. They mix: white is joined along all axes, black along none, and a voxel
# that is separated along one axis only lacks that colour (cyan for z, magenta for y, yellow for x).

# %% alt="The three affinities of a section: a_y shows horizontal borders and a_x vertical ones, as thin black lines; a_z, in the phantom, shows broad black patches. A fourth picture has all three as a colour."
figure, axes = plt.subplots(1, 4, figsize=(15, 4.2))
titles = ("$a_z$: joined to the section before", "$a_y$: joined upwards", "$a_x$: joined to the left")
for ax, channel, title in zip(axes, affinities, titles, strict=False):
    plots.show_section(ax, 255 * channel, None, volume.voxel_size, middle, title)
plots.show_affinities(axes[3], affinities, volume.voxel_size, middle, "all three as a colour")
plt.show()

# %% [markdown]
# **What to see.** $a_y$ shows horizontal borders, $a_x$ shows vertical ones, and each border is a single voxel wide.
# (The line along the top of $a_y$ and the one along the left of $a_x$ are no borders: the first voxels have no
# predecessor.)
# $a_z$ is different: it is dark where a profile of *this* section lies over another neuron in the section before. In
# anisotropic data these dark areas are often broad bands (cyan on the right), because a border may move sideways by
# many pixels from one section to the next.
#
# To get a segmentation from affinities, you join all voxels whose affinity is 1. If a *single* affinity across a
# border is wrong, two neurons become one. Lesson 05 deals with that.
#
# ## 6 · Targets, borders and what is unknown
#
# How often does a network have to say "separated"?

# %%
quiz.ask("01", "share-of-zeros")

# %% [markdown]
# We count the zeros, and find a practical problem:

# %%
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter

widened = widen_borders(labels, in_3d=not is_anisotropic(volume.voxel_size))
for name, target in {"labels as they are": affinities, "borders widened": affinities_from_labels(widened)}.items():
    zeros = [np.mean(channel[1:, 1:, 1:] == 0) for channel in target]
    print(f"{name:20} zeros along z, y, x:", *(f"{share:.1%}" for share in zeros))
    limit = 0.1 if target is affinities else 0.5  # the prediction's answer, and the text below
    assert DATASET != "phantom" or max(zeros) < limit

# %% [markdown]
# Along every axis, most affinities are 1. A network that says "joined" everywhere is right most of the time, and
# useless. Two remedies are used together. The loss gives zeros more weight (lesson 04). And the targets are made from
# labels whose borders are **widened**: a voxel becomes 0 if it has another label next to it in its section. Then a
# border is two voxels wide, like a stained membrane, and it matters less if an annotator drew it one voxel off. In
# isotropic data (FIB-SEM) membranes lie flat as often as upright. So there the neighbours in the sections above and
# below count as well.
#
# Only the *targets* are widened. Scores are always computed on the labels as they are.
#
# **Exercise 1.2: widened borders.** Set a voxel to 0 if any of its eight neighbours in the same section has another
# label. (A neat way is a filter that looks at 1 x 3 x 3 voxels: where do the largest and the smallest label in this
# window differ? Nothing outside the volume counts as another label.)


# %% tags=["task"]
def my_widened(labels):
    return ...


# %% tags=["solution"]
def my_widened(labels):
    window = (1, 3, 3)
    border = maximum_filter(labels, window, mode="nearest") != minimum_filter(labels, window, mode="nearest")
    return np.where(border, 0, labels)


# %% alt="A section of a small phantom with coloured neurites whose borders became 0: yours on the left, the expected ones on the right."
checks.widened(my_widened)

# %% [markdown]
# We look at a window of the section, the one with the most borders:

# %% alt="A small window four times: EM; labels that touch; the same labels with a gap between any two neurites; the target, in which the gaps are dark."
crowd = uniform_filter((widened[middle] == 0).astype(float), 64)[32:-32, 32:-32]  # share of border in a window
y, x = np.unravel_index(crowd.argmax(), crowd.shape)
near = (slice(middle, middle + 1), slice(y, y + 64), slice(x, x + 64))
figure, axes = plt.subplots(1, 4, figsize=(15, 4.4))
plots.show_section(axes[0], volume.raw[near], None, volume.voxel_size, title="EM, enlarged")
for ax, ids, title in ((axes[1], labels, "labels"), (axes[2], widened, "borders widened")):
    plots.show_section(ax, volume.raw[near], ids[near], volume.voxel_size, title=title, fill=0.5, colors=colors)
target = affinities_from_labels(widened)[(slice(None), *near)]
plots.show_affinities(axes[3], target, volume.voxel_size, title="target: its affinities")
plt.show()

# %% [markdown]
# ### Further: voxels that nobody labelled
#
# The last question is what to do where the labels are **unknown** (2⁶⁴ − 1). Neither 0 nor 1 would be true there, so
# the loss must not look: an affinity counts only if both of its voxels are known. The library calls this the mask.
#
# **Exercise 1.3: where the loss may look.** You get the labels of a single row of voxels. Say for each voxel whether
# the affinity to its predecessor counts. Unknown voxels have the label `IGNORE`. The first voxel has no predecessor,
# so its affinity does not count.


# %% tags=["task"]
def my_mask(row):
    known = row != IGNORE
    return ...


# %% tags=["solution"]
def my_mask(row):
    known = row != IGNORE
    return np.append(False, known[1:] & known[:-1])


# %%
checks.mask(my_mask)

# %% [markdown]
# The library's functions, on a row of six voxels:

# %%
partly_known = np.array([[[4, 4, IGNORE, IGNORE, 9, 9]]], np.uint64)
print("labels                    4 4 ? ? 9 9")
print("affinities along x       ", *affinities_from_labels(partly_known)[2, 0, 0])
print("the loss may look (mask) ", *affinity_mask(partly_known)[2, 0, 0].astype(int))

# %% [markdown]
# ## 7 · Further: augmentation, the same tissue seen in other ways
#
# Labelled volumes are small, because drawing labels takes weeks. So the network sees each patch in ever new variants.
# A variant is allowed if an expert would still draw the same borders: flipped, turned by 90°, slightly bent, brighter,
# noisier. Serial sections add two faults of their own: a section is **lost**, or it **slips** sideways. The network
# has to bridge both, so it should meet both in training.

# %% alt="A patch and three variants of it, EM above and labels below: mirrored, turned, bent, brighter or darker. Labels follow the EM."
from fgnet_lib.augment import Augment

side = min(128, *volume.shape[1:])
patch = {"raw": volume.raw[:8, :side, :side], "labels": labels[:8, :side, :side]}
figure, axes = plt.subplots(2, 4, figsize=(14, 7.4))
for seed, column in enumerate(axes.T):
    shown = Augment(seed)(patch) if seed else patch
    title = f"seed {seed}" if seed else "as it is"
    plots.show_section(column[0], shown["raw"], None, volume.voxel_size, z=4, title=title)
    plots.show_section(column[1], shown["raw"], shown["labels"], volume.voxel_size, z=4, fill=0.5, colors=colors)
plt.show()

# %% [markdown]
# **What to see.** The labels move together with the raw data; grey values change in the raw data only. The targets are
# computed **after** all this, from the moved labels. They are not moved themselves. Why?

# %%
quiz.ask("01", "flipped")

# %% [markdown]
# Flip the volume along x, and a voxel's predecessor becomes its successor:

# %%
flipped_affinities = affinities[..., ::-1]
affinities_of_flipped = affinities_from_labels(labels[..., ::-1])
for name, first, second in zip("zyx", flipped_affinities, affinities_of_flipped, strict=True):
    print(f"along {name}: {np.sum(first != second)} of {first.size} affinities differ")
    assert np.any(first != second) == (name == "x")

# %% [markdown]
# Along z and y nothing changes. Along x every border is off by one voxel. If half of all patches are flipped in this
# way, a network learns two positions for each border, and no error message tells you.
#
# Here are the two faults of serial sections, seen from the side. The generator of the synthetic volume makes them,
# because then we know the truth:

# %% alt="A stack from the side, EM and labels: section 6 is black in the EM, section 13 is shifted sideways in both, and has a strip without labels."
from fgnet_lib.phantom import make_phantom

faulty = make_phantom((20, 128, 128), seed=SEED, missing_section=6, misaligned_section=13)
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5))
in_xz = faulty.voxel_size[0], faulty.voxel_size[2]
plots.show_section(left, faulty.raw[:, 64], None, in_xz, title="xz: section 6 is lost, 13 has slipped")
its_labels = {"title": "its labels", "fill": 0.5, "colors": plots.neighbour_colors(faulty.labels)}
plots.show_section(right, faulty.raw[:, 64], faulty.labels[:, 64], in_xz, **its_labels)
plt.show()
for z in (12, 13):
    print(f"unknown labels in section {z}: {np.mean(faulty.labels[z] == IGNORE):.0%}")

# %% [markdown]
# **What to see.** In the lost section the labels go on, because a person would bridge it as well. In the slipped
# section they move along. A strip at the rim of that section came in from outside the picture, so its labels are
# unknown (grey on the right).

# %% [markdown]
# ## 8 · Further: how real is the phantom?
#
# The default data of this course are synthetic: a **phantom**. Its labels are exact by construction, it needs no
# download, and it can be as large as we like. But if a method works on the phantom, does it work on EM? We cannot
# prove that. We can check that the phantom is not *obviously* different, in three ways:
#
# 1. **grey values**: how many voxels are dark, medium or bright (histogram);
# 2. **structure sizes**: how much contrast lies in waves of 400 nm, of 100 nm, of 20 nm (power spectrum);
# 3. **the look**: what these two cannot measure.
#
# Numbers measured on real volumes come with the repository; pictures of them do not.

# %%
import json

from fgnet_lib import REPOSITORY
from fgnet_lib.course.texture import GREY_BINS, WAVELENGTHS, grey_histogram, overlap, power_spectrum
from fgnet_lib.datasets import open_dataset

real = json.loads((REPOSITORY / "data" / "texture.json").read_text(encoding="utf-8"))
phantom = open_dataset("phantom", "val").load()
spectrum = power_spectrum(phantom.raw, phantom.voxel_size[2])
measured = {"phantom, 8 nm": {"histogram": grey_histogram(phantom.raw), "power": spectrum}, **real}
print("measured:", *measured, sep="\n  ")

# %% [markdown]
# First the idea of a power spectrum. The Fourier transform writes a section as a sum of waves. Each wave has a length
# and a direction, and its *power* says how much of the contrast it carries. In the picture on the right, long waves
# lie in the centre and short ones outside.

# %% alt="A section, and beside it the power of its waves: a round bright spot in the centre that fades outwards alike in all directions."
section = phantom.raw[0] - phantom.raw[0].mean()
section *= np.hanning(section.shape[0])[:, None] * np.hanning(section.shape[1])  # fade out at the rim
waves = np.log10(np.abs(np.fft.fftshift(np.fft.fft2(section))) ** 2 + 1)
limit = 500 / phantom.voxel_size[2]  # waves per µm: the shortest wave is two pixels long
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
plots.show_section(left, phantom.raw, None, phantom.voxel_size, 0, "a section of the phantom")
shown = right.imshow(waves, cmap="magma", vmin=2, extent=(-limit, limit, limit, -limit))
right.set(title="the same as a sum of waves", xlabel="waves per µm along x", ylabel="waves per µm along y")
figure.colorbar(shown, ax=right, label="power (log10)")
plt.show()

# %% [markdown]
# **What to see.** The right picture is bright in the centre and dark outside: coarse structures carry most of the
# contrast. And it is round: this tissue prefers no direction. So we may average over rings, and over sections. That gives
# one curve per volume, and `power_spectrum` computed it above.

# %% alt="Two panels with four curves, the phantom and three real volumes. Grey values: humps that overlap in part. Power against wavelength: all curves rise towards long waves, and the phantom's runs close to that of AC4."
figure, (left, right) = plt.subplots(1, 2, figsize=(14, 4.8))
for color, (name, numbers) in zip(("k", "C0", "C1", "C2"), measured.items(), strict=True):
    left.stairs(numbers["histogram"], GREY_BINS, lw=2, color=color, label=name)
    right.loglog(np.sqrt(WAVELENGTHS[1:] * WAVELENGTHS[:-1]), np.array(numbers["power"], float), color=color)
left.set(title="1 · Grey values", xlabel="grey value (0 black, 255 white)", ylabel="share of the voxels")
right.set(title="2 · Structure sizes", xlabel="wavelength (nm)", ylabel="power (nm²)", xticks=(20, 50, 100, 200, 400))
right.xaxis.set_major_formatter("{x:g}")
right.xaxis.set_minor_formatter("")
figure.legend(loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# **What to see.** The black curve is the phantom's. Read the right panel from right to left: whole profiles, then
# membranes and organelles of about 100 nm, then fine detail and noise. The real volumes differ from each other in both
# panels: other animals, other stains, other microscopes.
#
# Two numbers sum this up. *Overlap* is the area that two histograms share (1: equal). *Apart* is the mean distance of
# two spectra in powers of ten (0: equal). We compare all volumes with AC4, because its sections were cut with a knife,
# as the phantom's pretend to be.

# %%
sections, compared = real["AC4, mouse, 6 nm (serial sections)"], []
for name, numbers in measured.items():
    shared = overlap(numbers["histogram"], sections["histogram"])
    apart = np.nanmean(np.abs(np.log10(np.array(numbers["power"], float) / sections["power"])))
    print(f"{name:35} against AC4: overlap {shared:.2f}, apart {apart:.2f}")
    compared.append((shared, -apart))
phantom_is, *others = np.array(compared)[:-1]
assert np.all(phantom_is >= np.min(others, axis=0))  # as the text below says

# %% [markdown]
# The last line compares AC4 with itself and has to be perfect. The lines in the middle say how far *real* volumes are
# from AC4. The first line is the phantom's: in each of the two numbers it is at least as close to AC4 as the less
# similar of the two real volumes.
#
# Now the look. If your data folder has real volumes (`DATA_DIR` at the top, or `FGNET_DATA_DIR`), you see their
# sections too. Each picture is 1 µm wide.

# %% alt="Two sections of the phantom, 1 µm wide: membranes, mitochondria, vesicles and grain. Sections of real volumes follow if the data folder has some."
panels = [("phantom", phantom, 8), ("phantom", phantom, 24)]
for name in ("ac4", "cremi_b_mini", "gala"):
    try:
        panels.append((name, open_dataset(name, "val"), 2))
    except FileNotFoundError:
        print(f"{name}: not in the data folder")
figure, axes = plt.subplots(1, len(panels), figsize=(min(4 * len(panels), 15), 4.4))
for ax, (name, shown, z) in zip(axes, panels, strict=True):
    nm = shown.voxel_size[2]
    micron = shown[z : z + 1, : int(1000 / nm), : int(1000 / nm)]
    plots.show_section(ax, micron.raw, None, micron.voxel_size, title=f"{name}, {nm:g} nm")
plt.show()

# %% [markdown]
# Be strict. The phantom has membranes, mitochondria with their rims, vesicles, oblique cuts and grain. It does *not*
# have synapses with all their parts, glia that fill every gap with thin sheets, cell bodies, myelin, dirt or folds, or
# anything else that we did not think of when we wrote the generator. That is the lasting limit of synthetic data. **A
# result on the phantom shows that the code works and how the method behaves. Only real tissue shows whether it works on
# tissue**: set `DATASET` to a real data set.

# %% [markdown]
# ## Your exercises

# %%
checks.report("01")

# %% [markdown]
# ## What you learned
#
# - EM shows every membrane as a dark line, but dark lines also lie inside neurons, and oblique membranes are not
#   lines.
# - In anisotropic volumes, neighbouring sections differ more than neighbouring pixels. The voxel size has to travel
#   with the data.
# - Ids are names. Affinities ask whether neighbours belong together, and do not depend on names.
# - Targets are made from augmented labels with widened borders, and are masked where nobody looked. Scores use the
#   labels as they are.
# - You compare a synthetic volume with real ones by measures, by eye, and by the list of what it lacks.
#
# ## Try it
#
# - Set `DATASET = "fib25"` and run part 2 again. Along which axis does the neuron change most often now, and why?
# - Widen the borders twice, `widen_borders(widen_borders(labels))`. Which share of its voxels does the smallest
#   neurite keep, and which share the largest?
# - For part 8, make a volume with `make_phantom((8, 512, 512), seed=7, voxel_size=(40, 4, 4))`. Compared with voxels of
#   8 nm (and half as many in y and x), which wavelengths lose power, and which do not?
# - Blur the phantom a little (`scipy.ndimage.gaussian_filter`, in-plane only) before part 8 measures it. Can you bring
#   its spectrum nearer to FIB-25?
#
# ## References
#
# - Turaga et al.: *Convolutional networks can learn to generate affinity graphs for image segmentation.* Neural
#   Computation 22, 2010,
#   [doi:10.1162/neco.2009.10-08-881](https://doi.org/10.1162/neco.2009.10-08-881)
# - Lee, Zung, Li, Jain, Seung: *Superhuman accuracy on the SNEMI3D connectomics challenge.* 2017,
#   [arXiv:1706.00120](https://arxiv.org/abs/1706.00120): affinities as targets, and augmentation by missing and
#   misaligned sections
# - CREMI, the challenge whose file layout is used here: [cremi.org](https://cremi.org)
# - FIB-25: Takemura et al., PNAS 2015, [doi:10.1073/pnas.1509820112](https://doi.org/10.1073/pnas.1509820112)
# - gala: Nunez-Iglesias et al., PLoS ONE 2013,
#   [doi:10.1371/journal.pone.0071715](https://doi.org/10.1371/journal.pone.0071715)
# - AC4, a part of SNEMI3D: Kasthuri et al., Cell 2015,
#   [doi:10.1016/j.cell.2015.06.054](https://doi.org/10.1016/j.cell.2015.06.054)
