# %% [markdown]
# # 16 · Fewer bits: what breaks first when a network is squeezed, and what repairs it without training
#
# <!-- badges -->
#
# **What you will learn**
#
# - how a network's numbers become whole numbers of 8 or 4 bits, and how large the error of one number can be;
# - why a layer's activations share one step, and what one wide channel does to all others;
# - how to plant such a channel without changing what the network computes;
# - how SmoothQuant, and groups with a shift and a scale, move the width out of the activations, at hardly any cost;
# - what few bits cost in neurons, in MB and in ms, on the machine in front of you.
#
# **Before you start.** Lessons 02, 03 and 05 explain encoder, model and VOI. You can start without them.
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
# ## 1 · From numbers to levels
#
# A trained network is a file of numbers with 32 bits each, about seven digits. Does it need seven digits? With 8 bits
# a number has one of 256 values, with 4 bits one of 16. The file shrinks to a quarter or an eighth, and processors
# multiply small whole numbers faster than long ones. Turning the numbers of a network that is already trained into few
# bits is called **post-training quantisation**. It needs no labels and hardly any time.
#
# Rounding works with evenly spaced levels. A **step** $\Delta$ is the distance between two neighbouring levels, and each
# value gets the number of its nearest level, its **code**:
#
# $$k = \mathrm{round}(x / \Delta) + k_0, \qquad \hat x = \Delta\,(k - k_0), \qquad 0 \le k < 2^b.$$
#
# $k_0$ is the code of the value 0. It is a whole number, so 0 stays exactly 0.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from fgnet_lib.course import checks, quiz
from fgnet_lib.inference import predict
from fgnet_lib.metrics import voi
from fgnet_lib.neighbours import quantisation
from fgnet_lib.neighbours.quantisation import Quantiser, Recipe
from fgnet_lib.segmentation import segment
from fgnet_lib.study import bits as measured
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table
from fgnet_lib.weights import load_pretrained, pretrained_threshold

# %% [markdown]
# Here the range from -1 to 2 (shaded) has 3 bits: 8 levels. Some values lie outside of it.

# %% alt="Left, a staircase of 8 levels along the diagonal. Right, the error: a saw between minus and plus half a step. The range of the levels is shaded; on both sides of it the error grows."
x = torch.linspace(-1.6, 2.8, 800)
quantiser = Quantiser(low=torch.tensor(-1.0), high=torch.tensor(2.0), bits=3)
with torch.no_grad():
    rounded, step = quantiser(x), quantiser.step
    again = quantiser(rounded)
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.6))
left.plot(x, x, color="0.7", label="exact")
left.plot(x, rounded, label="rounded to 3 bits")
left.set(xlabel="value x", ylabel="value after rounding", title=f"8 levels, {step:.2f} apart")
left.legend()
right.plot(x, rounded - x)
for ax in (left, right):
    ax.axvspan(-1, 2, color="0.93", zorder=0)
for sign in (-1, 1):
    right.axhline(sign * float(step) / 2, color="0.5", ls="--")
right.set(xlabel="value x", ylabel="error", title="within the range the error is at most half a step (dashed)")
plt.show()
largest = (rounded - x)[(x >= -1) & (x <= 2)].abs().max() / step
print(f"largest error between -1 and 2: {largest:.3f} steps; rounding again changes {(again != rounded).sum()} values")
assert largest <= 0.5 + 1e-4 and torch.equal(again, rounded)

# %% [markdown]
# **What to see.** Within the range no error exceeds half a step. Beyond its ends the error grows without limit, because
# values there get the first or the last level: they are *clipped*. So the range is a compromise. A wide range clips
# nothing but has long steps; a narrow one has short steps but clips. The printed line shows two rules that follow from
# the equation: the error within the range is at most $\Delta / 2$, and rounding twice is the same as rounding once. The
# levels do not begin at -1 and end at 2 exactly: all of them are moved a little, so that one of them is 0.
#
# **Exercise 16.1: round to levels.** Return `x` with each value rounded to the nearest of $2^b$ evenly spaced levels, where
# $b$ is `bits`. The first level is the least value of `x`, the last its largest. (Return the levels, not their codes. This
# simple version need not keep 0 exact.)


# %% tags=["task"]
def my_round(x, bits):
    return ...


# %% tags=["solution"]
def my_round(x, bits):
    low, high = x.min(), x.max()
    step = (high - low) / (2**bits - 1)
    return low + np.round((x - low) / step) * step


