"""Answers of lesson 13: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "released_loss": [
        ("shares).mean()", "shares).sum()", "You add the pairs up"),
        ("-np.log", "np.log", "The sign is wrong"),
        ("np.log(shares).mean()", "np.log(shares.mean())", "whatever the similarities are"),
        ("np.log(shares)", "shares", "The logarithm is missing"),
        (" / np.exp(similarities).sum()", "", "The softmax is missing"),
        ("np.log(shares)", "np.log2(shares)", "to the base 2"),
        ("np.exp(similarities).sum()", "(np.exp(similarities).sum() - np.exp(similarities))", "out of its own sum"),
        ("shares).mean()", "shares).max()", "is not the mean of the negative"),
    ],
    "info_nce_loss": [
        ("weights.sum(axis=1)", "weights.sum(axis=0)", "You sum over columns"),
        ("weights.sum(axis=1)", "weights.diagonal().sum()", "that is the released loss"),
        ("weights.sum(axis=1)", "weights.sum()", "serves the whole matrix"),
        ("weights.sum(axis=1)", "(weights.sum(axis=1) - weights.diagonal())", "lack the partner itself"),
        ("shares).mean()", "shares).sum()", "You add the samples up"),
        ("-np.log", "np.log", "The sign is wrong"),
        (
            "weights.diagonal() / weights.sum(axis=1)",
            "weights / weights.sum(axis=1, keepdims=True)",
            "only the diagonal does",
        ),
        (" / weights.sum(axis=1)", "", "There is no rival"),
        ("shares).mean()", "shares).max()", "is not the mean over the rows"),
    ],
    "inflated_kernel": [
        ('way == "average"', 'way == "centre"', "mixed the two ways up"),
        (" / depth", "", "times the 2D filter"),
        ("depth // 2] =", "0] =", "in the first section"),
        ("depth // 2] =", "-1] =", "in the last section"),
        ("= weight", "= weight / depth", "should be as it was"),
        (" / depth", " / depth**2", "are wrong, the first at"),
    ],
    "snake_offsets": [
        ("np.clip(steps, -1, 1)", "steps", "are longer than 1"),
        ("short = np.clip(steps, -1, 1)", "short = np.clip(steps, -1, 1)\n    steps[:] = 0", "changes the array"),
        ("axis=1)[:, ::-1]", "axis=1)[:, ::-1] * -1", "count with their own sign"),
        (
            "np.cumsum(short[:, :half][:, ::-1], axis=1)[:, ::-1]",
            "np.cumsum(short[:, :half], axis=1)",
            "from the far end",
        ),
        (
            "return np.concatenate([below, middle, above], axis=1)",
            "return np.concatenate([short[:, :half], middle, short[:, half:]], axis=1)",
            "goes its own way",
        ),
        (
            "return np.concatenate([below, middle, above], axis=1)",
            "return np.cumsum(np.concatenate([middle, short], axis=1), axis=1)",
            "where the snake begins",
        ),
        ("-1, 1)", "-0.5, 0.5)", "offsets are wrong"),
    ],
}

RIGHT = {
    "released_loss": [
        """\
def my_released(similarities):
    return np.log(np.exp(similarities).sum()) - np.mean(similarities)
""",
    ],
    "info_nce_loss": [
        """\
def my_info_nce(similarities):
    rows = [np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(similarities)]
    return sum(rows) / len(rows)
""",
    ],
    "inflated_kernel": [
        """\
def my_inflate(weight, depth, way):
    share = np.full(depth, 1 / depth) if way == "average" else np.eye(depth)[depth // 2]
    return np.einsum("oiyx,z->oizyx", weight, share)
""",
    ],
    "snake_offsets": [
        """\
def my_offsets(steps):
    taps = steps.shape[1] + 1
    middle, offsets = taps // 2, np.zeros((2, taps))
    for k in range(1, middle + 1):
        offsets[:, middle + k] = offsets[:, middle + k - 1] + steps[:, middle + k - 1].clip(-1, 1)
        offsets[:, middle - k] = offsets[:, middle - k + 1] + steps[:, middle - k].clip(-1, 1)
    return offsets
""",
    ],
}
