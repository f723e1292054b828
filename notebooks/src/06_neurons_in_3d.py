# %% [markdown]
# # 06 · Neurons in 3D: surfaces in nm, a viewer to fly through, a file to share
#
# <!-- badges -->
#
# **What you will learn**
#
# - how a set of voxels becomes a surface, and where its corners lie in nm;
# - what a split and a merge look like in 3D, when sections hide them;
# - how to open raw data, labels, prediction, affinities and attention together in neuroglancer, in JupyterLab, Colab or
#   Binder;
# - how to ask about a neuron by pointing at it, fly to the worst errors, and send neurons to someone who has nothing
#   installed.
#
# **Before you start.** You need no other lesson. Lesson 05 explains the segmentation that you see here.
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
# ## 1 · What a section does not show
#
# A score counts errors, but you have to *see* an error to understand it. A *profile* is what one section shows of a
# neurite. Two profiles that look separate in each section may be one neuron that bends back. Two neurons that always
# lie side by side may be joined by a single wrong voxel somewhere. So we want to see neurons from all sides, together
# with the data behind them.
#
# First the shipped model segments the volume, exactly as in lesson 00. So that neurites have room to bend and branch, it
# may have more sections than the line above says. The model's threshold is compared with the score of two touching
# fragments, 1 − mean affinity.

# %%
from fgnet_lib.inference import predict
from fgnet_lib.segmentation import remove_small, segment
from fgnet_lib.weights import load_pretrained, pretrained_threshold

volume = session.deep_volume()
prediction = predict(load_pretrained(device=session.device), volume.raw)
threshold = pretrained_threshold()
neurons = remove_small(segment(prediction.refined, volume.voxel_size, threshold), 200)
print(f"{volume.name}: {volume.shape} voxels (z, y, x) of {volume.voxel_size} nm")

# %% [markdown]
# The easiest way out of the section is to cut the volume in another direction. The three planes below meet in one
# voxel, where the dotted lines cross. In *yz*, z runs to the right; in *xz*, it runs down. Lengths are to scale: if
# voxels are longer in z than in x, the planes *xz* and *yz* have steps as long as a section is thick.

# %% alt="Three planes through one voxel, xy, yz and xz, drawn to scale with the predicted neurons in colours that differ wherever two touch. Round profiles in xy are long bands in the other two planes."
import matplotlib.pyplot as plt

from fgnet_lib.course import checks, quiz
from fgnet_lib.views import plots

true_colors = plots.neighbour_colors(volume.labels)  # neurons that touch differ in colour
neuron_colors = plots.matched_colors(neurons, volume.labels, true_colors)
plots.orthogonal_views(volume.raw, volume.voxel_size, neurons, colors=neuron_colors)
plt.show()

# %% [markdown]
# **What to see.** Follow a colour from plane to plane. A neurite that crosses the sections at a right angle is a round
# profile in *xy* and a long band in the other two planes. If a colour ends inside such a band without a membrane, that
# is an error.
#
# ## 2 · From voxels to a surface
#
# One neuron is a mask: 1 inside, 0 outside. Its surface lies where the value passes 0.5. **Marching cubes** visits
# every cube of eight neighbouring voxels. Where some corners are inside and some outside, it places a few triangles
# between them, always the same triangles for the same pattern of corners.
#
# It counts in voxels, from the centre of the first voxel. To get nm, multiply each axis by *its own* voxel size, and
# add half a voxel, because voxel 0 reaches from 0 to 1 and has its centre at 0.5:
#
# $$\text{position}_\text{nm} = (\text{index} + 0.5) \cdot \text{voxel size}.$$
#
# A mask that touches the edge of the volume has no outside there, so its surface stays open. A rim of zeros around the
# mask closes it. Index 0 is then the rim, one voxel earlier.

# %%
import numpy as np
from skimage.measure import marching_cubes

from fgnet_lib.views.meshes import largest_ids, slender_ids

