# %% [markdown]
# # 10 · Twenty times faster: what a 2D student keeps of a 3D network, and what each millisecond costs
#
# <!-- badges -->
#
# **What you will learn**
#
# - why the time for a section decides whether a large volume can be segmented at all;
# - **embeddings**: how a network that sees sections one by one can still join them, by products of vectors;
# - the three losses that **distil** a 3D teacher into a 2D student, and a trap in a published training loop;
# - where a student fails: membranes that lie in the plane of a section;
# - how to weigh accuracy against time, with a student that takes a teacher's place in `predict`.
#
# **Before you start.** Lesson 01 explains affinities, and lesson 04 losses and training.
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
# ## 1 · What a millisecond costs
#
# A cubic millimetre of cortex, in voxels of 40 × 8 × 8 nm, has 25,000 sections of 125,000 × 125,000 pixels. That is
# 4 · 10¹⁴ voxels. If a network needs one microsecond less for a voxel, it saves twelve years of one computer. So we judge
# a network by two numbers: how good its neurons are, and how long it takes.
#
# **What is the papers' and what is ours.** The student and its three losses are those of CAD (CVPR 2024), and a fourth
# loss, which compares features with those of a frozen encoder, is that of EM-SliceCrafter. All are written from the
# equations. The student's layers and sizes, its boundary channel and its input are ours, and so are all numbers on this
# page, unless a paper is named beside them.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgba
from skimage.segmentation import expand_labels

from fgnet_lib.affinities import affinities_from_labels
from fgnet_lib.course import checks, quiz
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate
from fgnet_lib.neighbours import distillation
from fgnet_lib.neighbours.distillation import Distillation, LossWeights, TaughtPatches, Teaching
from fgnet_lib.segmentation import segment
from fgnet_lib.student import Student, StudentConfig, embedding_affinities
from fgnet_lib.study import students
from fgnet_lib.training import TrainConfig, fit
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table
from fgnet_lib.weights import fingerprint_weights, load_model, load_pretrained, pretrained_threshold, read_notes

# %% [markdown]
# We compare three networks: the **teacher** is FGNet mini, the model that ships with this repository; the **student** is
# a small network of two dimensions; and a slim 3D U-Net stands in for the networks that the field uses. (It has their
# widths, but fewer convolutions; `tools/benchmarks/measure_student.py` times the published one.)
#
# How long do they take on *your* computer? The networks take turns, so that other programs slow all of them alike. Only
# the time of the processor counts, added up over its cores.

# %%
teacher, student = load_pretrained(), load_model("student")
networks = {"a slim 3D U-Net": FGNet(students.SLIM_UNET).eval(), "FGNet mini, the teacher": teacher}
networks["the student"] = student
depth, rounds = (4, 1) if PROFILE == "fast" else (16, 3)
times = students.section_milliseconds(networks, (depth, 160, 160), rounds)
slowest = times["a slim 3D U-Net"]
for name, network in networks.items():
    count = sum(parameter.numel() for parameter in network.parameters())
    ratio = f"{slowest / times[name]:4.1f} times as fast as the U-Net"
    print(f"{name:24} {count:9,} parameters, {times[name]:6.1f} ms a section, {ratio}")
assert times["the student"] < times["FGNet mini, the teacher"] / 4  # as the text says
stored = read_notes("student")["milliseconds"]
assert 15 < stored["unet"] / stored["student"] < 25

# %% [markdown]
# **What to see.** The student is more than four times as fast as its teacher, though both have to look at every voxel.
# It has no 3D convolution, and no layer at full resolution: its first layer already works on blocks of 2 × 2 pixels. The
# "twenty times" of the title compares it with the U-Net, which took about twenty times as long on the computer of its
# [card](../data/pretrained/STUDENT.md). Your last line says what it is on yours.
#
# ## 2 · From sections to affinities: embeddings
#
# How can a network of two dimensions say whether a voxel belongs to the same neuron as the voxel in the section
# *before* it? It gives every pixel an **embedding**, a vector $e$ of length 1. Pixels of one neuron should get similar
# vectors, so affinities are products:
#
# $$A_z = \mathrm{clamp}(e_z \cdot e_{z-1},\, 0,\, 1),\qquad A_y,\ A_x \text{ likewise from neighbours in a section.}$$
#
# Both sections go through the *same* network, so each one is computed only once, and used twice. **One more channel is
# the boundary** (ours): it counts in the length, but it is left out of the products. So a pixel that is all boundary is
# joined to nothing. **The input is 2.5D** (ours, too): together with a section, the student sees its two neighbours.
#
# **Exercise 10.1: affinities from embeddings.** `embeddings` is a NumPy array (channels, z, y, x), each vector has length
# 1, and there is no boundary channel. Return the affinities along z, in the shape (z, y, x). The first section has no
# predecessor: its affinities are 0.


