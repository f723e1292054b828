# %% [markdown]
# # 00 · Welcome: from raw electron microscopy to neurons in 3D
#
# <!-- badges -->
#
# **What you will learn**
#
# - what this course is about: getting from grey electron-microscopy sections to separate neurons;
# - how all of it fits into ten lines, with a small model that comes with the repository;
# - how to read a segmentation score, and which lesson explains which line;
# - what your machine can do in this course.
#
# **Before you start.** This is the first lesson, so you need no other. Some Python helps.
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
# The line above says what machine this is and which profiles it can run. A profile sets only *how much* is computed;
# every lesson runs under each of them:
#
# | `PROFILE` | meant for | what changes |
# | --- | --- | --- |
# | `fast` | checking that everything runs | small crops, a few training steps |
# | `cpu` | a laptop | larger crops, about ten minutes of training in lesson 04 |
# | `gpu` | a free GPU on Colab | SAM2's own encoder, in its tiny size, in lesson 04 |
# | `full` | a GPU of your own | whole volumes, SAM2's large encoder, hours of training |
#
# ## 1 · The problem
#
# Electron microscopy (EM) shows all membranes of brain tissue. A volume is a stack of sections. Each neuron passes
# through many of them, wide in some and thin as a thread in others, and touches its neighbours all along. **Neuron
# segmentation** gives each voxel the id of the neuron that it lies in. With these ids you can see shapes, measure
# them, and ask which neurons are connected. By hand, this takes years even for a small cube of tissue.
#
# Here are three sections of this lesson's volume. (It may be deeper than the crop that the line above names, so that you
# see more of each neuron.) Each closed outline is the *profile* of a neuron, cut by the section. Pick one profile on
# the left, remember its position, and find it again in the middle and on the right. The computer has to do that for all
# of them at once.

# %% alt="Three sections of an EM volume side by side: bright profiles with thin dark outlines, which move and change shape a little from one section to the next."
import matplotlib.pyplot as plt

from fgnet_lib.course import checks, quiz
from fgnet_lib.views import plots

volume = session.deep_volume()
figure, axes = plt.subplots(1, 3, figsize=(13, 4.8))
for ax, z in zip(axes, (2, 5, 8) if len(volume.raw) > 8 else (0, 1, 2), strict=True):
    plots.show_section(ax, volume.raw, voxel_size=volume.voxel_size, z=z, title=f"section {z}")
plt.show()
print(f"{volume.name}: {volume.shape} voxels (z, y, x) of {volume.voxel_size} nm")

# %% [markdown]
# A dark line between two profiles is a membrane. Dark spots *inside* a profile are organelles, mostly mitochondria, and
# belong to it; so do small dark rings. A method that takes everything dark for a border would cut neurons apart
# there. That is why we train a network.
#
# ### Exercises
#
# Each lesson has a few exercises, and they all work in the same way. One cell holds a stub, with three dots where your
# answer goes. Replace the dots and run the cell. Then run the cell below it: it tells you whether your answer is
# right. If it is not, you first get a small hint. Run the check again, and it says what is wrong. If a right answer
# makes a picture, you see yours beside the expected one. As long as the dots are there, the exercise is *open*, and
# nothing else happens.
# You may skip any exercise: **no other cell needs your answer**. Your answer may use anything that the lesson has
# imported, and whatever you define in the same cell. The folder `solutions` has every lesson with its exercises
# solved.
#
# **Exercise 0.1: the size of a volume.** You know the shape of a volume in voxels, and the size of one voxel in nm.
# Compute the size of the volume in µm, as three numbers in the order z, y, x. (1 µm is 1000 nm.)


# %% tags=["task"]
def my_size(shape, voxel_size):
    depth, height, width = shape  # voxels
    return ...


# %% tags=["solution"]
def my_size(shape, voxel_size):
    return [voxels * nm / 1000 for voxels, nm in zip(shape, voxel_size, strict=True)]


# %%
checks.volume_size(my_size)

# %% [markdown]
# ## 2 · Ten lines
#
# This is the whole course in ten lines. Two objects are joined if their *score*, 1 − mean affinity, is below the
# *threshold* (part 3 explains affinities). The value below was chosen on the volume that the model was trained on:
# **never choose the threshold on the volume that you judge by**.

# %%
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate
from fgnet_lib.segmentation import remove_small, segment
from fgnet_lib.views.meshes import neuron_meshes, slender_ids
from fgnet_lib.weights import load_pretrained, pretrained_threshold

threshold = pretrained_threshold()
print(f"threshold: {threshold:g}, so objects are joined where the mean affinity is above {1 - threshold:g}")

# %% [markdown]
# Read the comments. Later lessons explain each line.

