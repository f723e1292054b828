# %% [markdown]
# # 17 · Fewer pixels: when super-resolution draws a membrane, was there one?
#
# <!-- badges -->
#
# **What you will learn**
#
# - what 16 times fewer pixels save, and what they cost in neurons;
# - why a result that agrees with every measured pixel can still show what the tissue does not have;
# - a **codebook**: sections written in 128 words, and how a network learns through a choice that has no gradient;
# - an **indexer**, which guesses these words from low pixels, and the **fusion** of neighbouring sections;
# - how to count the membranes that a result has **invented** and **lost**;
# - whether a sharper picture gives better neurons, by three measures that need not agree.
#
# **Before you start.** Lesson 05 explains VOI, and lesson 07 what seeds and *p* are.
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
# ## 1 · Sixteen times fewer pixels
#
# A scanning electron microscope visits one pixel after the other. With pixels four times as wide in y and x it is done in a
# sixteenth of the time, or it images sixteen times as much tissue. **Super-resolution** promises to draw the missing
# voxels afterwards. GPEMSR does so with a memory of what tissue looks like. In a photograph nobody minds an extra
# eyelash. Here an extra line cuts a neuron in two.
#
# We reduce sections ourselves: a **low pixel** is the mean of a square of 4 × 4 voxels. So we know the truth.
#
# **What is the paper's and what is ours.** The codebook, the indexer and the fusion of sections are the paper's,
# written from its equations. The paper enlarges 8 and 16 times, with 1024 codes of 512 numbers and an adversarial loss.
# Ours enlarges 4 times, with 128 codes of 64 numbers, three sections, and no adversarial loss. All numbers on this page
# are ours.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from scipy import ndimage

from fgnet_lib.course import checks, quiz
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate, psnr
from fgnet_lib.neighbours import super_resolution as pixels
from fgnet_lib.neighbours.super_resolution import Indexer, SectionAutoencoder, SectionEncoder, SuperResolver
from fgnet_lib.segmentation import segment
from fgnet_lib.study import super_resolution as study
from fgnet_lib.study.pretraining import MaskedSections
from fgnet_lib.training import fit
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table
from fgnet_lib.weights import load_pretrained, pretrained_threshold

# %% [markdown]
# The volume to be judged on, the same in low pixels, and the baseline of every comparison: **bicubic** interpolation,
# which lays smooth curves through the low pixels and knows nothing about tissue. **PSNR** is −10 log10 of the mean
# squared error, in dB: higher is nearer to the truth.

# %%
volume = session.volume("val")
sides = [n - n % pixels.STRIDE for n in volume.shape[1:]]  # whole squares of 8 x 8 voxels
depth = min(len(volume.raw), 8 if PROFILE == "fast" else 16)
volume = volume[:depth, : sides[0], : sides[1]]
truth = torch.from_numpy(volume.raw).float() / 255
low = pixels.reduce_sections(truth)
results = {"bicubic": pixels.enlarge_volume(None, low)}
print(f"{truth.numel():,} voxels become {low.numel():,} pixels")
print(f"bicubic: PSNR {psnr(results['bicubic'], truth):.2f} dB")

# %% [markdown]
# ## 2 · What was measured must stay
#
# Whatever a network draws, one thing can be checked without knowing the truth: reduced again, the result should give
# the low pixels that were measured. Bicubic does not quite do that.

# %%
quiz.ask("17", "free")

# %% [markdown]
# **Exercise 17.1: agree with the measured pixels.** `sections` has the shape (z, y, x), and `low` a quarter of that in
# y and x. Change the sections as little as possible so that the mean of every 4 × 4 square is its low pixel.


# %% tags=["task"]
def my_consistent(sections, low):
    return ...


# %% tags=["solution"]
def my_consistent(sections, low):
    squares = sections.reshape(len(low), low.shape[1], 4, low.shape[2], 4)
    means = squares.mean(axis=(2, 4))
    missing = low - means
    return sections + missing.repeat(4, axis=1).repeat(4, axis=2)


# %%
checks.consistent_sections(my_consistent)

