"""A synthetic EM volume: crowded neurites with exact labels, drawn and imaged like serial sections.

Everything here is ours. Neurites are bundles of strands that push each other aside while z advances, which packs them
densely, lets them bend, taper and branch, and keeps thin ones beside thick ones. Each section is then parted among the
neurites, stained (membranes, organelles, cytoplasm) and imaged (blur, noise, contrast of each section).
Lengths are in nm, grey values in 0-255, points in (y, x) order. The stain's numbers were chosen by eye, histogram and
power spectrum beside real sections: lesson 01 shows the comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage as ndi
from scipy.spatial import cKDTree

from fgnet_lib.volumes import IGNORE, Volume

Triple = tuple[float, float, float]  # nm along z, y, x
Box = tuple[int, slice, slice]  # a section, rows, columns

STRAND = 42.0  # radius of a strand: the thinnest neurite is one strand, the thickest about a hundred
RIM = 250.0  # tissue grown around the field of view, so that neurites enter and leave it
CYTOPLASM, MEMBRANE = 160.0, 58.0  # grey values
SLIP = 96.0  # how far a misaligned section is off


def make_phantom(
    shape: tuple[int, int, int] = (64, 256, 256),
    seed: int = 0,
    voxel_size: Triple = (40.0, 8.0, 8.0),
    missing_section: int | None = None,
    misaligned_section: int | None = None,
) -> Volume:
    """Generate a synthetic EM volume; the same arguments give the same voxels.

    Args:
        shape: voxels (z, y, x).
        seed: of all random numbers.
        voxel_size: nm along z, y, x.
        missing_section: z of a section whose raw is black; its labels stay, to be bridged.
        misaligned_section: z of a section that slipped in-plane, raw and labels alike; what comes in from outside
            repeats the edge in the raw and is IGNORE in the labels.

    Returns:
        Raw uint8 and labels uint64 1..n. Labels are dense, as in CREMI and FIB-25: each half of a membrane belongs to
        its own neurite. Before a slip, each label is one object, connected through faces.

    Raises:
        ValueError: a shape or voxel size that is not positive, or a section outside the volume.

    Example:
        >>> volume = make_phantom((4, 64, 64), seed=3)
        >>> volume.raw.dtype, volume.labels.shape
        (dtype('uint8'), (4, 64, 64))
    """
    if len(shape) != 3 or len(voxel_size) != 3 or min(shape) < 1 or min(voxel_size) <= 0:
        raise ValueError(f"shape and voxel_size take three numbers above 0; got {shape} and {voxel_size}")
    for z in (missing_section, misaligned_section):
        if z is not None and not 0 <= z < shape[0]:
            raise ValueError(f"section {z} is outside a phantom of {shape[0]} sections: choose 0 to {shape[0] - 1}")
    rng = np.random.default_rng(seed)
    labels, grey, _ = _tissue(rng, shape, voxel_size)
    raw = _image(rng, grey, voxel_size)
    if missing_section is not None:
        raw[missing_section] = 0
    if misaligned_section is not None:
        _slip(rng, raw[misaligned_section], labels[misaligned_section], voxel_size)
    return Volume(raw, voxel_size, labels, name=f"phantom, seed {seed}")


def label_organelles(
    shape: tuple[int, int, int] = (64, 256, 256), seed: int = 0, voxel_size: Triple = (40.0, 8.0, 8.0)
) -> np.ndarray:
    """Compute which organelle each voxel of a phantom lies in, exactly; the arguments are those of `make_phantom`.

    Returns:
        uint8 (z, y, x), the index of the voxel's kind in `ORGANELLES`; 0 outside of all organelles.

    Example:
        >>> organelles = label_organelles((4, 64, 64), seed=3)
        >>> organelles.dtype, int(organelles.max()) < len(ORGANELLES)
        (dtype('uint8'), True)
    """
    return _tissue(np.random.default_rng(seed), shape, voxel_size)[2]


def _tissue(
    rng: np.random.Generator, shape: tuple[int, int, int], voxel_size: Triple
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, grey values before they are imaged, and organelles of a phantom, each (z, y, x)."""
    sections = _grow(rng, shape, voxel_size)
    rows, columns = np.ogrid[: shape[1], : shape[2]]
    points = np.stack([28 * _noise(rng, shape, voxel_size, 200) for _ in range(2)], axis=-1)  # bent space
    points += np.stack(np.broadcast_arrays(rows * voxel_size[1], columns * voxel_size[2]), axis=-1)
    labels = _whole(np.stack([_part(*cut) for cut in zip(points, sections, strict=True)]))
    return labels, *_stain(rng, labels, points, sections, voxel_size)


