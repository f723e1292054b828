"""Answers of lesson 02: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "map_shape": [
        ("channels, sections, rows", "channels, sections // stride, rows", "z became smaller"),
        (
            "return channels, sections, rows // stride, columns // stride",
            "return sections, rows // stride, columns // stride, channels",
            "The order is wrong",
        ),
        ("rows // stride, columns // stride", "rows, columns", "still the numbers of voxels"),
        ("rows // stride, columns // stride", "columns // stride, rows // stride", "swapped y and x"),
        ("// stride", "/ stride", "made of integers"),
        ("columns // stride", "columns", "1 of the four numbers"),
        ("return channels, ", "return ", "has the shape (3,)"),
        ("rows // stride, columns // stride", "rows * stride, columns * stride", "larger than the stack"),
        ("return channels", "return 64", "1 of the four numbers"),
    ],
    "similarity": [
        ("features / np.linalg.norm(features, axis=0)", "features", "divide it by both lengths"),
        ("* unit_vectors)", "* features)", "only the vector of the pixel (y, x)"),
        ("* unit_vectors)", "* features / np.linalg.norm(features))", "the length of each pixel's vector"),
        ("(unit_vectors[:, y", "(features[:, y", "only the vectors of the other pixels"),
        (".sum(axis=0)", ".mean(axis=0)", "You average the products"),
        ("y, x, None", "x, y, None", "y comes before x"),
        ("features, axis=0", "features, axis=1, keepdims=True", "pixels are wrong"),
        (".sum(axis=0)", "", "has the shape (5, 6, 7)"),
        ("features / np.linalg.norm(features, axis=0)", "features / np.linalg.norm(features)", "all features together"),
        (
            "return (unit_vectors[:, y, x, None, None] * unit_vectors).sum(axis=0)",
            "return abs((unit_vectors[:, y, x, None, None] * unit_vectors).sum(axis=0))",
            "You drop the sign",
        ),
        (
            "return (unit_vectors[:, y, x, None, None] * unit_vectors)",
            "return 1 - (unit_vectors[:, y, x, None, None] * unit_vectors)",
            "This is a distance",
        ),
        (
            "return (unit_vectors[:, y, x, None, None] * unit_vectors).sum(axis=0)",
            "return np.maximum(0, (unit_vectors[:, y, x, None, None] * unit_vectors).sum(axis=0))",
            "cut off what is below",
        ),
        (
            "return (unit_vectors[:, y, x, None, None] * unit_vectors).sum(axis=0)",
            "return np.arccos(np.clip((unit_vectors[:, y, x, None, None] * unit_vectors).sum(axis=0), -1, 1))",
            "the angle between",
        ),
    ],
    "fine_stride": [
        ("max(", "min(", "a coarser stride that is fine enough"),
        ("stride * voxel_nm <= thickness_nm", "stride * voxel_nm < thickness_nm", "which is allowed"),
        ("stride * voxel_nm <=", "stride <=", "wider than the neurite"),
        ("return max(stride for", "return max(stride * voxel_nm for", "not one of the strides"),
        (" or stride == 1", "", "stopped with ValueError"),
        ("return max(", "return 8 or max(", "for 20 nm and voxels of 8 nm"),
        ("(1, *STRIDES)", "(1, *STRIDES[1:])", "for 40 nm and voxels of 8 nm"),
        ("stride * voxel_nm <= thickness_nm", "stride * voxel_nm <= thickness_nm - (stride == 16)", "which is allowed"),
    ],
    "recall": [
        ("/ relevant.sum()", "/ k", "which is the precision"),
        ("relevant[ranks[:k]]", "relevant[:k]", "`ranks` says which patches come first"),
        ("ranks[:k]", "ranks[-k:]", "the least similar patches"),
        (" / relevant.sum()", "", "divide by how many there are"),
        (
            "relevant[ranks[:k]].sum() / relevant.sum()",
            "float(relevant[ranks[:k]].any())",
            "whether any relevant patch",
        ),
        ("/ relevant.sum()", "/ relevant.size", "all patches in the gallery"),
        ("ranks[:k]", "ranks[: k + 1]", "one too many"),
        ("ranks[:k]", "ranks[:3]", "recalls are wrong"),
        ("/ relevant.sum()", "/ 4", "always divide by 4"),
        ("/ relevant.sum()", "/ (~relevant).sum()", "recalls are wrong"),
    ],
}

RIGHT = {
    "map_shape": [
        """\
def my_map_shape(stack_shape, stride, channels):
    return [channels, stack_shape[0], *(int(size / stride) for size in stack_shape[1:])]
""",
    ],
    "similarity": [
        """\
def my_similarity(features, y, x):
    f = torch.as_tensor(features)
    return torch.nn.functional.cosine_similarity(f, f[:, y, x, None, None], dim=0).numpy()
""",
        """\
def my_similarity(features, y, x):
    here, result = features[:, y, x], np.zeros(features.shape[1:])
    for i, j in np.ndindex(result.shape):
        there = features[:, i, j]
        result[i, j] = here @ there / (np.linalg.norm(here) * np.linalg.norm(there))
    return result
""",
    ],
    "fine_stride": [
        """\
def my_stride(thickness_nm, voxel_nm):
    best = 1
    for stride in (4, 8, 16):
        if stride * voxel_nm <= thickness_nm:
            best = stride
    return best
""",
    ],
    "recall": [
        """\
def my_recall(ranks, relevant, k):
    return len(set(ranks[:k]) & set(np.flatnonzero(relevant))) / np.count_nonzero(relevant)
""",
    ],
}