# %% alt="Twelve neurites in a box with axes in nm, each in its own colour: thin and thick ones run from the first section to the last, bend around each other, and some divide into branches."
volume = session.deep_volume()  # 1. raw EM, with the true neurons beside it
model = load_pretrained(device=session.device)  # 2. a small FGNet
prediction = predict(model, volume.raw)  # 3. do neighbouring voxels belong together?
neurons = segment(prediction.refined, volume.voxel_size, threshold)  # 4. join those that do
neurons = remove_small(neurons, 200)  # 5. drop crumbs
scores = evaluate(neurons, volume.labels)  # 6. compare with the truth
chosen = slender_ids(neurons, 12)  # 7. choose thin ones that run through
surfaces = neuron_meshes(neurons, volume.voxel_size, chosen)  # 8. wrap them in surfaces
colors = plots.neighbour_colors(neurons, first=chosen)  # 9. give each its colour
plots.neurons_figure({f"{len(chosen)} neurons of the segmentation": (surfaces, colors)})  # 10. look
plt.show()

# %% [markdown]
# Each colour is one object that the program takes for one neuron. Follow a few of them from top to bottom: they bend and
# become thinner and thicker, and some divide. The box is a small crop, at most a few thousandths of a millimetre deep.
# So you see pieces of branches that enter on one side and leave on another, not whole cells.
#
# ## 3 · What happened in between
#
# The network does not answer "which neuron is this?", because the names of neurons mean nothing to it. It answers a
# question that you can ask at each voxel: **does this voxel belong to the same neuron as the voxel before it?** It
# answers once along z, once along y and once along x. These three numbers between 0 and 1 are the **affinities**. A
# second step then joins voxels that have high affinities, and connected voxels get one colour.

# %%
quiz.ask("00", "dark")

# %% [markdown]
# In the second picture, white means that all three affinities are high, and black that all three are low. Where only
# one is low, its colour is missing: in a cyan area (no red), the section before shows another neuron.

# %% alt="One section four times: EM; affinities, white inside neurons and dark along their borders; the segmentation in colours; the ground truth, whose outlines are nearly the same."
z = volume.shape[0] // 2
true_colors = plots.neighbour_colors(volume.labels)
matched = plots.matched_colors(neurons, volume.labels, true_colors)
figure, axes = plt.subplots(1, 4, figsize=(15, 4.4))
plots.show_section(axes[0], volume.raw, voxel_size=volume.voxel_size, z=z, title="EM")
plots.show_affinities(axes[1], prediction.refined, voxel_size=volume.voxel_size, z=z, title="affinities")
for ax, labels, title, palette in (
    (axes[2], neurons, "segmentation", matched),
    (axes[3], volume.labels, "ground truth", true_colors),
):
    plots.show_section(ax, volume.raw, labels, volume.voxel_size, z, title, colors=palette)
plt.show()

# %% [markdown]
# **What to see.** The affinities are white inside the neurons and dark along their borders. The two pictures on the
# right have matched colours: of all segments, the one that covers most of a neuron has that neuron's colour. Compare
# their *outlines*. A missing outline is a **merge**: two neurons were taken for one. An extra outline is a **split**.
#
# **Exercise 0.2: merge or split.** Take any two voxels. You know which ids they have in the ground truth, and which
# ids the segmentation gave them. Say which error the two voxels show: `"merge"`, `"split"`, or `"none"`.


# %% tags=["task"]
def my_error(truth_1, truth_2, segment_1, segment_2):
    return ...


# %% tags=["solution"]
def my_error(truth_1, truth_2, segment_1, segment_2):
    if truth_1 == truth_2 and segment_1 != segment_2:
        return "split"
    if truth_1 != truth_2 and segment_1 == segment_2:
        return "merge"
    return "none"


# %%
checks.error_kind(my_error)

# %% [markdown]
# ## 4 · How good is it?
#
# The *variation of information* (VOI) measures both kinds of errors in bits; 0 is perfect. To see what the numbers
# mean, we compare the model with two answers that need no network: one neuron everywhere, and each section cut into
# squares.

# %%
quiz.ask("00", "one-neuron")

# %% [markdown]
# Here are the scores of all three:

# %%
import numpy as np

depth, height, width = volume.shape
squares = np.arange(height)[:, None] // 32 * width + np.arange(width) // 32 + 1
answers = {
    "this model": neurons,
    "one neuron everywhere": np.ones(volume.shape, np.uint64),
    "squares of 32 voxels": np.broadcast_to(squares, volume.shape).astype(np.uint64),
}
for name, answer in answers.items():
    result = evaluate(answer, volume.labels)
    print(f"{name:22} split {result.voi_split:.2f} + merge {result.voi_merge:.2f} bits, ARAND {result.arand:.2f}")
    if name == "one neuron everywhere":
        assert result.voi_split == 0 < result.voi_merge
    if name != "this model" and DATASET == "phantom" and threshold == pretrained_threshold():  # below you may change it
        assert scores.voi_split + scores.voi_merge < (result.voi_split + result.voi_merge) / 2

