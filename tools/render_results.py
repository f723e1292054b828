"""Write docs/results.md and its figures from the files in docs/results/, and from nothing else (`make results`)."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from results import RESULTS, VOLUMES

from fgnet_lib import plots
from fgnet_lib.ablations import ROWS

PAGE = RESULTS.parent / "results.md"
UNMEASURED = "not measured here: `make results ROWS={}`"
REFERENCES = {
    "fragments": "watershed fragments that came with the data",
    "ffn_ignored": "published FFN segmentation, its zeros ignored",
    "ffn_filled": "published FFN segmentation, its zeros filled with the nearest segment",
}
HEAD = """# Results

Written by `make results` from the files in [results/](results/), one per row and seed; no number is typed by hand. Mean
± standard deviation over seeds, with the number of seeds; one seed has no spread. VOI in bits, ARAND from 0 to 1, lower
is better. Thresholds were chosen on FIB-25's training part, sections 120-139, never on what is reported here. Rows were
trained on FIB-25 alone, so gala, the phantom, AC4 and CREMI are tissue or texture that they never saw; the sections of
the last two (6 and 4 nm) are rescaled to FIB-25's 10 nm before the network, and its affinities back.
"""
TRAINED = """
## FIB-25, validation part, sections 144-183

| row | parameters (trained) | iterations | minutes | MVox/s | peak MB | VOI split | VOI merge | VOI | ARAND | seeds |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def load(folder: Path = RESULTS) -> dict[str, list[dict]]:
    """Row -> its runs, by seed."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        found[run["row"]].append(run)
    return dict(found)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def scores(runs: list[dict], volume: str, output: str) -> list[str] | None:
    """VOI split, VOI merge, VOI, ARAND of the runs that have this output on this volume."""
    found = [run["volumes"][volume][output] for run in runs if output in run["volumes"].get(volume, {})]
    if not found:
        return None
    voi = [[one["voi_split"], one["voi_merge"], one["voi_split"] + one["voi_merge"]] for one in found]
    return [*(spread(list(column)) for column in zip(*voi, strict=True)), spread([one["arand"] for one in found])]


def main_output(run: dict) -> str:
    """What a row is judged by: A_r, or A_s where there is no other."""
    return "refined" if "refined" in run["thresholds"] else "coarse"


def trained_table(found: dict[str, list[dict]]) -> str:
    """The table of FIB-25: references, the shipped model, all rows."""
    lines = []
    for key, title in REFERENCES.items():
        if "references" in found and (cells := scores(found["references"], "fib25", key)):
            lines.append(f"| {title} | | | | | | {' | '.join(cells)} | |")
    for name, title in {"shipped": "the shipped model", **{name: row.title for name, row in ROWS.items()}}.items():
        if name not in found:
            lines.append(f"| {title} | {UNMEASURED.format(name)} | | | | | | | | | |")
            continue
        runs = found[name]
        training, output = [run["training"] for run in runs], main_output(runs[0])
        rate = [run["volumes"]["fib25"]["voxels"] / 1e6 / run["volumes"]["fib25"]["seconds"] for run in runs]
        took = [f"{training[0]['parameters']:,} ({training[0]['trainable']:,})", str(training[0].get("iterations", ""))]
        took.append(spread([one["minutes"] for one in training], 1) if "minutes" in training[0] else "")
        took += [spread(rate, 2), f"{max(run['peak_memory_mb'] for run in runs):.0f}"]
        lines.append(f"| {title} | {' | '.join(took + scores(runs, 'fib25', output))} | {len(runs)} |")
    return TRAINED + "\n".join(lines) + "\n"


def coarse_table(found: dict[str, list[dict]]) -> str:
    """A_s beside A_r of the same runs."""
    lines = [
        "\n## A_s against A_r of the same runs, FIB-25\n\n| row | VOI of A_s | VOI of A_r | runs |\n|---|---|---|---|"
    ]
    for name, runs in found.items():
        if name != "references" and {"coarse", "refined"} <= runs[0]["thresholds"].keys():
            cells = [scores(runs, "fib25", output)[2] for output in ("coarse", "refined")]
            lines.append(f"| {title_of(name)} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines) + "\n"


def unseen_table(found: dict[str, list[dict]]) -> str:
    """VOI and ARAND on the other volumes, beside the fragments that each segmentation starts from."""
    volumes = [name for name in VOLUMES if name != "fib25"]
    heads = "".join(f" {name}: VOI | ARAND | VOI of fragments |" for name in volumes)
    lines = [f"\n## Other volumes\n\n| row |{heads}\n|---|{'---|---|---|' * len(volumes)}"]
    for name, runs in found.items():
        if name == "references":
            continue
        output, cells = main_output(runs[0]), []
        for volume in volumes:
            own, start = scores(runs, volume, output), scores(runs, volume, f"{output}_fragments")
            cells += [own[2], own[3], start[2]] if own else ["", "", ""]
        lines.append(f"| {title_of(name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def attention_table(found: dict[str, list[dict]]) -> str:
    """Per map: what it is related to, and what VOI does when it is replaced."""
    lines = [
        "\n## Attention on FIB-25: used, or decoration?\n\nAUC: attention against membranes (0.5 no relation, below it "
        "membranes are darker). VOI of A_r's segmentation at the row's threshold, as it is and with a map replaced.\n",
        "| row | map | AUC | correlation with A_r's error | VOI | set to 0 | set to its mean | set to 1 | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        for level in runs[0].get("attention", {}):
            measured = [run["attention"][level] for run in runs]
            cells = [spread([m[key] for m in measured], 2) for key in ("auc_membrane", "correlation_with_error")]
            cells.append(scores(runs, "fib25", "refined")[2])
            for value in ("0.0", "mean", "1.0"):
                cells.append(
                    spread([sum(m[f"set_to_{value}"][k] for k in ("voi_split", "voi_merge")) for m in measured])
                )
            lines.append(f"| {title_of(name)} | {level} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines) + "\n"


def title_of(name: str) -> str:
    return ROWS[name].title if name in ROWS else "the shipped model"


def draw_curves(found: dict[str, list[dict]]) -> plt.Figure:
    """VOI split against VOI merge over thresholds, one line per row (first seed), a dot at the chosen threshold."""
    figure, ax = plt.subplots(figsize=(9, 6.5))
    for name, runs in found.items():
        if name == "references" or (name in ROWS and ROWS[name].sections < ROWS["unet"].sections):
            continue
        output = main_output(runs[0])
        thresholds, split, merge = np.array(runs[0]["volumes"]["fib25"][f"{output}_curve"]).T
        (line,) = ax.plot(merge, split, label=title_of(name))
        chosen = np.argmin(abs(thresholds - runs[0]["thresholds"][output]))
        ax.plot(merge[chosen], split[chosen], "o", color=line.get_color())
    for key, title in REFERENCES.items():
        for run in found.get("references", []):
            if one := run["volumes"].get("fib25", {}).get(key):
                ax.plot(one["voi_merge"], one["voi_split"], "x", markersize=10, markeredgewidth=2, label=title)
    ax.set(xlabel="VOI merge (bits)", ylabel="VOI split (bits)", title="FIB-25 validation: thresholds from low to high")
    ax.legend(fontsize=9)
    return figure


def draw_efficiency(found: dict[str, list[dict]]) -> plt.Figure:
    """VOI against labelled sections, mean and spread."""
    figure, ax = plt.subplots(figsize=(8, 5))
    for base in ("unet", "random_frozen", "pretrained_frozen", "fine_tuned"):
        points = []
        for name, runs in found.items():
            if name in ROWS and name.removesuffix("_5").removesuffix("_20") == base:
                values = [
                    sum(run["volumes"]["fib25"]["refined"][k] for k in ("voi_split", "voi_merge")) for run in runs
                ]
                points.append((ROWS[name].sections, np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0))
        if points:
            ax.errorbar(*zip(*sorted(points), strict=True), marker="o", capsize=4, label=ROWS[base].title)
    ax.set(
        xscale="log", xlabel="labelled sections", ylabel="VOI (bits)", title="FIB-25 validation, mean ± s.d. over seeds"
    )
    ax.set_xticks([5, 20, 120], ["5", "20", "120"])
    ax.legend()
    return figure


def page(found: dict[str, list[dict]]) -> str:
    """docs/results.md."""
    pictures = "\n![Split against merge](results/curves.png)\n\n![Data efficiency](results/efficiency.png)\n"
    tables = (trained_table, coarse_table, unseen_table, attention_table)
    return HEAD + trained_table(found) + pictures + "".join(table(found) for table in tables[1:])


if __name__ == "__main__":
    found = load()
    plots.style()
    PAGE.write_text(page(found), encoding="utf-8")
    draw_curves(found).savefig(RESULTS / "curves.png", dpi=110)
    draw_efficiency(found).savefig(RESULTS / "efficiency.png", dpi=110)