# %% tags=["task"]
def my_affinities(embeddings):
    return ...


# %% tags=["solution"]
def my_affinities(embeddings):
    product = (embeddings[:, 1:] * embeddings[:, :-1]).sum(axis=0)
    affinities = np.zeros(embeddings.shape[1:])
    affinities[1:] = product.clip(0, 1)
    return affinities


# %%
checks.embedding_products(my_affinities)

# %% [markdown]
# Three identities tell you whether such code is right. Embeddings that are *one-hot vectors of the labels* (a 1 in the
# channel of the voxel's neuron, 0 in all others) must give exactly the affinities of the labels. Products and distances
# say the same: $|e - e'|^2 = 2 - 2\, e \cdot e'$. And two sections that change places keep their affinity.

# %%
volume = session.volume("train")
labels = volume.labels[:4, :48, :48]
ids = np.unique(labels[labels > 0])
one_hot = np.stack([*(labels == i for i in ids), labels == 0])  # the boundary is the last channel
products = embedding_affinities(torch.from_numpy(one_hot[None].astype(np.float32)))[0].numpy()
assert np.array_equal(products, affinities_from_labels(labels))
print(f"one-hot embeddings of {len(ids)} neurons: exactly the affinities of their labels")

pair = torch.nn.functional.normalize(torch.randn(1, 5, 2, 8, 8), dim=1)
pair[:, -1] = 0  # no boundary
pair = torch.nn.functional.normalize(pair, dim=1)
squared = (pair[:, :, 1] - pair[:, :, 0]).square().sum(1)
affinity = embedding_affinities(pair)[:, 0, 1]
assert torch.allclose(affinity, (1 - squared / 2).clamp(0, 1), atol=1e-5)
assert torch.allclose(affinity, embedding_affinities(pair.flip(2))[:, 0, 1], atol=1e-6)
print("distances and products agree, and sections may change places")

# %% [markdown]
# ## 3 · Three losses
#
# To **distil** a network is to train a small student to give the answers of a large teacher. CAD trains it with the sum
# of three losses, each with weight 1:
#
# | loss | compares the student's | with |
# | --- | --- | --- |
# | $L_{2D}$ | affinities | the ground truth |
# | $L_\mathrm{cross} = \lvert A_{2D} - A_{3D} \rvert^2$ | affinities | the teacher's affinities |
# | feature grafting (FGI) | embedding at $z$, times the teacher's at $z + s$, $s = 1 \ldots 4$ | "same neuron?" in the ground truth |
#
# The table calls affinities of the student $A_{2D}$ and those of the teacher $A_{3D}$. Why listen to a teacher if there
# are labels? A label says 0 or 1. A teacher says 0.6 where a membrane is hard to see, and 0.9 where it is nearly sure that
# there is none. It also answers where nothing is labelled.
#
# **Exercise 10.2: the loss against a teacher.** `student` and `teacher` are affinities, tensors of the same shape. Return
# the mean of $\lvert A_{2D} - A_{3D} \rvert^2$ as a tensor with one number. The student should learn from it. The teacher
# must not: no gradient may reach it.


# %% tags=["task"]
def my_cross_loss(student, teacher):
    return ...


# %% tags=["solution"]
def my_cross_loss(student, teacher):
    return (student - teacher.detach()).square().mean()


# %%
checks.teacher_loss(my_cross_loss)