# %%
checks.rounded_values(my_round)

# %% [markdown]
# ## 2 · Whole numbers inside
#
# Why must all activations of a layer share one step? Put codes $q$ of $w$ and $p$ of $x$ into a linear layer,
# $y_k = \sum_c w_{kc}\,x_c$:
#
# $$y_k \approx \sum_c \Delta^w_k\, q_{kc}\; \Delta^x (p_c - p_0) = \Delta^w_k\, \Delta^x \underbrace{\sum_c q_{kc}\,(p_c - p_0)}_{\text{whole numbers}}.$$
#
# The sum needs whole numbers only, because both steps can be taken out of it. The step of the **weights** may differ
# from one output $k$ to the next (*per channel*). The step of the **activations** must not depend on $c$, or it could
# not leave the sum. So the whole layer has one step (*per tensor*). Remember this: it is the cause of all
# trouble below.

# %% [markdown]
# ### Further: a layer of whole numbers by hand
#
# **Exercise 16.2: a layer of whole numbers.** `codes` are activations (n, C) in uint8, with the code `zero` for the value 0
# and one `step`. `weight_codes` are weights (K, C) in int8, with the code 0 for the value 0, and `weight_steps` (K,).
# Return the outputs (n, K) as floats. Mind that 8 bits overflow.


# %% tags=["task"]
def my_product(codes, zero, step, weight_codes, weight_steps):
    return ...


# %% tags=["solution"]
def my_product(codes, zero, step, weight_codes, weight_steps):
    total = (codes.astype(np.int32) - zero) @ weight_codes.astype(np.int32).T
    return total * step * weight_steps


# %%
checks.integer_product(my_product)

# %% [markdown]
# ### Whole numbers, or rounded ones
#
# So there are two ways to the same result: compute with whole numbers, or round in floating point and compute as
# before. The second is called *fake quantisation*. It is slower, but it runs everywhere and is good enough to ask what
# rounding costs. Are the two really equal? We try it on a layer of the shipped model's guide, the encoder that learned
# from photographs (lesson 02). It has five stages of blocks, and each block first *widens* its channels: this layer makes
# 480 of 80. The crop that shows what activations are like comes from the training part, and **needs no labels**: this is
# **calibration**. (Lesson 15 asks whether probabilities are *calibrated*, which is something else.)

