"""Answers of lesson 04: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

BALANCED = "(cost[target == 1].mean() + cost[target == 0].mean()) / 2"

MUTANTS = {
    "balanced_loss": [
        (BALANCED, "cost.mean()", "the plain mean"),
        (BALANCED, BALANCED.replace("mean", "sum"), "instead of averaging it"),
        (BALANCED, "cost.sum()", "You add up all costs"),
        (" / 2", "", "This is twice as much"),
        (BALANCED, "cost[target == 1].mean()", "Only the ones"),
        (BALANCED, "cost[target == 0].mean()", "Only the zeros"),
        ("-np.log", "np.log", "never negative"),
        ("np.where(target == 1, p, 1 - p)", "p", "is not the mean of the means"),
        (BALANCED, "cost", "has the shape"),
        ("cost = -", "p *= 0.5\n    cost = -", "changes the array"),
    ],
    "learning_rate": [
        (" * min(1, (k + 1) / warmup)", "", "no warm-up"),
        ("np.cos(np.pi * k / n)", "np.cos(np.pi * (k + 1) / n)", "counts them from 0"),
        (
            "return peak * min(1, (k + 1) / warmup) * cosine",
            "late = (1 + np.cos(np.pi * (k - warmup) / (n - warmup))) / 2\n"
            "    return peak * ((k + 1) / warmup if k < warmup else late)",
            "here it begins at k = 0",
        ),
        (" * cosine", "", "never falls"),
        ("min(1, (k + 1) / warmup)", "((k + 1) / warmup)", "never exceed the peak"),
        ("(k + 1) / warmup", "k / warmup", "a rate of 0"),
        ("peak * ", "", "The peak is missing"),
        ("np.pi * k", "2 * np.pi * k", "twice too fast"),
        ("(1 + np.cos(np.pi * k / n)) / 2", "np.cos(np.pi * k / n)", "goes below 0"),
        ("np.pi * k / n", "k / n", "of 40 rates are wrong"),
        (") / 2", ")", "is not halved"),
        (
            "return peak * min(1, (k + 1) / warmup) * cosine",
            "return peak * (k + 1) / warmup if k < warmup else peak * cosine",
            "jumps down",
        ),
        ("k / n)", "k / 40)", "of 25 rates are wrong"),
    ],
    "resume": [
        ('first = saved["next"]', "pass", "begins at iteration 0 again"),
        ('{"next": k + 1', '{"next": k', "you compute it again"),
        ('{"next": k + 1', '{"next": k + 2', "you never compute it"),
        ('        model.load_state_dict(saved["model"])\n', "", "The weights start from scratch"),
        ('        optimizer.load_state_dict(saved["optimizer"])\n', "", "The optimizer starts from scratch"),
        (
            '        model.load_state_dict(saved["model"])\n        optimizer.load_state_dict(saved["optimizer"])\n',
            "",
            "you load only the iteration",
        ),
        ("return first", "return iterations", "should return 0"),
        ("return first", "return first and 1", "You return 1"),
        (
            '        torch.save({"next"',
            '        if k == iterations - 1:\n            torch.save({"next"',
            "there was no checkpoint",
        ),
        (
            'saved["next"]\n        model.load_state_dict(saved["model"])\n'
            '        optimizer.load_state_dict(saved["optimizer"])',
            "iterations",
            "computes no iteration",
        ),
        ("model.state_dict()", "model", "save their `state_dict()`"),
        ("        optimizer.zero_grad()\n", "", "ends with other weights than the loop"),
        ("range(first, iterations)", "range(first, iterations - 1)", "ends with other weights than the loop"),
    ],
}

RIGHT = {
    "balanced_loss": [
        """\
def my_loss(p, target):
    ones, zeros = [], []
    for guess, right in zip(p.flat, target.flat):
        (ones if right else zeros).append(-np.log(guess if right else 1 - guess))
    return np.float32(sum(ones) / len(ones) / 2 + sum(zeros) / len(zeros) / 2)
""",
    ],
    "learning_rate": [
        """\
def my_rate(k, n, peak, warmup):
    rate = peak * np.cos(np.pi * k / n / 2) ** 2
    if k < warmup:
        rate = rate * (k + 1) / warmup
    return rate
""",
    ],
    "resume": [
        """\
def my_train(model, optimizer, patch, iterations, path):
    first = 0
    if path.exists():
        done, weights, state = torch.load(path)
        first = done + 1
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    model.train()
    for k in range(first, iterations):
        loss = model(patch(k)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        new = path.with_suffix(".new")
        torch.save((k, model.state_dict(), optimizer.state_dict()), new)
        new.replace(path)
    return first
""",
    ],
}