class Section(NamedTuple):
    """The crowd at a single z: the n strands, and the b branches that they belong to.

    Attributes:
        strands: positions of the strands, (n, 2).
        branch: the branch of each strand, (n,).
        centre: centres of the branches, (b, 2).
        neurite: the neurite of each branch, (b,).
    """

    strands: np.ndarray
    branch: np.ndarray
    centre: np.ndarray
    neurite: np.ndarray


def _grow(rng: np.random.Generator, shape: tuple[int, ...], voxel_size: Triple) -> list[Section]:
    """Let a crowd of bundles advance along z, in steps of at most 20 nm."""
    low, high = -RIM, np.array(shape[1:]) * voxel_size[1:] + RIM
    crowd = rng.uniform(low, high, (int(np.prod(high - low) / (3.6 * STRAND**2)), 2))
    for _ in range(60):
        crowd = _push(crowd, np.zeros(len(crowd), int), low, high)
    branch = _bundle(rng, crowd)
    neurite = np.arange(branch.max() + 1)
    tilt = rng.normal(0, 0.4, (len(neurite), 2))
    substeps = int(np.ceil(voxel_size[0] / 20))
    step = voxel_size[0] / substeps
    sections = []
    for tick in range((shape[0] - 1) * substeps + 1):
        _swap(rng, crowd, branch, step)
        neurite, tilt = _fork(rng, crowd, branch, neurite, tilt, step)
        # tilt is a random walk that forgets itself over 600 nm; thick bundles bend less
        tilt += rng.normal(0, 0.4, tilt.shape) * np.sqrt(2 * step / 600) - tilt * step / 600
        count = np.maximum(np.bincount(branch, minlength=len(neurite)), 1)
        crowd += (tilt / count[:, None] ** 0.25)[branch] * step
        centre = np.stack([np.bincount(branch, side, len(neurite)) for side in crowd.T], axis=1) / count[:, None]
        inward = centre[branch] - crowd
        far = np.linalg.norm(inward, axis=1) / (STRAND * np.sqrt(count[branch]))  # 1: the rim of a round bundle
        crowd += 0.3 * inward * np.maximum(1 - 1 / np.maximum(far, 1e-9), 0)[:, None]
        for _ in range(4):
            crowd = _push(crowd, branch, low, high)
        if tick % substeps == 0:
            sections.append(Section(crowd.copy(), branch.copy(), centre, neurite))
    return sections


def _push(crowd: np.ndarray, branch: np.ndarray, low: float, high: np.ndarray) -> np.ndarray:
    """Move overlapping strands apart; strands of other bundles keep more distance, which rounds the bundles."""
    i, j = cKDTree(crowd).query_pairs(2.5 * STRAND, output_type="ndarray").T
    gap = crowd[i] - crowd[j]
    far = np.linalg.norm(gap, axis=1)[:, None]
    keep = np.where(branch[i] == branch[j], 2, 2.5)[:, None] * STRAND
    force = 0.25 * np.maximum(keep - far, 0) * gap / np.maximum(far, 1e-3)
    move = [np.bincount(i, side, len(crowd)) - np.bincount(j, side, len(crowd)) for side in force.T]
    return np.clip(crowd + np.clip(np.stack(move, axis=1), -STRAND / 2, STRAND / 2), low, high)


def _bundle(rng: np.random.Generator, crowd: np.ndarray) -> np.ndarray:
    """Part strands into compact bundles, the largest first; calibres are log-normal: the branch of each strand."""
    branch = np.full(len(crowd), -1)
    sizes = np.clip(rng.lognormal(np.log(5), 1.2, len(crowd)), 1, 90).astype(int)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), len(crowd))]  # until all strands are used
    for bundle, size in enumerate(np.sort(sizes)[::-1]):
        free = np.flatnonzero(branch < 0)
        gap = crowd[free] - crowd[rng.choice(free)]
        far = np.hypot(np.linalg.norm(gap, axis=1), gap @ rng.normal(0, 0.5, 2))  # longer one way: oval profiles
        near = np.argsort(far)[:size]
        branch[free[near[far[near] < 1.8 * STRAND * np.sqrt(size)]]] = bundle
    lone = branch < 0
    branch[lone] = branch[~lone][cKDTree(crowd[~lone]).query(crowd[lone])[1]]
    return branch


