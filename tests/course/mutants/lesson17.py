"""Answers of lesson 17: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "consistent_sections": [
        ("return sections + ", "return 0 * sections + low.repeat(4, axis=1).repeat(4, axis=2) + 0 * ", "enlarged"),
        ("low - means", "means - low", "has the wrong sign"),
        ("low - means", "(low - means) / 16", "only grows by d"),
        ("low - means", "(low - means) * 16", "not a sum"),
        ("sections + missing", "sections * (low / means)", "moves more than it must"),
        ("squares.mean(axis=(2, 4))", "sections[:, ::4, ::4]", "not one of its voxels"),
        ("missing.repeat(4, axis=1).repeat(4, axis=2)", "np.tile(missing, (1, 4, 4))", "not the whole section"),
        ("low - means", "low", "only the difference is missing"),
        ("return sections + ", "return ", "the difference alone"),
        (".mean(axis=(2, 4))", ".max(axis=(2, 4))", "voxels are wrong"),
    ],
    "nearest_code": [
        ("argmin", "argmax", "That is the farthest"),
        ("distances.argmin", "(vectors @ codes.T).argmax", "a long code has large products"),
        ("distances.argmin", "(vectors @ codes.T).argmin", "points away"),
        (
            "distances.argmin",
            "(vectors @ codes.T / np.linalg.norm(codes, axis=1)).argmax",
            "directions alone",
        ),
        ("np.square", "np.abs", "absolute differences"),
        ("np.square(vectors[:, None] - codes)", "(vectors[:, None] - codes)", "so that they cancel"),
        (".sum(axis=2)", "[:, :, 0]", "the first one alone"),
        ("argmin", "min", "You give the distance"),
        ("argmin(axis=1)", "argmin(axis=1) + 1", "You count codes from 1"),
        ("argmin(axis=1)", "argmin(axis=1) // 2", "have a nearer code"),
    ],
    "straight_through": [
        ("(quantised - vectors).detach()", "0 * quantised", "yours are the vectors themselves"),
        ("vectors + ", "0 * vectors + ", "the difference alone"),
        ("quantised - vectors", "vectors - quantised", "in the wrong direction"),
        ("quantised - vectors", "quantised", "only the way between them"),
        ("quantised - vectors", "(quantised - vectors) / 2", "the middle between both"),
        ("vectors + (quantised - vectors).detach()", "quantised.detach()", "No gradient can pass"),
        ("vectors + (quantised - vectors).detach()", "quantised", "A gradient reaches the codes"),
        (".detach()", "", "A gradient reaches the codes"),
        (
            "vectors + (quantised - vectors).detach()",
            "quantised.detach() + 0 * vectors",
            "could never learn",
        ),
        (
            "vectors + (quantised - vectors).detach()",
            "2 * vectors + (quantised - 2 * vectors).detach()",
            "is not that of your result",
        ),
        ("quantised - vectors", "quantised - vectors + 1", "are not the quantised ones"),
        (
            "return vectors + (quantised - vectors).detach()",
            "vectors.data = quantised.detach()\n    return 1 * vectors",
            "changes the tensors",
        ),
    ],
    "invented_voxels": [
        ("(distance > tolerance)", "~truth", "You forget the tolerance"),
        (
            "result & (distance > tolerance)",
            "truth & (ndimage.distance_transform_edt(~result) > tolerance)",
            "the lost membranes",
        ),
        ("result & (distance > tolerance)", "distance > tolerance", "whether the result has a membrane or not"),
        ("distance > tolerance", "distance <= tolerance", "that the truth has, too"),
        ("distance > tolerance", "distance >= tolerance", "is still a true one"),
        ("distance_transform_edt", "distance_transform_cdt", "Your tolerance is a square"),
        ("distance_transform_edt(~truth)", "distance_transform_cdt(~truth, 'taxicab')", "counts steps"),
        ("~truth", "truth", "which voxels should be 0"),
        ("> tolerance", "> 2 * tolerance", "twice as large"),
        ("result & (", "~result & (", "voxels are wrong"),
        ("> tolerance", "> int(tolerance)", "need not be a whole number"),
    ],
}

RIGHT = {
    "consistent_sections": [
        """\
def my_consistent(sections, low):
    sections, low = (torch.tensor(part).float()[:, None] for part in (sections, low))
    missing = low - torch.nn.functional.avg_pool2d(sections, 4)
    return (sections + torch.nn.functional.interpolate(missing, scale_factor=4))[:, 0]
""",
        """\
def my_consistent(sections, low):
    result = sections.copy()
    for z, y, x in np.ndindex(low.shape):
        square = result[z, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        square += low[z, y, x] - square.mean()
    return result
""",
    ],
    "nearest_code": [
        """\
def my_nearest(vectors, codes):
    return (np.square(codes).sum(axis=1) - 2 * vectors @ codes.T).argmin(axis=1)
""",
    ],
    "straight_through": [
        """\
def my_straight_through(vectors, quantised):
    return quantised.detach() + vectors - vectors.detach()
""",
    ],
    "invented_voxels": [
        """\
def my_invented(result, truth, tolerance):
    reach = int(tolerance)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = y**2 + x**2 <= tolerance**2
    return result & ~ndimage.binary_dilation(truth, disk)
""",
    ],
}