# %% [markdown]
# "One neuron everywhere" never splits anything, and merges everything; the squares do some of both. A useful model has
# to be low in both columns at once: on the phantom, the sum of this model's columns is less than half of that of either
# answer. ARAND, between 0 and 1, is a second score, which gives more weight to large neurons; here, too, lower is better.
# Lesson 05 derives both scores, and shows how the threshold trades splits for merges.
#
# The model is small on purpose: it is the **mini** FGNet, which was trained on a CPU. In FGNet, SAM2's encoder guides
# the segmentation. SAM2 learned from photographs, and so did the guide of the mini model, but it is *not* SAM2: it is a
# much smaller network (EfficientNet-Lite0), a stand-in. [Its card](../data/pretrained/README.md) says what it was trained on, and how well it does on
# data it has not seen. The same model runs in [the playground](https://fgnet-tutorials.github.io/fgnet-tutorials/playground/),
# where you draw or erase membranes and watch the neurons change.
#
# ## 5 · The map of the course
#
# **volume → targets → features → model → affinities → segmentation → metrics → views**
#
# | lesson | which of the ten lines it explains |
# | --- | --- |
# | [01 EM volumes](01_em_volumes.ipynb) | 1: what EM shows, labels, why affinities |
# | [02 SAM2 features](02_sam2_features.ipynb) | 2 and 3: what a network made for photographs sees in EM |
# | [03 Feature-guided attention](03_feature_guided_attention.ipynb) | 3: how FGNet lets these features guide a 3D network |
# | [04 Training](04_training.ipynb) | 2: where the weights come from |
# | [05 From affinities to neurons](05_affinities_to_neurons.ipynb) | 4 to 6: fragments, agglomeration, scores |
# | [06 Neurons in 3D](06_neurons_in_3d.ipynb) | 7 to 10: meshes, and a viewer that you can fly through |
# | [07 Ablations and results](07_ablations_and_results.ipynb) | 2 and 6: which parts of the model matter, and how sure we are |
# | [08 Your own volume](08_your_own_volume.ipynb) | all of them, on a file of yours |
# | [09 Scaling out](09_scaling_out.ipynb) | 3 and 4, on volumes larger than memory and with many workers |
# | [10 Twenty times faster](10_twenty_times_faster.ipynb) | 3, by a student of two dimensions that learns from FGNet |
# | [11 Adapt without retraining](11_adapt_without_retraining.ipynb) | 2, for a new tissue, by a file of less than 100 kB |
# | [12 My volume looks different](12_my_volume_looks_different.ipynb) | 2 to 4, on a volume without labels from elsewhere |
# | [13 Five sections](13_five_sections.ipynb) | 2, from one to twenty labelled sections |
# | [14 Clean is not correct](14_clean_is_not_correct.ipynb) | 1 to 3, on noisy sections |
# | [15 Between the voxels](15_between_the_voxels.ipynb) | after 4: where the network doubts, and whether it is right to |
# | [16 Fewer bits](16_fewer_bits.ipynb) | 2 and 3: the same network in a quarter or an eighth of its size |
# | [17 Fewer pixels](17_fewer_pixels.ipynb) | 1: sections imaged 16 times faster, drawn at full size again |
# | [18 Your own study](18_your_own_study.ipynb) | 2 and 6: how to ask, and to answer, a question of your own |
#
# FGNet's authors have published no code that we know of. This course builds a **reconstruction** from the paper's
# abstract, captions and summary. The lessons say which parts come from the paper and which are ours.
#
# ## Your exercises

# %%
checks.report("00")

# %% [markdown]
# ## What you learned
#
# - Segmenting neurons means giving each voxel the id of its neuron. The network predicts affinities; a second step
#   turns them into objects.
# - All of it is ten lines of code, and it runs without a GPU.
# - A segmentation is judged by its splits and its merges together.
#
# ## Try it
#
# - Set `threshold` to 0.1 and to 0.98, and run the ten lines and the scores of part 4 again. Which error grows at each
#   end?
# - Use `prediction.coarse` instead of `prediction.refined` in line 4. What gets worse? Lesson 03 says why.
# - If you have real EM (see [the data page](../data/README.md)), set `DATASET = "fib25"` at the top and run all cells.
#
# ## References
#
# - Li, Chen, Sun, Li, Hu: *Leveraging Feature-Guided Attention to Refine SAM2 for 3D EM Neuron Segmentation.* AAAI
#   2026,
#   [doi:10.1609/aaai.v40i8.37606](https://doi.org/10.1609/aaai.v40i8.37606),
#   [arXiv:2511.13063](https://arxiv.org/abs/2511.13063)
# - Ravi et al.: *SAM 2: Segment Anything in Images and Videos.* 2024,
#   [arXiv:2408.00714](https://arxiv.org/abs/2408.00714)
# - Meilă: *Comparing clusterings: an information based distance.* Journal of Multivariate Analysis 98, 2007,
#   [doi:10.1016/j.jmva.2006.11.013](https://doi.org/10.1016/j.jmva.2006.11.013)