def _swap(rng: np.random.Generator, crowd: np.ndarray, branch: np.ndarray, step: float) -> None:
    """Change calibres, in place: here a strand of a bundle ends, there one divides."""
    for _ in range(rng.poisson(len(crowd) * step / 1500)):
        ends, divides = rng.integers(len(crowd), size=2)
        if np.count_nonzero(branch == branch[ends]) > 1:
            crowd[ends] = crowd[divides] + rng.normal(0, STRAND / 4, 2)
            branch[ends] = branch[divides]


def _fork(
    rng: np.random.Generator,
    crowd: np.ndarray,
    branch: np.ndarray,
    neurite: np.ndarray,
    tilt: np.ndarray,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Let branches leave some bundles: strands on one side, from a thin spine to one half, lean outwards."""
    for _ in range(rng.poisson(len(neurite) * step / 4000)):
        mother = rng.choice(branch)
        mine = np.flatnonzero(branch == mother)
        angle = rng.uniform(0, 2 * np.pi)
        outward = np.array([np.sin(angle), np.cos(angle)])
        if len(mine) > 3:
            leave = rng.integers(1, len(mine) // 2 + 1)
            branch[mine[np.argsort(crowd[mine] @ outward)[-leave:]]] = len(neurite)
            neurite = np.append(neurite, neurite[mother])
            tilt = np.vstack([tilt, tilt[mother] + outward])
    return neurite, tilt


def _part(points: np.ndarray, section: Section) -> np.ndarray:
    """Give each point (y, x, 2) to the neurite with most weight among its six nearest strands: smooth Voronoi cells."""
    far, near = cKDTree(section.strands).query(points, k=6)
    owner = section.neurite[section.branch[near]]
    mixed = np.any(owner != owner[..., :1], axis=-1)  # elsewhere there is nothing to vote about
    few, weight = owner[mixed], np.exp(-((far[mixed] / STRAND) ** 2))
    votes = [np.where(few == few[:, k : k + 1], weight, 0).sum(1) for k in range(6)]
    winner = owner[..., 0].copy()
    winner[mixed] = np.take_along_axis(few, np.argmax(votes, axis=0)[:, None], axis=1)[:, 0]
    return winner


def _whole(owner: np.ndarray, least: int = 200) -> np.ndarray:
    """Labels 1..n, each one object: separate pieces are neurites of their own, crumbs join their largest neighbour."""
    piece, n = np.zeros(owner.shape, int), 0
    for value, box in enumerate(ndi.find_objects(owner + 1)):
        if box is not None:
            parts, count = ndi.label(owner[box] == value)
            piece[box] += np.where(parts, parts + n, 0)
            n += count
    size, pairs = np.bincount(piece.ravel()), []
    for axis in range(3):
        after, before = (np.moveaxis(piece, axis, 0)[cut] for cut in (slice(1, None), slice(-1)))
        touch = np.stack([after, before])[:, after != before]
        pairs += [touch, touch[::-1]]
    crumb, neighbour = np.concatenate(pairs, axis=1)
    order = np.argsort(size[neighbour], kind="stable")
    joins = np.arange(n + 1)
    joins[crumb[order]] = neighbour[order]  # the last one written, the largest, stays
    joins = np.where((size < least) & (size[joins] > size), joins, np.arange(n + 1))
    while np.any(joins != joins[joins]):  # a crumb may have joined a crumb
        joins = joins[joins]
    return (np.unique(joins[piece], return_inverse=True)[1].reshape(owner.shape) + 1).astype(np.uint64)


def _stain(
    rng: np.random.Generator, labels: np.ndarray, points: np.ndarray, sections: list[Section], voxel_size: Triple
) -> tuple[np.ndarray, np.ndarray]:
    """Grey values of the stained tissue, float (z, y, x), and the index in `ORGANELLES` of each voxel, uint8."""
    edge = ndi.maximum_filter(labels, (1, 3, 3)) != ndi.minimum_filter(labels, (1, 3, 3))  # both sides of a membrane
    depth = np.stack([_distance_to(cut, voxel_size) for cut in edge]) + voxel_size[1] / 2
    grey = CYTOPLASM + rng.normal(0, 15, int(labels.max()) + 1)[labels.astype(int)]
    grey += 8 * _noise(rng, labels.shape, voxel_size, 17)
    rough = np.clip(1 + 0.7 * _noise(rng, labels.shape, voxel_size, 250), 0.2, None)  # granular here, clear there
    grey -= rough * 24 * np.clip(_noise(rng, labels.shape, voxel_size, 26) - 0.6, 0, 2)
    organelles = np.zeros(labels.shape, np.uint8)
    for cuts in _organelles(rng, VESICLES, labels, depth, points, sections, voxel_size):
        for box, out, _ in cuts:
            grey[box] -= (out < 0) * _vesicles(rng, out.shape, voxel_size)
            organelles[box][out < 0] = ORGANELLES.index("vesicles")
    occupied = np.zeros(labels.shape, bool)
    for name, kind in (("mitochondrion", MITOCHONDRIA), ("reticulum", RETICULUM)):
        for cuts in _organelles(rng, kind, labels, depth, points, sections, voxel_size):
            if any(occupied[box][out < 0].any() for box, out, _ in cuts):
                continue
            for box, out, along in cuts:
                cristae = np.sin(along[..., 0] / 7 + 4 * np.sin(along[..., 1] / 50 + along[..., 0] / 90))
                fill = np.where(out < 0, kind.inside + kind.stripes * cristae, grey[box])
                grey[box] = fill + (kind.rim - fill) * np.exp(-((out / 8) ** 2))
                organelles[box][out < 0] = ORGANELLES.index(name)
                occupied[box] |= out < 10
    vary = np.clip(_noise(rng, labels.shape, voxel_size, 220), -2, 3)
    width = 11 + 2.5 * np.minimum(vary, 2) + 14 * np.clip(vary - 1.7, 0, 1)  # above 1.7: a synaptic density
    stain = np.exp(-((depth / width) ** 2)) * (0.9 + 0.1 * np.minimum(vary, 1))
    # a membrane that moves sideways from one section to the next is cut obliquely: it smears over half of the way
    for section, next_to in ((slice(-1), slice(1, None)), (slice(1, None), slice(-1))):
        smear = (labels[section] != labels[next_to]) & (depth[section] <= depth[next_to])
        stain[section] = np.maximum(stain[section], smear * 22 / (22 + depth[section] + depth[next_to]))
    return grey + (MEMBRANE - grey) * stain, organelles


class Organelle(NamedTuple):
    """A kind: how many per cubic micron, nm of radius and half length (least, most), grey inside, rim and stripes."""

    density: float
    radius: tuple[float, float]
    half_length: tuple[float, float]
    inside: float = 0
    rim: float = 0
    stripes: float = 0


MITOCHONDRIA = Organelle(7, (80, 170), (200, 900), inside=102, rim=56, stripes=11)
RETICULUM = Organelle(28, (20, 55), (50, 250), inside=168, rim=75)
ORGANELLES = ("none", "vesicles", "mitochondrion", "reticulum")
VESICLES = Organelle(6, (90, 280), (120, 400))  # clouds of them


def _organelles(
    rng: np.random.Generator,
    kind: Organelle,
    labels: np.ndarray,
    depth: np.ndarray,
    points: np.ndarray,
    sections: list[Section],
    voxel_size: Triple,
) -> Iterator[list[tuple[Box, np.ndarray, np.ndarray]]]:
    """Place organelles of a kind along branches that have room for them, and cut each by the sections.

    Yields:
        For each cut: its box (z, rows, columns); nm of the points outside the organelle (negative inside), which ends
        26 nm before the membrane of its neurite; and their places (y, x, 2) along the axes of its profile.
    """
    size, pixel = np.array(labels.shape), np.array(voxel_size[1:])
    for _ in range(rng.poisson(kind.density * np.prod(size * voxel_size) / 1e9)):
        middle, half, radius = rng.uniform(0, size[0]), rng.uniform(*kind.half_length), rng.uniform(*kind.radius)
        home = sections[int(middle)]
        branch = rng.choice(home.branch)
        room = STRAND * np.sqrt(np.count_nonzero(home.branch == branch))
        radius = min(radius, 0.75 * room)
        stretch, angle = rng.uniform(1, 1.3), rng.uniform(0, np.pi)
        axes = np.array([[np.sin(angle), np.cos(angle)], [np.cos(angle), -np.sin(angle)]])
        shift = rng.uniform(-0.6, 0.6, 2) * (room - radius)
        cuts = []
        for z in range(size[0]):
            end = abs(z - middle) * voxel_size[0] / half  # 1 at both ends
            if radius < kind.radius[0] or end >= 0.98 or branch >= len(sections[z].centre):
                continue
            centre = sections[z].centre[branch] + shift
            y, x = np.round(centre / pixel).astype(int)
            if 0 <= y < size[1] and 0 <= x < size[2]:
                small = radius * np.sqrt(1 - end**4)
                rows, columns = np.ceil((1.3 * small + 80) / pixel).astype(int)
                box = (z, slice(max(0, y - rows), y + rows), slice(max(0, x - columns), x + columns))
                along = (points[box] - centre) @ axes.T
                out = np.linalg.norm(along * [stretch, 1 / stretch], axis=-1) - small
                membrane = np.where(labels[box] == labels[z, y, x], 26 - depth[box], np.inf)
                cuts.append((box, np.maximum(out, membrane), along))
        yield cuts


def _vesicles(rng: np.random.Generator, shape: tuple[int, ...], voxel_size: Triple) -> np.ndarray:
    """Darkness of vesicles scattered over a piece of a section: rings 30 nm across, one in about 3300 square nm."""
    middle = rng.random(shape) < 0.0003 * np.prod(voxel_size[1:])
    return 50 * np.exp(-(((_distance_to(middle, voxel_size) - 15) / 7) ** 2))


def _distance_to(mask: np.ndarray, voxel_size: Triple) -> np.ndarray:
    """The distance (nm) of each pixel of a section from the nearest pixel in `mask`; 1000 if the mask is empty."""
    return ndi.distance_transform_edt(~mask, voxel_size[1:]) if mask.any() else np.full(mask.shape, 1000.0)


def _image(rng: np.random.Generator, tissue: np.ndarray, voxel_size: Triple) -> np.ndarray:
    """Image tissue: the beam's blur, contrast and brightness of each section, uneven illumination, noise."""
    grey = ndi.gaussian_filter(tissue, (0, *(5.5 / np.array(voxel_size[1:]))))
    gain, shift = rng.normal(1, 0.05, (len(grey), 1, 1)), rng.normal(0, 4, (len(grey), 1, 1))
    grey = 140 + (grey - 140) * gain + shift
    grey += 4 * _noise(rng, grey.shape, voxel_size, 900) + rng.normal(0, 8, grey.shape)
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)