# %%
model = load_pretrained()
training = session.volume("train", (4, 128, 128))
raw = torch.from_numpy(training.raw / np.float32(255))[None, None]
raw = raw[..., : raw.shape[-2] // 32 * 32, : raw.shape[-1] // 32 * 32]  # what the encoder takes (lesson 02)
layer_name = "stages.3.1.widen"  # of the second block of the fourth stage
layer = model.encoder.get_submodule(layer_name)
weight, bias = layer.weight.detach().flatten(1), layer.bias.detach()  # a 1 x 1 convolution is a linear layer
seen = quantisation.observe(model.encoder, lambda: model.encode(raw), [layer_name])[layer_name]
inputs = Quantiser(seen.low.min(), seen.high.max(), bits=8)
largest = weight.abs().amax(dim=1, keepdim=True)
weights = Quantiser(-largest, largest, bits=8)
with torch.no_grad():
    whole = quantisation.integer_linear(seen.rows, weight, bias, inputs, weights)
    fake = torch.nn.functional.linear(inputs(seen.rows), weights(weight), bias)
    exact = torch.nn.functional.linear(seen.rows, weight, bias)
print(f"whole numbers against fake: largest difference {(whole - fake).abs().max():.1e}")
error, size = (whole - exact).abs().max(), exact.abs().max()
print(f"8 bits against 32 bits:     largest difference {error:.1e}, values up to {size:.1f}")
assert (whole - fake).abs().max() < 1e-4

# %% [markdown]
# ## 3 · Whose range? Tensor, channel, group
#
# The layer reads 80 channels. Each has its own range on our crop. What would the error be with 4 bits if every channel
# had a step of its own, or every group of 16 channels in a row, or all together?

# %%
channels, errors = len(seen.low), []
lows, highs = seen.low.detach(), seen.high.detach()
for name_of, size in {"per tensor": channels, "per group of 16": 16, "per channel": 1}.items():
    low = lows.reshape(-1, size).amin(1).repeat_interleave(size)
    high = highs.reshape(-1, size).amax(1).repeat_interleave(size)
    with torch.no_grad():
        error = Quantiser(low, high, bits=4)(seen.rows) - seen.rows
    errors.append(100 * error.norm() / seen.rows.norm())
    print(f"{name_of:16} {errors[-1]:5.1f} % error of the activations with 4 bits")
assert errors[0] > errors[1] > errors[2]  # as the text says

# %% [markdown]
# **What to see.** The finer the ranges, the smaller the error. But only *per tensor* lets the steps leave the sum. The
# question of this lesson is how to get some of the gain of finer ranges with one step.
#
# ## 4 · One wide channel
#
# Large networks have **outlier channels**: a few channels whose activations are ten or a hundred times as wide as those
# of the others. PQ-SAM reports them in SAM. Our guide is another network, and it has few (part 8). So **we plant them
# ourselves**: the outliers below are not SAM's. The blocks of a stage add up their results. In each stage we make two
# channels of this sum 100 times as large, and the columns of all layers that read them 100 times as small. The two changes
# cancel each other: the network computes what it did before. We check it where the coarse decoder reads the guide's maps:


# %%
@torch.no_grad()
def read_guide(network, sections):
    maps = network.encode(sections)
    return [project(features) for project, features in zip(network.project, maps, strict=True)]


def compare_guides(network, sections):
    pairs = zip(read_guide(network, sections), read_guide(model, sections), strict=True)
    return [((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs]


planted = quantisation.plant_outliers(model, channels=2, factor=100)
for stride, error in zip((4, 8, 16), compare_guides(planted, raw), strict=True):
    print(f"stride {stride:2}: what is read differs by {error:.0e} of its size")
    assert error < 1e-4

# %%
quiz.ask("16", "levels-left")

# %% [markdown]
# The picture shows the range of each channel of the same layer, the narrowest to the left. Grey lines are the 16 levels
# that 4 bits lay over the range of the whole layer; one of them is 0.


# %%
def draw_ranges(ax, low, high, title):
    order = np.argsort(high - low)
    low, high = low[order], high[order]
    quantiser = Quantiser(torch.tensor(low.min()), torch.tensor(high.max()), bits=4)
    levels = ((torch.arange(16) - quantiser.zero) * quantiser.step).detach().numpy()
    inside = np.array([np.sum((levels >= a) & (levels <= b)) for a, b in zip(low, high, strict=True)])
    ax.hlines(levels, -2, len(low) + 1, color="0.8", lw=0.8, zorder=0)
    ax.vlines(np.arange(len(low)), low, high, lw=1.5)
    ax.set(
        xlabel="channel, by width",
        ylabel="activation",
        title=f"{title}\nlevels in a typical channel: {np.median(inside):.0f} of 16",
    )
    return inside


def ranges_of(encoder):
    activations = quantisation.observe(encoder, lambda: encoder(raw), [layer_name])[layer_name]
    return activations, activations.low.numpy(), activations.high.numpy()


# %% alt="Left, the ranges of 80 channels: nearly every one contains several of the 16 grey levels. Right, after planting, two channels at the right end reach a hundred times as far, and all others are a thin line around the level 0."
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2))
draw_ranges(left, *ranges_of(model.encoder)[1:], "as trained")
inside = draw_ranges(right, *ranges_of(planted.encoder)[1:], "with two planted channels")
plt.show()
assert (inside <= 1).sum() == channels - 2  # as the text says

# %% [markdown]
# **What to see.** On the right, two channels decide the step. The other 78 contain a single level at most, and after
# rounding each of them is a constant, nearly always 0. Their information is gone, although the function is the same in
# floating point. No other range for the whole layer helps, because clipping the two wide channels destroys what *they*
# carry.
#
# ## 5 · Move the width where it does no harm
#
# Divide channel $c$ of the activations by $s_c$, and multiply the column $c$ of the weights by $s_c$. The product is the
# same, but the width has moved into the weights, whose steps are finer, and which do not change from image to image.
# **SmoothQuant** chooses $s_c = \max|X_c|^{1/2} / \max|W_c|^{1/2}$, so that activations and weights share the burden.
#
# **PQ-SAM** adds a shift, and a second thought: channels with similar ranges may share both numbers. It cuts off extreme
# values, clusters the channels into $k$ groups, and gives each group a shift $z$ and a scale $s$:
#
# $$\hat X = \frac{X - z}{s}, \qquad \hat W = s\,W, \qquad \hat b = b + W z.$$
#
# Where the layer reads a norm, the norm's own weight and bias can take $1/s$ and $-z/s$, so this costs nothing at run
# time. (Elsewhere, as in our guide, it costs a multiplication and an addition for each value.)
#
# **AHCPTQ**, another method for SAM, also lets channels with similar values share their step. Behind a GELU, where most
# values are tiny and a few are large, it spaces the levels unevenly: by powers of 2 for small values, evenly for large
# ones. We implement the groups, and keep evenly spaced levels.
#
# **Exercise 16.3: a shift and a scale that change nothing.** The layer computes `weight @ x + bias`, with `weight`
# (K, C). `z` and `s` are (C,), one number for each channel. Return the weight and the bias of the layer that computes the
# same from $(x - z) / s$.


# %% tags=["task"]
def my_fold(weight, bias, z, s):
    return ...


# %% tags=["solution"]
def my_fold(weight, bias, z, s):
    return weight * s, bias + weight @ z


# %%
checks.folded_layer(my_fold)

# %% [markdown]
# Here are 4 groups for the layer with the planted channels, with the scale chosen so that all groups become equally
# wide:

# %% alt="Left, channels before: two reach a hundred times as far as the rest. Right, after a shift and a scale for each of 4 groups, all channels cover many of the 16 levels."
activations, low, high = ranges_of(planted.encoder)
transform = quantisation.group_channels(activations, groups=4, alpha=1)
z, s = (values[transform.group].numpy() for values in (transform.shift, transform.scale))
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2))
draw_ranges(left, low, high, "before")
draw_ranges(right, (low - z) / s, (high - z) / s, "after, 4 groups")
plt.show()
sizes = np.bincount(transform.group.numpy())
print("channels in each group:", *sizes, "  scale of each group:", *(f"{value:.1f}" for value in transform.scale))
assert min(sizes) == 2 and sizes[np.argmax(transform.scale)] == 2  # the wide channels, as the text says