chosen = slender_ids(neurons, 1)[0]  # a thin neurite that runs through the volume
mask = np.pad(neurons == chosen, 1).astype(np.float32)
corners, triangles, *_ = marching_cubes(mask, 0.5)
corners_nm = (corners - 1 + 0.5) * volume.voxel_size
print(f"neuron {chosen}: {len(corners)} corners, {len(triangles)} triangles")
for axis, low, high in zip("zyx", corners_nm.min(0), corners_nm.max(0), strict=True):
    print(f"{axis}: from {round(low)} to {round(high)} nm")

# %% [markdown]
# The library's `neuron_mesh` does the same and then simplifies. Many of these triangles lie in one plane and add
# nothing, so it collapses edges, starting with those that change the shape least, until about a given number of
# triangles is left. The shape stays, and the extent hardly changes:

# %%
from fgnet_lib.views.meshes import neuron_mesh

mesh = neuron_mesh(neurons, chosen, volume.voxel_size, max_triangles=3000)
print(f"simplified: {len(mesh.vertices)} corners, {len(mesh.triangles)} triangles")
low, high = mesh.vertices.min(0), mesh.vertices.max(0)
for axis, first, last in zip("zyx", low, high, strict=True):
    print(f"{axis}: from {round(first)} to {round(last)} nm")
if len(mesh.triangles) > 1000:  # far fewer cannot keep the extent; as the text says, it changes by a voxel at most
    assert np.all(np.abs([low - corners_nm.min(0), high - corners_nm.max(0)]) <= volume.voxel_size)

# %% [markdown]
# What happens if you forget the voxel size?

# %%
quiz.ask("06", "cubes")

# %% [markdown]
# Here is the same neuron twice: as if every voxel were a cube, and in nm. On data with thick sections, the left neuron
# is squashed along z, by as much as a voxel is longer in z than in x (5 times on the phantom). Every volume that you
# measure on it is wrong, and so is every length that does not lie in the plane of a section. On isotropic data
# (`DATASET = "fib25"`) both have the same shape.

# %% alt="The same neuron twice in 3D: as if voxels were cubes, and with the true voxel size in nm. If sections are thick, the left neuron is squashed along z."
cubes = neuron_mesh(neurons, chosen, (volume.voxel_size[2],) * 3, max_triangles=3000)
panels = {
    "as if voxels were cubes": ({chosen: cubes}, neuron_colors),
    "in nm, at the same scale": ({chosen: mesh}, neuron_colors),
}
plots.neurons_figure(panels, width=14)
plt.show()
tall = [np.ptp(surface.vertices[:, 0]) for surface in (cubes, mesh)]
assert np.isclose(tall[1] / tall[0], volume.voxel_size[0] / volume.voxel_size[2], rtol=0.05)  # as the text says

# %% [markdown]
# **Exercise 6.1: the volume of a neuron.** Surfaces are for looking; sizes come from voxels. Return the volume of the
# neuron `label` in µm³.


# %% tags=["task"]
def my_volume(labels, label, voxel_size):
    return ...


# %% tags=["solution"]
def my_volume(labels, label, voxel_size):
    return np.sum(labels == label) * np.prod(voxel_size) / 1e9


# %%
checks.neuron_volume(my_volume)

# %% [markdown]
# ## 3 · A split and a merge from all sides
#
# Now we use the ground truth. `neuron_report` (lesson 05) lists the neurons that are cut apart and the segments that
# join several neurons, with the parts and the position of each error. Two outlines never agree to the voxel, so most
# parts are only a rim along a membrane. A real error has a large *second* part, so we choose by its size.
#
# To see both kinds clearly, we leave the model's own threshold and go to both ends of lesson 05's curve: a threshold
# that is too low splits neurons, and one that is too high merges them. Errors at the rim of the crop are left out, if
# there are others.

# %%
from fgnet_lib.metrics import by_second_part, neuron_report

