"""TIFF stacks and folders of sections: all of them, in the right order, or a sentence about what is wrong."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import struct
import warnings

import numpy as np
import pytest
import tifffile
from helpers.calls import count_calls
from helpers.volume_files import SIZE, grey, imagej, ome_tiff, sections

from fgnet_lib.files.formats import read_volume


def read(path, *arguments, **options):
    """Read a volume as it should be read without any word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_volume(path, *arguments, voxel_size=SIZE, **options).load().raw


def pages(path, arrays, **options):
    with tifffile.TiffWriter(path) as file:
        for array in arrays:
            file.write(array, photometric="minisblack", metadata=None, contiguous=False, **options)
    return path


# --- one file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"bigtiff": True}, {"rowsperstrip": 3}, {"byteorder": ">"}],
)
def test_pages_are_sections(tmp_path, options):
    file_options = {key: options[key] for key in ("bigtiff", "byteorder") if key in options}
    page_options = {key: value for key, value in options.items() if key not in file_options}
    tifffile.imwrite(tmp_path / "a.tif", grey(), photometric="minisblack", **options)
    with tifffile.TiffWriter(tmp_path / "b.tif", **file_options) as file:
        for section in grey():
            file.write(section, photometric="minisblack", metadata=None, contiguous=False, **page_options)
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read(tmp_path / name), grey())
        crop = read_volume(tmp_path / name, voxel_size=SIZE)[2:4, 3:17, 5:9].raw
        np.testing.assert_array_equal(crop, grey()[2:4, 3:17, 5:9])


@pytest.mark.parametrize("axes", ["ZCYX", "TZYX", "TZCYX"])
@pytest.mark.parametrize("write", [imagej, ome_tiff])
def test_channels_and_times_are_chosen_and_not_sections(tmp_path, write, axes):
    both = np.stack([grey(), 255 - grey()], 0 if axes == "TZYX" else 1)
    both = both[None] if len(axes) == 5 else both
    write(tmp_path / "a.tif", both, axes)
    with pytest.raises(ValueError, match=r"a.tif: the axes are .*; AXES chooses one of the 2 along"):
        read_volume(tmp_path / "a.tif", voxel_size=SIZE)
    choice = {"ZCYX": "zc1yx", "TZYX": "t1zyx", "TZCYX": "zc1yx"}[axes]
    np.testing.assert_array_equal(read(tmp_path / "a.tif", axes=choice), 255 - grey())


@pytest.mark.parametrize("axes", ["CYX", "TYX"])
def test_a_stack_along_channels_or_times_needs_your_word_that_they_are_sections(tmp_path, axes):
    imagej(tmp_path / "a.tif", grey(), axes)
    with pytest.raises(ValueError, match=f"axes are {axes[0].lower()}, y, x.*each of z, y, x.*AXES.*'zyx'"):
        read_volume(tmp_path / "a.tif", voxel_size=SIZE)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", axes="zyx"), grey())


def test_a_stack_of_stacks_without_names_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([grey(), 255 - grey()]), photometric="minisblack")
    with pytest.raises(ValueError, match=r"axes are \?, \?, y, x.*AXES.*'c0zyx'"):
        read_volume(tmp_path / "a.tif", voxel_size=SIZE)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", axes="c1zyx"), 255 - grey())


def test_white_as_0_is_inverted_in_raw_but_not_in_labels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 255 - grey(), photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), grey())
    labels = grey(seed=1) // 2
    tifffile.imwrite(tmp_path / "b.tif", labels, photometric="miniswhite")
    volume = read_volume(tmp_path / "a.tif", labels_path=tmp_path / "b.tif", voxel_size=SIZE)
    np.testing.assert_array_equal(volume.load().labels, labels)


def test_numbers_of_colours_are_no_grey_but_labels(tmp_path):
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))
    ids = grey(seed=1) // 2
    for name, table in (("colours.tif", colours), ("ramp.tif", ramp)):
        tifffile.imwrite(tmp_path / name, ids, photometric="palette", colormap=table)
    with pytest.raises(ValueError, match="colours.tif.*table of colours"):
        read_volume(tmp_path / "colours.tif", voxel_size=SIZE)
    np.testing.assert_array_equal(read(tmp_path / "ramp.tif"), ids)
    volume = read_volume(tmp_path / "ramp.tif", labels_path=tmp_path / "colours.tif", voxel_size=SIZE)
    np.testing.assert_array_equal(volume.load().labels, ids)


