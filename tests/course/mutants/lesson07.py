"""Answers of lesson 07: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "fair_pairs": [
        ("len(changed) == 1", "len(changed) <= 1", "compare nothing"),
        ("len(changed) == 1", "len(changed) >= 1", "differ in 2 settings"),
        ("names[number + 1 :]", "names", "twice, perhaps in both orders"),
        (
            "for key in {**a, **b} if key not in a or key not in b or a[key]",
            "for key in a if key in b and a[key]",
            "only one of them has",
        ),
        ("a[key] != b[key]", 'key == "weights" and a[key] != b[key]', "leave them out"),
        ("pairs.append((first, second))", "pairs.append(first)", "two names of rows"),
        ("pairs.append((first, second))", "pairs.append((first, first))", "with itself"),
    ],
    "seed_summary": [
        ("ddof=1", "ddof=0", "divide by one less"),
        ("return mean, spread", "return (mean, spread) if spread else None", "return two values as well"),
        ("else None", "else 0", "look like certainty"),
        (" if len(scores) > 1 else None", "", "return None"),
        ("len(scores) > 1", "len(scores) > 2", "Two runs have a spread"),
        ("np.mean(scores)", "sum(scores)", "is a sum"),
        ("np.std(scores, ddof=1)", "np.var(scores)", "it divides by the number of runs"),
        ("np.mean", "np.median", "is the median"),
        ("np.mean", "min", "best run"),
        ("np.std(scores, ddof=1)", "max(scores) - min(scores)", "the range"),
        ("np.std(scores", "np.var(scores", "the variance"),
        ("np.std(scores, ddof=1)", "np.std(scores, ddof=1) / len(scores) ** 0.5", "standard error"),
    ],
    "chance_of": [
        ("abs(np.mean(mine) - np.mean(rest))", "(np.mean(rest) - np.mean(mine))", "one direction"),
        (">= seen - 1e-9", "> seen + 1e-9", "exactly as much counts"),
        (
            "rest = [runs[k] for k in range(len(runs)) if k not in hand]",
            "rest = [run for run in runs if run not in mine]",
            "by the runs' numbers",
        ),
        (">= seen - 1e-9", ">= seen", "lose them by rounding"),
        (">= seen - 1e-9", "< seen - 1e-9", "differ less"),
        ("np.mean(as_large)", "sum(as_large)", "a number of deals"),
        ("len(ours)):", "len(runs) // 2):", "hands of equal size"),
        ("return np.mean(as_large)", "return (sum(as_large) - 1) / (len(as_large) - 1)", "leave it out"),
    ],
}

RIGHT = {
    "fair_pairs": [
        """\
def my_fair_pairs(rows):
    def flat(row):
        return {(key, repr(value)) for key, value in row.items()}

    found = set()
    for one, other in combinations(rows, 2):
        keys = {key for key, _ in flat(rows[one]) ^ flat(rows[other])}
        if len(keys) == 1:
            found.add(frozenset((other, one)))
    return found
""",
    ],
    "seed_summary": [
        """\
def my_summary(scores):
    n = len(scores)
    mean = sum(scores) / n
    if n == 1:
        return [mean, None]
    return [mean, (sum((one - mean) ** 2 for one in scores) / (n - 1)) ** 0.5]
""",
    ],
    "chance_of": [
        """\
def my_chance(ours, theirs):
    runs = np.array(list(ours) + list(theirs))
    hands = np.array(list(combinations(range(len(runs)), len(ours))))
    mine = runs[hands].mean(axis=1)
    rest = (runs.sum() - runs[hands].sum(axis=1)) / len(theirs)
    return (abs(mine - rest) > abs(np.mean(ours) - np.mean(theirs)) - 1e-9).mean()
""",
    ],
}
