# %% [markdown]
# # 09 · Scaling out: past one memory and past one machine, and nothing lost when something dies
#
# <!-- badges -->
#
# **What you will learn**
#
# - how a volume that fits no memory goes through the network in blocks, with values that no block border can change;
# - how to hand blocks to many processes or machines, and watch them at work;
# - why a run that is killed goes on where it was: a journal, checksums, and a step for each block that depends on nothing else;
# - how neurons that were cut by blocks are put together again, with ids that are unique over the volume;
# - what a cubic millimetre would cost, from what you measure here.
#
# **Before you start.** Lesson 05 explains fragments and agglomeration; the rest stands for itself.
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
from fgnet_lib import runtime

session = runtime.start(PROFILE, DATASET, DATA_DIR, OUT_DIR, DEVICE, SEED)

# %% [markdown]
# ## 1 · How much memory will you allow?
#
# In one piece, `predict` needs raw (1 byte a voxel) and two sums with their weights (coarse and refined: 2 x 4 floats), so 33
# bytes for each voxel of the *volume*. In blocks it needs them for each voxel of a *block*. Two blocks are held at a time,
# for one is read or written while the other is computed. So choose what you allow, and the block follows.
#
# The numbers of the profile `fast` are a toy's, so that the lesson takes a minute. What Python and PyTorch themselves take,
# some 600 MB for each worker, comes on top, and does not grow with anything.

# %%
import numpy as np

from fgnet_lib import checks, quiz
from fgnet_lib.blocks import Grid

BYTES = 1 + 2 * 4 * 4
block, tile, overlap = (16, 64, 64), (16, 64, 64), 0.0
if session.profile.name != "fast":
    block, tile, overlap = (32, 128, 128), (16, 128, 128), 0.25
counts = (1, 4, 6)
shape = tuple(n * b for n, b in zip(counts, block, strict=True))
grid = Grid(shape, block)
allowed, whole = 2 * np.prod(block) * BYTES, np.prod(shape) * BYTES
print(f"{len(grid)} blocks; allowed {allowed / 1e6:.0f} MB, in one piece {whole / 1e6:.0f} MB")
print(f"that is {whole / allowed:.0f} times as much as we allow")

# %% [markdown]
# Now a volume of that shape, on disk and never in memory: we mirror a crop of the data set again and again, and write it block
# by block. With `Source` any HDF5, Zarr or TIFF takes its place.

# %%
import shutil

import zarr

from fgnet_lib.blockwise import Source

folder = session.out_dir / "scaling_out"
shutil.rmtree(folder, ignore_errors=True)
crop = session.volume("val")
attributes = {"resolution": list(crop.voxel_size), "offset": [0.0, 0.0, 0.0]}
raw = zarr.create_array(folder / "raw.zarr", shape=shape, chunks=block, dtype="uint8", attributes=attributes)


def mirrored(part: slice, size: int) -> np.ndarray:
    there_and_back = np.arange(part.start, part.stop) % (2 * size)
    return np.minimum(there_and_back, 2 * size - 1 - there_and_back)


for index in range(len(grid)):
    places = [mirrored(part, size) for part, size in zip(grid.region(index), crop.shape, strict=True)]
    raw[grid.region(index)] = crop.raw[np.ix_(*places)]
source = Source(folder / "raw.zarr")

# %% [markdown]
# ## 2 · What a block has to know of its surroundings
#
# The network sees windows, and blends them where they overlap. If each block laid its own windows, values would change with
# the block. So **windows lie where the whole volume puts them**, and a block computes all that touch it, also those that it
# shares with its neighbours. This costs something, and buys independence: a block needs nothing that another block
# computes. Here are the windows of one block, if windows are 160 wide and overlap by a quarter.

# %% alt="A plan of a volume from above, cut into blocks by grey lines. One block is filled; the windows that touch it are drawn as orange frames and reach beyond it on all sides."
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from fgnet_lib.inference import needed, window_starts

side, one = 1024, (slice(0, 16), slice(384, 640), slice(384, 640))
starts = [a for a in window_starts(side, 160, 0.25, 32) if a < one[1].stop and a + 160 > one[1].start]
reach = needed((16, side, side), (16, 160, 160), 0.25, one)
figure, ax = plt.subplots(figsize=(6.5, 6.5))
ax.add_patch(Rectangle((384, 384), 256, 256, color="tab:blue", alpha=0.5, label="block"))
for number, (y, x) in enumerate((y, x) for y in starts for x in starts):
    ax.add_patch(Rectangle((x, y), 160, 160, fill=False, color="tab:orange", label=None if number else "its windows"))