# %% [markdown]
# ### A trap in a loop
#
# Feature grafting forces the student's vectors to speak the teacher's language: a student's embedding at $z$ must match
# the teacher's several sections away. A published training loop does it like this (in our words; the dot is the product
# of two vectors):
#
# ```python
# for shift in (1, 2, 3, 4):
#     product = clamp(student[:-shift] . teacher[shift:])
#     loss_graft = error(product, same_neuron(shift))
# loss = loss_2d + loss_cross + loss_graft
# ```

# %%
quiz.ask("10", "last")

# %% [markdown]
# **Exercise 10.3: feature grafting.** Mend the loop. `student` and `teacher` are NumPy arrays (channels, z, y, x) with
# vectors of length 1; `labels` is one of shape (z, y, x), all greater than 0. For each of the `shifts`, take the products
# of the student at $z$ and the teacher at $z + s$, clamp them to 0 to 1, and compute their mean squared error against "same
# label?". Return the mean over all shifts.


# %% tags=["task"]
def my_grafting_loss(student, teacher, labels, shifts):
    return ...


# %% tags=["solution"]
def my_grafting_loss(student, teacher, labels, shifts):
    errors = []
    for shift in shifts:
        product = (student[:, :-shift] * teacher[:, shift:]).sum(axis=0).clip(0, 1)
        same = labels[:-shift] == labels[shift:]
        errors.append(np.square(product - same).mean())
    return np.mean(errors)


# %%
checks.grafting(my_grafting_loss)

# %% [markdown]
# Our teacher gives affinities and has no embeddings. So for feature grafting we first train a head on the features of its
# refined decoder, briefly, and then freeze it. EM-SliceCrafter's fourth loss has the weight 0.1: the student's features
# should point in the direction of a frozen encoder's, here of our teacher's guide. The rows of part 6 ask what each of them brings.
#
# ## 4 · Train a student
#
# We ask the teacher once about a piece of your training volume. Then the student learns from crops of this piece. What
# happens to **augmentation**? The teacher has answered for the crop as it is, and you cannot simply turn its affinities
# with the crop, since each belongs to a *pair* of voxels. An embedding belongs to one voxel. So we show the student a
# turned crop, and turn its *embeddings* back before they are multiplied.

# %%
size = (12, 96, 96) if PROFILE == "fast" else (24, 160, 160)
piece = volume[: size[0], : size[1], : size[2]]
teaching = Teaching(piece, distillation.ask_teacher(teacher, piece.raw))
raw = torch.from_numpy(piece.raw / np.float32(255))[None, None]
answer = torch.from_numpy(teaching.answers["affinities"].astype(np.float32))[None]

torch.manual_seed(SEED)
weights, config = LossWeights(), StudentConfig()
pupil = Distillation(Student(config), weights, None, len(teaching.answers["guide"]))


def distance_from_teacher():
    with torch.no_grad():
        return distillation.cross_loss(embedding_affinities(pupil.student.embed(raw)), answer)


before = distance_from_teacher()


# %% [markdown]
# Then it trains, with $L_{2D}$ and $L_\mathrm{cross}$, within the budget of your profile:

# %%
minutes = {"fast": 0.1, "cpu": 0.75, "gpu": 0.75}.get(PROFILE, 5.0)
recipe = TrainConfig((8, 64, 64), 2, iterations=3000, minutes=minutes, learning_rate=3e-3, warmup=10, seed=SEED)
patches = TaughtPatches([teaching], ("affinities",), recipe)
by = fingerprint_weights(teacher.state_dict())[:6]
folder = f"10_{DATASET}_{PROFILE}_{SEED}_{by}_{weights.label:g}_{weights.cross:g}_{config.sections}"  # one for each run
history = fit(pupil, patches, distillation.distillation_loss, recipe, session.out_dir / folder)
after = distance_from_teacher()
print(f"{len(history)} iterations; mean |A_2D - A_3D|^2: {before:.3f} before, {after:.3f} after")
assert after < before

# %% [markdown]
# **What to see.** The mean squared distance falls: the student has moved towards its teacher. This training is short. The
# student that ships with this repository has seen more crops, and its [card](../data/pretrained/STUDENT.md) says how many.
#
# ## 5 · Where does it fail?
#
# Predict first:

# %%
quiz.ask("10", "flat")

# %% [markdown]
# Now look at borders along z, that is, at voxels that belong to another neuron than the same voxel of the section
# before. A border is **steep** if the neuron also changes along y or x at that place, so that the membrane cuts through
# the section. It is **flat** if it does not: there the membrane lies nearly in the plane of the section. A border is
# *missed* if the predicted affinity is above 0.5. We look at the student that ships, not at the one you have trained.

# %%
val = session.volume("val")
val = val[: 12 if PROFILE == "fast" else 24, :160, :160]
outputs = {
    name: predict(model, val.raw, progress=False).refined
    for name, model in [("teacher", teacher), ("student", student)]
}
known = expand_labels(val.labels, 2)  # some labels leave gaps between neurons, in which no border would lie
target = affinities_from_labels(known)
inside = (known[1:] > 0) & (known[:-1] > 0)
border = inside & (target[0, 1:] == 0)
border[:, 0] = border[:, :, 0] = False  # first voxels have no predecessor in their section
steep = border & ((target[1:, 1:] == 0).any(axis=0) | (target[1:, :-1] == 0).any(axis=0))
lines, missed = [], {}
for title, kind in (("steep", steep), ("flat", border & ~steep)):
    missed[title] = {name: (affinities[0, 1:][kind] > 0.5).mean() for name, affinities in outputs.items()}
    lines.append([title, f"{kind.sum():,}", *(f"{share:.0%}" for share in missed[title].values())])
assert DATASET != "phantom" or missed["flat"]["student"] > 2 * missed["steep"]["student"]  # as the text says
assert DATASET != "phantom" or missed["flat"]["student"] > 2 * missed["flat"]["teacher"]
voxels = [missed[title]["student"] * kind.sum() for title, kind in (("flat", border & ~steep), ("steep", steep))]
assert DATASET != "phantom" or voxels[0] > voxels[1]
fold_table(["border along z", "voxels", "missed by the teacher", "missed by the student"], {"": lines})

# %% alt="A section in grey, its borders along z by the labels, and the affinities along z of the teacher and of the student, dark where a neuron ends. Orange marks borders that a network misses: hardly any for the teacher; for the student mostly where the membrane lies in the plane."
z = 1 + int(border.sum(axis=(1, 2)).argmax())
figure, axes = plt.subplots(1, 4, figsize=(15, 4.3), layout="constrained")
axes[0].imshow(val.raw[z], cmap="gray")
axes[0].set(title=f"section {z}", xlabel="x (voxels)", ylabel="y (voxels)")
kinds = np.where(border[z - 1], np.where(steep[z - 1], 1, 2), 0)
axes[1].imshow(plt.get_cmap("viridis")(kinds / 2))
axes[1].set(title="borders: steep green, flat yellow", xticks=[], yticks=[])
for ax, (name, affinities) in zip(axes[2:], outputs.items(), strict=True):
    image = ax.imshow(affinities[0, z], cmap="gray", vmin=0, vmax=1)
    lost = np.where((border[z - 1] & (affinities[0, z] > 0.5))[..., None], to_rgba("tab:orange"), 0.0)
    ax.imshow(lost)  # transparent elsewhere
    ax.set(title=f"affinity along z, the {name};\norange: missed borders", xticks=[], yticks=[])
figure.colorbar(image, ax=axes[3], shrink=0.8, label="affinity")
for ax in axes:
    plots.scale_bar(ax, val.voxel_size)
plt.show()

# %% [markdown]
# **What to see.** On the phantom, the student misses more than twice as large a share of the flat borders as of the steep
# ones, and of the flat ones more than twice as many as its teacher. So most of what it misses is flat: in the picture,
# most orange places lie on the yellow borders of the second panel. (The teacher has learned from phantoms, too, the
# student from FIB-25 alone. So part of the distance between the two networks comes from that.) On your data set the
# numbers will differ. In isotropic volumes such as FIB-25 a membrane may lie in any direction; in thick sections
# neighbours say less about each other.
#
# ## 6 · Measured: what does each millisecond buy?
#
# Every row is trained on FIB-25 for the same number of iterations, with three seeds, and judged by the same steps on its
# validation part. A printed line says how many of these runs are missing. Milliseconds are those of your computer,
# measured now.

