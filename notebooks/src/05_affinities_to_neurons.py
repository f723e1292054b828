# %% [markdown]
# # 05 · From affinities to neurons: fragments, agglomeration, and a threshold chosen honestly
#
# <!-- badges -->
#
# **What you will learn**
#
# - why joining voxels through every high affinity fails, and what is done instead: fragments, then agglomeration;
# - how agglomeration by mean affinity works, by hand on five fragments, with the library on a volume;
# - how splits and merges are measured, and how one threshold trades them against each other;
# - how to choose that threshold without looking at the data that you judge by;
# - what the refined affinities $A_r$ are better at than the coarse ones, $A_s$;
# - how to find the worst errors of a segmentation and look at them.
#
# **Before you start.** Lesson 01 explains affinities, lesson 03 the two outputs of FGNet; neither is required.
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
# ## 1 · What the network hands over
#
# We need two volumes with ground truth: one to **choose** on, one to **judge** by. The first comes from the training part
# of the data set, the second from the validation part, which the network has not seen. Both go through the trained mini
# model that comes with the repository.

# %%
import matplotlib.pyplot as plt
import numpy as np

from fgnet_lib.course import checks, quiz
from fgnet_lib.inference import predict
from fgnet_lib.views import plots
from fgnet_lib.weights import load_pretrained

model = load_pretrained(device=session.device)
training, validation = session.volume("train"), session.volume("val")
trained = predict(model, training.raw)
unseen = predict(model, validation.raw)
print(f"to choose on: {training.shape}, to judge by: {validation.shape} voxels (z, y, x) of {validation.voxel_size} nm")

# %% alt="One section three times: grey EM, its refined affinities, white inside neurites and black along membranes, and the ground truth with one colour for each neuron. The black lines close around nearly every neurite."
voxel_size, middle = validation.voxel_size, validation.shape[0] // 2
figure, axes = plt.subplots(1, 3, figsize=(14, 5.2))
plots.show_section(axes[0], validation.raw, None, voxel_size, middle, f"EM, section {middle}")
plots.show_affinities(axes[1], unseen.refined, voxel_size, middle, "refined affinities $A_r$")
plots.show_section(axes[2], validation.raw, validation.labels, voxel_size, middle, "ground truth")
plt.show()

# %% [markdown]
# **What to see.** White says: joined along all three axes. Dark lines are borders. If all lines were closed, we would be
# done. Look for gaps in them, also for dark spots inside a neurite: these are the problem of this lesson.
#
# ## 2 · The obvious way, and why it fails
#
# Take each voxel as a node of a graph. Join it to its predecessor along z, y and x wherever the affinity exceeds some
# value, and call what hangs together a neuron. That is a connected-components problem, and takes ten lines.

# %%
from scipy import sparse

index = np.arange(validation.raw.size).reshape(validation.shape)
nodes = [(index[1:], index[:-1]), (index[:, 1:], index[:, :-1]), (index[:, :, 1:], index[:, :, :-1])]
edges = [unseen.refined[0, 1:], unseen.refined[1, :, 1:], unseen.refined[2, :, :, 1:]]


def components(value: float) -> np.ndarray:
    joined = [edge > value for edge in edges]
    pairs = [np.concatenate([pair[k][keep] for pair, keep in zip(nodes, joined, strict=True)]) for k in (0, 1)]
    graph = sparse.coo_array((np.ones(pairs[0].size, bool), pairs), shape=(index.size, index.size))
    return sparse.csgraph.connected_components(graph, directed=False)[1].reshape(index.shape).astype(np.uint64) + 1


# %% [markdown]
# Voxels of membranes are joined to nothing and are left as crumbs. To be fair we give each crumb to the nearest large
# component, so that every voxel has a neuron, and then compare with the ground truth. VOI, which part 5 derives, counts splits
# and merges in bits; 0 is perfect.

# %%
quiz.ask("05", "one-bridge")

# %% [markdown]
# Try it at six values:

# %%
from fgnet_lib.metrics import voi
from fgnet_lib.segmentation import remove_small

