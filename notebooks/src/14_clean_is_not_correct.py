# %% [markdown]
# # 14 · Clean is not correct: does the best picture give you the best neurons?
#
# <!-- badges -->
#
# **What you will learn**
#
# - three kinds of noise, and what **PSNR** says about a picture and what it does not;
# - **Noise2Void**: how a network learns to denoise from noisy sections alone, and which noise it keeps;
# - **joint training**: a denoiser that is told by the segmenter what neurons need;
# - **channel attention**: weights between channels, whatever the size of the picture;
# - an **invertible network** (part 4, *Further*) that divides a picture into content and noise, and gives the noise to
#   another picture;
# - whether the denoiser with the highest PSNR gives the lowest VOI.
#
# **Before you start.** Lesson 04 trains a network on affinities, and lesson 05 explains VOI.
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
# ## 1 · Noise, and a number for it
#
# A microscope that scans faster sees fewer electrons, and its pictures get noisier. So speed and quality are traded
# against each other, and a denoiser promises both. But what is a *good* denoiser: one that makes beautiful pictures, or
# one that gives you the right neurons? **This lesson measures both, and asks whether they agree.**
#
# FIB-25 and the phantom have little noise of their own, so we call them clean. **All other noise in this lesson is ours**:
# we add it, so that we know the truth. Real noise has more than one cause, and changes from day to day.
#
# | kind | model | where it comes from |
# | --- | --- | --- |
# | Gaussian | $y = x + \sigma\,\varepsilon$, a new $\varepsilon$ for each pixel | electronics |
# | Poisson | $y = \sigma^2 k$, $k \sim \mathrm{Poisson}(x / \sigma^2)$ | electrons are counted |
# | lines | $y = x + \sigma\,\varepsilon$, one $\varepsilon$ for each row | the beam's current drifts while it scans row by row |
#
# Here $x$ is a grey value from 0 to 1, $\varepsilon$ is normally distributed, and $\sigma$ is the **strength**.
#
# **What is the papers' and what is ours.** The losses, the embedding module, the couplings and the blind spots are the
# papers', written from their equations. The U-Nets are small, 2D and our own, and all numbers on this page are ours.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import ndimage

from fgnet_lib.course import checks, quiz
from fgnet_lib.metrics import psnr, voi
from fgnet_lib.neighbours import denoising
from fgnet_lib.neighbours.denoising import ChannelAttention, DenoiSeg, Denoiser, SectionPatches, Segmenter, add_noise
from fgnet_lib.neighbours.noise_transfer import Coupling, NoiseSplit, haar, inverse_haar, swap_loss
from fgnet_lib.study import noise as measured
from fgnet_lib.training import TrainConfig, fit
from fgnet_lib.views import charts, plots
from fgnet_lib.views.tables import fold_table

# %% [markdown]
# **PSNR**, the peak signal-to-noise ratio, is the usual measure of a picture against its clean version. For grey values
# up to 1 it is
#
# $$\mathrm{PSNR} = -10 \log_{10}\; \mathrm{mean}\,(y - x)^2 \quad \text{in dB; higher is better.}$$
#
# **Exercise 14.1: PSNR.** `image` and `clean` are arrays of the same shape. Return their PSNR as a number.


# %% tags=["task"]
def my_psnr(image, clean):
    return ...


# %% tags=["solution"]
def my_psnr(image, clean):
    error = np.mean((image - clean) ** 2)
    return -10 * np.log10(error)


# %%
checks.signal_to_noise(my_psnr)

# %% [markdown]
# Here is a section with each noise, all of the same strength:

