# %% [markdown]
# # 08 · Your own volume: take a TIFF, HDF5 or Zarr to neurons, save them, and know what to do when it looks wrong
#
# <!-- badges -->
#
# **What you will learn**
#
# - how to open an EM volume in any of the field's formats, and what to check before you compute anything;
# - how to predict and segment all of it, with the shipped model or your own;
# - how to bring a volume that looks different closer to the model, with a preview and a way back;
# - how to save the result with its voxel size, and score it if you have labels;
# - how to see in three pictures what went wrong, and what to try first.
#
# **Before you start.** You need no other lesson. Lesson 05 explains the threshold; lesson 04 trains a model on your
# data.
#
# <!-- times -->

# %% tags=["parameters"]
PROFILE = "cpu"  # fast | cpu | gpu | full
DATASET = "phantom"  # phantom | fib25 | any name in fgnet_lib.datasets.DATASETS
DATA_DIR = ""  # folder with your data sets; empty: $FGNET_DATA_DIR
OUT_DIR = ""  # folder for results; empty: out/
DEVICE = "auto"  # auto | cpu | cuda | mps
SEED = 0
VOLUME = ""  # your file or folder; empty: the validation part of DATASET, as much of it as PROFILE works on
VOXEL_SIZE = ""  # nm along z, y, x, as "40 8 8"; empty: what the file says
AXES = ""  # axes in the file's order, as "xyz", or "c0zyx" for the first channel; empty: what the file says
RAW_KEY = ""  # path of the grey values inside an HDF5 or Zarr; empty: found by itself in a known layout
LABELS = ""  # file with the ground truth, if it is a separate one
LABELS_KEY = ""  # path of the labels inside that file; empty: found by itself, or no labels
UNKNOWN = ""  # id of unknown voxels in the labels, as -1; empty: 2^64 - 1 only
CHECKPOINT = "fgnet_mini"  # a model that comes with the repository, fgnet_mini or student, or a file of lesson 04
THRESHOLD = ""  # score for agglomeration, 0 to 1; empty: the value stored with the model
ADAPT = "none"  # steps before the model: none, or one or several of voxel_size, histogram, clahe

# %% tags=["setup"]
from fgnet_lib.course.session import start_session

session = start_session(PROFILE, DATASET, DATA_DIR, OUT_DIR, DEVICE, SEED)

# %% [markdown]
# ## From the command line
#
# This notebook is also a program. Papermill fills in the parameters and runs it; the executed copy is your report, with
# every figure:
#
# ```bash
# papermill notebooks/08_your_own_volume.ipynb report.ipynb -k python3 \
#     -p VOLUME brain.h5 -p ADAPT "voxel_size clahe" -p OUT_DIR results
# ```
#
# Papermill reads paths from the folder in which **you start it**; Jupyter reads them from the folder of the notebook.
# When in doubt, give absolute paths. The results are `segmentation.h5` in `OUT_DIR` and, if there are labels,
# `metrics.json`. A volume of your own is processed as a whole, whatever `PROFILE` says.
#
# ## 1 · Open it
#
# | you have | set |
# | --- | --- |
# | HDF5 as CREMI writes it, padded or not | `VOLUME = "sample.hdf"` |
# | another HDF5 or Zarr | `VOLUME = "brain.zarr"`, `RAW_KEY = "em/raw"`, `VOXEL_SIZE = "40 8 8"` |
# | OME-Zarr | `VOLUME = "brain.ome.zarr"`: its scale and units give the voxel size |
# | a TIFF stack, or a folder of TIFF sections | `VOLUME = "stack.tif"` or `"sections/"`, `VOXEL_SIZE = "30 6 6"` |
# | a file with another order of axes, or channels | `AXES = "xyz"`, or `AXES = "c0zyx"` for the first channel |
# | labels in a separate file | `LABELS = "truth.tif"` as well |
# | labels in which -1 means *unknown* | `UNKNOWN = -1` as well |
#
# What you set comes first. Otherwise the lesson uses what the file says, or stops and tells you which parameter
# decides; [the page about files](../docs/understand/files.md) lists all cases. A **warning** below names what was left
# out or may be missing, such as a gap in the numbers of your sections: read it before you go on.
#
# Grey values must be uint8, and labels unsigned integers (signed with `UNKNOWN`). Otherwise the lesson stops and tells
# you what to do. It does not guess how your 16 bits become 8, because that is a decision about your data.