largest = np.unique(validation.labels, return_counts=True)[1].max() / index.size
print(f"the largest neuron fills {largest:.0%} of the volume")
for value in (0.2, 0.5, 0.8, 0.9, 0.95, 0.99):
    raw = components(value)
    labels = remove_small(raw, 100)
    voxels = np.unique(labels, return_counts=True)[1]
    split, merge = voi(labels, validation.labels)
    sizes = f"{raw.max():7} components, {voxels.size:5} large, the largest fills {voxels.max() / index.size:4.0%}"
    print(f"affinity > {value:.2f}: {sizes}; VOI split {split:.2f} + merge {merge:.2f} = {split + merge:.2f} bits")

# %% [markdown]
# **What to see.** At a low value neurons are merged: a *single* wrong voxel in a whole membrane is a bridge, and joins two
# neurons for good. To close all bridges takes a value so high that neurites fall apart, too. Keep the best sum in mind.
#
# A decision about two neurons should not hang on one voxel. It takes two steps to do better:
#
# 1. **Fragments**, also called supervoxels: cut the volume into small pieces that hardly ever cross a membrane. Splits are allowed, even welcome.
# 2. **Agglomeration**: join fragments, and look at the *whole face* between two of them before you do.
#
# ## 3 · Fragments: a watershed
#
# Turn affinities around and read them as a landscape: $b = 1 - \text{mean affinity}$ is low inside neurites and high
# on membranes. Let water rise from some starting points, the **seeds**; where two waters meet, there is a border.
# Everything depends on the seeds. We want one for each profile, deep inside: where the distance to the nearest boundary has
# a maximum. Here for one section, step by step.

# %%
from scipy import ndimage
from skimage.segmentation import watershed

boundary = 1 - unseen.refined[1:, middle].mean(axis=0)  # in the section: channels y and x
distance = ndimage.distance_transform_edt(boundary < 0.5, voxel_size[1:])
smooth = ndimage.gaussian_filter(distance, 2)
peaks = (smooth == ndimage.maximum_filter(smooth, 3)) & (boundary < 0.5)
seeds = ndimage.label(peaks, np.ones((3, 3)))[0]
pieces = watershed(boundary, seeds)
print(f"{seeds.max()} seeds -> {pieces.max()} fragments; without smoothing there would be ", end="")
print(ndimage.label((distance == ndimage.maximum_filter(distance, 3)) & (distance > 0), np.ones((3, 3)))[1], "seeds")

# %% alt="Four steps in one section: EM; the boundary landscape with bright membranes; the distance to the nearest boundary with red seeds on its hilltops; and the fragments that flooding makes. Large profiles have several seeds and fall into several fragments."
figure, ((em, border), (depth, result)) = plt.subplots(2, 2, figsize=(12, 10))
plots.show_section(em, validation.raw, None, voxel_size, middle, f"EM, section {middle}")
plots.show_section(result, validation.raw, pieces.astype(np.uint64), voxel_size, middle, "fragments")
for ax, image, colors, title, unit in (
    (border, boundary, "gray", "the landscape", "boundary b"),
    (depth, smooth, "viridis", "distance to the nearest boundary, seeds in red", "nm"),
):
    plots.show_section(ax, validation.raw, None, voxel_size, middle, title)
    shown = ax.imshow(image, cmap=colors, aspect=ax.get_aspect())
    figure.colorbar(shown, ax=ax, label=unit, shrink=0.8)
depth.plot(*np.argwhere(peaks).T[::-1], ".", color="red", markersize=6)
plt.show()

# %% [markdown]
# **What to see.** Fat profiles have several seeds and fall into several fragments; this is repaired later. What cannot be
# repaired is a fragment that covers two neurites, so look for profiles *without* a red dot. (The library gives such a profile
# a seed, too, where no affinity joins it to one that has.)
#
# In **anisotropic** data (sections much thicker than a pixel is wide) neurites jump from section to section, and the
# watershed runs in each section by itself, as above. In **isotropic** data it runs in 3D, with the mean of all three channels. The
# library chooses by the voxel size; `per_section=` overrules it.