# %% alt="A section four times: clean, with Gaussian noise as fine grain, with Poisson noise as grain that is weaker in dark places, and with horizontal stripes of line noise. Each title gives the PSNR."
training, volume = session.volume("train"), session.volume("val")
training = training[:24, :, :]
volume = volume[: 4 if PROFILE == "fast" else 8, :, :]
clean, judged = (part.raw.astype(np.float32) / 255 for part in (training, volume))
KINDS, STRENGTH = ("gaussian", "poisson", "line"), 0.3
noisy = {kind: add_noise(clean, kind, STRENGTH, np.random.default_rng(SEED)) for kind in KINDS}
figure, axes = plt.subplots(1, 4, figsize=(15, 4.4), layout="constrained")
axes[0].imshow(clean[4, :128, :128], cmap="gray", vmin=0, vmax=1)
plots.frame(axes[0], volume.voxel_size, "clean")
for ax, (kind, picture) in zip(axes[1:], noisy.items(), strict=True):
    ax.imshow(picture[4, :128, :128], cmap="gray", vmin=0, vmax=1)
    plots.frame(ax, volume.voxel_size, f"{measured.NOISES[kind]}: {psnr(picture, clean):.1f} dB")
plt.show()
squares = {kind: np.mean((picture - clean) ** 2) for kind, picture in noisy.items()}
assert abs(squares["line"] / squares["gaussian"] - 1) < 0.1 and squares["poisson"] < 0.9 * squares["gaussian"]

# %% [markdown]
# **What to see.** Your eye tells the three apart at once, but PSNR does not. Gaussian noise and lines have about the same PSNR,
# because both have the same mean square, and PSNR knows nothing else. It does not see *where* an error is, or whether it
# looks like a membrane. Poisson noise has a higher PSNR: its deviation is $\sigma \sqrt{x}$, so dark places have less.
#
# The mean square of Gaussian noise is $\sigma^2$. So its PSNR is $-20 \log_{10} \sigma$, whatever the picture is. A camera
# clips its values to 0 to 1, and that takes some of the noise away:

# %%
for strength in (0.05, 0.15, 0.3):
    picture = add_noise(clean, "gaussian", strength, np.random.default_rng(SEED))
    before, after = psnr(picture, clean), psnr(picture.clip(0, 1), clean)
    formula = -20 * np.log10(strength)
    print(f"strength {strength:.2f}: formula {formula:.2f} dB, before clipping {before:.2f} dB, after {after:.2f} dB")
    assert abs(before - formula) < 0.1 and after >= before
noisy = {kind: picture.clip(0, 1) for kind, picture in noisy.items()}

# %% [markdown]
# ## 2 · Noise2Void: learning without a clean picture
#
# In practice you rarely have a clean picture. **Noise2Void** needs none. It hides a pixel, lets the network predict its noisy
# value from the pixels around it, and learns from the error. The network cannot know the noise of a pixel that it does not
# see. So the best that it can predict is what the neighbours say about the *tissue* there.
#
# This argument rests on an assumption. Which one?

# %%
quiz.ask("14", "blind")

# %% [markdown]
# A hidden pixel is a **blind spot**. It gets the value of another pixel nearby, so that the network cannot see which pixels
# are hidden.
#
# **Exercise 14.2: blind spots.** `points` and `steps` are NumPy arrays (n, 2), rows of y and x. Return a copy of `section` in
# which each point has the value that the pixel at `point + step` has in `section`. (All of these pixels exist.)


# %% tags=["task"]
def my_hide(section, points, steps):
    return ...


# %% tags=["solution"]
def my_hide(section, points, steps):
    hidden = section.copy()
    sources = points + steps
    hidden[points[:, 0], points[:, 1]] = section[sources[:, 0], sources[:, 1]]
    return hidden


# %%
checks.hidden_pixels(my_hide)

# %% [markdown]
# Is the network really blind there? Then the derivative of its output at a blind spot, with respect to the pixel that was
# there, is exactly 0. Ours lie on a grid (our choice), so that no blind spot lends its value to another one:

# %%
torch.manual_seed(SEED)
denoiser = Denoiser()
pixels = torch.from_numpy(noisy["gaussian"][:1, None, :16, :16]).requires_grad_()
hidden, mask = denoising.hide_pixels(pixels)
y, x = torch.argwhere(mask)[5]
(blind,) = torch.autograd.grad(denoiser(hidden)[0, 0, y, x], pixels, retain_graph=True)
(seeing,) = torch.autograd.grad(denoiser(pixels)[0, 0, y, x], pixels)
print(f"derivative at the blind spot: {blind[0, 0, y, x].item()}; the same pixel, not hidden: {seeing[0, 0, y, x]:.3f}")
print(f"sizes of the derivatives with respect to all other pixels, added up: {blind.abs().sum():.2f}")
assert blind[0, 0, y, x] == 0 and not blind[0, 0, mask].any() and blind.any()