too_low, too_high = (remove_small(segment(prediction.refined, volume.voxel_size, value), 200) for value in (0.1, 0.98))
reports = [neuron_report(labels, volume.labels, volume.voxel_size, top=1000) for labels in (too_low, too_high)]
listed = reports[0].splits, reports[1].merges
splits, merges = (by_second_part(errors, volume.shape, rim=16) or errors for errors in listed)
split, merge = splits[0], merges[0]
print(f"the two largest parts of neuron {split.label}: (segment, voxels) = {split.parts[:2]}")
print(f"the two largest parts of segment {merge.label}: (neuron, voxels) = {merge.parts[:2]}")

# %% [markdown]
# First the split. On the left is a true neuron; on the right are the four largest of the segments that it was cut into.
# The largest of them keeps the neuron's colour. A gap is a place where smaller segments are left out.

# %% alt="A split in 3D: on the left one neuron of the ground truth in one colour, on the right the largest segments that it was cut into, each in its own colour, with gaps where smaller ones are left out."
from fgnet_lib.views.meshes import neuron_meshes

size = volume.voxel_size
pieces = np.where(volume.labels == split.label, too_low, 0)  # the parts of segments inside this neuron
largest = largest_ids(pieces, 4)
colors = plots.neighbour_colors(pieces, largest, {largest[0]: true_colors[split.label]})
panels = {
    "one neuron of the ground truth": (neuron_meshes(volume.labels, size, [split.label], 3000), true_colors),
    "its largest segments": (neuron_meshes(pieces, size, largest, 3000), colors),
}
plots.neurons_figure(panels, width=14)
plt.show()

# %% [markdown]
# **What to see.** The colour changes where agglomeration stopped too early, or joined a fragment to a neighbour. A cut
# straight across the neuron means low affinities along z, in tissue often because of a single bad section. Pieces along
# its side mean doubtful membranes.
#
# The other kind of error is a merge: one segment that runs through several neurons.

# %%
quiz.ask("06", "seam")

# %% [markdown]
# Here is the merge:

# %% alt="A merge in 3D: on the left one segment in one colour, without any seam; on the right the true neurons that it joins; where two touch, their colours differ."
parts = np.where(too_high == merge.label, volume.labels, 0)  # the parts of neurons inside this segment
largest = largest_ids(parts, 4)
panels = {
    "one segment": (neuron_meshes(too_high, size, [merge.label], 3000), {merge.label: true_colors[largest[0]]}),
    "the neurons that it joins": (neuron_meshes(parts, size, largest, 3000), true_colors),
}
plots.neurons_figure(panels, width=14)
plt.show()
assert session.dataset != "phantom" or merge.parts[1][1] > 0.1 * merge.parts[0][1]  # as the text says

# %% [markdown]
# **What to see.** On the phantom the second neuron has more than a tenth of the voxels of the first, so this is more
# than a rim. But the segment on the left has no seam where the neurons on the right meet: **nothing in its surface
# tells you that it is wrong**. Shape helps, because real neurites seldom touch along a broad plane and then part again.
# But to be sure you need the grey values at that very position, and for that you need a viewer.
#
# ## 4 · neuroglancer
#
# [neuroglancer](https://github.com/google/neuroglancer) shows volumes in the browser: three planes and a 3D view,
# linked. `viewer.show` starts a small server in this kernel, which sends the arrays piece by piece as the browser asks
# for them. Nothing is copied or uploaded. Every array becomes a **layer** at its own position in nm:
#
# | layer | what you see |
# | --- | --- |
# | `raw` | grey values |
# | `ground truth`, `prediction`, `too high` | ids as colours; the largest neurons are selected, in the planes and in 3D; `too high` is the segmentation with the merge of part 3 |
# | `A_r`, `A_s` | affinities: red along z, green along y, blue along x, as in lesson 01 |
# | `attention a1`, `a2`, `a3` | warm colours; in y and x, their voxels are 4, 8 and 16 times as long as those of `raw` |
# | `splits`, `merges` | blue: parts of a neuron outside the segment that covers most of it; orange: parts of a segment outside the neuron that fills most of it |
#
# The last two layers compare voxel by voxel, so they also mark the thin rims where two outlines disagree. Real errors
# are broad. Here are both layers for `too high`, in the section of the merge. Merges prevail, so you may find hardly
# any blue:

# %% alt="An EM section with split voxels in blue and merged voxels in orange. Thin rims follow the membranes; broad patches are real errors."
from fgnet_lib.metrics import error_masks

errors = split_voxels, merged_voxels = error_masks(too_high, volume.labels)
ax = plt.figure(figsize=(7, 6.5)).add_subplot()
plots.error_map(ax, volume.raw, *errors, volume.voxel_size, merge.voxel[0], f"threshold too high, z = {merge.voxel[0]}")
plt.show()
print(f"{split_voxels.mean():.1%} of all voxels are split off, {merged_voxels.mean():.1%} are merged")
assert session.dataset != "phantom" or merged_voxels.mean() > split_voxels.mean()  # too high a threshold merges

# %% [markdown]
# Now all layers together:

# %%
from fgnet_lib.views import viewer

affinities = {"A_r": prediction.refined, "A_s": prediction.coarse}
segmentations = {"prediction": neurons, "too high": too_high}
view = viewer.show(volume, segmentations, affinities, prediction.attention, errors)
opening = view.viewer.state  # part 6 comes back to it
view

# %% [markdown]
# The server lives as long as this kernel. If someone else ran this notebook, the frame above stays empty: use the
# figures of this lesson instead.
#
# | where you are | what you see above |
# | --- | --- |
# | JupyterLab on your machine | the viewer in a frame, and a link that opens it in its own tab |
# | VS Code | the link; if VS Code runs on another machine, first forward the port that is named beside it (it stays the same from run to run, unless another kernel uses it) |
# | JupyterHub, Binder | the frame; its address goes through the hub's proxy (`jupyter-server-proxy`) |
# | Colab | the frame, through Colab's proxy; if your browser blocks third-party cookies, use the link |
# | Kaggle | nothing, because Kaggle lets no port through: use the file of part 7 |
# | JupyterLab over `ssh` | the link, once you forward the port: `ssh -L PORT:127.0.0.1:PORT host`, with the port printed below |
#
# The server answers only on 127.0.0.1, and the long random part of the address is its password. Do not post the link.

# %%
print(view)

# %% [markdown]
# How to move:
#
# | what you want | what you do |
# | --- | --- |
# | move in a plane, turn the 3D view | drag with the left button |
# | go through the sections; zoom | wheel; ctrl + wheel |
# | jump to a point | right click |
# | select or deselect a neuron | double click on it |
# | show or hide a layer | click on its name at the top, or press its number |
# | show one panel or all four | space |
# | show the sections in the 3D panel | s |
# | list all keys | h |
#
# Try this: hide `raw`, show `A_r`, and look for a dark line with the same colour of `too high` on both sides. Then add
# `attention a1`: does the model look at membranes, or past them? Lesson 03 measures it.
#
# ## 5 · Point and ask
#
# Point at a neuron, in a plane or in 3D, and press **p**. Below the viewer, the notebook then prints how large it is,
# which neuron it matches, and what it is merged with or split into. The answer is about the visible layer. If this is
# `ground truth`, you ask about a true neuron, which is compared with the last segmentation (here `too high`). From
# Python, you ask the same question like this, here about the merge and about the neuron that the low threshold split:

# %%
print(view.report("too high", merge.label))
print()
print(view.report("ground truth", split.label))
neuron = volume.labels == split.label
inside = np.unique(too_high[neuron], return_counts=True)[1].max() / neuron.sum()
assert session.dataset != "phantom" or inside > 0.9  # as the text says

# %% [markdown]
# **How to read it.** The *match* is the partner on the other side with the largest overlap. Two high percentages mean
# that both are nearly the same set of voxels. A few dozen voxels of something else are a rim along a membrane;
# thousands are an error. The split neuron of part 3 has hardly any voxels outside its match here, because `too high`
# joins what `too low` cut.