# %% [markdown]
# **What to see.** One step now serves all channels. The wide channels form a group of their own, so two numbers for each
# group were enough.
#
# One choice remains: *how much* of the width should move? Weights with 4 bits suffer when they have to carry it all. So
# the library tries five powers of the width for each layer. Then it **learns** shifts, scales and steps, block by block.
# A rounded block sees what the rounded blocks before it give, and should give what the original block gives. This takes
# a few steps of Adam on our crop, needs no labels, and leaves the weights as they are. (Rounding has no useful
# derivative, so gradients pass it as if it were not there: a *straight-through* estimate.)
#
# ## 6 · All of it, on a volume
#
# Now we round the whole encoder, first as trained, then with planted outliers. Lesson 03's model gives affinities twice:
# the coarse $A_s$, which depend on the encoder alone, and the refined $A_r$, for which the Fine-Grained Encoder also sees
# the image at full resolution. So we look at three things: the error of the encoder's features as the coarse decoder
# reads them (the mean of its three maps), the mean change of an affinity of $A_r$, and the neurons, segmented from $A_s$
# and from $A_r$. All rows use the threshold that was chosen for the model in floating point.
#
# **W4A8** means weights of 4 bits and activations of 8. The first and the last layer of the network keep 8 bits, as usual,
# and so do depthwise convolutions, which see one channel alone: a tenth of its weights, which 4 bits harm
# most.
# **Min-max** takes the range of the activations from their least to their largest value; a **percentile**, which you meet
# further down, leaves out the most extreme ones.

# %%
volume = session.volume("val", (8, 160, 160) if PROFILE == "fast" else (16, 192, 192))
test = torch.from_numpy(volume.raw[:2, :128, :128] / np.float32(255))[None, None]
steps = 5 if PROFILE == "fast" else 20
predictions, results = {}, {}


def measure_voi(affinities):
    return sum(voi(segment(affinities, volume.voxel_size, pretrained_threshold(), strict=False), volume.labels))


def judge(title, quantised):
    error = np.mean(compare_guides(quantised, test))
    predictions[title] = now = predict(quantised, volume.raw, device="cpu", progress=False)
    change = np.abs(now.refined - predictions["32 bits"].refined).mean()
    results[title] = error, measure_voi(now.coarse), measure_voi(now.refined)
    vois = " ".join(f"{bits:6.2f}" for bits in results[title][1:])
    print(f"{title:33} {error:8.1%} {change:12.4f} {vois} {quantisation.megabytes(quantised.encoder):8.1f}")