# %%
from fgnet_lib.segmentation import fragments

for per_section in (True, False):
    pieces = fragments(unseen.refined, voxel_size, per_section)
    split, merge = voi(pieces, validation.labels)
    print(f"per section: {per_section!s:5}  {pieces.max():6} fragments, VOI split {split:.2f}, merge {merge:.2f} bits")
start = fragments(unseen.refined, voxel_size)
print(f"for voxels of {voxel_size} nm the library takes the one with {start.max()} fragments")

# %% [markdown]
# The split column is high, as it should be at this point. The merge column is what no later step can take back. Part of it is
# not a merge of neurons at all: a watershed leaves no gaps, so each voxel of a membrane goes to one side or the other, and
# counts if it is the wrong one.
#
# ## 4 · Agglomeration, by hand
#
# Five fragments in one small section. The upper three belong to one neuron, the lower two to another. The membrane between
# both is clear (affinity 0.1), except for *one* voxel, where the network was wrong (0.95): a bridge.

# %%
rows = [[1] * 6 + [2] * 6 + [3] * 6, [4] * 9 + [5] * 9]
toy = np.repeat(rows, 6, axis=0)[None].astype(np.uint64)  # (z, y, x) = (1, 12, 18)
truth = np.where(toy <= 3, 1, 2).astype(np.uint64)
weights = np.ones((3, *toy.shape), np.float32)
weights[2, 0, :6, 6], weights[2, 0, :6, 12], weights[2, 0, 6:, 9] = 0.9, 0.6, 0.8  # 1|2, 2|3 and 4|5, along x
weights[1, 0, 6] = 0.1  # the membrane between above and below, along y
weights[1, 0, 6, 7] = 0.95  # the bridge

# %%
quiz.ask("05", "bridge-mean")

# %% [markdown]
# The **region graph** has a node for each fragment and an edge for each *face*: all pairs of neighbouring voxels whose
# fragments differ. With each edge we keep the affinities of its pairs.

# %%
from collections import defaultdict

faces = defaultdict(list)
along_y, along_x = (toy[0, 1:], toy[0, :-1], weights[1, 0, 1:]), (toy[0, :, 1:], toy[0, :, :-1], weights[2, 0, :, 1:])
for voxels, predecessors, affinities in (along_y, along_x):
    for a, b, affinity in zip(voxels.flat, predecessors.flat, affinities.flat, strict=True):
        if a != b:
            faces[frozenset((int(a), int(b)))].append(float(affinity))
for face, values in faces.items():
    mean, highest = np.mean(values), max(values)
    print(f"{min(face)} | {max(face)}: {len(values)} pairs, mean affinity {mean:.2f}, largest {highest:.2f}")

# %% alt="Left, five coloured fragments joined by lines with the mean affinity of each face: 0.90 and 0.60 above, 0.80 below, 0.10 or 0.38 across the membrane. Right, the affinities: a dark membrane with a single bright voxel, the bridge."
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.4))
left.imshow(plots.label_colors(toy[0]))
shown = right.imshow(weights[1:, 0].min(axis=0), vmin=0, vmax=1)
for face, values in faces.items():
    places = [np.argwhere(toy[0] == fragment).mean(axis=0) for fragment in face]
    (y0, x0), (y1, x1) = places
    left.plot([x0, x1], [y0, y1], "ko-", lw=1 + 6 * np.mean(values))
    left.text((x0 + x1) / 2, (y0 + y1) / 2, f"{np.mean(values):.2f}", ha="center", va="center", backgroundcolor="white")
left.set(title="region graph: mean affinity of each face", xlabel="x (voxels)", ylabel="y (voxels)")
right.set(title="the affinities: smaller of channels y and x", xlabel="x (voxels)", ylabel="y (voxels)")
figure.colorbar(shown, ax=right, label="affinity")
plt.show()

