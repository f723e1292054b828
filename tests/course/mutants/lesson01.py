"""Answers of lesson 01: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "affinities": [
        (" & (ids[1:] > 0)", "", "join voxels of label 0"),
        ("enumerate(affinities)", "enumerate(affinities[:1])", "Only the channel along z"),
        (
            "[1:] = (ids[1:] == ids[:-1]) & (ids[1:] > 0)",
            "[:] = ids == np.roll(ids, 1, 0)",
            "You forgot two things",
        ),
        (
            "[1:] = (ids[1:] == ids[:-1]) & (ids[1:] > 0)",
            "[:] = (ids == np.roll(ids, 1, 0)) & (ids > 0)",
            "to the last ones",
        ),
        ("ids[1:] == ids[:-1]", "ids[1:] != ids[:-1]", "affinities are wrong"),
        ("enumerate(affinities)", "enumerate(affinities[::-1])", "in the wrong order"),
        ("[1:] = (ids", "[:-1] = (ids", "the one after it"),
        ("return affinities", "return affinities[0]", "shape"),
        ("return affinities", "return 1 - affinities", "swapped 0 and 1"),
        ("    return affinities", "", "gives nothing back"),
        ("ids[1:] > 0", "id[1:] > 0", "stopped with TypeError"),
    ],
    "widened": [
        ("window = (1, 3, 3)", "window = (3, 3, 3)", "A window of 3 x 3 x 3"),
        ("np.where(border, 0, labels)", "border", "not a yes or no"),
        ("window = (1, 3, 3)", "window = (1, 5, 5)", "two voxels far"),
        ("window = (1, 3, 3)", "window = (1, 3, 1)", "along y alone"),
        ("window = (1, 3, 3)", "window = (1, 1, 3)", "along x alone"),
        ("window = (1, 3, 3)", "window = (1, 3, 9)", "zeros too many"),
        ('mode="nearest"', 'mode="constant"', "take for granted outside (its `mode`)"),
        ('mode="nearest"', 'mode="wrap"', "sees the opposite rim (its `mode`)"),
        (
            'maximum_filter(labels, window, mode="nearest") != minimum_filter(labels, window, mode="nearest")',
            "widen_borders(labels, in_3d=True) == 0",
            "count neighbours in the sections above",
        ),
        ("window = (1, 3, 3)", "window = (1, 1, 1)", "No border has become wider"),
        ("np.where(border, 0, labels)", "np.where(border, 99, labels)", "labels that the input does not have"),
        ("np.where(border, 0, labels)", "np.where(border, labels, 0)", "You keep the borders"),
        ("np.where(border, 0, labels)", "np.where(border, 4, labels)", "some voxels did neither"),
        (
            'maximum_filter(labels, window, mode="nearest") != minimum_filter(labels, window, mode="nearest")',
            "maximum_filter(labels, footprint=[[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], mode='nearest') != "
            "minimum_filter(labels, footprint=[[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], mode='nearest')",
            "across a corner",
        ),
        (
            "    border =",
            "    labels[labels == 4] = 0\n    border =",
            "changes the array",
        ),
    ],
    "mask": [
        ("known[1:] & known", "known[1:] | known", "if only one of its two voxels is known"),
        ("known[1:] & known[:-1]", "known[1:]", "whatever its predecessor is"),
        ("known[1:] & known[:-1]", "known[:-1]", "is the voxel itself known"),
        ("np.append(False, known[1:] & known[:-1])", "known & np.roll(known, 1)", "has no predecessor"),
        ("known[1:] & known[:-1])", "~(known[1:] & known[:-1]))", "swapped what counts"),
        (
            "np.append(False, known[1:] & known[:-1])",
            "np.append(known[1:] & known[:-1], False)",
            "the voxel after each",
        ),
        ("known[1:] & known[:-1]", "(row[1:] == row[:-1]) & (row[1:] > 0) & known[1:]", "the affinity itself"),
        ("row != IGNORE", "(row != IGNORE) & (row > 0)", "leave out voxels of label 0"),
    ],
}

RIGHT = {
    "affinities": [
        """\
def my_affinities(labels):
    affinities = np.zeros((3, *labels.shape), bool)
    for z, y, x in np.ndindex(labels.shape):
        for axis, before in enumerate([(z - 1, y, x), (z, y - 1, x), (z, y, x - 1)]):
            affinities[axis, z, y, x] = min(before) >= 0 and labels[z, y, x] == labels[before] > 0
    return affinities
""",
    ],
    "widened": [
        """\
def my_widened(labels):
    padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    widened = labels.copy()
    for y in range(3):
        for x in range(3):
            widened[padded[:, y:, x:][:, : labels.shape[1], : labels.shape[2]] != labels] = 0
    return widened
""",
    ],
    "mask": [
        """\
def my_mask(row):
    return [i > 0 and row[i] != IGNORE and row[i - 1] != IGNORE for i in range(len(row))]
""",
    ],
}