print(f"{'':33} features  A_r changed   VOI of     of  encoder\n{'':33}    wrong           by    A_s    A_r       MB")
judge("32 bits", model)

# %%
recipes = {
    "W8A8, min-max": Recipe(8, 8),
    "W4A8, min-max": Recipe(4, 8),
    "W4A4, min-max": Recipe(4, 4),
    "W4A4, 16 groups, learned": Recipe(4, 4, transform="groups", groups=16, steps=steps),
}
for start, network in {"": model, "planted: ": planted}.items():
    for title, recipe in recipes.items():
        judge(start + title, quantisation.quantise_fgnet(network, recipe, raw))
for start in ("", "planted: "):  # as the text says
    wrong = [results[start + title][0] for title in recipes]
    assert wrong[0] < wrong[1] and wrong[2] > wrong[3] and (start or wrong[1] < wrong[2])
exact, ruined = results["32 bits"], results["planted: W4A4, min-max"]
if DATASET == "phantom":
    assert min(np.divide(ruined[1:], exact[1:])) > 2
    assert results["W4A4, min-max"][0] > 0.4
    assert max(abs(np.subtract(results["W4A4, min-max"][1:], exact[1:]))) < 0.1

# %% [markdown]
# Three of these rows in pictures, $A_s$ above and $A_r$ below; dark is a boundary, and colours tell the axes apart:

# %% alt="A section of EM, and six pictures of affinities: A_s above and A_r below, with 32 bits, with 4 bits by min-max and planted outliers, and with 4 bits in 16 learned groups. By min-max A_s is a single colour on the phantom, and A_r has membranes with dark specks between them."
middle = volume.shape[0] // 2
figure, axes = plt.subplots(2, 4, figsize=(15, 8.2))
plots.show_section(axes[0, 0], volume.raw, None, volume.voxel_size, middle, f"EM, section {middle}")
axes[1, 0].axis("off")
shown = {
    "32 bits": "32 bits",
    "planted: W4A4, min-max": "4 bits, min-max, planted",
    "planted: W4A4, 16 groups, learned": "4 bits, 16 groups, planted",
}
for column, (title, words) in zip(axes[:, 1:].T, shown.items(), strict=True):
    for ax, output in zip(column, ("coarse", "refined"), strict=True):
        heading = f"{measured.OUTPUTS[output]}, {words}"
        plots.show_affinities(ax, getattr(predictions[title], output), volume.voxel_size, middle, heading)
plt.show()

# %% [markdown]
# **What to see.** Read the rows of the table in pairs. From W8A8 to W4A8 to W4A4 the features
# become more wrong, as trained. A row
# with planted outliers and its twin without them have the same bits and the same function in floating point, so the
# difference between the two is the work of two channels in each stage. The last row of each half shows how much error 16
# groups take back. Then compare the columns. As trained, VOI hardly moves even where features are wrong by half of their
# size, because only affinities near the threshold decide.
#
# Now look at the pictures with planted outliers, 4 bits and min-max. On the phantom, $A_s$ shows nothing of the tissue any
# more. $A_r$ still sees the image and draws its membranes, but it fills the neurites with dark specks, and VOI rises as
# well. Why? The Fine-Grained Encoder computes in floating point, but its features are multiplied by the attention maps,
# $F' = F a$, and these come from the ruined features: **a wrong map erases what should stay, and no sharp image brings it
# back.** Do not judge by one crop, though: each row of the table is one calibration on one small volume.
#
# ### Measured: three calibrations, four volumes
#
# `make bits` does the same with three crops for calibration, on crops of four volumes, and with the whole model rounded as
# well. The line below says how many of its runs are measured. First come the affinities $A_s$, from the encoder alone.
# Squares are means over the calibrations, bars their standard deviation, small dots single runs, and the dashed line is
# the model with 32 bits. Below each name such as W4A8 you read the MB of what was rounded.

# %%
table = measured.read_bits()
print(measured.describe_unmeasured(table))

# %% alt="VOI of A_s against bits, a row of panels for each network and a column for each volume. With planted outliers and W4A4, min-max and percentile rise by 0.7 to 2.8 bits. Groups stay near the dashed line of 32 bits, and so does SmoothQuant except on AC4, where it rises by 1.6 bits."
charts.bits_figure(measured.bits_panels(table, "coarse")).suptitle(measured.describe_figure("coarse"))
plt.show()

