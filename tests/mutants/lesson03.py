"""Wrong answers to the exercises of lesson 03: (in the solution's text, instead of it, a part of the hint)."""

MUTANTS = {
    "dw_weights": [
        ("27 * channels +", "27 * channels**2 +", "what depthwise means"),
        ("2 * expand", "expand", "one widens, one narrows"),
        ("27 * channels + ", "", "depthwise convolution is missing"),
        ("2 * expand * ", "2 * ", "as without widening"),
        ("27 *", "9 *", "27 places to look at"),
        ("channels**2", "channels", "is not the number of weights"),
    ],
    "attention": [
        (
            "F.relu(self.from_guide(guide) + self.from_fine(fine))",
            "self.from_guide(guide) + self.from_fine(fine)",
            "ReLU",
        ),
        ("torch.sigmoid(self.to_map(mixed))", "self.to_map(mixed)", "is not squashed"),
        ("(guide) + self", "(guide) * self", "are multiplied"),
        ("fine + fine * a, a", "fine * a, a", "F itself is lost"),
        ("fine + fine * a, a", "fine + a, a", "should weigh it"),
        ("fine + fine * a, a", "fine, a", "without its guidance"),
        ("fine + fine * a, a", "a, fine + fine * a", "are exchanged"),
        ("fine + fine * a, a", "fine + fine * a", "Two things should come back"),
        ("(guide) + self", "(fine) + self", "stopped with RuntimeError"),
        (
            "self.to_map = nn.Conv3d(channels, 1, 1)",
            "self.to_a = self.to_map = nn.Conv3d(channels, 1, 1)",
            "other names",
        ),
        ("torch.sigmoid", "torch.tanh", "not those of the equation"),
    ],
    "auc": [
        (" + 0.5 * (p[:, None] == q)", "", "do not count, and should"),
        (" + 0.5 * (", " + 1.0 * (", "count in full"),
        (
            "weights[borders], weights[~borders]",
            "weights[~borders], weights[borders]",
            "Inside and borders are exchanged",
        ),
        ("np.mean(", "np.sum(", "which share of them"),
        ("[:, None]", "", "Not every pair is counted"),
        ("np.mean((p[:, None] > q) + 0.5 * (p[:, None] == q))", "p.mean() / q.mean()", "a ratio of means"),
        ("np.mean((p[:, None] > q) + 0.5 * (p[:, None] == q))", "np.mean(p > 0.5)", "is not how often"),
    ],
}