def _slip(rng: np.random.Generator, raw: np.ndarray, labels: np.ndarray, voxel_size: Triple) -> None:
    """Move a section (y, x) and its labels sideways, in place."""
    angle = rng.uniform(0, 2 * np.pi)
    dy, dx = np.round(SLIP * np.array([np.sin(angle), np.cos(angle)]) / voxel_size[1:]).astype(int)
    rows, columns = np.ogrid[: raw.shape[0], : raw.shape[1]]
    rows, columns = rows - dy, columns - dx
    near = (rows.clip(0, raw.shape[0] - 1), columns.clip(0, raw.shape[1] - 1))
    raw[:] = raw[near]
    labels[:] = np.where((rows == near[0]) & (columns == near[1]), labels[near], IGNORE)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], voxel_size: Triple, length: float) -> np.ndarray:
    """Gaussian noise of about unit variance, float32, whose correlation falls to 1/e over `length` nm."""
    smooth = np.array(voxel_size) < length
    spacing = np.where(smooth, np.maximum(length / 2, voxel_size), voxel_size)
    rim = 4 * smooth  # so that the wrapped ends of the filter do not meet
    noise = rng.normal(size=(np.array(shape) * voxel_size // spacing + 2 + 2 * rim).astype(int))
    width = smooth * length / 2 / spacing  # 1, or a little less where voxels are coarse
    noise = ndi.gaussian_filter(noise.astype(np.float32), width, mode="wrap")
    noise *= np.prod(np.sqrt(2 * np.sqrt(np.pi) * width[smooth]))  # what the filter took of the standard deviation
    for axis, (n, v, s) in enumerate(zip(shape, voxel_size, spacing, strict=True)):
        at = np.arange(n) * v / s
        first, part = (
            at.astype(int) + rim[axis],
            np.expand_dims((at % 1).astype(np.float32), [k for k in range(3) if k != axis]),
        )
        noise = noise.take(first, axis) * (1 - part) + noise.take(first + 1, axis) * part
    return noise