@pytest.mark.parametrize(("highest", "advice"), [(255, "astype.*loses nothing"), (4095, "scale them")])
def test_grey_of_16_bits_is_refused_with_its_range(tmp_path, highest, advice):
    raw = np.random.default_rng(0).integers(0, highest + 1, (6, 200, 200)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", raw, photometric="minisblack")
    low, high = raw[3].min(), raw[3].max()
    with pytest.raises(ValueError, match=f"a.tif: raw is uint16.*from {low} to {high}: .*{advice}"):
        read_volume(tmp_path / "a.tif", voxel_size=SIZE)


def test_pages_of_several_sizes_are_several_images(tmp_path):
    path = pages(tmp_path / "a.tif", [*grey()[:3, :10, :14], *grey()])
    with pytest.raises(ValueError, match=r"holds 2 images.*0: \(3, 10, 14\).*1: \(6, 20, 28\).*RAW_KEY"):
        read_volume(path, voxel_size=SIZE)
    np.testing.assert_array_equal(read(path, 1), grey())
    with pytest.raises(ValueError, match="the key is '2'; it holds 2 images"):
        read_volume(path, "2", voxel_size=SIZE)


def test_each_image_of_an_ome_tiff_has_a_voxel_size_of_its_own(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for raw, size in ((grey((3, 10, 14)), 16), (grey(), 8)):
            lengths = {"PhysicalSizeZ": 40, "PhysicalSizeY": size, "PhysicalSizeX": size}
            units = {f"{name}Unit": "nm" for name in lengths}
            file.write(raw, photometric="minisblack", metadata={"axes": "ZYX", **lengths, **units})
    for key, size in (("0", 16), ("1", 8)):
        assert read_volume(tmp_path / "a.ome.tif", key).voxel_size == pytest.approx((40, size, size))


def test_blocks_of_several_sections_are_unpacked(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", grey(), photometric="minisblack", tile=(2, 16, 16), volumetric=True)
    crop = read_volume(tmp_path / "a.tif", voxel_size=SIZE)[1:5, 3:17, 5:9]
    np.testing.assert_array_equal(crop.raw, grey()[1:5, 3:17, 5:9])


def test_a_file_that_lost_its_end_is_refused(tmp_path):
    whole = pages(tmp_path / "whole.tif", grey((6, 200, 200)), compression="zlib").read_bytes()
    tifffile.imwrite(tmp_path / "one.tif", grey((6, 200, 200)), photometric="minisblack")
    for data in (whole, (tmp_path / "one.tif").read_bytes()):
        for part in (0.3, 0.6, 0.9, 0.999):
            (tmp_path / "a.tif").write_bytes(data[: int(part * len(data))])
            with pytest.raises(ValueError, match=r"a.tif: cannot be read, it may be truncated"):
                read_volume(tmp_path / "a.tif", voxel_size=SIZE)


def test_a_file_that_is_cut_off_while_it_is_open_raises_an_error_and_does_not_kill_python(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", grey((6, 200, 200)), photometric="minisblack")
    volume = read_volume(tmp_path / "a.tif", voxel_size=SIZE)
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:50_000])
    with pytest.raises(OSError, match="a.tif: cannot read"):
        volume.load()


def read_in_a_fork(read):
    """Read in a forked process, and return the text of the error, or the shape of what was read."""
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()

    def send():
        try:
            results.put(str(read().shape))
        except (OSError, ValueError) as error:
            results.put(str(error))

    reader = fork.Process(target=send)
    reader.start()
    try:
        return results.get(timeout=120)
    finally:
        reader.kill()  # it hangs where it waits for a lock that its parent held


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"tile": (64, 64)}])
def test_a_forked_process_that_reads_in_between_changes_nothing(tmp_path, options, monkeypatch):
    """As workers of a DataLoader do: here one reads whenever its parent is between seeking a page and reading it."""
    tifffile.imwrite(tmp_path / "a.tif", grey((9, 128, 128)), photometric="minisblack", **options)
    volume = read_volume(tmp_path / "a.tif", voxel_size=SIZE)
    seek, shapes = tifffile.FileHandle.seek, []

    def seek_and_wait(*given):
        position = seek(*given)
        monkeypatch.setattr(tifffile.FileHandle, "seek", seek)
        shapes.append(read_in_a_fork(lambda: volume[8:9, :, :]))
        monkeypatch.setattr(tifffile.FileHandle, "seek", seek_and_wait)
        return position

    monkeypatch.setattr(tifffile.FileHandle, "seek", seek_and_wait)
    np.testing.assert_array_equal(volume[1:3, :, :].raw, grey((9, 128, 128))[1:3])
    assert set(shapes) == {"(1, 128, 128)"}