# %% [markdown]
# ### Further: compute a match
#
# **Exercise 6.2: the match of a segment.** Compute the numbers in the *match* line of such a report. `segment` is an id
# in `segmentation`. Return two values: the id of the neuron in `truth` that has most voxels in that segment, and the
# share of the segment's voxels that lie in it. The id 0 in `truth` is not a neuron, but its voxels belong to the
# segment. (The report leaves such voxels out. The phantom has none.)


# %% tags=["task"]
def my_match(segmentation, truth, segment):
    return ...


# %% tags=["solution"]
def my_match(segmentation, truth, segment):
    ids, voxels = np.unique(truth[segmentation == segment], return_counts=True)
    neurons = np.where(ids > 0, voxels, 0)
    best = neurons.argmax()
    return ids[best], neurons[best] / voxels.sum()


# %%
checks.match(my_match)

# %% [markdown]
# ## 6 · Fly to the worst errors
#
# The viewer's state is a Python object. If you change it here, the browser follows; if you move in the browser, you can
# read the new state here. So a list of errors becomes a tour. `view.jump` moves the viewer to an error, selects its two
# largest parts, and shows the matching error layer. `merges[0]` is the merge with the largest second part, `merges[1]`
# the next. The bits say how much of VOI merge is due to it.

# %%
for k, error in enumerate(merges[:3]):
    print(f"merge {k}: segment {error.label}, {error.bits:.3f} bits, at voxel (z, y, x) = {error.voxel}")
view.jump(merge)  # the one of part 3; try merges[k]
view.panel

# %% [markdown]
# Where is the viewer now? It counts x, y, z in voxels from the origin of the data set, not from the corner of this
# crop:

# %%
print("position in the viewer (x, y, z):", view.viewer.state.position)
print("the error's voxel (z, y, x)     :", merge.voxel)
print("the crop begins at (z, y, x)    :", volume.offset, "nm; a voxel is", volume.voxel_size, "nm")

# %% [markdown]
# **Exercise 6.3: shift the viewer's axes right.** Complete the function. It takes a voxel of the crop, the offset of
# the crop in nm and the voxel size, all in the order z, y, x. It returns the position of the voxel's *centre* as
# neuroglancer counts it. Part 2 tells you where a centre lies. Try your function on the three lines above.


# %% tags=["task"]
def my_position(voxel, offset, voxel_size):
    return ...


# %% tags=["solution"]
def my_position(voxel, offset, voxel_size):
    corner = np.divide(offset, voxel_size)
    return (corner + voxel + 0.5)[::-1]


# %%
checks.viewer_position(my_position)

# %% [markdown]
# Here is the same position as two figures: first the segmentation, then the ground truth. The dotted lines cross at the
# voxel that the viewer flew to.

# %% alt="Two figures of three planes, crossing at the voxel of the worst merge: first with the segmentation in colour, then with the ground truth. Around the crossing the segmentation has one colour where the ground truth has two."
high_colors = plots.matched_colors(too_high, volume.labels, true_colors)
for what, labels, colors in (("too high", too_high, high_colors), ("ground truth", volume.labels, true_colors)):
    figure = plots.orthogonal_views(volume.raw, volume.voxel_size, labels, merge.voxel, colors)
    figure.suptitle(what)
    plt.show()

# %% [markdown]
# **What to see.** At the crossing the segmentation has one colour on both sides of a membrane, and the ground truth has
# two.
#
# The next cell takes the viewer back to where it began in part 4. So if you run all cells of this lesson at once, you
# find the viewer there as the text describes it. To fly to the merge, run the cell with `view.jump` again.

# %%
view.viewer.set_state(opening)
np.testing.assert_allclose(view.viewer.state.position, opening.position)

# %% [markdown]
# ## 7 · A file to share
#
# You want to show this to a colleague in another place.

# %%
quiz.ask("06", "link")

# %% [markdown]
# `export_html` writes the neurons that you choose, with names if you like, into one HTML file. The file holds
# everything it needs: it opens in any browser, without internet, and you can rotate the scene.

# %%
from fgnet_lib.views import exports