# %%
rows = students.read_students()
print(students.describe_missing_students(rows))
built = {name: Student(pupil.config).eval() for name, pupil in students.PUPILS.items() if name in rows}
speed = students.section_milliseconds(built | {"the student": student}, (depth, 160, 160), rounds)
scores = {name: students.student_scores(rows, name) for name in rows}
sizes = {students.PUPILS[name].title: (speed[name], scores[name]) for name in students.SIZES if name in rows}
others = {students.PUPILS[name].title: (speed[name], scores[name]) for name in rows if name not in students.SIZES}
notes = read_notes("student")
measured = {"the shipped student": notes, "FGNet mini, the teacher": read_notes("fgnet_mini")["measured"]["fib25"][1]}
voi = {name: each["voi_split"] + each["voi_merge"] for name, each in measured.items()}
marks = {"the shipped student": speed["the student"], "FGNet mini, the teacher": times["FGNet mini, the teacher"]}
marks = {name: (ms, voi[name]) for name, ms in marks.items()} | {"a slim 3D U-Net": (slowest, None)}

# %% alt="VOI on FIB-25 against milliseconds for a section, on a logarithmic axis: students are at the left, the teacher lies lower and far to the right, and a dotted line marks the time of a slim 3D U-Net."
figure, ax = plt.subplots(figsize=(11, 5.5), layout="constrained")
charts.against_time(ax, sizes, others, marks)
ax.set_ylabel("VOI on FIB-25, validation part (bits)")
plt.show()

# %% [markdown]
# **How to read it.** Lower is better, and left is faster. The star is the student that ships: it was trained for minutes,
# as its card says, and you see how far it still is from its teacher, the triangle. For the 3D U-Net we have measured the
# time alone. Where rows are measured, a grey line joins the students that differ only in their channels (squares), so it
# shows what time buys. Diamonds differ from the square in the middle in one other thing, such as a loss. In the legend,
# *the same* means that square: labels and the teacher's affinities. Bars are standard deviations over seeds.
# [student.md](../docs/measured/student.md) has every row.
#
# The same rows answer questions. A negative difference means that the first row of a question is better. *p* is counted
# by permutation, as in lesson 07; with three runs of each row it cannot be less than 0.10.

# %%
answers = {question: students.student_answer(rows, pair) for question, pair in students.QUESTIONS.items()}
lines = [[question, *answer] for question, answer in answers.items() if answer]
if not lines:
    print(f"No question has both of its rows yet. {students.describe_missing_students(rows)}")
fold_table(["question", "VOI of the first", "of the second", "difference", "p"], {"": lines}) if lines else None

# %%
means = {students.PUPILS[name].title: np.mean(scores[name]) for name in students.LOSSES}
wins = [wide < narrow for wide in scores["wide"] for narrow in scores["narrow"]]
alone = [label < cross for label in scores["label"] for cross in scores["cross"]]
runs = [run for of_row in scores.values() for run in of_row]
longer, beaten = notes["iterations"] / students.ITERATIONS, sum(voi["the shipped student"] < run for run in runs)
print(f"losses: the lowest mean of four choices is that of {min(means, key=means.get)}")
print(f"the teacher: labels alone beat labels and its affinities in {sum(alone)} of {len(alone)} pairs of runs")
print(f"width: twice the channels beat half the channels in {sum(wins)} of {len(wins)} pairs of runs")
print(f"training: the shipped student learned {longer:.0f} times as long, and beats {beaten} of {len(runs)} runs")
assert np.mean(wins) > 0.5 and np.mean(alone) > 0.5 and longer > 4 and beaten == len(runs)  # as the text says