# %% [markdown]
# Now train it, once on sections with Gaussian noise and once on sections with lines. (A run is kept in a folder of its
# name. If you change a loss, give the run another name, or the old run is loaded instead.)

# %%
STEPS, SIDE = {"fast": (40, 48), "cpu": (150, 64)}.get(PROFILE, (1000, 64))


def learn(name, model, loss, pictures):
    patches = SectionPatches(training, pictures, SIDE, SEED)
    config = TrainConfig(
        (1, SIDE, SIDE), batch=4, iterations=STEPS, learning_rate=5e-3, warmup=10, checkpoint_every=100_000, seed=SEED
    )
    folder = session.out_dir / f"14_{DATASET}_{PROFILE}_{SEED}_{STRENGTH}_{name}"
    history = fit(model.to(session.device), patches, loss, config, folder)
    print(f"{name}: loss {np.mean(history.loss[:5]):.4f} at first, {np.mean(history.loss[-5:]):.4f} at the end")
    return model.cpu()


def clean_up(model, pictures):
    return denoising.apply_to_sections(model, pictures)[:, 0].clip(0, 1)


cleaned = {}
for kind in ("gaussian", "line"):
    torch.manual_seed(SEED)
    cleaned[kind] = clean_up(learn(f"void_{kind}", Denoiser(), denoising.blind_spot_loss, noisy[kind]), noisy[kind][:6])
print(f"mean square of the Gaussian noise: {np.mean((noisy['gaussian'] - clean) ** 2):.4f}")

# %% [markdown]
# The loss with Gaussian noise hardly falls, and it never can fall far: it is the error against *noisy* pixels, and the
# noise itself cannot be predicted. Both results beside what the networks were given:

# %% alt="Two rows of a section. Above, Gaussian noise and the result of Noise2Void, which has clearly less grain. Below, line noise and the result, in which the stripes are still there."
figure, axes = plt.subplots(2, 3, figsize=(11, 7.8), layout="constrained")
for row, (kind, picture) in zip(axes, cleaned.items(), strict=True):
    panels = {"clean": clean[4], measured.NOISES[kind]: noisy[kind][4], "Noise2Void": picture[4]}
    for ax, (title, panel) in zip(row, panels.items(), strict=True):
        ax.imshow(panel[:128, :128], cmap="gray", vmin=0, vmax=1)
        decibels = "" if title == "clean" else f": {psnr(panel, clean[4]):.1f} dB"
        plots.frame(ax, volume.voxel_size, title + decibels)
plt.show()
left = {k: np.mean((cleaned[k] - clean[:6]) ** 2) / np.mean((noisy[k] - clean)[:6] ** 2) for k in cleaned}
assert STRENGTH < 0.3 or (left["gaussian"] < 0.3 and left["line"] > 0.7)  # of the mean square error

# %% [markdown]
# **What to see.** Grain disappears, stripes stay. The noise of a pixel in a stripe is also in the pixels left and right of
# it. So the network can predict it, and the loss rewards it for keeping the stripe. **Noise2Void removes what cannot be
# predicted, not what is wrong.**
#
# The package `careamics` trains Noise2Void as well, with more care. Ours is written out here because you can read it.
#
# ## 3 · Together: the segmenter tells the denoiser what it needs
#
# The usual way has two steps: first train a denoiser $D_1$ on pictures, then a segmenter $S$ on what it has made of them.
# $D_1$ has never heard of neurons. EM-DenoiSeg trains everything as one network:
#
# $$x \to D_1 \to S \to \text{affinities} \to D_2, \qquad
# L = 3\,L_\mathrm{aff}(S(D_1 x)) + \|D_1 x - x_0\|^2 + 50\,\|D_2 - x_0\|^2,$$
#
# where $x_0$ is the clean section and each $\|\cdot\|^2$ is a mean. $S$ predicts affinities along y and x to pixels at
# distances 1, 3, 5, 9 and 15. $D_2$ sees $D_1$'s picture and the affinities. Where these show a membrane, $D_2$ knows that
# it should not smooth it away.
#
# Does the segmenter's error reach $D_1$? In the joint network it does. If you detach $D_1$'s picture, it does not:

# %%
torch.manual_seed(SEED)
model = DenoiSeg()
example = torch.from_numpy(noisy["gaussian"][:1, None, :64, :64])
for joint in (True, False):
    model.zero_grad()
    model(example, joint).logits.square().mean().backward()
    sizes = [0.0 if p.grad is None else p.grad.abs().sum().item() for p in model.denoiser.parameters()]
    print(f"{'joint' if joint else 'detached':9} gradient of S's output in D1: {sum(sizes):.5f}")
    assert (sum(sizes) > 0) == joint

# %% [markdown]
# What will the gradient make of $D_1$'s picture?

# %%
quiz.ask("14", "joint")

# %% [markdown]
# **The instance-aware embedding module** brings affinities into $D_2$, at three scales. It is an attention over *channels*.
# Let $q$, $k$ and $v$ have C channels and N pixels each. $q$ comes from the affinities, $k$ and $v$ from the picture's
# features, and $t$ is a number that is learned:
#
# $$\mathrm{attention}(q, k, v) = \mathrm{softmax}(t\; q\,k^\top)\; v.$$
#
# Each row of the softmax has the sum 1.

# %% [markdown]
# ### Further: attention by hand
#
# **Exercise 14.3: channel attention.** `q`, `k` and `v` are NumPy arrays (C, N). Return an array of the same shape. (The rows
# of `q` and `k` are already scaled to length 1, so no large number enters the exponential.)


# %% tags=["task"]
def my_attention(q, k, v, t):
    return ...


# %% tags=["solution"]
def my_attention(q, k, v, t):
    scores = np.exp(t * q @ k.T)
    shares = scores / scores.sum(axis=1, keepdims=True)
    return shares @ v


# %%
checks.channel_attention(my_attention)

# %% [markdown]
# ### What it costs
#
# The attention matrix is C × C and not N × N. That is why it is cheap. It has a price, too: a sum over all pixels does not
# know where a pixel is. Put the pixels into any order, and the result is the same in that order. A 3 × 3 filter on each
# channel of $q$, $k$ and $v$, the *depthwise* part, brings the neighbourhood back:

# %%
features, guide = torch.randn(2, 1, 8, 16, 16)
order = torch.randperm(256)
for depthwise in (False, True):
    attention = ChannelAttention(8, depthwise)
    mixed = [tensor.flatten(2)[..., order].view_as(tensor) for tensor in (features, guide, attention(features, guide))]
    change = (attention(*mixed[:2]) - mixed[2]).abs().max().item()
    print(f"depthwise part {depthwise!s:5}: the order of pixels changes the result by at most {change:.0e}")
    assert (change < 1e-5) == (not depthwise)
print(f"for a section of 512 x 512 pixels: 8 x 8 = 64 weights between channels, {512**4:.0e} between pixels")

# %% [markdown]
# ## 4 · Further: noise from another picture
#
# A supervised denoiser needs pairs: the same tissue, noisy and clean. Suppose that you have clean sections of one animal
# and noisy sections of another. **DADn** makes pairs of them. An invertible network divides each picture into *content*
# (a quarter of its numbers) and *noise* (the rest). Then it puts the noise of the noisy picture onto the content of the
# clean one. Because the network is invertible, nothing is lost on the way.
#
# It begins with a **Haar transform**. Each 2 × 2 block $a, b, c, d$ becomes $(a+b+c+d)/2$, which is twice its mean, and
# three differences. The transform is a rotation, so the sum of squares stays the same. Then come **couplings** of content
# $c$ and noise $n$:
#
# $$c' = c + f(n), \qquad n' = n\; e^{s(c')} + g(c').$$
#
# $f$, $g$ and $s$ are small networks. You never have to invert *them*.
#
# **Exercise 14.4: undo a coupling.** `f`, `g` and `s` are functions of an array. You get $c'$ and $n'$ as `content` and
# `noise`. Return the arrays $c$ and $n$ before the coupling.


# %% tags=["task"]
def my_undo(content, noise, f, g, s):
    return ...