# %% [markdown]
# This is a projection: of all sections that agree with the low pixels, you take the nearest one. The truth is one of
# these sections. So the error can only fall, and we know that without having seen the truth.

# %%
bicubic, consistent = results["bicubic"], pixels.make_consistent(results["bicubic"], low).clamp(0, 1)
for name, result in {"bicubic": bicubic, "bicubic, consistent": consistent}.items():
    difference = (pixels.reduce_sections(result) - low).abs().max().item()
    print(f"{name:20} reduced again: off by {difference:.4f}; PSNR {psnr(result, truth):.2f} dB")
assert psnr(consistent, truth) > psnr(bicubic, truth)

# %% [markdown]
# **What to see.** The second result agrees with the low pixels (up to rounding, and except where it was cut at black or
# white), and is a little better. It is still blurred: 15 of 16 numbers in a square are free. **The networks of part 5 end
# with this step**, so they agree with the low pixels, too. What they add is a guess.
#
# ## 3 · A section in 128 words
#
# Where does a good guess come from? From having seen much tissue. A **vector-quantised autoencoder** learns a small
# vocabulary: its encoder makes a vector $z$ of each square of 8 × 8 voxels, the vector is replaced by the nearest of
# 128 **codes** $e_k$, and a decoder draws the section from codes alone:
#
# $$k = \arg\min_j \lVert z - e_j \rVert^2, \qquad
# L = |x - x'| + \lVert \mathrm{sg}(z) - e_k \rVert^2 + \beta \lVert z - \mathrm{sg}(e_k) \rVert^2.$$
#
# Here $x$ is a section, $x'$ what the decoder draws of it, and $\beta$ a weight. $\mathrm{sg}$ means that no gradient
# passes. The second term pulls codes towards the vectors that choose them. The third one is the **commitment**: it keeps
# vectors near their codes.
#
# A choice has no gradient: if you move a vector a little, its code stays the same. So how can the encoder learn? By a
# trick, the **straight-through gradient**: forward, the code; backward, as if the vector had passed unchanged.

# %% [markdown]
# ### Further: choose a code, and let the gradient pass
#
# **Exercise 17.2: the nearest code.** `vectors` has the shape (N, C), `codes` has (K, C). Return for each vector the
# number (from 0 to K − 1) of the code at the least Euclidean distance, in the shape (N,).


# %% tags=["task"]
def my_nearest(vectors, codes):
    return ...


# %% tags=["solution"]
def my_nearest(vectors, codes):
    distances = np.square(vectors[:, None] - codes).sum(axis=2)
    return distances.argmin(axis=1)


# %%
checks.nearest_code(my_nearest)

# %% [markdown]
# **Exercise 17.3: straight through.** Both arguments are tensors of the same shape. Return a tensor with the values of
# `quantised`, whose gradient reaches `vectors` unchanged and `quantised` not at all.


# %% tags=["task"]
def my_straight_through(vectors, quantised):
    return ...


# %% tags=["solution"]
def my_straight_through(vectors, quantised):
    return vectors + (quantised - vectors).detach()


# %%
checks.straight_through(my_straight_through)

# %% [markdown]
# ### Learn the vocabulary
#
# Now let the autoencoder learn from sections of another part of your data set. No labels are needed.

# %%
rounds = {"fast": 1, "cpu": 3.5, "gpu": 3.5}.get(PROFILE, 45)
unlabelled = session.volume("train")


def train_part(name, model, loss_function, iterations):
    config = study.enlarging_training(round(iterations * rounds), (6, 64, 64), SEED)
    folder = session.out_dir / f"17_{DATASET}_{PROFILE}_{SEED}_{name}"
    history = fit(model, MaskedSections([unlabelled], config.patch, SEED), loss_function, config, folder)
    print(
        f"{name}: {len(history)} iterations, loss {np.mean(history.loss[:5]):.3f} -> {np.mean(history.loss[-5:]):.3f}"
    )
    return model