# %% [markdown]
# **What came out.** Where *p* is far above 0.10, three seeds of 600 iterations do not answer the question, and the lowest
# mean may be chance. **The teacher's affinities did not help**: most students of labels alone are better. What it could
# add, in sections without labels, is not asked here. Width counts: a student with twice the channels mostly beats one
# with half of them. **What helps most is training**: the shipped student learned several times as long, and is better
# than every run here.
#
# ## 7 · Use it
#
# `load_model("student")` gives the student, and everything that takes an FGNet takes it: `predict`, the blocks of lesson
# 09 (`Network("student")`), and lesson 08 (`CHECKPOINT = "student"`). Here both segment a piece of your validation
# volume:

# %%
thresholds, uses = {"teacher": pretrained_threshold(), "student": notes["threshold"]}, {}
for name, model in (("teacher", teacher), ("student", student)):
    started = time.process_time()
    affinities = predict(model, val.raw, progress=False, engine="torch").refined
    seconds = time.process_time() - started
    segmentation = segment(affinities, val.voxel_size, thresholds[name], strict=False)
    result = evaluate(segmentation, val.labels)
    uses[name] = seconds, result.voi_split + result.voi_merge
    bits = f"VOI {uses[name][1]:.3f} (split {result.voi_split:.3f}, merge {result.voi_merge:.3f})"
    print(f"{name}: {seconds:5.2f} s of the processor, {bits}")
assert uses["student"][0] < uses["teacher"][0] / 2  # as the text says
assert DATASET != "phantom" or uses["student"][1] > uses["teacher"][1]

# %% [markdown]
# **What to see.** The student needs less than half of the time, and on the phantom its VOI is higher, that is, worse: you
# have bought speed with neurons. Both times contain more than the networks, such as cutting windows and blending them, so
# their ratio need not be that of part 1.
#
# **Limits.** Our student and teacher are small, and their training was short. The papers report students that are 20
# (CAD) and 33 times (EM-SliceCrafter) as fast as 3D networks, on other machines and other data; our ratios are those of a
# CPU. FIB-25 is isotropic, so what a student loses there need not be what it loses in serial sections.
#
# ## Your exercises

# %%
checks.report("10")

# %% [markdown]
# ## What you learned
#
# - A network is judged by accuracy *and* by the time that a section takes.
# - Embeddings turn a network of sections into one that gives affinities along z, too: products of unit vectors.
# - A student learns from labels and from its teacher's affinities; the teacher is detached.
# - `=` instead of `+=` in a loop of losses trains the last term alone, and nothing warns you.
# - A membrane in the plane of a section leaves no line in it, so a network that sees few sections misses it most.
#
# ## Try it
#
# 1. In part 4, train with `LossWeights(cross=0)`, from labels alone, and with `LossWeights(label=0)`, from the teacher
#    alone (run both cells of code each time). Which comes closer to the teacher? Which would you trust where nothing is
#    labelled?
# 2. `StudentConfig(sections=1)` sees each section alone. Train one student with it in part 4 and one without, and run part
#    5 after `student = pupil.student.eval()` for each. What changes in the table? (Take the lines out of part 5 that begin
#    with `assert`: they speak of the student that ships.)
# 3. Call `predict(student, ..., three_views=True)` on an isotropic volume. What does it cost, and what does it bring?
# 4. How many years does your computer need for the cubic millimetre of part 1, with the teacher and with the student?
#
# ## References
#
# - X. Liu, M. Cai, Y. Chen, Y. Zhang, T. Shi, R. Zhang, X. Chen, Z. Xiong. *Cross-Dimension Affinity Distillation for 3D
#   EM Neuron Segmentation.* CVPR 2024,
#   [open access](https://openaccess.thecvf.com/content/CVPR2024/html/Liu_Cross-Dimension_Affinity_Distillation_for_3D_EM_Neuron_Segmentation_CVPR_2024_paper.html).
# - X. Liu et al. *EM-SliceCrafter: Distilling Lightweight 2D CNNs for Efficient 3D EM Neuron Segmentation*, an extension
#   of CAD: [github.com/liuxy1103/EM-SliceCrafter](https://github.com/liuxy1103/EM-SliceCrafter).
# - G. Hinton, O. Vinyals, J. Dean. *Distilling the Knowledge in a Neural Network.* 2015,
#   [arXiv:1503.02531](https://arxiv.org/abs/1503.02531).