# %% [markdown]
# **What to see.** Judged by its *largest* affinity, the face 2 | 4 is the best of all, and the first merge would be a wrong
# one. Judged by its *mean* it is among the worst: one voxel of many does not weigh much. That is the whole trick.
#
# The **score** of a face is $1 - \text{mean affinity}$. Agglomeration repeats one step: merge across the face with the
# lowest score, unless that reaches the threshold. After a merge, two faces to the same neighbour are one larger face, and
# its mean is taken anew. This is why the order matters, and why it is not the same as cutting every edge once.

# %%
threshold, merged = 0.5, toy.copy()
while faces:
    face = max(faces, key=lambda face: np.mean(faces[face]))
    score = 1 - np.mean(faces[face])
    if score >= threshold:
        print(f"stop: the best face left has the score {score:.2f}")
        break
    keep, drop = sorted(face)
    print(f"merge {drop} into {keep} at the score {score:.2f}")
    merged[merged == drop] = keep
    del faces[face]
    for other in [other for other in faces if drop in other]:
        (neighbour,) = other - {drop}
        faces[frozenset((keep, neighbour))] += faces.pop(other)

# %% [markdown]
# Two neurons are left, and the bridge has joined nothing. Now the same with the library. It calls waterz, which does
# exactly this in C++ with a priority queue, for millions of faces.

# %%
from fgnet_lib.segmentation import sweep

by_library = sweep(weights, (1, 1, 1), [0.25, 0.5, 0.95], fragments=toy)
for value, labels in by_library.items():
    print(f"threshold {value:.2f}: {len(np.unique(labels))} segments")
print("the same as by hand:", voi(by_library[0.5], merged) == (0, 0))

# %% [markdown]
# ### Exercises
#
# **Exercise 5.1: the mean affinity of a face.** Complete the function: from affinities (3, z, y, x), fragments (z, y, x) and two
# ids to the mean over all pairs of neighbouring voxels of which one lies in `a` and the other in `b`. A pair may run along
# any of the three axes, and either of the two fragments may come first. Remember at which voxel of a pair its affinity stands.


# %% tags=["task"]
def my_face_mean(affinities, fragments, a, b):
    return ...


# %% tags=["solution"]
def my_face_mean(affinities, fragments, a, b):
    pairs = []
    for axis in range(3):
        ids, values = np.moveaxis(fragments, axis, 0), np.moveaxis(affinities[axis], axis, 0)
        here, before = ids[1:], ids[:-1]
        face = ((here == a) & (before == b)) | ((here == b) & (before == a))
        pairs.append(values[1:][face])
    return np.concatenate(pairs).mean()


# %%
checks.face_mean(my_face_mean)

# %% [markdown]
# **Exercise 5.2: merge two fragments.** The loop above kept every affinity. It is enough to keep, for each face, the number of
# pairs and their mean: `{frozenset({1, 2}): (6, 0.9), ...}`. Write the step that merges fragment `drop` into `keep`: from such a
# dictionary to a new one. Two faces to the same neighbour become one, and a large face has more to say than a small one.
# The two need not have a face with each other.


# %% tags=["task"]
def my_merge(faces, keep, drop):
    return ...


# %% tags=["solution"]
def my_merge(faces, keep, drop):
    merged = {}
    for face, (pairs, mean) in faces.items():
        renamed = frozenset(keep if fragment == drop else fragment for fragment in face)
        if len(renamed) == 2:
            pairs_before, mean_before = merged.get(renamed, (0, 0.0))
            total = pairs_before + pairs
            merged[renamed] = (total, (pairs_before * mean_before + pairs * mean) / total)
    return merged


# %%
checks.merge(my_merge)

# %% [markdown]
# ## 5 · Counting splits and merges
#
# Is a segmentation good? Names of segments mean nothing, so we cannot compare voxel by voxel. But we can ask: *if I know
# the neuron of a voxel, how uncertain am I about its segment?* Not at all, if every neuron is one segment. The answer in
# bits is the conditional entropy $H(S \mid T)$ of the segmentation $S$ given the truth $T$: the **split** part of the **variation
# of information** (VOI). Turn the question around, and $H(T \mid S)$ is the **merge** part:
#
# $$H(S \mid T) = \sum_{s, t} p(s, t) \log_2 \frac{p(t)}{p(s, t)}, \qquad H(T \mid S) = \sum_{s, t} p(s, t) \log_2 \frac{p(s)}{p(s, t)},$$
#
# with $p(s, t)$ the share of voxels that lie in segment $s$ and in neuron $t$. Here for the five fragments:

# %%
table = np.zeros((6, 3))  # segments 0 to 5, neurons 0 to 2
np.add.at(table, (toy, truth), 1 / toy.size)
p = table[1:, 1:]
print(f"p(s, t), rows are segments:\n{p.round(3)}")
segment_of, neuron_of = np.nonzero(p)
shared = p[segment_of, neuron_of]
split = np.sum(shared * np.log2(p.sum(axis=0)[neuron_of] / shared))
merge = np.sum(shared * np.log2(p.sum(axis=1)[segment_of] / shared))
print(f"by hand    split {split:.4f}, merge {merge:.4f} bits")
print("by library split {:.4f}, merge {:.4f} bits".format(*voi(toy, truth)))

# %% [markdown]
# One bit is the uncertainty of a fair coin: a neuron cut into two halves everywhere costs one bit. A second score is the
# **adapted Rand error** (ARAND). It looks at pairs of voxels: of those that the segmentation puts together, the share that
# belongs together is the precision; of those that belong together, the share that it puts together is the recall; ARAND is one minus
# their harmonic mean. Pairs grow with the square of the size, so ARAND is all about the large neurons. The **CREMI score** is
# $\sqrt{\text{ARAND} \cdot \text{VOI}}$. Voxels without ground truth are left out of all of them.
#
# ## 6 · The threshold
#
# A low threshold leaves splits, a high one makes merges. `sweep` runs the agglomeration once, from low to high, and
# keeps the labels at each threshold that we ask for. We do it for the *training* volume, and for both outputs of the
# network.

# %%
from fgnet_lib.metrics import evaluate

thresholds = np.arange(0.1, 0.96, 0.05).round(2)


def curve(affinities, volume) -> dict:
    tried = sweep(affinities, volume.voxel_size, thresholds)
    return {value: evaluate(labels, volume.labels) for value, labels in tried.items()}


def best(scores: dict) -> float:
    return min(scores, key=lambda value: scores[value].voi_split + scores[value].voi_merge)


on_training = {"A_s": curve(trained.coarse, training), "A_r": curve(trained.refined, training)}
chosen = {name: best(scores) for name, scores in on_training.items()}
print("chosen on the training volume:", ", ".join(f"{value:g} for {name}" for name, value in chosen.items()))

# %% alt="VOI split, VOI merge and their sum against the threshold, for A_s and A_r on the training volume. Splits fall and merges rise with the threshold; a dotted line marks the threshold with the smallest sum."
figure, axes = plt.subplots(1, 2, figsize=(14, 5), sharey=True)
for ax, (name, scores) in zip(axes, on_training.items(), strict=True):
    splits, merges = zip(*((s.voi_split, s.voi_merge) for s in scores.values()), strict=True)
    plots.split_merge_curve(ax, list(scores), splits, merges, chosen[name], f"${name}$, training volume")
plt.show()

# %% [markdown]
# **What to see.** With the threshold splits go down and merges go up, and the sum has a valley between. A broad valley is
# good news: the choice is not delicate. The threshold that is stored with the model, and which lessons 00 and 08 use, was
# chosen in this way, on larger training volumes.
#
# The choice is made, on the *training* volume. Now comes the *validation* volume, at which we look once.
#
# What is the best that we could hope for? A neuron that leaves this crop and comes back has one id, but no segmentation of the
# crop could join its pieces. So we also score the ground truth itself, with each piece that hangs together as a segment.

# %%
from skimage.measure import label

pieces = label(validation.labels.astype(np.int64), connectivity=1)
print("the best possible: split {:.2f}, merge {:.2f} bits".format(*voi(pieces, validation.labels)))