def test_a_file_that_was_replaced_is_not_read_in_a_forked_process(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", grey(), compression="zlib", photometric="minisblack")
    volume = read_volume(tmp_path / "a.tif", voxel_size=SIZE)
    (tmp_path / "a.tif").unlink()
    tifffile.imwrite(tmp_path / "a.tif", grey()[:3], compression="zlib", photometric="minisblack")
    assert "a.tif has changed: it has the shape (3, 20, 28)" in read_in_a_fork(lambda: volume[0:1, :, :])


def ome_files(folder, names):
    """An OME-TIFF whose pages lie in several files, as their names in its text say."""
    folder.mkdir(exist_ok=True)
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    for z, name in enumerate(names):
        text = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{z}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="28" SizeY="20" '
            f'SizeZ="{len(names)}" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels>'
            "</Image></OME>"
        )
        tifffile.imwrite(folder / name, grey()[z], description=text, metadata=None, photometric="minisblack")
    return folder / names[0]


def test_an_ome_tiff_over_several_files_is_read_as_a_whole_or_not_at_all(tmp_path):
    path = ome_files(tmp_path / "a", [f"s{z}.ome.tif" for z in range(3)])
    np.testing.assert_array_equal(read_volume(path, voxel_size=SIZE).load().raw, grey()[:3])
    with pytest.raises(ValueError, match="one of 3 files of an OME-TIFF"):
        read_volume(tmp_path / "a", voxel_size=SIZE)
    (tmp_path / "a" / "s2.ome.tif").unlink()
    with pytest.raises(ValueError, match="s0.ome.tif.*not there"):
        read_volume(path, voxel_size=SIZE)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("../secret.ome.tif", "../secret.ome.tif"),
        ("..&#47;secret.ome.tif", "../secret.ome.tif"),
        ("&#x2e;./secret.ome.tif", "../secret.ome.tif"),
        ("link.ome.tif", "link.ome.tif"),
    ],
)
def test_an_ome_tiff_reads_no_file_of_another_folder(tmp_path, written, name):
    ome_files(tmp_path / "elsewhere", ["secret.ome.tif"]).rename(tmp_path / "secret.ome.tif")
    path = ome_files(tmp_path / "a", ["s0.ome.tif", "s1.ome.tif"])
    (tmp_path / "a" / "link.ome.tif").symlink_to(tmp_path / "secret.ome.tif")
    rewrite_description(path, "s1.ome.tif", written)
    with pytest.raises(ValueError, match=f"takes pages from '{name}', which does not lie beside it"):
        read_volume(path, voxel_size=SIZE)


def rewrite_description(path, old, new):
    """Change the text of the first page of `ome_files`."""
    text = path.read_text(encoding="latin-1")
    text = text[text.index("<?xml") : text.index("</OME>") + 6].replace(old, new)
    tifffile.imwrite(path, grey()[0], description=text, metadata=None, photometric="minisblack")


def test_an_ome_tiff_with_entities_of_its_own_is_not_read(tmp_path):
    path = ome_files(tmp_path / "a", ["s0.ome.tif", "s1.ome.tif"])
    rewrite_description(path, '<?xml version="1.0"?>', '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY up "..">]>')
    with pytest.raises(ValueError, match=r"s0.ome.tif: its OME-XML defines entities"):
        read_volume(path, voxel_size=SIZE)