# %% [markdown]
# And the affinities $A_r$ of the same runs, which also see the image at full resolution:

# %% alt="The same panels for A_r. With planted outliers and W4A4, min-max and percentile rise by 1.4 to 2.9 bits; rounding the whole model hardly moves a line on FIB-25 and gala, and on AC4 and CREMI B the lines wander up and down."
charts.bits_figure(measured.bits_panels(table, "refined")).suptitle(measured.describe_figure("refined"))
plt.show()


def mean_voi(network, method, output, width="W4A4"):
    cell = measured.Cell(network, method, width)
    return np.array([np.mean(measured.bits_scores(table, cell, name, output)) for name in measured.JUDGED_ON])


exact = {
    output: np.array([measured.exact_score(table, name, output) for name in measured.JUDGED_ON])
    for output in ("coarse", "refined")
}
for output, voi_32 in exact.items():  # as the text says; the first two volumes are tissue that the model knows
    for method in ("min_max", "percentile"):
        assert (mean_voi("planted", method, output) > 1.4 * voi_32).all()
    for method in ("smooth", "groups"):
        assert (mean_voi("planted", method, output) < voi_32 + 0.15)[:2].all()
    assert mean_voi("planted", "smooth", output)[2] > 1.4 * voi_32[2] > mean_voi("planted", "groups", output)[2]

# %%
smaller, larger = (mean_voi("planted", method, "coarse", "W4A8") for method in ("percentile", "min_max"))
assert (larger > exact["coarse"]).all() and (smaller < larger)[:2].all()
assert (mean_voi("planted", "min_max", "coarse", "W8A8") > exact["coarse"] + 0.2)[:3].all()
assert min(mean_voi("whole", method, "coarse")[2] for method in ("min_max", "percentile")) > exact["coarse"][2] + 1
for method in measured.METHODS:
    assert (mean_voi("trained", method, "refined") < exact["refined"] + 0.15)[:2].all()
    assert (np.abs(mean_voi("whole", method, "refined") - mean_voi("trained", method, "refined")) < 0.15)[:2].all()

# %% [markdown]
# **What to see.** Begin with FIB-25 and gala, which the model knows. In the upper row $A_r$ hardly changes: the encoder as
# trained bears 4 bits by every method, at about a sixth of its size. In the middle row, by min-max, a few planted channels
# cost $A_s$ neurons even with 8 bits for weights and activations, and with activations of 4 bits they ruin everything. A
# percentile repairs a part of what activations of 8 bits lose (here with weights of 4), and nothing of the rest.
# SmoothQuant and groups both come back to the dashed line.
#
# Then look for the same catastrophe in $A_r$. It is there: the Fine-Grained Encoder sees the image in floating point, and
# yet $A_r$ falls with the encoder, because its features are multiplied by maps that the encoder's features made. **Which
# numbers lose their bits matters, and not only how many bits they lose.** The lower row shows it from the other side: on
# FIB-25 and gala, $A_r$ hardly notices that the Fine-Grained Encoder and the decoders are rounded as well.
#
# On AC4 and CREMI B the lines wander up and down. Do not read gains into that: these crops are small, and VOI jumps with
# every large merge that appears or disappears. Some losses on AC4 are large in all runs. With planted outliers, only
# groups come back to the dashed line, and SmoothQuant does not. And where the whole model is rounded to 4 bits, by min-max
# or by a percentile, the VOI of $A_s$ rises by about a bit or more.
#
# Here are the same runs as questions. *p* is counted by permutation, as in lesson 07; with three runs of each it cannot be
# less than 0.10. The last column says whether the difference has the sign that we had expected: *came in all runs* means
# that no run of one side reaches the other side, *came in the mean* that the runs overlap, so that it may be chance.

# %%
groups = {}
for name, (title, _) in measured.JUDGED_ON.items():
    for output, words in measured.OUTPUTS.items():
        answers = {key: measured.bits_answer(table, q, name, output) for key, q in measured.QUESTIONS.items()}
        groups[f"{words}, {title}"] = [[key, *answer] for key, answer in answers.items() if answer]
fold_table(["question", "VOI of the first", "of the second", "difference", "p", "as expected?"], groups)

# %% [markdown]
# **What did we expect, and where were we wrong?** The same verdicts, side by side for all volumes:

# %%
verdicts = {f"VOI of {words}": measured.expectation_rows(table, output) for output, words in measured.OUTPUTS.items()}
titles = [title for title, _ in measured.JUDGED_ON.values()]
ahead = mean_voi("planted", "groups", "coarse") < mean_voi("planted", "smooth", "coarse")
assert ahead.any() and not ahead.all()  # as the text says
fold_table(["question", "VOI should be", *titles], {key: verdicts[key] for key in sorted(verdicts, reverse=True)})

# %% [markdown]
# Two expectations deserve a second look. We expected 4 bits to cost many neurons even without planted outliers; this
# small encoder bears them. And we expected groups to beat SmoothQuant, since they also shift and learn; which of them is
# ahead depends on the volume.
# None of this says what happens in SAM's own encoder, which is much larger.
# [bits.md](../docs/measured/bits.md) has every number.
#
# ## 7 · Whole numbers at work
#
# All rows above simulate rounding, so their times say nothing. The engines of this library convert the whole model to
# whole numbers of 8 bits, where ONNX Runtime is installed (`pip install -r requirements-engines.txt`).

# %%
quiz.ask("16", "smaller-quicker")

# %%
import time

from fgnet_lib.engines.quantisation import quantise
from fgnet_lib.engines.runtimes import Converted, installed_engines, record_parts

networks = {"PyTorch, 32 bits": model}
if "onnxruntime" in installed_engines():
    networks["ONNX Runtime, 32 bits"] = Converted(model, "onnxruntime", record_parts(model)).eval()
    networks["ONNX Runtime, 8 bits"] = quantise(model, [training.raw], "onnxruntime")
else:
    print("ONNX Runtime is not installed here, so only PyTorch is timed")
for title, network in networks.items():
    predict(network, volume.raw[:4], device="cpu", progress=False)  # the first time has set-up in it
    start = time.perf_counter()
    refined = predict(network, volume.raw, device="cpu", progress=False).refined
    seconds = time.perf_counter() - start
    change = np.abs(refined - predictions["32 bits"].refined).mean()
    milliseconds = 1000 * seconds / len(refined[0])
    print(f"{title:22} {milliseconds:5.0f} ms a section, A_r changed by {change:.4f}, VOI {measure_voi(refined):.2f}")

# %% [markdown]
# **What to see.** Compare the two lines of ONNX Runtime: the difference between them is what 8 bits do to the time on
# *your* processor. Its instructions count: without VNNI or AMX the gain is small, and sums of two products of 8 bits
# would even overflow. So weights get only 7 of the 8 bits here. The engine counts, too.
#
# One crop is a small test for VOI. Here is the same on the whole volumes, calibrated three times, from a processor
# with VNNI. *Change* is how far an affinity of $A_r$ moves on average, *MB* is the size of the whole model's file,
# and *seconds* are those of one core for all four volumes:

# %%
for run in table["engines"].values():
    exact, rounded = run["32 bits"], run["8 bits"]
    assert 0.3 < rounded["megabytes"] / exact["megabytes"] < 0.4  # as the text says
    assert 0.5 < rounded["core_seconds"] / exact["core_seconds"] < 1.1
    for name in ("fib25", "gala"):
        vois = [sum(of["volumes"][name][key] for key in ("voi_split", "voi_merge")) for of in (exact, rounded)]
        assert abs(vois[1] - vois[0]) < 0.05
ratios = {
    name: np.mean([
        table["engines"][f"{name} {seed}"]["8 bits"]["core_seconds"]
        / table["engines"][f"{name} {seed}"]["32 bits"]["core_seconds"]
        for seed in measured.SEEDS
    ])
    for name in measured.ENGINES
}  # fmt: skip
assert ratios["openvino"] < ratios["onnxruntime"]
fold_table(measured.ENGINE_HEADS, {"8 bits at work": measured.engine_rows(table)})

# %% [markdown]
# **What to see.** Compare the two lines of an engine. With 8 bits VOI hardly moves on FIB-25 and gala, which resemble the
# sections of the calibration. On AC4 and CREMI B it may move more, in either direction. The file of the whole model
# shrinks to about a third, not to a quarter, because only the weights of products get 8 bits. The last column gives the
# time as a share of that with 32 bits: OpenVINO gains more than ONNX Runtime, and neither is twice as
# fast. **Eight bits always save space. Whether they save time depends on the processor and on the engine.**