# %%
torch.manual_seed(SEED)
autoencoder = train_part("autoencoder", SectionAutoencoder().to(session.device), pixels.autoencoder_loss, 60).cpu()
with torch.no_grad():
    codes = autoencoder.index(truth[:, None])
    drawn = autoencoder(truth[:, None])[0][:, 0].clamp(0, 1)
perplexity = pixels.perplexity(codes, pixels.CODES)
print(f"perplexity {perplexity:.0f} of {pixels.CODES}; PSNR {psnr(drawn, truth):.2f} dB")

# %% [markdown]
# For its first 20 iterations the autoencoder learns without the codebook. After that the codebook's loss is added, so the
# printed loss may rise.
#
# **Perplexity** is the exponential of the entropy: it is 1 if all squares have the same code, and 128 if all codes are
# equally frequent. Many codebooks **collapse** to a few codes. Ours lets codes that nothing chooses begin anew.
#
# What do the words look like? We draw each code amid copies of itself, sorted by brightness. The contrast of the words is
# stretched:

# %% alt="Left: a table of 128 small grey squares, one for each code, some dark, some with a dark line through them. Middle: a true section. Right: the same section as its codes draw it, coarser, with the larger membranes in place."
with torch.no_grad():
    words = autoencoder.codebook.codes[:, :, None, None].expand(-1, -1, 3, 3)
    tiles = autoencoder.decode(words)[1][:, 0, 8:16, 8:16]
tiles = tiles[tiles.mean((1, 2)).argsort()].reshape(16, 8, 8, 8)
tiles = (tiles - tiles.min()) / (tiles.max() - tiles.min())
z = len(truth) // 2
figure, axes = plt.subplots(1, 3, figsize=(14, 5), layout="constrained", width_ratios=(0.55, 1, 1))
table = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=1.0).permute(0, 2, 1, 3).reshape(160, 80)
axes[0].imshow(table, vmin=0, vmax=1)
axes[0].set_title("128 words")
axes[0].axis("off")
for ax, section, title in ((axes[1], truth[z], "truth"), (axes[2], drawn[z], "from its own codes")):
    ax.imshow(section, vmin=0, vmax=1)
    plots.frame(ax, volume.voxel_size, title)
plt.show()

# %% [markdown]
# **What to see.** The words differ in brightness most of all, and some have an edge or a dark line in one direction. A
# code is only 7 bits for 64 voxels, so the right picture is coarse. The longer the autoencoder learns, the richer the
# words are: with `PROFILE = "fast"` it has only begun, and most words are flat.
#
# ## 4 · Guess the words from low pixels
#
# The **indexer** is another encoder. It sees low sections and guesses which code the autoencoder would have chosen at
# full size. Ours measures distances to the same codes. So one identity is exact: **with the autoencoder's own encoder,
# sections at full size get the autoencoder's codes.**

# %%
with torch.no_grad():
    same = Indexer(autoencoder, autoencoder.encoder)(truth[:, None]).argmax(1)