def nd_tiff(folder, second):
    """An NDTiff with a section of its own; its index takes another one from the file `second`."""
    data, head = grey((64, 64)), 24  # bytes
    tags = [(256, 4, 64), (257, 4, 64), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, head), (278, 4, 64)]
    tags += [(279, 4, data.size), (51123, 2, head + data.size + 2 + 9 * 12 + 4)]  # the last one is its metadata
    entries = [struct.pack("<HHII", tag, kind, 8 if kind == 2 else 1, value) for tag, kind, value in tags]
    start = struct.pack("<2sHIIIII", b"II", 42, head + data.size, 483729, 2, 2355492, 0)
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    (folder / "a.tif").write_bytes(start + data.tobytes() + directory + b'{"a":1}\0')
    index = b""
    for z, (name, offset) in enumerate([("a.tif", head), (second, 8)]):
        for text in (json.dumps({"z": z}), name):
            index += struct.pack("<I", len(text)) + text.encode()
        index += struct.pack("<8I", offset, 64, 64, 0, 0, 0, 0, 0)
    (folder / "NDTiff.index").write_bytes(index)
    return folder / "a.tif"


@pytest.mark.parametrize("second", ["../secret.tif", "link.tif", "b.tif"])
def test_an_index_beside_a_tiff_names_no_file_of_another_folder(tmp_path, second):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link.tif").symlink_to(tmp_path / "secret.tif")
    tifffile.imwrite(tmp_path / "a" / second, grey((64, 64), 1), photometric="minisblack", metadata=None)
    path = nd_tiff(tmp_path / "a", second)
    if second == "b.tif":  # which lies beside it
        assert read_volume(path, voxel_size=SIZE).load().shape == (2, 64, 64)
        return
    with pytest.raises(ValueError, match=r"a.tif: takes pages from .*secret.tif, which does not lie beside it"):
        read_volume(path, voxel_size=SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_reading_page_by_page_takes_work_in_proportion_to_the_pages(tmp_path, compression, monkeypatch):
    """The last pages of a long file take no more calls than the first: its list of pages is read once, at opening."""
    path = pages(tmp_path / "a.tif", np.broadcast_to(grey((1, 16, 16)), (2500, 16, 16)), compression=compression)
    open_tiff, opened = tifffile.TiffFile, []
    monkeypatch.setattr(tifffile, "TiffFile", lambda *given: opened.append(given) or open_tiff(*given))
    raw = read_volume(path, voxel_size=SIZE).raw

    first, last = (count_calls(lambda n=n: [raw[z] for z in n]) for n in (range(200), range(2300, 2500)))
    assert last < 1.5 * first and len(opened) == 1


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s{z}.tif", "s{z}.TIF", "Brain {z:03} ü.tiff", "exp12_z{z}.tif", "1²{z}.tif"])
def test_a_folder_of_sections(tmp_path, name):
    np.testing.assert_array_equal(read(sections(tmp_path / "my ü folder", grey((12, 8, 9)), name)), grey((12, 8, 9)))


def test_suffixes_may_be_mixed(tmp_path):
    folder = sections(tmp_path / "a", grey())
    (folder / "s3.tif").rename(folder / "s3.TIFF")
    np.testing.assert_array_equal(read(folder), grey())


def test_letters_of_either_case_do_not_change_the_order(tmp_path):
    for z, section in enumerate(grey()):
        sections(tmp_path / "a", section[None], f"{'sS'[z % 2]}{z}.tif")
    np.testing.assert_array_equal(read(tmp_path / "a"), grey())


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sections(tmp_path / "a", grey())
    np.testing.assert_array_equal(read("~/a"), grey())
    with pytest.raises(FileNotFoundError, match="~nobody-of-that-name/a.*home folder is unknown"):
        read("~nobody-of-that-name/a")


@pytest.mark.parametrize("stray", ["s3.tif~", "._s0.tif", "s0.tif.aux.xml", "Thumbs.db", ".DS_Store", "s3.tif.bak"])
def test_stray_files_are_no_sections(tmp_path, stray):
    folder = sections(tmp_path / "a", grey())
    shutil.copy(folder / "s3.tif", folder / stray)
    np.testing.assert_array_equal(read(folder), grey())


def test_folders_with_tiffs_are_mentioned(tmp_path):
    folder = sections(tmp_path / "a", grey())
    sections(folder / "thumbs.tiff", grey())
    with pytest.warns(UserWarning, match="TIFFs in its folders thumbs.tiff are not read"):
        np.testing.assert_array_equal(read_volume(folder, voxel_size=SIZE).load().raw, grey())
    sections(tmp_path / "b" / "1-6", grey())
    with pytest.raises(ValueError, match="unknown format, but its folders 1-6 hold volumes: name one"):
        read_volume(tmp_path / "b", voxel_size=SIZE)


def test_files_of_another_kind_are_named_and_can_be_chosen(tmp_path):
    folder = sections(tmp_path / "a", grey())
    sections(folder, (grey() > 9).astype(np.uint8), "s{z}_mask.tif")
    with pytest.raises(ValueError, match=r"2 kinds \('s#.tif': 6; 's#_mask.tif': 6.*RAW_KEY"):
        read_volume(folder, voxel_size=SIZE)
    np.testing.assert_array_equal(read(folder, "s#.tif"), grey())
    volume = read_volume(folder, "s#.tif", "s#_mask.tif", voxel_size=SIZE)
    np.testing.assert_array_equal(volume.load().labels, grey() > 9)
    with pytest.raises(ValueError, match="the key is 'mask'; its kinds of files are: s#.tif, s#_mask.tif"):
        read_volume(folder, "mask", voxel_size=SIZE)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0, 1, 2, 4, 5, 6], "jump from 2 to 4"),
        ([0, 10, 20, 30, 40, 50], "in steps of 10"),
        ([1, 2, 3, 4, 5, 60], "5 to 60"),
    ],
)
def test_a_gap_in_the_numbers_is_mentioned(tmp_path, numbers, message):
    folder = sections(tmp_path / "a", grey(), numbers=numbers)
    with pytest.warns(UserWarning, match=f"{message}.*z is wrong"):
        np.testing.assert_array_equal(read_volume(folder, voxel_size=SIZE).load().raw, grey())