# %%
from fgnet_lib.files.formats import check_replaceable, read_volume

result = session.out_dir / "segmentation.h5"
check_replaceable(result)  # now, rather than after an hour of work
if VOLUME not in ("", None):  # a folder may be called 0
    volume = read_volume(VOLUME, RAW_KEY, LABELS_KEY, LABELS, VOXEL_SIZE, AXES, UNKNOWN).load()
else:
    volume = session.volume("val")
print(f"{volume.name}: {volume.shape} voxels (z, y, x) of {volume.voxel_size} nm")
print(f"in memory: {volume.raw.size / 1e6:.1f} million voxels; labels: {'no' if volume.labels is None else 'yes'}")

# %% [markdown]
# `read_volume` alone reads only the header, so a volume of 200 GB opens at once. `.load()` then reads all of it,
# because here we segment the whole volume in one piece. If it does not fit into memory, cut first:
# `read_volume(...)[0:64, 0:1024, 0:1024]` reads only this block.
#
# **Look before you compute.** Four things decide whether a model has a chance, and you can see all of them in this
# figure:
#
# 1. *Axes.* The large plane should be the sharp one; the two narrow planes show z. If not, the axes are swapped.
# 2. *Voxel size.* The planes are drawn to scale. If cells look squashed, one of the three numbers is wrong.
# 3. *Contrast.* Membranes should be dark and cytoplasm bright, both away from 0 and 255.
# 4. *Sections.* Black or shifted sections show as lines across the narrow planes.

# %% alt="Three planes through the middle of the volume, xy, yz and xz, drawn to scale in grey. The large plane is the sharp one; in the narrow planes thick sections show as lines."
import matplotlib.pyplot as plt
import numpy as np

from fgnet_lib.course import checks, quiz
from fgnet_lib.views import plots

figure = plots.orthogonal_views(volume.raw, volume.voxel_size)
figure.suptitle("three planes through the middle")
plt.show()

# %% [markdown]
# Now compare the grey values with those of a phantom, like the one that the shipped model was trained on. They need not
# agree. But a volume that uses only a tenth of the grey range, or is inverted (membranes bright), will not work as it
# is.

# %% alt="Histograms of the grey values of this volume and of a phantom, on one axis from 0 to 255. Similar curves mean that the model knows this contrast."
from fgnet_lib.phantom import make_phantom

grey = {"this volume": volume.raw, "a phantom": make_phantom((16, 192, 192), seed=0).raw}
figure, ax = plt.subplots(figsize=(8, 3.5))
for name, raw in grey.items():
    low, middle, high = np.percentile(raw, (1, 50, 99))
    print(f"{name:12} 1st percentile {low:.0f}, median {middle:.0f}, 99th {high:.0f}")
    ax.hist(raw.reshape(-1), bins=64, range=(0, 256), density=True, histtype="step", lw=2, label=name)
ax.set(xlabel="grey value (uint8)", ylabel="share of voxels per grey value", title="grey values")
ax.legend()
plt.show()

# %% [markdown]
# ## 2 · Predict
#
# A checkpoint carries its own configuration and notes, so you need only the file. One note is the **threshold** of part
# 3, which was chosen on labelled *training* data; a model without this note gets 0.5. Overlapping tiles (usually
# 16 × 256 × 256 voxels for the shipped model) cover the whole volume and are blended. The affinities of each of the two
# decoders take 12 bytes a voxel. On a CPU, OpenVINO computes a large volume faster than PyTorch; if it is installed,
# `predict` takes it and [says so](../docs/understand/engines.md) in its progress bar. `engine="openvino_bf16"` is faster
# still on some processors, with slightly other affinities.

# %%
from fgnet_lib import weights
from fgnet_lib.inference import predict
from fgnet_lib.neighbours import target_adaptation as adaptation