ax.set(xlim=(0, side), ylim=(side, 0), xlabel="x (voxels)", ylabel="y (voxels)", aspect="equal")
ax.set(
    xticks=np.arange(128, side, 256),
    yticks=np.arange(128, side, 256),
    title=f"a block reads {reach[1].start} to {reach[1].stop}",
)
ax.grid(True)
ax.legend()
plt.show()

# %% [markdown]
# **What to see.** The larger the block, the smaller the share that is computed twice. Depth matters as well: SAM2 encodes each section
# once for each window column *of a block*.
#
# **Exercise 9.1: what a block reads.** A block goes from `start` to `stop` (z, y, x; `stop` is the last voxel + 1). It reads a halo of
# `halo` voxels around itself, as far as the volume of `shape` goes. Give back where it begins and ends to read: two triples.


# %% tags=["task"]
def my_read(start, stop, halo, shape):
    return ...


# %% tags=["solution"]
def my_read(start, stop, halo, shape):
    return np.maximum(np.subtract(start, halo), 0), np.minimum(np.add(stop, halo), shape)


# %%
checks.halo(my_read)

# %% [markdown]
# ## 3 · Workers, and a page to watch them
#
# [Dask](https://distributed.dask.org) hands out the numbers of blocks and nothing else; each worker reads and writes its blocks
# itself. It loads the model once, and where there are GPUs it takes the one of its number. `cluster` starts workers on this
# computer, listening to nobody else: *who reaches a Dask scheduler can run code with its rights*.

# %%
import os
from contextlib import ExitStack

from fgnet_lib.cluster import cluster

running = ExitStack()
client = running.enter_context(cluster(workers=2, memory="4GiB"))
workers = client.run(os.getpid)
print(f"dashboard: {client.dashboard_link}\nworkers, by process: {sorted(workers.values())}")

# %% [markdown]
# Open the dashboard beside this page (*Task Stream* and *Workers* are the pages to look at; on a remote machine forward its port
# by ssh). A row is a thread, a bar a block.
#
# ## 4 · Predict, and kill a worker
#
# A moment after the start we shall send one worker the signal that no program survives. First your prediction:

# %%
quiz.predict("09", "kill")

# %%
import signal
import threading

from fgnet_lib.blockwise import Network, predict_blocks

network = Network(tile=tile, overlap=overlap, device=session.device.type)
victim = min(workers.values())
threading.Timer(4.0, os.kill, (victim, signal.SIGKILL)).start()
report = predict_blocks(client, source, folder, network, block)
print(f"{report.done + report.kept} of {len(grid)} blocks; at most {report.peak_bytes / 2**20:.0f} MiB in a worker")

# %% [markdown]
# Dask has noticed, and has given to others what the dead worker had not finished. It also starts another worker.
# Who is alive now? (The run may have been quicker than the signal, and a new worker takes a moment, so we wait a little.)

# %%
import time

time.sleep(5)
print(f"killed {victim}; workers now {sorted(client.run(os.getpid).values())}")

# %% [markdown]
# So much for a process that dies. And a file? We shall cut one of the results in half, and run again:

# %%
quiz.predict("09", "half-a-file")

# %% [markdown]
# A second run looks at each block and does what is missing. It trusts no file: the journal in the folder has a
# checksum of every block, and a block counts as done if what is *on disk* still gives it. To see that, we cut a file in half.