# %%
quiz.ask("05", "peeking")

# %% [markdown]
# And now the validation volume, once:

# %%
on_validation = {"A_s": curve(unseen.coarse, validation), "A_r": curve(unseen.refined, validation)}
print("validation volume       threshold  split  merge    sum  ARAND  CREMI")
for name, scores in on_validation.items():
    for how, value in (("chosen on training", chosen[name]), ("best, by peeking", best(scores))):
        s = scores[value]
        row = f"{s.voi_split:7.2f}{s.voi_merge:7.2f}{s.voi_split + s.voi_merge:7.2f}{s.arand:7.3f}{s.cremi:7.3f}"
        print(f"{name}  {how:18}{value:11g}{row}")

# %% [markdown]
# **Why choose on the training volume?** If we took the best threshold of the *validation* volume, and then reported the score there,
# we would have used the answers. The number would be too good, and nobody could repeat it on a volume without ground truth.
#
# The first line of each pair is the honest result; the second is what peeking would have claimed. Their difference is the
# price of honesty. A large one says that the two volumes differ (in contrast, in thickness, in how sure the network is),
# and that the threshold should be chosen on data more like those it is meant for.
#
# And part 2? Its best sum was found by peeking, so compare it with the second line. In a crop as small as this one the two may be
# close. But a bridge anywhere joins two neurons everywhere: the larger the volume, the more membrane there is to leak.
#
# **Exercise 5.3: choose a threshold honestly.** `training` and `validation` are dictionaries from thresholds to (VOI split, VOI merge).
# Give back the threshold that you choose, and the VOI (the sum of both parts) that you report for it.


# %% tags=["task"]
def my_choice(training, validation):
    return ...


# %% tags=["solution"]
def my_choice(training, validation):
    threshold = min(training, key=lambda value: sum(training[value]))
    return threshold, sum(validation[threshold])


# %%
checks.honest_threshold(my_choice)

# %% [markdown]
# ## 7 · $A_s$ against $A_r$
#
# FGNet has two outputs. The coarse affinities $A_s$ are decoded from SAM2's features alone, whose finest map has a stride of 4. The
# refined affinities $A_r$ come from the 3D encoder that is guided by these features. The paper segments $A_r$; here you see
# what that gains. A fair comparison shows the whole trade-off and not one point of it.

# %% alt="VOI split against VOI merge on the validation volume, one curve for A_s and one for A_r, each point a threshold and a large marker the chosen one. The curve nearer to the lower left corner is better."
figure, ax = plt.subplots(figsize=(7, 5))
for (name, scores), marker in zip(on_validation.items(), "so", strict=True):
    splits, merges = zip(*((s.voi_split, s.voi_merge) for s in scores.values()), strict=True)
    line = ax.plot(merges, splits, marker + "-", label=f"${name}$")[0]
    here = scores[chosen[name]]
    ax.plot(here.voi_merge, here.voi_split, marker, color=line.get_color(), markersize=15, mfc="none", mew=2)
marked = [scores[chosen[name]] for name, scores in on_validation.items()]
limits = (0, 2 * max(score.voi_split + score.voi_merge for score in marked))
ax.set(title="Splits against merges, validation volume", xlabel="VOI merge (bits)", ylabel="VOI split (bits)")
ax.set(xlim=limits, ylim=limits)
ax.legend(title="large marker: chosen threshold")
plt.show()

# %% alt="Upper row: affinities A_s and A_r of one section, and its EM. Lower row: the neurons found from each, and the ground truth. The dark lines of A_s are coarser, above all around thin profiles."
from fgnet_lib.segmentation import segment

coarse = segment(unseen.coarse, voxel_size, chosen["A_s"])
refined = segment(unseen.refined, voxel_size, chosen["A_r"])
figure, axes = plt.subplots(2, 3, figsize=(15, 10.6))
outputs = ("A_s", unseen.coarse, coarse), ("A_r", unseen.refined, refined)
for column, (name, output, labels) in zip(axes.T[:2], outputs, strict=True):
    plots.show_affinities(column[0], output, voxel_size, middle, f"${name}$")
    plots.show_section(column[1], validation.raw, labels, voxel_size, middle, f"neurons from ${name}$")
