"""The thin library behind the FGNet tutorials.

Data flows in one direction through its modules, and none imports a later one; docs/architecture.md has the order.
"""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# PyTorch's threads spin while they wait for one another. On two shared cores that made a training step 20 times slower
# (measured: 20 s against 1.4 s), so they sleep instead. Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