# %%
again = predict_blocks(client, source, folder, network, block, progress=False)
print(f"second run: {again.done} done, {again.kept} kept")
shard = folder / "affinities.zarr" / "c" / "0" / "0" / "2" / "3"
os.truncate(shard, shard.stat().st_size // 2)
third = predict_blocks(client, source, folder, network, block, progress=False)
print(f"after a file was cut in half: {third.done} done, {third.kept} kept")

# %% [markdown]
# And what if somebody goes on with other settings? Then half of a volume would be of one kind and half of another. This is refused.

# %%
try:
    predict_blocks(client, source, folder, Network(tile=tile, overlap=0.5), block, progress=False)
except ValueError as error:
    print(str(error).split("began ")[1])

# %% [markdown]
# Are the values those of the whole volume? We ask `predict` for the region of one block, in this process. Blocks are kept as float16,
# so a difference of 0.0005 is rounding.

# %%
from fgnet_lib.fgnet import load_pretrained
from fgnet_lib.inference import predict

region = grid.region(9)
here = predict(load_pretrained(), raw, tile, overlap, progress=False, region=region).refined
stored = zarr.open_array(folder / "affinities.zarr")[:, *region]
print(f"largest difference: {abs(here - stored).max():.5f}")

# %% [markdown]
# ## 5 · From blocks to neurons
#
# A block cannot know the neurons of the volume. It can know its **fragments**. What follows needs four steps, and only the third
# sees everything:
#
# 1. fragments in each block, with a halo around it; ids that no other block has;
# 2. **faces**: for each pair of fragments that touch, the sum and the number of the affinities between them. What a border
#    of blocks has parted is recognised, for each block also says what its fragments are one voxel before it;
# 3. **one graph** of all faces, merged as in lesson 05. It has no voxels any more;
# 4. fragments are relabelled in each block, by a table.

# %%
from fgnet_lib.blockwise import segment_blocks
from fgnet_lib.fgnet import PRETRAINED, read_notes

threshold = read_notes(PRETRAINED / "fgnet_mini.safetensors")["threshold"]
start = time.perf_counter()
steps = segment_blocks(client, folder / "affinities.zarr", folder, threshold=threshold, block=block, progress=False)
segmented = time.perf_counter() - start
for step in steps:
    print(f"{step.step:10} {step.done:3} blocks, {step.seconds.total():6.2f} s")
table = np.load(folder / "table" / "neurons.npy", mmap_mode="r")
print(f"{len(table)} fragments became {table.max()} neurons")

# %% alt="One section of the volume: EM on the left, predicted affinities in the middle, and on the right the neurons in colours. Thin lines show the borders of blocks; colours go on across them."
from fgnet_lib import plots

middle, size = shape[0] // 2, crop.voxel_size
found = {
    name: zarr.open_array(folder / f"{name}.zarr")[..., middle : middle + 1, :, :] for name in ("affinities", "neurons")
}
section = np.asarray(raw[middle : middle + 1])
figure, axes = plt.subplots(1, 3, figsize=(15, 4.4))
plots.show_section(axes[0], section, None, size, 0, f"EM, section {middle}")
plots.show_affinities(axes[1], found["affinities"].astype(np.float32), size, 0, "affinities")
plots.show_section(axes[2], section, found["neurons"], size, 0, "neurons, and borders of blocks")
for y in range(block[1], shape[1], block[1]):
    axes[2].axhline(y - 0.5, color="white", lw=0.6)
for x in range(block[2], shape[2], block[2]):
    axes[2].axvline(x - 0.5, color="white", lw=0.6)
plt.show()

# %% [markdown]
# **What to see.** Neurons keep their colour across the lines. (The data repeat by mirroring: that is our doing, and the network's
# business ends there.) Single blocks are fine if the parts at their borders find each other, and this is what the halo is for.
#
# **Exercise 9.2: ids that no other block has.** Each block numbers its fragments from 1; 0 is none. Make ids of the volume out of them,
# from the number of the block and the `voxels` of a full block, so that no two blocks share one and nobody has to be asked.


# %% tags=["task"]
def my_ids(local, number, voxels):
    return ...


# %% tags=["solution"]
def my_ids(local, number, voxels):
    return np.where(local > 0, local + np.uint64(number * voxels), 0)


# %%
checks.block_ids(my_ids)

# %% [markdown]
# ## 6 · What would a cubic millimetre cost?
#
# At 10 nm a cubic millimetre has $10^{15}$ voxels. The rate that counts is that of *computing*, by one worker; reading and
# writing happen meanwhile. Storage is what lies on disk here, for each voxel. Put in your own rate: a GPU's, measured by
# `make bench` on it, belongs here; none was at hand when this was written.

# %%
VOXELS = 1e15
rate = np.prod(shape) / report.seconds["compute"] * (report.done / len(grid)) / 1e6
segmenting = np.prod(shape) / sum(step.seconds.total() for step in steps) / 1e6
on_disk = {
    name: sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file()) / np.prod(shape)
    for name in ("raw.zarr", "affinities.zarr", "fragments.zarr", "neurons.zarr")
}
print(f"{'step':12} {'MVox/s and worker':>18} {'worker-hours':>14} {'years with 1000 workers':>25}")
for name, value in (("prediction", rate), ("segmentation", segmenting)):
    hours = VOXELS / (value * 1e6) / 3600
    print(f"{name:12} {value:18.3f} {hours:14.2e} {hours / 1000 / 24 / 365:25.1f}")