plots.show_section(axes[0, 2], validation.raw, None, voxel_size, middle, f"EM, section {middle}")
plots.show_section(axes[1, 2], validation.raw, validation.labels, voxel_size, middle, "ground truth")
plt.show()

# %% [markdown]
# **What to see.** A curve that lies closer to the lower left corner all along is better at *every* trade of splits for merges; if
# the curves cross, neither is. In the pictures look at the width of the dark lines, and at the thinnest profiles: what
# is narrower than a few pixels of a stride-4 map has no voxel of its own in it.
#
# ### Every threshold on one slider
#
# The choice has been made and reported, so now we may play with the validation volume. Move *threshold*, and watch neurons
# fall apart on the left and run together on the right. Blue voxels are **split**: their neuron has most of its voxels in
# another segment. Orange ones are **merged**: their segment belongs for the most part to another neuron. White lines are
# the ground truth. In JupyterLab a click moves the cross; the table names the segment and the neuron there.

# %%
from fgnet_lib.views.explorers import segmentation_explorer

tried = sweep(unseen.refined, voxel_size, thresholds[::2])
explorer = segmentation_explorer(validation, tried, session.out_dir)
explorer

# %% [markdown]
# One of its pictures, for readers without a running notebook: too high a threshold.

# %% alt="The segmentation explorer at its highest threshold: segments in colour, split voxels in blue and merged ones in orange on the EM, and the curves of VOI with a dotted line at this threshold."
explorer.draw(threshold=float(thresholds[::2][-1]))

# %% [markdown]
# **Exercise 5.4: find where a split heals.** A score sums up all neurons; now follow one. `tried` is a dictionary from thresholds to
# segmentations, as `sweep` gives it. Give back the lowest threshold at which all voxels of `neuron` (an id in `truth`) lie in one
# segment. You may rely on it that there is one.


# %% tags=["task"]
def my_healed(tried, truth, neuron):
    return ...


# %% tags=["solution"]
def my_healed(tried, truth, neuron):
    whole = [threshold for threshold, labels in tried.items() if len(np.unique(labels[truth == neuron])) == 1]
    return min(whole)


# %%
checks.whole_from(my_healed)

# %% [markdown]
# ## 8 · The worst errors
#
# A score says how much is wrong, not what. VOI is a sum over neurons (split part) and over segments (merge part), so
# each error has its share of it. `neuron_report` lists the largest, with a place: the middle of the second largest piece.
# First we give crumbs to their nearest neighbour, so that they do not crowd the list.

# %%
from fgnet_lib.metrics import neuron_report

neurons = remove_small(refined, 100)
print(f"{len(np.unique(refined))} segments, {len(np.unique(neurons))} of them with 100 voxels or more")
report = neuron_report(neurons, validation.labels, voxel_size, top=5)
for kind, errors in (("split", report.splits), ("merge", report.merges)):
    for error in errors:
        who = f"neuron {error.label} in" if kind == "split" else f"segment {error.label} holds"
        print(f"{kind}: {error.bits:.3f} bits, {who} {len(error.parts)} parts; look at z, y, x = {error.voxel}")


# %% alt="The worst splits and merges, one in each column: above the EM section with a red cross at the place of the report, below the same section with the parts of the neuron or segment in different colours."
def show_error(axes, kind: str, error) -> None:
    whole, parts = (validation.labels, neurons) if kind == "split" else (neurons, validation.labels)
    z, y, x = error.voxel
    shown = np.zeros(whole[z].shape, np.uint64)  # parts numbered by size, so that neighbours differ in colour
    for number, (part, _) in enumerate(error.parts, start=1):
        shown[(whole[z] == error.label) & (parts[z] == part)] = number
    plots.show_section(axes[0], validation.raw, None, voxel_size, z, f"{kind}, {error.bits:.3f} bits, section {z}")
    plots.show_section(axes[1], validation.raw[z], shown, voxel_size, title="its parts", fill=0.6)
    for ax in axes:
        ax.plot(x, y, "+", color="red", markersize=16, markeredgewidth=2)