names = {label: f"neurite {number}" for number, label in enumerate(slender_ids(neurons, 12), start=1)}
shared = exports.export_html(neurons, volume.voxel_size, session.out_dir / "neurons.html", names)
print(f"{shared} ({shared.stat().st_size / 1e6:.1f} MB): open it in a browser, or send it by mail")

# %% [markdown]
# In the file, click on a name in the legend to hide that neuron, or double click to show it alone. Here is the same
# scene without a browser:

# %% alt="Twelve neurites of the prediction as coloured surfaces in a box with axes in nm. They run through the box and end in flat faces where the crop ends; some branch."
colors = plots.neighbour_colors(neurons, first=list(names))
plots.neurons_figure({"Neurites of the prediction": (neuron_meshes(neurons, size, names, 3000), colors)})
plt.show()

# %% [markdown]
# The neurites end in flat faces where the crop ends. A whole neuron can be thousands of times longer than this box. To
# see one, you need volumes that do not fit into memory, but the steps stay the same.

# %% [markdown]
# ## 8 · Further: a folder for the web
#
# Surfaces alone do not convince anyone who wants to see the grey values. `export_precomputed` writes raw data,
# segmentation and meshes in neuroglancer's **precomputed** format. This is a folder of small files: blocks of 64 x 64 x
# 64 voxels, two files for each mesh and, if a volume is longer than 256 voxels, coarser copies for a distant view. The
# browser fetches only what it needs, and no program has to run where the files lie. So any web server or cloud bucket
# will do, if it lets other pages read from it (a setting called CORS).

# %%
folder = exports.export_precomputed(volume, neurons, session.out_dir / "precomputed", names)
files = [file for file in folder.path.rglob("*") if file.is_file()]
print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")
print(folder)

# %% [markdown]
# The folder comes with its own small web server, for this machine only. Run the command in a terminal and open the
# link. It leads to Google's public neuroglancer page, which runs in your browser and fetches the data from your
# machine. Chrome asks whether the page may reach this device: allow it. While the server runs, no other web page can
# read your volume. To publish, put the folder on a web server, and replace `http://127.0.0.1:9180` in the link by its
# address. If the data must not leave your machine, stay with part 4.

# %% [markdown]
# ## Your exercises

# %%
checks.report("06")

# %% [markdown]
# ## What you learned
#
# - A surface lies where a mask passes 0.5. To put it where the neuron is, you need the voxel size of each axis and half
#   a voxel.
# - In 3D, a split is a change of colour along one neuron, and a merge is a shape without a seam. The grey values
#   decide.
# - neuroglancer shows the arrays of this kernel, each layer in nm. How the browser reaches it depends on the platform.
# - You can set its state from Python, so a list of errors becomes a tour. You can ask about anything that you point at.
# - An HTML file carries surfaces elsewhere. A precomputed folder on a web server carries the data as well (part 8).
#
# ## Try it
#
# - Set `max_triangles=100` in part 2. What survives, and what does not? Compare the printed extents.
# - Jump to `merges[k]` for k = 1, 2, 3. Which of them are errors, and which are only a rim around a large neuron?
# - Export the neurons that take part in the worst merge: `ids=[label for label, _ in merge.parts[:2]]` of
#   `volume.labels`.
# - In the viewer, open the panel of the layer `attention a1` (right click on its name) and move the range of its
#   shader.
# - Show the other segmentation, `view = viewer.show(volume, {"too low": too_low})`, and fly to the split with
#   `view.jump(split)`. Is a section or a membrane to blame?
#
# ## References
#
# - Lorensen, Cline: *Marching Cubes: A High Resolution 3D Surface Construction Algorithm.* SIGGRAPH 1987,
#   [doi:10.1145/37401.37422](https://doi.org/10.1145/37401.37422)
# - Garland, Heckbert: *Surface Simplification Using Quadric Error Metrics.* SIGGRAPH 1997,
#   [doi:10.1145/258734.258849](https://doi.org/10.1145/258734.258849)
# - neuroglancer, [github.com/google/neuroglancer](https://github.com/google/neuroglancer), Apache-2.0
