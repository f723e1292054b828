"""Score the shipped model on parts of the training volume at every threshold, to choose a threshold on many crops.

Adds to docs/measured/thresholds.json what is missing there, so it may be stopped and started again; if the shipped
model has changed, it measures everything anew. tools/results/render_results.py cross-validates the parts for
docs/measured/shipped.md. The validation part is not looked at.
"""

from __future__ import annotations

import json

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
from train_mini import PARTS, THRESHOLDS_FILE, score_part

from fgnet_lib.datasets import open_dataset
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.study.runs import MODEL, is_current, name_weights
from fgnet_lib.weights import load_pretrained

ROWS = {"shipped": False, "shipped_three_views": True}  # row of the results -> whether it has three views


def main() -> None:
    weights, model, volume = name_weights(MODEL), load_pretrained(), open_dataset("fib25", "train").load()
    known = json.loads(THRESHOLDS_FILE.read_text(encoding="utf-8")) if THRESHOLDS_FILE.is_file() else {}
    if not is_current(known):
        known = {"weights": weights}
    for (row, three_views), part in ((row, part) for row in ROWS.items() for part in PARTS):
        scores = known.setdefault(row, {})
        if part not in scores:
            scores[part] = score_part(model, volume, part, three_views)
            write_atomically(THRESHOLDS_FILE, json.dumps(known, separators=(",", ":")))
            print(f"{row}: sections {part}", flush=True)


if __name__ == "__main__":
    main()