worst = [("split", error) for error in report.splits[:2]] + [("merge", error) for error in report.merges[:2]]
figure, axes = plt.subplots(2, len(worst), figsize=(min(4.2 * len(worst), 15), 9), squeeze=False)
for column, (kind, error) in zip(axes.T, worst, strict=True):
    show_error(column, kind, error)
plt.show()

# %% [markdown]
# **What to see.** For a split, the coloured area is *one* true neuron, and each colour a segment: follow the line between two
# colours and ask what the network took for a membrane there (a mitochondrion? a fold? a thin neck?). For a merge, the coloured
# area is one segment, and each colour a true neuron: the line between two colours is a membrane that was missed. The cross marks
# the place of the report; in a viewer you would fly there (lesson 06).
#
# Not every error is the network's: some neurons leave this crop and come back (part 6), and a ground truth has crumbs of its own.
# And where the second colour is only a rim and the cross sits on a membrane, nothing was split or merged: the two sides just
# draw the border a voxel apart.
#
# Here you can browse all of them.

# %%
from ipywidgets import IntSlider
from matplotlib.figure import Figure

from fgnet_lib.views.panels import explore

found = [("split", error) for error in report.splits] + [("merge", error) for error in report.merges]


def draw(error: int) -> Figure:
    figure = Figure(figsize=(11, 5.4))
    show_error(figure.subplots(1, 2), *found[error])
    return figure


explore(draw, error=IntSlider(0, 0, len(found) - 1, description="error"))

# %% [markdown]
# Your exercises so far:

# %%
checks.report("05")

# %% [markdown]
# ## What you learned
#
# - Joining voxels through single affinities lets one wrong voxel join two neurons. Fragments and the *mean* over a face do not.
# - Fragments come from a watershed: per section in anisotropic data, in 3D in isotropic data. What they merge stays merged.
# - VOI split is $H(S \mid T)$, VOI merge is $H(T \mid S)$, in bits; a threshold trades one for the other.
# - The threshold is chosen on training data, and reported as it comes out elsewhere.
# - Errors have addresses. Looking at the worst ten tells more than the third digit of a score.
#
# ## Try it
#
# - In part 4, raise the wrong affinity's share: make the bridge four voxels wide. At which width do the neurons merge?
# - In part 3, use `gaussian_filter(distance, 6)`. Fewer fragments: which profiles have lost their seed?
# - Run `remove_small` with 1000 instead of 100 voxels and evaluate again. What becomes better, what worse?
# - Set `DATASET` to a volume with other voxels (phantom: anisotropic, fib25: isotropic). What does `fragments` choose?
#
# ## References
#
# - Turaga et al.: *Convolutional networks can learn to generate affinity graphs for image segmentation.* Neural Computation 22,
#   2010, [doi:10.1162/neco.2009.10-08-881](https://doi.org/10.1162/neco.2009.10-08-881)
# - Funke et al.: *Large scale image segmentation with structured loss based deep learning for connectome reconstruction.* IEEE
#   TPAMI 41, 2019, [doi:10.1109/TPAMI.2018.2835450](https://doi.org/10.1109/TPAMI.2018.2835450): mean-affinity agglomeration, `waterz`
# - Meilă: *Comparing clusterings: an information based distance.* Journal of Multivariate Analysis 98, 2007,
#   [doi:10.1016/j.jmva.2006.11.013](https://doi.org/10.1016/j.jmva.2006.11.013)
# - Arganda-Carreras et al.: *Crowdsourcing the creation of image segmentation algorithms for connectomics.* Frontiers in
#   Neuroanatomy 9, 2015, [doi:10.3389/fnana.2015.00142](https://doi.org/10.3389/fnana.2015.00142): the adapted Rand error
# - The CREMI challenge, [cremi.org](https://cremi.org): the score that joins both
