"""Answers of lesson 10: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "embedding_products": [
        (".clip(0, 1)", "", "never below 0"),
        ("product.clip(0, 1)", "np.abs(product)", "The absolute value is not the clamp"),
        (
            "product.clip(0, 1)",
            "np.square(embeddings[:, 1:] - embeddings[:, :-1]).sum(axis=0)",
            "That is the squared distance",
        ),
        ("embeddings[:, 1:] * embeddings[:, :-1]", "embeddings[:, 1:] * embeddings[:, 1:]", "each section by itself"),
        ("affinities[1:]", "affinities[:-1]", "belongs to the later of two"),
        (".sum(axis=0)", ".mean(axis=0)", "The mean over channels is too small"),
        ("product.clip(0, 1)", "product.clip(0.5, 1)", "affinities are wrong"),
    ],
    "teacher_loss": [
        (".detach()", "", "A gradient reaches the teacher"),
        (".mean()", ".sum()", "You add the squares up"),
        (".square()", ".abs()", "mean of absolute differences"),
        (".mean()", ".mean().sqrt()", "That is the root"),
        (".square()", "", "cancel"),
        (".mean()", ".mean() / 2", "That is half of it"),
        ("student - teacher.detach()", "student.detach() - teacher.detach()", "Nothing can learn from your loss"),
        ("student - teacher.detach()", "student.detach() - teacher", "A gradient reaches the teacher"),
        (".square().mean()", ".square().max()", "is not the mean of the squared differences"),
        (".mean()", ".mean().item()", "a tensor that holds one number"),
        (
            "(student - teacher.detach())",
            "0 * student.sum() + (student - teacher).detach()",
            "No gradient reaches the student",
        ),
        (
            "return (student - teacher.detach())",
            "d = teacher.detach()\n    d -= student.detach()\n    return (student - student.detach() - d)",
            "changes the affinities",
        ),
        (
            "(student - teacher.detach()).square()",
            "((student - teacher.detach()) * (student - teacher).detach())",
            "gradient is not that of the loss",
        ),
    ],
    "grafting": [
        (
            "errors.append(np.square(product - same).mean())",
            "errors = [np.square(product - same).mean()]",
            "Only the last",
        ),
        ("in shifts", "in shifts[:1]", "Only the first shift counts"),
        ("np.mean(errors)", "np.sum(errors)", "You add the shifts up"),
        (
            "student[:, :-shift] * teacher[:, shift:]",
            "teacher[:, :-shift] * student[:, shift:]",
            "behind the student",
        ),
        ("teacher[:, shift:]", "student[:, shift:]", "You compare the student with itself"),
        (".clip(0, 1)", "", "Clamp the products"),
        ("==", "!=", "The truth is 1 where both labels are equal"),
        ("np.square(product - same)", "np.abs(product - same)", "is not the mean error over the shifts"),
        ("in shifts", "in range(1, len(shifts) + 1)", "is not the mean error over the shifts"),
    ],
}

RIGHT = {
    "embedding_products": [
        """\
def my_affinities(embeddings):
    first, *others = np.moveaxis(embeddings, 1, 0)
    affinities = [np.zeros(first.shape[1:])]
    for before, after in zip([first, *others], others):
        affinities.append(np.maximum(np.einsum("cyx,cyx->yx", before, after), 0))
    return np.array(affinities)
""",
        """\
def my_affinities(embeddings):
    squared = np.square(np.diff(embeddings, axis=1)).sum(axis=0)
    affinities = np.zeros(embeddings.shape[1:])
    affinities[1:] = np.clip(1 - squared / 2, 0, 1)
    return affinities
""",
    ],
    "teacher_loss": [
        """\
def my_cross_loss(student, teacher):
    with torch.no_grad():
        target = teacher.clone()
    return torch.nn.functional.mse_loss(student, target)
""",
    ],
    "grafting": [
        """\
def my_grafting_loss(student, teacher, labels, shifts):
    total = 0
    for shift in shifts:
        deep = len(labels) - shift
        for z in range(deep):
            product = np.einsum("cyx,cyx->yx", student[:, z], teacher[:, z + shift])
            same = labels[z] == labels[z + shift]
            total += ((np.maximum(product, 0) - same) ** 2).mean() / deep / len(shifts)
    return total
""",
    ],
}