def test_a_gap_in_the_first_of_several_numbers_is_mentioned(tmp_path):
    for z in (0, 1, 2, 4):
        sections(tmp_path / "a", grey()[:1], f"z{z}_at{1200 + 7 * z}.tif")
    with pytest.warns(UserWarning) as warned:
        read_volume(tmp_path / "a", voxel_size=SIZE)
    assert [word in str(warning.message) for word, warning in zip(("2 numbers", "2 to 4"), warned, strict=True)] == [
        1,
        1,
    ]


def test_a_number_that_occurs_twice_is_refused(tmp_path):
    folder = sections(sections(tmp_path / "a", grey()), grey(), "s{z:02}.tif")
    with pytest.raises(ValueError, match=r"several files have the number of s00?\.tif"):
        read_volume(folder, voxel_size=SIZE)


def test_numbers_of_tiles_and_names_without_numbers_are_mentioned(tmp_path):
    for z in range(4):
        sections(tmp_path / "tiles", grey()[:1], f"z{z // 2}_x{z % 2}.tif")
    with pytest.warns(UserWarning, match="differ in 2 numbers.*tiles"):
        assert read_volume(tmp_path / "tiles", voxel_size=SIZE).shape == (4, 20, 28)
    for name in "ba":
        sections(tmp_path / "letters", grey()[:1], f"{name}.tif")
    with pytest.warns(UserWarning, match="no file has a number.*alphabetical"):
        assert read_volume(tmp_path / "letters", voxel_size=SIZE).shape == (2, 20, 28)


def test_numbers_with_a_point_are_mentioned_where_their_order_is_unclear(tmp_path):
    for number, section in zip(("0.04", "0.08", "0.1", "0.12"), grey((4, 20, 28)), strict=True):
        sections(tmp_path / "a", section[None], f"z{number}um.tif")
        sections(tmp_path / "b", section[None], f"z{float(number):.2f}um.tif")
    with pytest.warns(UserWarning, match="a: numbers behind a point count as whole numbers"):
        read_volume(tmp_path / "a", voxel_size=SIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_volume(tmp_path / "b", voxel_size=SIZE)
    assert not [w for w in caught if "behind a point" in str(w.message)]


@pytest.mark.parametrize("in_folder", [False, True])
def test_pages_that_are_stored_turned_are_mentioned(tmp_path, in_folder):
    turned = {"photometric": "minisblack", "metadata": None, "extratags": [(274, "H", 1, 4, True)]}
    for name, pages in (("s0.tif", grey()[:3]), ("s1.tif", grey()[3:])):
        tifffile.imwrite(tmp_path / name, pages, **turned)
    with pytest.warns(UserWarning, match=r"mirrored \(orientation 4\), but is read as it is stored"):
        read_volume(tmp_path if in_folder else tmp_path / "s0.tif", voxel_size=SIZE)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (grey((40, 50)), r"s3.tif has sections of \(40, 50\) voxels, uint8, and s0.tif of \(20, 28\)"),
        (grey((10, 28)), r"s3.tif has sections of \(10, 28\)"),
        (grey((20, 28)).astype(np.uint16), r"s3.tif has sections of \(20, 28\) voxels, uint16"),
        (grey((20, 28, 3)), "s3.tif: is in colour"),
    ],
)
def test_a_section_unlike_the_others_is_named(tmp_path, section, message):
    folder = sections(tmp_path / "a", grey())
    tifffile.imwrite(folder / "s3.tif", section)
    with pytest.raises(ValueError, match=message):
        read_volume(folder, voxel_size=SIZE)