# %% tags=["solution"]
def my_undo(content, noise, f, g, s):
    before = (noise - g(content)) * np.exp(-s(content))
    return content - f(before), before


# %%
checks.undone_coupling(my_undo)

# %% [markdown]
# Five identities of the network and its parts. They hold for any weights, so you may test them before training:

# %%
torch.manual_seed(SEED)
split, coupling = NoiseSplit(), Coupling(8)
with torch.no_grad():
    for parameter in [*split.parameters(), *coupling.parameters()]:
        parameter += 0.05 * torch.randn_like(parameter)  # weights that are not 0
    first, second = (torch.from_numpy(clean[z : z + 1, None, :64, :64]) for z in (0, 9))
    content, noise = haar(first).split((1, 3), dim=1)
    twice = split.swap(*split.swap(first, second))
    differences = {
        "Haar and back": inverse_haar(haar(first)) - first,
        "energy that Haar changes, as a share": haar(first).square().sum() / first.square().sum() - 1,
        "a coupling and back": coupling.inverse(*coupling(content, noise))[1] - noise,
        "noise swapped twice, first picture": twice[0] - first,
        "noise swapped twice, second picture": twice[1] - second,
    }
for name, difference in differences.items():
    print(f"{name}: at most {difference.abs().max().item():.0e}")
    assert difference.abs().max() < 1e-5

# %% [markdown]
# Untrained, the network swaps *details*, edges of the tissue included. It has to learn what noise is. Ours learns from
# noise that we simulate, so we know what a swap should give (our loss; DADn has three discriminators and several other
# losses instead). Each patch gets noise of another strength, so the loss jumps up and down. Judge the training by the
# four lines below it:

# %%
torch.manual_seed(SEED)
untrained, split = NoiseSplit(), NoiseSplit()
split = learn("split", split, swap_loss, noisy["gaussian"])
source, donor = clean[4:5, :128, :128], clean[12:13, :128, :128]
noises = {kind: add_noise(donor, kind, 0.15, np.random.default_rng(SEED)) - donor for kind in ("gaussian", "line")}
swaps, errors = {}, {}
for kind, added in noises.items():
    swaps[kind] = {}
    for name, net in {"untrained": untrained, "trained": split}.items():
        with torch.no_grad():
            picture, _ = net.swap(*(torch.from_numpy(given)[None] for given in (source, donor + added)))
        swaps[kind][name] = picture[0, 0].numpy()
        errors[name] = np.square(picture[0].numpy() - (source + added)).mean() ** 0.5
        size = f"{errors[name]:.3f} (root mean square)"
        print(f"{kind:8} noise, {name:9}: swapped picture differs from source + noise by {size}")
    assert errors["trained"] < errors["untrained"]

# %% [markdown]
# A clean section gets the noise of a noisy section from another depth, eight sections away:

# %% alt="Two rows, Gaussian noise and lines. Each shows a clean section, a noisy section of another place, and the clean section with that noise, by an untrained and by a trained network."
figure, axes = plt.subplots(2, 4, figsize=(14, 7.6), layout="constrained")
for row, (kind, pictures) in zip(axes, swaps.items(), strict=True):
    panels = {"content from here": source[0], f"{measured.NOISES[kind]} from here": (donor + noises[kind])[0]}
    panels |= {f"swapped, {name}": picture for name, picture in pictures.items()}
    for ax, (title, panel) in zip(row, panels.items(), strict=True):
        ax.imshow(panel, cmap="gray", vmin=0, vmax=1)
        plots.frame(ax, volume.voxel_size, title)
plt.show()

# %% [markdown]
# **What to see.** The untrained network carries over more than noise. In the lower row, look for ghosts of the second
# picture's membranes: fine dots in places where the first picture has none. Training removes them, and the printed
# numbers fall a little. Stripes are noise that the network has never seen. Only a part of them is carried over, because
# half of their power is in the means of 2 × 2 pixels, which count as content (two rows have two shifts: their mean is
# content, their difference is noise). **A noise model is only as good as the noise it was learned from.**