for name, value in on_disk.items():
    print(f"{name:18} {value:5.2f} bytes a voxel, {value * VOXELS / 1e15:5.2f} PB")

# %% [markdown]
# **What to see.** With CPUs alone this is no plan, and small blocks with large halos make it worse: the toy's windows are small, and so
# is its share of useful work. What one would change, in this order: a GPU for each worker; larger blocks; and prediction only where there
# is tissue. The graph of step 3 is the next wall: it lies in one memory, and grows with the number of fragments.
#
# **Exercise 9.3: worker-hours.** How many hours do `workers` need for so many voxels, if one computes `rate` million voxels a second?


# %% tags=["task"]
def my_hours(voxels, rate, workers):
    return ...


# %% tags=["solution"]
def my_hours(voxels, rate, workers):
    return voxels / (rate * 1e6) / workers / 3600


# %%
checks.worker_hours(my_hours)

# %% [markdown]
# ## 7 · On a cluster
#
# Only the scheduler changes. Everything else is the same call, and workers need the same folder under the same path:
#
# ```python
# from dask_jobqueue import SLURMCluster  # pip install dask-jobqueue
#
# jobs = SLURMCluster(queue="gpu", cores=2, processes=1, memory="32GB", walltime="08:00:00", job_extra_directives=["--gres=gpu:1"],
#                     worker_extra_args=["--lifetime", "7h30m", "--lifetime-stagger", "20m"])
# jobs.adapt(maximum_jobs=64)
# with cluster(address=jobs.scheduler_address) as client:
#     predict_blocks(client, Source("/scratch/volume.zarr"), "/scratch/run", Network("/scratch/weights.safetensors"), (128, 512, 512))
# ```
#
# A job that ends at its walltime is a worker that dies: you have seen what happens then. With a lifetime it goes in order before,
# and `adapt` asks for another job; `scale(64)` would not. [Scaling out](../docs/scaling.md) has the
# same for Kubernetes, says who may reach a scheduler, and how to size blocks.
#
# The workers go home, and these are your exercises:

# %%
running.close()

# %%
checks.report("09")

# %% [markdown]
# ## What you learned
#
# - Memory follows the block, not the volume; windows are fixed by the volume, so values do not depend on the block.
# - A block is a function of the volume and its number. That is why it can be done anywhere, twice, or again after a kill.
# - Done is what can be read back and has its checksum. Other settings in the same folder are refused, and a second run as well.
# - Fragments are local, neurons global: in between stands one graph without voxels.
# - A cubic millimetre is a question of rates and of petabytes, and you can measure both on a crop.
#
# ## Try it
#
# - Kill *both* workers. Then press *interrupt* during part 4 and run the cell again: what is kept?
# - Make `folder` read-only for a while (`chmod a-w`), or fill the disk: which blocks are reported, and what does a rerun do?
# - Take blocks of half the size in part 1. How do the rate and the largest worker change, and why?
# - While part 4 computes, let a second notebook work in the same folder: there set only `folder` and `source` as in part 1,
#   without deleting or writing anything, then run parts 3 and 4. Who may go on?
#
# ## References
#
# - Rocklin: *Dask: parallel computation with blocked algorithms and task scheduling.* SciPy 2015,
#   [doi:10.25080/Majora-7b98e3ed-013](https://doi.org/10.25080/Majora-7b98e3ed-013)
# - Funke et al.: *Large scale image segmentation with structured loss based deep learning for connectome reconstruction.* IEEE
#   TPAMI 41, 2019, [doi:10.1109/TPAMI.2018.2835450](https://doi.org/10.1109/TPAMI.2018.2835450): fragments and faces by blocks
# - Zarr, [specification version 3](https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html): chunks and shards
# - dask-jobqueue, [SLURM and others](https://jobqueue.dask.org)
