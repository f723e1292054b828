"""Answers of lesson 05: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "face_mean": [
        (".mean()", ".max()", "largest affinity"),
        (".mean()", "", "a single number was expected"),
        ("return np", "return 1 - np", "score of the face"),
        ("values[1:][", "values[:-1][", "stored at its later voxel"),
        (" | ((here == b) & (before == a))", "", "whose later voxel is in the first fragment"),
        ("range(3)", "range(1, 3)", "along z are missing"),
        ("np.concatenate(pairs).mean()", "np.mean([np.mean(one) for one in pairs])", "a mean of three means"),
        (".mean()", ".sum()", "a sum"),
        (" | ((here == b) & (before == a))", " & (a < b)", "whose later voxel is in the first fragment"),
        (
            "ids[1:], ids[:-1]\n        face = ((here == a) & (before == b)) | ((here == b) & (before == a))\n"
            "        pairs.append(values[1:][face])",
            "ids, np.roll(ids, 1, 0)\n        face = ((here == a) & (before == b)) | ((here == b) & (before == a))\n"
            "        pairs.append(values[face])",
            "no predecessor",
        ),
        (
            "return np.concatenate(pairs)",
            "return affinities[:, (fragments == a) | (fragments == b)]",
            "over all voxels",
        ),
    ],
    "merge": [
        (
            "(pairs_before * mean_before + pairs * mean) / total",
            "np.mean([mean_before, mean]) if pairs_before else mean",
            "weigh the same",
        ),
        ("merged.get(renamed, (0, 0.0))", "(0, 0.0)", "replaced the other"),
        ("if len(renamed) == 2:", "if True:", "a face with itself"),
        ("if len(renamed) == 2:", "if renamed == face:", "faces are lost"),
        (
            "renamed = frozenset(keep if fragment == drop else fragment for fragment in face)",
            "renamed = face",
            "still there",
        ),
        ("merged = {}", "merged = {}\n    faces.pop(frozenset({keep, drop}))", "changes"),
        ("keep if fragment == drop", "drop if fragment == keep", "still names it"),
        ("    merged = {}", "    keep, drop = sorted([keep, drop])\n    merged = {}", "may have the larger id"),
        (
            "    merged = {}",
            "    faces[frozenset({keep, drop})]\n    merged = {}",
            "without a face between them",
        ),
        (
            "return merged",
            "return {face: (n, mean * (keep < drop)) for face, (n, mean) in merged.items()}",
            "may have the larger id",
        ),
    ],
    "honest_threshold": [
        ("sum(validation[threshold])", "validation[threshold]", "both parts added"),
        (
            "min(training, key=lambda value: sum(training[value]))",
            "min(validation, key=lambda value: sum(validation[value]))",
            "peeking",
        ),
        ("sum(validation[threshold])", "sum(training[threshold])", "that you chose on"),
        ("sum(training[value])", "training[value][0]", "Merges count"),
        ("sum(training[value])", "training[value][1]", "Splits count"),
        ("sum(validation[threshold])", "validation[threshold][0]", "add both parts"),
        ("sum(training[value])", "max(training[value])", "split and merge are most alike"),
        ("sum(training[value])", "abs(training[value][0] - training[value][1])", "split and merge are most alike"),
        ("threshold, sum(validation[threshold])", "0.6, 1.5", "does your answer use the curves"),
    ],
    "whole_from": [
        ("labels[truth == neuron]", "labels", "everything is one segment"),
        ("min(whole)", "max(whole)", "whole earlier"),
        ("== 1]", "> 1]", "At the lowest threshold"),
        ("return min(whole)", "return max(set(tried) - set(whole))", "last threshold before"),
        ("== 1]", "<= 2]", "last threshold before"),
        ("== 1]", "== 1 == len(np.unique(truth[labels == labels[truth == neuron][0]]))]", "merged with another one"),
    ],
}

RIGHT = {
    "face_mean": [
        """\
def my_face_mean(affinities, fragments, a, b):
    import torch
    ids, crossed = torch.as_tensor(fragments.astype(np.int64)), []
    for axis, values in enumerate(torch.as_tensor(affinities)):
        later, earlier = (ids.narrow(axis, start, ids.shape[axis] - 1) for start in (1, 0))
        faces = (later == a) & (earlier == b) | (later == b) & (earlier == a)
        crossed.append(values.narrow(axis, 1, ids.shape[axis] - 1)[faces])
    return torch.cat(crossed).mean()
""",
        """\
def my_face_mean(affinities, fragments, a, b):
    values = []
    for z, y, x in np.ndindex(fragments.shape):
        for axis, before in enumerate([(z - 1, y, x), (z, y - 1, x), (z, y, x - 1)]):
            if min(before) >= 0 and {int(fragments[z, y, x]), int(fragments[before])} == {a, b}:
                values.append(affinities[axis, z, y, x])
    return sum(values) / len(values)
""",
    ],
    "merge": [
        """\
def my_merge(faces, keep, drop):
    parts = defaultdict(list)
    for face, content in faces.items():
        face = (face - {drop}) | {keep} if drop in face else face
        if len(face) > 1:
            parts[face].append(content)
    totals = {face: sum(pairs for pairs, _ in both) for face, both in parts.items()}
    return {face: [totals[face], sum(n * mean for n, mean in both) / totals[face]] for face, both in parts.items()}
""",
    ],
    "honest_threshold": [
        """\
def my_choice(training, validation):
    sums = {split + merge: threshold for threshold, (split, merge) in training.items()}
    best = sums[min(sums)]
    return [best, validation[best][0] + validation[best][1]]
""",
    ],
    "whole_from": [
        """\
def my_healed(tried, truth, neuron):
    for threshold in sorted(tried):
        inside = tried[threshold][truth == neuron]
        if inside.min() == inside.max():
            return threshold
""",
    ],
}