print(f"the same codes at full size: {(same == codes).float().mean():.0%}")
assert torch.equal(same, codes)
indexer = Indexer(autoencoder, SectionEncoder(pixels.STRIDE // pixels.FACTOR)).to(session.device)
indexer = train_part("indexer", indexer, pixels.indexer_loss, 48).cpu()
with torch.no_grad():
    guessed = indexer(low[:, None]).argmax(1)
most = (codes == codes.flatten().mode().values).float().mean()
print(f"right codes from low pixels: {(guessed == codes).float().mean():.0%}; always the most frequent one: {most:.0%}")
results["codes alone"] = pixels.enlarge_volume(indexer, low)

# %% [markdown]
# **What to see.** Compare the last two numbers: how many codes the indexer gets right, and how many a constant guess gets
# right. Even a good indexer is wrong in many places. **A wrong code draws tissue from elsewhere**, with membranes that
# were there and are not here.

# %%
quiz.ask("17", "codes")

# %% [markdown]
# ## 5 · Fusion: codes, low pixels and neighbouring sections
#
# The codes should advise, not decide. So a third network sees the low section, the section above and the one below, and
# the decoder's features for the guessed codes. Neighbours are **aligned** first: at each place, attention mixes the
# features of the neighbour's nearest 3 × 3 low pixels, and those that resemble the place count most. Then residual
# blocks add what bicubic lacks.
#
# A plain network without codes and neighbours gets so many iterations that it takes about as long, on one core, as
# codebook, indexer and fusion together.

# %%
torch.manual_seed(SEED)
fused = SuperResolver(3, indexer).to(session.device)
results["codebook, 3 sections"] = pixels.enlarge_volume(
    train_part("fusion", fused, pixels.resolver_loss, 21).cpu(), low
)
torch.manual_seed(SEED)
plain = SuperResolver(1).to(session.device)
results["small CNN"] = pixels.enlarge_volume(train_part("plain", plain, pixels.resolver_loss, 63).cpu(), low)
for name, result in results.items():
    print(f"{name:21} PSNR {psnr(result, truth):.2f} dB")

# %% [markdown]
# PSNR asks how near the grey values are, on average over all voxels. Most voxels are no membrane.
#
# ## 6 · Was there a membrane?
#
# We need a map of membranes that does not depend on a segmentation network, because such a network could repair or
# overlook what a result draws. So we take the grey values: a membrane is a **dark line**, where the second derivative
# across is large. In every picture the strongest 15 % of the voxels count as membrane, so neither contrast nor blur as
# such matters, and no result can win by drawing few lines. A partner is looked for among the strongest 20 % of the
# other picture. **So a membrane that has only become fainter is neither invented nor lost.**
#
# **Exercise 17.4: invented membranes.** `result` and `truth` are bool masks of membranes (y, x). Mark the voxels of the
# result that lie farther than `tolerance` voxels (Euclidean; a float, as in 2.5) from all membranes of the truth.


# %% tags=["task"]
def my_invented(result, truth, tolerance):
    return ...


# %% tags=["solution"]
def my_invented(result, truth, tolerance):
    distance = ndimage.distance_transform_edt(~truth)
    return result & (distance > tolerance)


# %%
checks.invented_voxels(my_invented)

# %% [markdown]
# With the two pictures exchanged, the same function marks **lost membranes**. The library's version has a tolerance of
# 2 voxels, and leaves pieces of fewer than 12 voxels out, as noise. Now let the shipped model segment each result, the
# truth as well. It never saw enlarged sections, and its threshold stays as it is.

# %%
model, threshold = load_pretrained(session.device), pretrained_threshold()


def score_neurons(sections):
    raw = (255 * sections).round().byte().numpy()
    affinities = predict(model, raw, progress=False).refined
    scores = evaluate(segment(affinities, volume.voxel_size, threshold, strict=False), volume.labels)
    return scores.voi_split + scores.voi_merge


vois = {name: score_neurons(result) for name, result in {**results, "truth": truth}.items()}
for name, result in results.items():
    counts = pixels.count_membranes(result.numpy(), truth.numpy())
    shares = f"invented {counts['invented']:5.1%}, lost {counts['lost']:5.1%} of the membrane voxels"
    print(f"{name:21} {shares}; VOI {vois[name]:.2f} bits")
    assert name == "codes alone" or counts["lost"] < 0.05
print(f"{'truth':21} VOI {vois['truth']:.2f} bits")
assert DATASET not in ("phantom", "fib25", "gala") or vois["bicubic"] > vois["truth"]  # of tissue that the model knows

# %% [markdown]
# Here is the part of a section in which the codes alone invent most, with its errors coloured, and the VOI of the
# whole volume above each picture. An invented membrane may split a neuron, and a lost one may merge two, so their
# colours are those of splits and merges in lesson 05:

# %%
INVENTED, LOST = plots.SPLIT, plots.MERGE
window = [min(128, side) for side in sides]
invented = pixels.unmatched_membranes(results["codes alone"][z : z + 1].numpy(), truth[z : z + 1].numpy())
crowded = torch.nn.functional.avg_pool2d(torch.from_numpy(invented).float(), window, stride=4)[0].numpy()
row, column = (int(i) for i in np.unravel_index(crowded.argmax(), crowded.shape))  # of the low pixel in the corner
cut = np.s_[z, 4 * row : 4 * row + 128, 4 * column : 4 * column + 128]


def show_errors(ax, name, result):
    ax.imshow(result[cut], vmin=0, vmax=1)
    counts = []
    for sections, others, color in ((result, truth, INVENTED), (truth, result, LOST)):
        mask = pixels.unmatched_membranes(sections[z : z + 1].numpy(), others[z : z + 1].numpy())[0][cut[1:]]
        ax.imshow(np.where(mask[..., None], (*to_rgb(color), 1.0), 0.0))
        counts.append(mask.sum())
    plots.frame(ax, volume.voxel_size, f"{name}\nVOI {vois[name]:.2f} bits")
    return counts


# %% alt="Six pictures of the same piece of tissue: low pixels, bicubic, codes alone, the codebook with three sections, a small network, and the truth. Blue lines mark invented membranes, orange lines lost ones; the codes alone have most of both."
figure, axes = plt.subplots(2, 3, figsize=(13, 9.5), layout="constrained")
axes[0, 0].imshow(low[z, row : row + 32, column : column + 32], vmin=0, vmax=1)
plots.frame(axes[0, 0], [4 * nm for nm in volume.voxel_size], "low pixels\n")
compared = zip(axes.flat[1:], {**results, "truth": truth}.items(), strict=True)
errors = {name: show_errors(ax, name, result) for ax, (name, result) in compared}
plots.color_legend(axes[1, 1], {"invented membrane": INVENTED, "lost membrane": LOST})
plt.show()
most = errors.pop("codes alone")
assert DATASET != "phantom" or np.greater(most, np.max([*errors.values()], axis=0)).all()  # as the text says

# %% [markdown]
# **What to see.** The codes alone have most blue and orange lines: they draw what tissue usually looks like, and not
# this piece of it. The others keep nearly every membrane, if only as a blurred one. Now compare their VOI with that of
# the truth. A membrane that is kept may still be too blurred for a model that has only seen sharp ones. (On tissue that
# the model does not know, such as AC4, even the blurred picture may score better than the truth.) **And without the
# truth beside it, you could not tell a blue line from a membrane.**
#
# ## 7 · Measured: does a sharper picture give better neurons?

# %%
quiz.ask("17", "best")

# %% [markdown]
# All networks below learned from FIB-25's unlabelled sections, with three seeds each, and each of them took about the same
# time of one core. They are judged on the validation parts of FIB-25 and of gala. What is measured, and what is missing?

# %%
rows = study.read_enlarged()
print(study.describe_missing_enlargings(rows))
times = [run["core_seconds"] for runs in rows.values() for run in runs if run["core_seconds"] > 1]  # of trained rows
assert 20 < np.mean(times) < 45 and max(times) < 1.5 * min(times)  # as the text says

# %% alt="Three panels for FIB-25 with a line for each of true sections, bicubic, codes alone, small networks and codebooks: PSNR, the shares of lost and of invented membranes as bars to the left and to the right, and VOI."
charts.enlarged_figure(study.enlarged_panels(rows, "fib25"), study.summarise_enlarged(rows, "fib25"))
plt.show()

# %% [markdown]
# **How to read it.** Every dot is a run, a black line is a mean, and the number of runs is in brackets. In the
# middle, orange bars are lost membranes and blue bars are invented ones. PSNR is better to the right, VOI to the
# left, and short bars are better than long ones. Look for rows whose rank differs between the panels. The sentences
# are computed from the rows:

# %%
for name, title in study.ENLARGED_VOLUMES.items():
    for sentence in study.judge_enlargings(rows, name):
        print(f"{title:7} {sentence}")
groups = {}
for name, title in study.ENLARGED_VOLUMES.items():
    answers = {q: study.enlarged_answer(rows, pair, name) for q, pair in study.PAIRS_OF_ENLARGINGS.items()}
    groups[f"VOI on {title}"] = [[question, *answer] for question, answer in answers.items() if answer]
    scores = {row: study.enlarged_scores(rows, row, name, "voi") for row in rows}
    assert scores["truth"][0] < min(scores["plain"]) <= max(scores["plain"]) < scores["bicubic"][0]  # as the text says
    assert scores["bicubic"][0] < min(scores["codes"])
    for ours, theirs in study.PAIRS_OF_ENLARGINGS.values():
        overlap = max(scores[ours]) >= min(scores[theirs]) and max(scores[theirs]) >= min(scores[ours])
        worse = (name, ours, theirs) == ("gala", "plain_3", "plain")  # in all runs
        assert overlap == (theirs != "bicubic" and not worse)
        assert not worse or min(scores[ours]) > max(scores[theirs])
    assert " on 0 of " in study.judge_enlargings(rows, name)[-1]
heads = ["question", "VOI of the first", "of the second", "difference", "p"]
fold_table(heads, groups, study.describe_missing_enlargings(rows))

# %% [markdown]
# **What to see.** (Bicubic learns nothing, so it has a single run, and no *p* is possible.) On both volumes the small
# network beats bicubic, codes alone are worse than bicubic, and true sections are better than all. Does it help to
# add the codebook, or neighbouring sections? Not that we could see: the runs with it and without it overlap, and where
# they do not, on gala, neighbouring sections made the small network worse in all three. And PSNR and VOI rank no two rows differently in all runs. So **here the sharper picture does give
# better neurons, but it brings back only a part of what the missing pixels cost.**
# [super_resolution.md](../docs/measured/super_resolution.md) has every row.
#
# **Limits.** Our low pixels are means of clean voxels; with larger pixels, a real microscope has different noise
# and a different blur. FIB-25's sections are only 10 nm apart, so a neighbouring section says more than in serial sections of
# 40 nm. A run takes about half a minute of one core, and the authors' networks are far larger. The map of membranes
# also marks ridges that are no membranes, such as edges of mitochondria, in the truth as in the results. The shipped model
# was trained at full size: one that is trained on enlarged sections may forgive more.
#
# ## Your exercises

# %%
checks.report("17")

# %% [markdown]
# ## What you learned
#
# - Sixteen times fewer pixels save time, and VOI says what they cost.
# - Agreement with the measured pixels can be enforced exactly, and never makes the error larger. It does not rule out an
#   invented membrane.
# - A codebook writes tissue in few words. Its choice has no gradient, so training passes it straight through.
# - A guessed code draws what is usual in tissue, which need not be here. Fusion lets it advise instead of decide.
# - PSNR, counts of membranes and VOI measure different things. Report all three.
#
# ## Try it
#
# 1. Call `pixels.unmatched_membranes` with `tolerance=1` and with `tolerance=4` in part 6. Which picture changes most?
# 2. Apply `pixels.make_consistent` to the codes alone. What happens to PSNR, and what to the invented membranes?
# 3. In part 5, replace `SuperResolver(1)` by `SuperResolver(3)`, without an indexer, and the name `"plain"` by
#    `"plain_3"`. (A run with a known name is loaded, and not done again.) Is it the codes or the neighbours that help?
# 4. Take one voxel of each square instead of the mean: `points = pixels.enlarge_volume(None, truth[:, ::4, ::4])`. Count
#    with `pixels.count_membranes(points.numpy(), truth.numpy())`. How many membranes are lost now, and invented?
#
# ## References
#
# - J. Shou, Z. Xiao, S. Deng, W. Huang, P. Shi, R. Zhang, Z. Xiong, F. Wu. *Learning Large-Factor EM Image Super-Resolution
#   with Generative Priors.* CVPR 2024 (GPEMSR).
# - A. van den Oord, O. Vinyals, K. Kavukcuoglu. *Neural Discrete Representation Learning.* NeurIPS 2017,
#   [arXiv:1711.00937](https://arxiv.org/abs/1711.00937) (the codebook).
# - Y. Bengio, N. Léonard, A. Courville. *Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
#   Computation.* 2013, [arXiv:1308.3432](https://arxiv.org/abs/1308.3432) (straight through).
# - W. Shi et al. *Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
#   Network.* CVPR 2016, [arXiv:1609.05158](https://arxiv.org/abs/1609.05158) (pixel shuffle).