# %% [markdown]
# ## 8 · Further: does the real SAM2.1 have outlier channels?
#
# We had to plant outliers into our guide. Does SAM2.1's own encoder have some? Where its weights are, you can
# measure it. The number is the width of the widest channel of a layer's input, divided by the width of the median channel.
# For each encoder you see the five highest numbers of all layers that mix channels.


# %%
from fgnet_lib.datasets import fetch
from fgnet_lib.sam2_encoder import build_encoder


def show_widest(title, encoder, part):
    names = quantisation.layer_names(encoder, part)
    layers = [name for name in names if quantisation.is_pointwise(encoder.get_submodule(name))]
    seen = quantisation.observe(encoder, lambda: encoder(raw), layers)
    ratios = sorted(map(quantisation.outlier_ratio, seen.values()), reverse=True)
    print(
        f"{title:24} widest / median channel, five highest of {len(ratios)} layers:", *(f"{r:.0f}" for r in ratios[:5])
    )
    return ratios


as_trained = show_widest("our guide, as trained", model.encoder, "stages")
widest = show_widest("our guide, planted", planted.encoder, "stages")
assert DATASET != "phantom" or (widest[9] > 50 and as_trained[1] < 5 < as_trained[0] < 20)  # as the text says
try:
    sam2 = build_encoder("tiny", fetch("sam2.1_hiera_tiny.pt", download=False)).eval()
    show_widest("SAM2.1 tiny", sam2, "image_encoder.trunk.blocks")
except FileNotFoundError:
    print("SAM2.1 tiny: its weights (156 MB) are not on this machine, so nothing was measured. To measure it, run")
    print("    from fgnet_lib.datasets import fetch; fetch('sam2.1_hiera_tiny.pt')")
    print("in a cell of its own, with internet, and then this cell again.")

# %% [markdown]
# **What to see.** The second line shows what planted channels look like in this number: ten layers read them, and all ten
# have numbers above 50. On the phantom as trained, only one layer reaches 5. The third line tells you whether SAM2.1's
# encoder looks like the first line or like the second. (We had no access to its weights when we wrote this, so we claim
# neither.)

# %% [markdown]
# ## Your exercises

# %%
checks.report("16")

# %% [markdown]
# ## What you learned
#
# - Rounding has a step. Within the range an error is at most half a step; rounding twice is rounding once.
# - Weights may have a step for each output. Activations of a layer share one, or the sum is not one of whole numbers.
# - One wide channel makes this step coarse for all. A shift and a scale, folded into the weights, repair it and change
#   nothing in floating point.
# - Learning shifts, scales and steps block by block needs a crop, no labels, and a few seconds.
# - Which numbers lose their bits matters, and not only how many: a few wide channels ruin $A_s$, and through the attention
#   maps $A_r$ as well.
# - A smaller file is certain. A faster one is not: measure it on the machine that will run it.
#
# ## Try it
#
# 1. **Which stage is to blame?** Give `quantise_fgnet` a longer `part`, such as `"encoder.stages.2"`, and round one stage of
#    `planted` at a time with `Recipe(4, 4)`. Which stage changes $A_r$ most, and does VOI rise?
# 2. **Plant harder.** In a new cell, make `harder = quantisation.plant_outliers(model, channels=8, factor=1000)`. Call
#    `judge` as in part 6, also with `Recipe(4, 4, transform="smooth")`: which method gives up first?
# 3. **Calibrate on the wrong tissue.** Take the crop `raw` from another data set than the volume. How much worse do the
#    features and VOI become?
# 4. **3 bits.** `Recipe(3, 8, transform="groups", groups=16, steps=50)`: is the network still of use?
#
# ## References
#
# - X. Liu et al. *PQ-SAM: Post-training Quantization for Segment Anything Model.* ECCV 2024 (groups with a learned shift
#   and scale; no public code, so ours is written from its description and is small).
# - W. Zhang et al. *AHCPTQ: Accurate and Hardware-Compatible Post-Training Quantization for Segment Anything Model.*
#   ICCV 2025, [arXiv:2503.03088](https://arxiv.org/abs/2503.03088).
# - G. Xiao et al. *SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models.* ICML 2023,
#   [arXiv:2211.10438](https://arxiv.org/abs/2211.10438).
# - Y. Li et al. *BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction.* ICLR 2021,
#   [arXiv:2102.05426](https://arxiv.org/abs/2102.05426) (learning block by block).
# - B. Jacob et al. *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference.* CVPR
#   2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877).
