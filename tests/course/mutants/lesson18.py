"""Answers of lesson 18: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "smallest_p": [
        ("2 / deals", "1 / deals", "one direction alone"),
        ("range(2 * runs), runs", "range(runs), 2", "runs of one row alone"),
        ("2 / deals", "2 / 4**runs", "each run choose its hand"),
        ("2 / deals", "deals", "the number of deals"),
        ("2 / deals", "0.0", "do not leave them out"),
        ("2 / deals", "3 / deals", "is not the share"),
        ("len(list(combinations(range(2 * runs), runs)))", "20", "is not the share"),
    ],
    "best_of": [
        ("np.mean([min(chosen) for chosen in combinations(scores, k)])", "min(scores)", "whatever k is"),
        ("np.mean([min(chosen) for chosen in combinations(scores, k)])", "np.mean(scores)", "nothing has been chosen"),
        ("min(chosen)", "max(chosen)", "lower is better"),
        ("np.mean([min(chosen) for chosen in combinations(scores, k)])", "min(scores[:k])", "the first k runs"),
        ("np.mean", "np.sum", "their mean is asked for"),
        ("np.mean", "np.median", "the median of the best runs"),
        ("combinations(scores, k)", "zip(*[a.ravel() for a in np.meshgrid(*[scores] * k)])", "the same run twice"),
        ("combinations(scores, k)", "combinations(scores, 1)", "nothing has been chosen"),
    ],
    "holm": [
        ("return result", "return np.minimum(1, np.asarray(ps) * len(ps))", "Bonferroni"),
        (
            "np.maximum.accumulate(np.asarray(ps)[order] * factors)",
            "np.asarray(ps)[order] * factors",
            "is smaller than",
        ),
        ("return result", "return corrected", "Your values are sorted"),
        ("np.minimum(1, np.maximum", "(np.maximum", "cannot be larger than 1"),
        ("len(ps) - np.arange(len(ps))", "1 + np.arange(len(ps))", "it should get the largest"),
        ("return result", "return np.asarray(ps)", "as they are"),
        ("len(ps) - np.arange", "len(ps) + 1 - np.arange", "are not the corrected values"),
    ],
}

RIGHT = {
    "smallest_p": [
        """\
def my_smallest_p(runs):
    from math import factorial
    return 2 * factorial(runs) ** 2 / factorial(2 * runs)
""",
    ],
    "best_of": [
        """\
def my_best_of(scores, k):
    from math import comb
    ordered, n = sorted(scores), len(scores)
    return sum(s * comb(n - i - 1, k - 1) for i, s in enumerate(ordered)) / comb(n, k)
""",
    ],
    "holm": [
        """\
def my_holm(ps):
    result, largest = {}, 0
    for rank, k in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, (len(ps) - rank) * ps[k])
        result[k] = min(1, largest)
    return np.array([result[k] for k in range(len(ps))])
""",
    ],
}
