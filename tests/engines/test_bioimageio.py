"""A bioimage.io package passes the test of bioimage.io's own software."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from helpers.packages import need

from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.engines.bioimageio import export_bioimageio
from fgnet_lib.fgnet import FGNet

pytestmark = [pytest.mark.slow, need("bioimageio")]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    torch.manual_seed(0)
    model, card = FGNet(FGNetConfig("natural", widths=(8, 8, 16, 16, 16))), "# A card\n\n## Validation\n\nNone.\n"
    return export_bioimageio(model, tmp_path_factory.mktemp("package") / "fgnet.zip", "FGNet with random weights", card)


def test_bioimage_io_accepts_the_package(package):
    from bioimageio import core  # takes seconds, and only here

    summary = core.test_model(package)
    assert summary.status == "passed", summary.format()


@pytest.mark.parametrize("options", [{"name": "FGNet 1.2"}, {"name": "FGN"}, {"licence": "CC BY 4.0"}])
def test_what_bioimage_io_does_not_accept_is_refused_at_once(options, tmp_path):
    model = FGNet(FGNetConfig(None, widths=(4,) * 5))
    with pytest.raises(ValueError, match=f"^{next(iter(options))} is '{next(iter(options.values()))}'"):
        export_bioimageio(model, tmp_path / "a.zip", **{"name": "FGNet one", "card": "# A card\n"} | options)
    assert not (tmp_path / "a.zip").exists()


def test_the_package_describes_every_output(package):
    with zipfile.ZipFile(package) as files:
        description = json.loads(files.read("rdf.yaml"))
        assert np.load(files.open("raw.npy")).dtype == np.uint8
    assert [output["id"] for output in description["outputs"]] == ["a_s", "a_r", "a1", "a2", "a3"]
    assert description["outputs"][3]["axes"][3]["scale"] == 8
    assert description["authors"] == [{"name": "The FGNet Tutorials developers"}]


def test_a_file_that_was_changed_is_noticed(package, tmp_path):
    from bioimageio import core

    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(changed, "w") as new:
        for file in old.namelist():
            new.writestr(file, old.read(file)[:-1] + b"\0" if file == "model.onnx" else old.read(file))
    assert core.test_model(changed).status == "failed"