checkpoint = weights.find_checkpoint(CHECKPOINT)
steps = adaptation.parse_steps(ADAPT, checkpoint)
model = weights.load_model(checkpoint, session.device)
threshold = float(weights.read_notes(checkpoint).get("threshold", 0.5) if THRESHOLD == "" else THRESHOLD)
if not 0 <= threshold <= 1:
    raise ValueError(f"THRESHOLD is {threshold:g}, but it is 1 - mean affinity: give a number from 0 to 1")
print(f"{checkpoint.name}: {sum(p.numel() for p in model.parameters()):,} parameters, threshold {threshold:g}")

# %% [markdown]
# ### Adapt to my volume
#
# Your volume may look different from the sections that the model was trained on. Three steps take seconds and need no
# label:
#
# | `ADAPT` | what happens to your sections before the model sees them |
# | --- | --- |
# | `"voxel_size"` | y and x are resampled to 10 nm, the voxels of training; affinities come back in your voxels |
# | `"histogram"` | each grey value becomes the one of the same rank in the training sections |
# | `"clahe"` | contrast is equalised in small neighbourhoods, section by section |
#
# You can join several. `ADAPT = "voxel_size"` took VOI from 2.42 to 2.05 bits on AC4 and from 2.63 to 1.76 on CREMI B,
# both new to the model ([trials](../docs/measured/trials.md)). What to add depends on the volume: with
# `"voxel_size histogram"` they came to 1.50 and 2.18, with `"voxel_size clahe"` to 2.14 and 1.56. The default is
# `"none"`, **because each step can also hurt**. [Which one first?](../docs/understand/which_first.md) tells what each
# did, and lesson 12 explains them. Your own model takes `"clahe"` alone: nothing is known of its training sections.
#
# **The way back.** `volume` and the file of part 5 keep their grey values. Set `ADAPT = "none"` again, and you get the
# earlier result.

# %%
from dataclasses import replace

from fgnet_lib.study.evaluation import TRAINED_NM, rescale_sections, restore_voxels
from fgnet_lib.volumes import Region

source = adaptation.read_source(adaptation.SHIPPED_SOURCE)


def change_grey(part, steps):
    return replace(part, raw=adaptation.change_grey_values(part.raw, steps, source))


def resample(part, steps):
    if "voxel_size" not in steps:
        return part
    voxel_size = part.voxel_size[0], TRAINED_NM, TRAINED_NM
    return replace(part, raw=rescale_sections(part), labels=None, voxel_size=voxel_size)


def predict_affinities(seen, progress=True):
    prediction = predict(model, seen.raw, device=session.device, progress=progress)
    return prediction.coarse if prediction.refined is None else prediction.refined


# %% [markdown]
# **The preview** takes eight sections from the middle of your volume, adapts them as if they were all, and predicts a
# piece of 1.3 µm: as it is, and after `ADAPT`. If `ADAPT` is `"none"`, you see all steps that you could choose.

