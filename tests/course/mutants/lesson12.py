"""Answers of lesson 12: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "matched_values": [
        ("np.searchsorted(theirs, own)[raw]", "raw + 0", "Nothing has changed"),
        (
            "minlength=256)) / raw.size\n    theirs = np.cumsum(histogram) / histogram.sum()",
            "minlength=256))\n    theirs = np.cumsum(histogram)",
            "You compare numbers of voxels",
        ),
        ("searchsorted(theirs, own)", "searchsorted(own, theirs)", "The direction is wrong"),
        ("(theirs, own)", "(theirs, own, side='right')", "a share that is equal is enough"),
        ("np.searchsorted(theirs, own)[raw]", "255 - np.searchsorted(theirs, own)[raw]", "have changed places"),
        (
            "np.cumsum(np.bincount(raw.ravel(), minlength=256))",
            "np.bincount(raw.ravel(), minlength=256)",
            "single value",
        ),
        ("histogram.sum()", "len(histogram)", "grey values are wrong"),
    ],
    "standardised_features": [
        ("centred / ", "features / ", "without taking the channel's own mean away"),
        ("centred / features.std(1, keepdims=True)", "centred", "own deviation is still in there"),
        ("features.std(1, keepdims=True)", "features.var(1, keepdims=True)", "You divide by the variance"),
        (" * deviation[:, None]", "", "The new deviation is missing"),
        (" + mean[:, None]", "", "The new mean is missing"),
        ("1, keepdims=True", "keepdims=True", "each has its own"),
        ("std(1, keepdims=True)", "std(1, keepdims=True, ddof=1)", "divide by n - 1"),
    ],
    "averaged_weights": [
        ("return teacher", "return students[-1]", "That is the last student"),
        ("return teacher", "return students.mean(0)", "the plain mean"),
        ("decay * teacher + (1 - decay) * student", "(1 - decay) * teacher + decay * student", "keeps `decay`"),
        ("teacher = first", "teacher = 0 * first", "it begins at the first weights"),
        ("in students", "in students[-1:]", "Only one student"),
        ("in students", "in students[::-1]", "in the wrong order"),
        ("(1 - decay) * student", "student", "do not sum to 1"),
    ],
    "synapse_partners": [
        (" * voxel_size", "", "You count voxels"),
        ("argmin(1)", "argmax(1)", "the farthest sites"),
        ("argmin(1)", "argmin(0)", "Each pre-synaptic site has chosen"),
        ("np.linalg.norm(away", "np.linalg.norm(away[..., 1:]", "z is missing"),
        ("np.linalg.norm(away, axis=-1)", "abs(away).sum(-1)", "You add up the three differences"),
        ("* voxel_size", "* [40, 8, 8]", "sites have another partner"),
        ("* voxel_size", "* voxel_size[[0, 2, 1]]", "sites have another partner"),
    ],
}

RIGHT = {
    "matched_values": [
        """\
def my_matched(raw, histogram):
    result = np.zeros(raw.shape, int)
    for value in np.unique(raw):
        share = np.mean(raw <= value)
        result[raw == value] = min(v for v in range(256) if histogram[: v + 1].sum() / histogram.sum() >= share)
    return result
""",
    ],
    "standardised_features": [
        """\
def my_standardised(features, mean, deviation):
    rows = []
    for channel, m, s in zip(features, mean, deviation):
        rows.append(m + s * (channel - np.mean(channel)) / np.sqrt(np.mean((channel - np.mean(channel)) ** 2)))
    return np.array(rows)
""",
    ],
    "averaged_weights": [
        """\
def my_average(first, students, decay):
    n = len(students)
    parts = [(1 - decay) * decay ** (n - k) * student for k, student in enumerate(students, 1)]
    return decay**n * first + sum(parts)
""",
    ],
    "synapse_partners": [
        """\
def my_partners(pre, post, voxel_size):
    partners = []
    for point in post:
        squares = [sum(((point - other) * voxel_size) ** 2) for other in pre]
        partners.append(squares.index(min(squares)))
    return np.array(partners)
""",
    ],
}