# %% [markdown]
# ## 5 · Try it: four ways on your data
#
# Sections with Gaussian noise are segmented in four ways. Each way trains a segmenter $S$ of its own on pictures of its
# own kind, for the same number of steps. A network that was trained on clean sections would be surprised by noise, and the
# comparison would be unfair.

# %%
given = add_noise(judged, "gaussian", STRENGTH, np.random.default_rng(SEED + 1)).clip(0, 1)
truth = denoising.cut_into_sections(volume.labels)


def judge(name, picture, logits):
    affinities = denoising.sections_to_affinities(logits)
    (segmentation,) = denoising.segment_sections(affinities, [0.5]).values()
    print(f"{name:22} PSNR {psnr(picture, judged):5.1f} dB, VOI {sum(voi(segmentation, truth)):.2f} bits")


def segment_pictures(name, pictures, picture):
    torch.manual_seed(SEED)
    segmenter = learn(f"segmenter_{name}", Segmenter(), denoising.segmentation_loss, pictures)
    judge(name, picture, denoising.apply_to_sections(segmenter, picture))


# %% [markdown]
# Three ways in two steps: no denoising, smoothing, and a denoiser that was trained on pairs.

# %%
smooth = partial(ndimage.gaussian_filter, sigma=(0, 1.5, 1.5))
segment_pictures("as it is", noisy["gaussian"], given)
segment_pictures("smoothed", smooth(noisy["gaussian"]), smooth(given))
torch.manual_seed(SEED)
supervised = learn("supervised", Denoiser(), denoising.denoising_loss, noisy["gaussian"])
segment_pictures("first denoised", clean_up(supervised, noisy["gaussian"]), clean_up(supervised, given))

# %% [markdown]
# And all as one network:

# %%
torch.manual_seed(SEED)
joint = learn("joint", DenoiSeg(), denoising.joint_loss, noisy["gaussian"])
parts = {
    name: denoising.apply_to_sections(lambda x, name=name: getattr(joint(x), name), given)
    for name in ("first", "logits", "second")
}
judge("joint, D2's picture", parts["second"][:, 0].clip(0, 1), parts["logits"])
judge("joint, D1's picture", parts["first"][:, 0].clip(0, 1), parts["logits"])
ratio = np.mean((parts["first"] - judged[:, None]) ** 2) / np.mean((parts["second"] - judged[:, None]) ** 2)
print(f"D1's picture has {ratio:.1f} times the mean square error of D2's, and the neurons are the same")

# %% [markdown]
# $S$ sees $D_1$'s picture, a reader sees $D_2$'s. What is the difference?

# %% alt="A noisy section, the picture of D1 that the segmenter sees, the picture of D2 that a reader sees, and the clean section."
figure, axes = plt.subplots(1, 4, figsize=(15, 4.4), layout="constrained")
panels = {"given": given[1], "D1: for S": parts["first"][1, 0], "D2: for a reader": parts["second"][1, 0]}
for ax, (title, panel) in zip(axes, (panels | {"clean": judged[1]}).items(), strict=True):
    ax.imshow(panel[:128, :128], cmap="gray", vmin=0, vmax=1)
    plots.frame(ax, volume.voxel_size, title)
plt.show()

# %% [markdown]
# **What to see.** $D_1$'s picture looks strange: membranes may even be white, because $S$ does not mind. In the loss,
# $D_1$'s own error has the weight 1, that of affinities 3 and that of $D_2$ 50. So $D_1$ makes pictures for $S$ and $D_2$,
# and not for you. Now compare the printed lines. The two pictures of the joint network share one segmentation, but not
# their PSNR. **So PSNR cannot decide which segmentation is better.** One short run does not tell which way wins. With
# `PROFILE = "fast"` all of them have only begun to learn.
#
# ## 6 · Measured: do the ranks agree?
#
# Seven methods, three kinds of noise, two strengths and three seeds, on FIB-25. Each run trains its own segmenter on
# pictures of its own kind, for the same number of steps, and is judged on the validation part, section by section. One
# method, *DADn's pairs*, trains its denoiser on clean sections that were given the noise of others (part 4).

# %%
quiz.ask("14", "ranks")

# %% [markdown]
# Which runs are measured, and which are missing? The figure shows all that are measured:

# %%
rows = measured.read_noise_rows()
print(measured.describe_missing_noise(rows))

# %% alt="VOI against PSNR on FIB-25, a panel for each kind of noise and strength: a point for each method, and two arrows, from the names of the method with the highest PSNR and of the method with the lowest VOI to their points."
charts.psnr_figure(measured.noise_panels(rows), measured.noise_winners(rows), measured.noise_verdicts(rows))
plt.show()

# %% [markdown]
# **How to read it.** Cleaner pictures lie on the right, better neurons at the bottom. If PSNR decided, the points of each
# panel would lie on a falling line. Where all methods are measured, two arrows lead from names to points: to the cleanest
# pictures and to the best neurons. If both have one colour, one method is best in both. Cleanest and best go by the
# means: where the two points are close, look at the bars, one standard deviation, before you believe the order.
#
# The sentences are computed from the rows. A pair of methods **swaps** if in all runs the first has the higher PSNR and
# also the higher VOI.

# %%
for kind, title in measured.NOISES.items():
    for strength in measured.STRENGTHS:
        print(f"{title}, {strength}: {measured.judge_ranks(rows, kind, strength)}")
heads = ["question", "of the first", "of the second", "difference", "p"]
fold_table(heads, measured.noise_answers(rows), measured.describe_missing_noise(rows))

# %% [markdown]
# [denoising.md](../docs/measured/denoising.md) has every number.
#
# **Limits.** The noise is ours and known, which favours methods that learn from pairs. Every section is segmented alone,
# by a network that trains for 250 steps: EM-DenoiSeg trains for 400,000 steps on sections of 256 × 256 pixels. Our
# invertible network has two couplings and learns for 150 steps, where DADn's have eight and learn for 200,000. Joint
# training takes longer for the same number of steps, which the page shows. With three seeds, $p$ is at least 0.10.
#
# ## Your exercises

# %%
checks.report("14")

# %% [markdown]
# ## What you learned
#
# - PSNR is the mean square error on a logarithmic scale. It does not know where an error is.
# - Noise2Void removes what the neighbours cannot predict. It keeps stripes.
# - In joint training the segmenter's gradient reaches the denoiser, and the denoiser's picture is no longer made for you.
# - Channel attention has C × C weights and does not know where a pixel is.
# - Haar transform and couplings can be undone exactly, so noise can be given to another picture, and taken back
#   (part 4).
# - **Clean is not correct.** Judge a denoiser by the neurons that it gives you.
#
# ## Try it
#
# 1. Set `STRENGTH = 0.1` in part 1 and run all cells below. Is there anything left that a denoiser can improve?
# 2. In part 2, hide whole pieces of a row instead of single pixels. Can Noise2Void remove stripes then, and what does it
#    cost?
# 3. In part 5, set `denoising.FIRST_IMAGE = 50` and train the joint network once more, under the new name `"joint_50"`.
#    What happens to $D_1$'s picture, and what to VOI?
# 4. Let `swap_loss` of `fgnet_lib/neighbours/noise_transfer.py` learn from lines as well. Which line has to change?
#
# ## References
#
# - Z. Wang et al. *Joint EM Image Denoising and Segmentation with Instance-Aware Interaction.* MICCAI 2024 (EM-DenoiSeg).
# - S. Deng, Y. Chen, W. Huang, R. Zhang, Z. Xiong. *Unsupervised Domain Adaptation for EM Image Denoising with Invertible
#   Networks.* IEEE Transactions on Medical Imaging, 2024 (DADn).
# - A. Krull, T.-O. Buchholz, F. Jug. *Noise2Void: Learning Denoising from Single Noisy Images.* CVPR 2019,
#   [arXiv:1811.10980](https://arxiv.org/abs/1811.10980).
# - S. W. Zamir et al. *Restormer: Efficient Transformer for High-Resolution Image Restoration.* CVPR 2022,
#   [arXiv:2111.09881](https://arxiv.org/abs/2111.09881) (attention over channels).
# - M. Xiao et al. *Invertible Image Rescaling.* ECCV 2020, [arXiv:2005.05650](https://arxiv.org/abs/2005.05650) (Haar and
#   couplings).