# %% alt="A column as the volume is, and a column for each adaptation. Above, a section as the model sees it; below, the affinities that it predicts, dark along membranes."
known = adaptation.STEPS if checkpoint.parent == weights.PRETRAINED else ("clahe",)
first = max(0, volume.shape[0] // 2 - 4)
slab = volume[first : first + 8, :, :]
size = [slab.shape[0], *(max(1, round(1280 / nm)) for nm in slab.voxel_size[1:])]
window = Region.at([max(0, n - m) // 2 for n, m in zip(slab.shape, size, strict=True)], size)
choices = [(), steps] if steps else [(), *((step,) for step in known)]
figure, axes = plt.subplots(2, len(choices), figsize=(min(4.1 * len(choices), 15), 8.4), layout="constrained")
for column, choice in zip(axes.T, choices, strict=True):
    seen = resample(change_grey(slab, choice)[window], choice)
    z, title = seen.shape[0] // 2, "as it is" if choice == () else " + ".join(choice)
    plots.show_section(column[0], seen.raw, None, seen.voxel_size, z, title)
    plots.show_affinities(column[1], predict_affinities(seen, progress=False), seen.voxel_size, z, "affinities")
plt.show()

# %% [markdown]
# **What to see.** In the lower row, white means *joined along all three axes*. A step is worth a try if membranes become
# *closed* dark lines there, and no new lines run through the inside of neurites. Your eye can be wrong, so judge it on a
# labelled block if you have one (part 6).
#
# Now the whole volume, with `ADAPT`:

# %%
seen = resample(change_grey(volume, steps), steps)
affinities = restore_voxels(predict_affinities(seen), volume.shape)
print(f"ADAPT {' + '.join(steps) or 'none'}: the model saw {seen.shape} voxels of {seen.voxel_size} nm")

# %% [markdown]
# ## 3 · Segment
#
# First a question: what decides how fragments are made?

# %%
quiz.ask("08", "wrong-size")

# %% [markdown]
# The threshold is a score, 1 − mean affinity. It says how weak the connection between two segments may be for them
# still to merge: 0.8 accepts every mean affinity above 0.2, so a higher threshold merges more. We compute two more
# segmentations beside the chosen one. They cost almost nothing, because they come from the same agglomeration, and they
# show you in which direction to go.

# %%
from fgnet_lib.segmentation import sweep

candidates = (round(threshold / 2, 3), threshold, round((1 + threshold) / 2, 3))
segmentations = sweep(affinities, volume.voxel_size, candidates, strict=False)  # channels that look swapped: a warning
for candidate, labels in segmentations.items():
    voxels = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    chosen = "  <- chosen" if candidate == threshold else ""
    print(
        f"threshold {candidate:5.3f}: {voxels.size:6} neurons, the largest fills {voxels[0] / labels.size:.1%}{chosen}"
    )
segmentation = segmentations[threshold]
assert np.diff([len(np.unique(labels)) for labels in segmentations.values()]).max() <= 0  # higher merges more

# %% [markdown]
# ## 4 · Look
#
# First follow one section from left to right. In the second picture white means *joined along all three axes*, and dark
# lines should close around every neurite. Where a line has a wide gap, two neurons may merge.

# %% alt="One section three times: EM, the predicted affinities with dark lines around the neurites, and the neurons at the chosen threshold, each in its own colour."
z = volume.shape[0] // 2
colors = plots.neighbour_colors(segmentation)  # neurons that touch differ in colour
figure, axes = plt.subplots(1, 3, figsize=(15, 5.6))
plots.show_section(axes[0], volume.raw, None, volume.voxel_size, z, f"EM, section {z}")
plots.show_affinities(axes[1], affinities, volume.voxel_size, z, "affinities")
plots.show_section(axes[2], volume.raw, segmentation, volume.voxel_size, z, f"neurons at {threshold:g}", colors=colors)
plt.show()

# %% [markdown]
# Now look across the sections.

# %%
quiz.ask("08", "colours")

# %% [markdown]
# A neurite should keep its colour along z, the short side of the narrow planes. If colours change from section to
# section, neurites are split. Often the volume is badly aligned or the voxel size is wrong.

# %% alt="Three planes through the middle with the predicted neurons in colour. A neurite that keeps its colour along z, the short side of the narrow planes, is in one piece."
figure = plots.orthogonal_views(volume.raw, volume.voxel_size, segmentation, colors=colors)
figure.suptitle("do neurites keep their colour through z?")
plt.show()

# %% [markdown]
# Finally, compare the three thresholds. The left picture shows more pieces; the right one may show merges. If the
# middle one is not the best of the three, set `THRESHOLD` and run again. Choose it on one part of the volume, and judge
# it on another.

# %% alt="The same section segmented at half the threshold, at the threshold, and half-way from there to 1. The left picture has more pieces, the right one fewer and larger pieces."
figure, axes = plt.subplots(1, len(segmentations), figsize=(15, 5.4))
for ax, (candidate, labels) in zip(axes, segmentations.items(), strict=True):
    matched = {"fill": 0.6, "colors": plots.matched_colors(labels, segmentation, colors)}
    plots.show_section(ax, volume.raw, labels, volume.voxel_size, z, f"threshold {candidate:g}", **matched)
plt.show()

# %% [markdown]
# ## 5 · Save
#
# The result is an HDF5 file in CREMI's layout: `volumes/raw`, and the neurons as `volumes/labels/neuron_ids`, each with
# its `resolution` and `offset` in nm. If you name it `"segmentation.zarr"`, you get a Zarr instead.

# %%
from fgnet_lib.files.formats import write_volume

write_volume(replace(volume, labels=segmentation), result)
saved = read_volume(result, voxel_size=volume.voxel_size)  # yours, also if no microscope has it
print(f"{result}: {result.stat().st_size / 1e6:.1f} MB, voxels of {saved.voxel_size} nm, offset {saved.offset} nm")

# %% [markdown]
# ## 6 · Score it, if you have labels
#
# Voxels with the label 0 (boundary) or 2⁶⁴ − 1 (CREMI's *unknown*) are left out, and so are those with the id that you
# gave as `UNKNOWN`. VOI is in bits, ARAND lies between 0 and 1, and lower is better in all of them (lesson 05).

# %%
import json
from dataclasses import asdict

from fgnet_lib.metrics import evaluate, neuron_report

report = session.out_dir / "metrics.json"
report.unlink(missing_ok=True)  # so that no score of an earlier volume stays beside this segmentation
try:
    scores = None if volume.labels is None else asdict(evaluate(segmentation, volume.labels))
except ValueError as error:  # labels without one known voxel end the scoring, not the lesson
    print(error)
    scores = None
if scores is None:
    print("no labels to compare with, so no score")
else:
    report.write_text(json.dumps(scores, indent=2))
    print(f"{report}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    errors = neuron_report(segmentation, volume.labels, volume.voxel_size, top=3)
    for kind, worst in (("cut apart: neuron", errors.splits), ("neurons joined in segment", errors.merges)):
        for error in worst:
            print(f"{kind} {error.label}, {len(error.parts)} parts, {error.bits:.3f} bits, see voxel {error.voxel}")

# %% [markdown]
# ## 7 · When it looks wrong
#
# The shipped model is small. Of EM it knows two FIB-SEM volumes of the fly at 10 nm and a synthetic phantom. On
# other tissue, another microscope or voxel size it **may simply fail**, and no threshold can mend that. Go through the
# list from the top:
#
# | what you see | likely cause | what to try |
# | --- | --- | --- |
# | one colour almost everywhere, even across membranes that you can see (a large neurite *may* fill a small volume) | the model does not find the membranes, or the threshold is too high | look at the affinities. White everywhere: see the next rows. Lines with gaps: a lower `THRESHOLD` |
# | confetti: each neurite in many colours within a section | the threshold is too low, or the model takes noise for membranes | a higher `THRESHOLD`; smooth the raw data (`scipy.ndimage.gaussian_filter`, sigma 1 in y and x) |
# | affinities are the negative of what you expect | membranes are bright (some SEM detectors) | save `255 - raw` |
# | affinities are flat and grey | the model does not know this contrast | compare the histograms of part 1, and look at the preview of part 2: `ADAPT = "histogram"` or `"clahe"`. Or stretch: `np.interp(raw, np.percentile(raw, (0.5, 99.5)), (0, 255)).astype("uint8")`, section by section if sections differ |
# | membranes are found, but thick or doubled, or only the large cells are right | voxels are far larger or smaller than in training | `ADAPT = "voxel_size"`; for your own model resample y and x to its voxels (`scipy.ndimage.zoom`), and give the new voxel size |
# | each section is right, but colours change in the next | sections are shifted, z is coarser than the model knows, or `VOXEL_SIZE` is wrong | align the stack; check `VOXEL_SIZE`: it decides whether fragments are made section by section (z at least twice x) or in 3D |
# | everything is wrong below or above one section | a missing, black or folded section | segment the parts before and after it separately; a model trained with lesson 01's augmentations bridges single sections better |
# | mitochondria or vesicles become separate neurons | the model takes inner membranes for outer ones | a slightly higher `THRESHOLD`; more training data with mitochondria in it |
# | figures are fine, metrics are bad | labels have another meaning: 0 is background with neurons in it, ids per section, or an offset | draw the labels over the raw data with `plots.show_section`; padded labels need their `offset` in nm |
# | out of memory, or it never ends | the volume is too large for one piece, or for a CPU | cut a smaller block, as in part 1; `DEVICE = "cuda"` |
# | still wrong | the model has never seen data like yours | **label a small block and train on it**: lesson 04. Start from the shipped weights or from SAM2's |
#
# Whatever you change, judge it on a labelled block that you did not use to choose it, however small.
#
# ## 8 · Exercises
#
# Skip them if you came only for your data.
#
# **Exercise 8.1: voxel size and offset of a cut.** You take `raw[z0::dz, y0::dy, x0::dx]` of a volume, with
# `first = (z0, y0, x0)` and `step = (dz, dy, dx)`. Return the voxel size and the offset of your cut, both in nm. The
# offset is the position of its first voxel.


# %% tags=["task"]
def my_geometry(voxel_size, offset, first, step):
    return ...


# %% tags=["solution"]
def my_geometry(voxel_size, offset, first, step):
    size = np.multiply(voxel_size, step)
    start = offset + np.multiply(first, voxel_size)
    return size, start


# %%
checks.cut_geometry(my_geometry)

# %% [markdown]
# **Exercise 8.2: find the sections without a picture.** A lost section may be black, white or evenly grey. Return the
# numbers of the sections (the first axis of `raw`) whose standard deviation is less than a tenth of the median over all
# sections.


# %% tags=["task"]
def my_flat_sections(raw):
    return ...


# %% tags=["solution"]
def my_flat_sections(raw):
    spread = raw.std(axis=(1, 2))
    return np.flatnonzero(spread < np.median(spread) / 10)


# %%
checks.flat_sections(my_flat_sections)

# %% [markdown]
# **Exercise 8.3: how many sections fit into memory.** Raw data take 1 byte a voxel, labels 8, and part 2 tells you what
# affinities take. How many whole sections of `height` x `width` voxels fit into the given number of gigabytes (1e9
# bytes)? Ignore the memory of the network itself.


# %% tags=["task"]
def my_sections(height, width, gigabytes):
    return ...


# %% tags=["solution"]
def my_sections(height, width, gigabytes):
    bytes_per_voxel = 1 + 8 + 2 * 12
    return int(gigabytes * 1e9 // (bytes_per_voxel * height * width))


# %%
checks.sections_in_memory(my_sections)

# %% [markdown]
# Your exercises so far:

# %%
checks.report("08")

# %% [markdown]
# ## What you learned
#
# - A volume is grey values *and* a voxel size. You check both before you compute anything.
# - Papermill turns this notebook into a command, and the executed notebook is its report.
# - Three pictures separate the causes: bad membranes (affinities), a bad threshold (three thresholds), trouble along z
#   (planes).
#
# ## Try it
#
# - Save `255 - volume.raw` with `write_volume`, open it as `VOLUME`, and see what the model makes of bright membranes.
# - Open a volume with `VOXEL_SIZE = "40 10 10"` although it has 10 nm in z. What changes in part 3, and why?
# - Fly through your neurons: `viewer.show(volume, {"neurons": segmentation})`, with
#   `from fgnet_lib.views import viewer` (lesson 06).
#
# ## References
#
# - Funke et al.: *Large Scale Image Segmentation with Structured Loss Based Deep Learning for Connectome
#   Reconstruction.* IEEE TPAMI 41, 2019, [doi:10.1109/TPAMI.2018.2835450](https://doi.org/10.1109/TPAMI.2018.2835450):
#   affinities, waterz
# - CREMI: [file format and scores](https://cremi.org)
# - Moore et al.: *OME-Zarr: a cloud-optimized bioimaging file format with international community support.*
#   Histochemistry and Cell Biology 160, 2023,
#   [doi:10.1007/s00418-023-02209-1](https://doi.org/10.1007/s00418-023-02209-1)
# - Papermill: [parameters and execution](https://papermill.readthedocs.io)
