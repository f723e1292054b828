"""Answers of lesson 14: wrong ones as (the solution's text, instead of it, part of the hint), and right ones."""

MUTANTS = {
    "signal_to_noise": [
        ("-10 *", "10 *", "The sign is wrong"),
        ("np.log10(error)", "np.log10(np.sqrt(error))", "You take the root"),
        ("-10 *", "-20 *", "The factor 20 belongs"),
        ("np.log10", "np.log", "is not in decibels"),
        ("np.mean(", "np.sum(", "Errors are added up"),
        ("np.mean((image - clean) ** 2)", "np.mean(np.abs(image - clean))", "errors' sizes"),
        ("np.mean((image - clean) ** 2)", "np.mean(image - clean) ** 2", "must not cancel"),
        ("-10 * np.log10(error)", "10 * np.log10(clean.max() ** 2 / error)", "not the brightest pixel"),
        ("error = np.mean(", "error = np.max(", "dB is not the PSNR"),
    ],
    "hidden_pixels": [
        ("    hidden[points[:, 0], points[:, 1]] = section[sources[:, 0], sources[:, 1]]\n", "", "nothing is hidden"),
        ("points + steps", "points - steps", "the step backwards"),
        (
            "hidden[points[:, 0], points[:, 1]] = section[sources[:, 0], sources[:, 1]]",
            "hidden[sources[:, 0], sources[:, 1]] = section[points[:, 0], points[:, 1]]",
            "to its neighbour",
        ),
        (
            "    hidden[points[:, 0], points[:, 1]] = section[sources[:, 0], sources[:, 1]]\n",
            "    for (y, x), (a, b) in zip(points[::-1], sources[::-1]):\n        hidden[y, x] = hidden[a, b]\n",
            "hidden before it was lent",
        ),
        (
            "    hidden[points[:, 0], points[:, 1]] = section[sources[:, 0], sources[:, 1]]\n",
            "    for (y, x), (a, b) in zip(points, sources):\n        hidden[y, x] = hidden[a, b]\n",
            "not from the copy",
        ),
        ("points + steps", "points + steps[:, ::-1]", "your steps are mixed up"),
        ("section[sources[:, 0], sources[:, 1]]", "section.mean()", "not a mean"),
        ("= section[sources[:, 0], sources[:, 1]]", "= 0", "not 0"),
        ("section.copy()", "section", "changes the array"),
        ("section[sources[:, 0], sources[:, 1]]", "section[sources[:, 0], points[:, 1]]", "pixels are wrong"),
    ],
    "channel_attention": [
        (
            "    return shares @ v",
            "    scores = np.exp(t * q.T @ k)\n    return v @ (scores / scores.sum(axis=1, keepdims=True)).T",
            "attend between pixels",
        ),
        ("axis=1", "axis=0", "over the wrong axis"),
        ("shares @ v", "shares.T @ v", "the wrong way round"),
        ("t * q", "q", "The number t is missing"),
        ("q @ k.T", "k @ q.T", "changed places"),
        ("np.exp(t * q @ k.T)", "t * q @ k.T\n    return scores @ v", "The softmax is missing"),
        ("shares @ v", "shares @ k", "not those of k"),
        (" / scores.sum(axis=1, keepdims=True)", "", "should be 1: divide"),
        ("scores.sum(axis=1, keepdims=True)", "scores.sum()", "One sum serves"),
        ("return shares @ v", "return shares @ v + v", "values are wrong"),
    ],
    "undone_coupling": [
        ("(noise - g(content)) * np.exp(-s(content))", "noise * np.exp(s(content)) + g(content)", "once more instead"),
        ("(noise - g(content)) * np.exp(-s(content))", "noise * np.exp(-s(content)) - g(content)", "is undone first"),
        ("(noise - g(content))", "noise", "g is to be taken off as well"),
        (" * np.exp(-s(content))", "", "The scale is to be undone"),
        ("-s(content)", "s(content)", "the sign in your exponential"),
        ("noise - g", "noise + g", "g was added"),
        ("* np.exp(-s(content))", "/ s(content)", "s is a logarithm"),
        ("content - f(before)", "content", "content is still as"),
        ("f(before)", "f(noise)", "the noise before the coupling"),
        ("content - f", "content + f", "f was added"),
        ("content - f(before), before", "before, content - f(before)", "values of the noise are wrong"),
    ],
}

RIGHT = {
    "signal_to_noise": [
        """\
def my_psnr(image, clean):
    return -20 * np.log10(np.linalg.norm(image - clean) / np.sqrt(image.size))
""",
    ],
    "hidden_pixels": [
        """\
def my_hide(section, points, steps):
    hidden = np.array(section)
    for (y, x), (dy, dx) in zip(points, steps):
        hidden[y, x] = section[y + dy, x + dx]
    return hidden
""",
    ],
    "channel_attention": [
        """\
def my_attention(q, k, v, t):
    return torch.softmax(torch.from_numpy(t * (q @ k.T)), dim=1).numpy() @ v
""",
    ],
    "undone_coupling": [
        """\
def my_undo(content, noise, f, g, s):
    n = (noise - g(content)) / np.exp(s(content))
    c = content - f(n)
    return [c, n]
""",
    ],
}