@pytest.mark.parametrize("axes", ["CYX", "TYX"])
def test_channels_and_times_in_a_folder_are_no_sections(tmp_path, axes):
    for z in range(3):
        imagej(tmp_path / f"s{z}.tif", grey()[:2], axes)
    with pytest.raises(ValueError, match=f"s0.tif: has 2 pages along {axes[0]}; a section is one page"):
        read_volume(tmp_path, voxel_size=SIZE)


def test_a_section_with_black_and_white_the_other_way_round_is_named(tmp_path):
    folder = sections(tmp_path / "a", grey())
    tifffile.imwrite(folder / "s3.tif", grey()[3], photometric="miniswhite")
    with pytest.raises(ValueError, match=r"s3.tif has black and white, .*the other way round than s0.tif"):
        read_volume(folder, voxel_size=SIZE)


def test_a_section_that_was_replaced_by_a_larger_one_is_named(tmp_path):
    volume = read_volume(sections(tmp_path / "a", grey()), voxel_size=SIZE)
    tifffile.imwrite(tmp_path / "a" / "s3.tif", grey((40, 50)), photometric="minisblack")
    with pytest.raises(ValueError, match=r"s3.tif has changed: its sections have \(40, 50\) voxels by now"):
        volume[2:5, 3:7, 1:9]


@pytest.mark.parametrize("data", [b"", b"no TIFF", None])
def test_a_damaged_section_is_named(tmp_path, data):
    folder = sections(tmp_path / "a", grey())
    (folder / "s3.tif").write_bytes((folder / "s3.tif").read_bytes()[:300] if data is None else data)
    with pytest.raises(ValueError, match="s3.tif: cannot be read"):
        read_volume(folder, voxel_size=SIZE)


def test_several_files_of_several_sections_are_read_in_turn_with_a_word(tmp_path):
    for part in range(2):
        pages(sections(tmp_path / "a", grey()[:0]) / f"part{part + 1}.tif", grey()[3 * part : 3 * part + 3])
    with pytest.warns(UserWarning, match="its 2 files hold 3 to 3 sections each"):
        volume = read_volume(tmp_path / "a", voxel_size=SIZE)
    np.testing.assert_array_equal(volume.load().raw, grey())
    np.testing.assert_array_equal(volume[2:5, 3:7, 1:2].raw, grey()[2:5, 3:7, 1:2])


def test_a_folder_with_one_stack_is_that_stack(tmp_path):
    (tmp_path / "a").mkdir()
    tifffile.imwrite(tmp_path / "a" / "stack.tif", grey(), photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "a"), grey())
    (tmp_path / "a" / "stack.tif").unlink()
    sections(tmp_path / "a", grey()[:1])
    with pytest.raises(ValueError, match=r"\(20, 28\).*raw\[None\]"):
        read_volume(tmp_path / "a", voxel_size=SIZE)


def test_a_section_that_is_a_link_to_another_folder_is_not_read(tmp_path):
    folder, secret = sections(tmp_path / "a", grey()), sections(tmp_path / "secret", grey())
    (folder / "s3.tif").unlink()
    (folder / "s3.tif").symlink_to(secret / "s3.tif")
    with pytest.raises(ValueError, match="s3.tif leads out of"):
        read_volume(folder, voxel_size=SIZE)
    (folder / "s3.tif").unlink()
    (folder / "s3.tif").symlink_to(folder / "s2.tif")
    np.testing.assert_array_equal(read_volume(folder, voxel_size=SIZE).load().raw, grey()[[0, 1, 2, 2, 4, 5]])
