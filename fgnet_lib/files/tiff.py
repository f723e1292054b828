"""TIFF stacks and folders of TIFF sections, read lazily; what ImageJ and OME write about axes and lengths.

`tifffile` tells series, pages and axes. A page that is not packed is read row by row; a packed one is unpacked whole.
"""

from __future__ import annotations

import math
import os
import re
import threading
import weakref
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from fgnet_lib.files.geometry import MOST_BYTES, Claims, FormatError, mention, naming
from fgnet_lib.files.lengths import Measure
from fgnet_lib.volumes import Lazy

SUFFIXES = (".tif", ".tiff")
_UNKNOWN = "IQ"  # tifffile's letters for an axis without a meaning


def is_tiff(path: Path) -> bool:
    """Tell whether a path is a TIFF by its name, or a folder with TIFFs."""
    return path.suffix.lower() in SUFFIXES and path.is_file() or path.is_dir() and bool(list_sections(path))


def list_sections(folder: Path) -> list[Path]:
    """List the TIFF files of a folder in natural order (sec_2 before sec_10), without hidden files."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return sorted(
        (file for file in files if not file.is_dir()), key=lambda file: (_natural(file.name.lower()), file.name)
    )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(text), "") if text.isdecimal() else (-1, text) for text in re.split(r"(\d+)", name)]


def claim_tiff(path: Path, key: str | None) -> Claims:
    """Return a TIFF stack with what the file says about it.

    Args:
        path: the file.
        key: number of one of several images in the file, counted from 0.

    Raises:
        FormatError: truncated, several images, or colours.
    """
    stack = _Stack(path, key)  # stays open, so that pages are found once
    _mention_orientation(path, stack)
    return Claims(
        Lazy(stack.shape, stack.dtype, lambda *cut: stack.here().cut(*cut)),
        {"TIFF": [None if axis in _UNKNOWN else axis for axis in stack.axes]} if stack.named else {},
        stack.sizes,
        inverted=stack.inverted,
        coloured=stack.coloured,
        remark="ImageJ and OME write one with z into their TIFFs, a resolution in dots per inch is none",
        files=stack.files,
    )


def claim_sections(folder: Path, pattern: str | None) -> Claims:
    """Return the sections of a folder of TIFFs, one section or more in each file, in the order of their numbers.

    Args:
        folder: the folder.
        pattern: which files, with # for every number in their names, as in "s#.tif", if there are several kinds.

    Raises:
        FormatError: files of several kinds or sizes, a link that leads elsewhere, a number that occurs twice.
    """
    files = _one_kind(folder, list_sections(folder), pattern)
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise FormatError(f"{file} leads out of {folder}, to {file.resolve()}, and is not read")
        if not file.is_file():
            raise FormatError(f"{file} is no file, and is not read")
    numbers = _check_numbers(folder, files)
    _mention_subfolders(folder)
    first, depths = _open_alike(files)
    _mention_orientation(folder, first)
    if max(depths) > 1 and len(files) > 1:
        mention(
            f"{folder}: its {len(files)} files hold {min(depths)} to {max(depths)} sections each; all are read in turn"
        )
    index = [(file, z) for file, depth in zip(files, depths, strict=True) for z in range(depth)]

    def cut(z: slice, y: slice, x: slice) -> np.ndarray:
        sections = []
        for file, number in index[z]:
            with _Stack(file) as stack:
                if stack.plane != first.plane:
                    raise FormatError(f"{file} has changed: its sections have {stack.plane} voxels by now")
                sections.append(stack.cut_section(number, y, x))
        return np.stack(sections)

    array = Lazy((len(index), *first.plane), first.dtype, cut)
    if len(index) == 1:  # one section is no volume, and the error says what to do
        array = Lazy(first.plane, first.dtype, lambda y, x: cut(slice(0, 1), y, x)[0])
    return Claims(
        array,
        sizes=first.sizes,
        inverted=first.inverted,
        coloured=first.coloured,
        remark="TIFF sections have none",
        files=tuple(files),
        numbers=numbers,
    )


def _mention_orientation(path: Path, stack: _Stack) -> None:
    if stack.orientation != 1:
        mention(
            f"{path}: is to be shown turned or mirrored (orientation {stack.orientation}), but is read as it is "
            "stored; labels must be stored alike"
        )


def _open_alike(files: list[Path]) -> tuple[_Stack, list[int]]:
    """The first file of sections, closed, and the number of sections in each; all have the same size and type."""
    first, depths = None, []
    for file in files:
        with naming(file), _Stack(file) as stack:
            _check_section(file, stack)
        first = first or stack
        depths.append(stack.depth)
        if (stack.plane, stack.dtype) != (first.plane, first.dtype):
            raise FormatError(
                f"{file} has sections of {stack.plane} voxels, {stack.dtype}, and {files[0].name} of {first.plane}, "
                f"{first.dtype}; all sections of a folder have the same size and type"
            )
        if (stack.inverted, stack.coloured) != (first.inverted, first.coloured):
            raise FormatError(f"{file} has black and white, or colours, the other way round than {files[0].name}")
    assert first is not None
    return first, depths


def _check_section(file: Path, stack: _Stack) -> None:
    if len(stack.files) > 1:
        raise FormatError(
            f"{file}: is one of {len(stack.files)} files of an OME-TIFF; name one of them, not the folder"
        )
    if len(stack.shape) > 3:
        raise FormatError(f"{file}: has the shape {stack.shape} with the axes {stack.axes}; a section has y and x")
    if len(stack.shape) == 3 and stack.axes[1:] != "YX":
        kind = "is in colour" if stack.axes[-1] == "S" else f"has the axes {stack.axes}"
        raise FormatError(f"{file}: {kind}; a section has y and x (colour: take one channel or the mean of them)")
    if len(stack.shape) == 3 and stack.axes[0] in "CT" and stack.shape[0] > 1:
        raise FormatError(f"{file}: has {stack.shape[0]} pages along {stack.axes[0]}; a section is one page of y and x")


# --- names in a folder -----------------------------------------------------------------------------------------------


def _kind(name: str) -> str:
    """A name with # for its numbers, in one spelling."""
    name = re.sub(r"\d+", "#", name.lower())
    return name.removesuffix("f") if name.endswith(".tiff") else name


def _one_kind(folder: Path, files: list[Path], pattern: str | None) -> list[Path]:
    """The files whose names differ in numbers only."""
    kinds = defaultdict(list)
    for file in files:
        kinds[_kind(file.name)].append(file)
    if pattern is not None:
        if _kind(pattern) not in kinds:
            raise FormatError(
                f"{folder}: the key is {pattern!r}; its kinds of files are: {', '.join(list(kinds)[:20])}"
            )
        return kinds[_kind(pattern)]
    if len(kinds) == 1:
        return files
    if all("#" not in kind for kind in kinds):
        mention(f"{folder}: no file has a number in its name; sections are in alphabetical order")
        return files
    counts = "; ".join(f"{kind!r}: {len(members)}" for kind, members in list(kinds.items())[:10])
    raise FormatError(
        f"{folder}: holds TIFFs of {len(kinds)} kinds ({counts}; # is a number); move away those that are no sections, "
        f"or name a kind by RAW_KEY, or LABELS_KEY, as in {max(kinds, key=lambda kind: len(kinds[kind]))!r}"
    )


def _check_numbers(folder: Path, files: list[Path]) -> tuple[int, ...]:
    """Return the number of each file, the first that changes, if names have one.

    Two files with the same number are refused; gaps, and names with several numbers that change, give a warning.
    """
    rows = [tuple(map(int, re.findall(r"\d+", file.name))) for file in files]
    if len({len(row) for row in rows}) > 1 or not rows[0]:
        return ()
    fractions = {match[1] for file in files if (match := re.search(r"\d[.,](\d+)\D", f"{file.stem} "))}
    if len({len(fraction) for fraction in fractions}) > 1:
        mention(
            f"{folder}: numbers behind a point count as whole numbers, so 1.9 comes before 1.12; name files with as "
            "many digits each if they are fractions"
        )
    changing = [column for column in zip(*rows, strict=True) if len(set(column)) > 1]
    if len(set(rows)) < len(rows):
        first = next(file.name for i, file in enumerate(files) if rows.count(rows[i]) > 1)
        raise FormatError(f"{folder}: several files have the number of {first}; which one is the section?")
    if len(changing) > 1:
        mention(
            f"{folder}: names differ in {len(changing)} numbers, as in {files[0].name} and {files[-1].name}; they are "
            "taken as sections in the order of the first number, then the next: tiles of a section would be wrong"
        )
    if changing:
        numbers = sorted(set(changing[0]))  # the first number is that of the section, also where tiles or times follow
        step = int(np.diff(numbers).min())
        gaps = [f"{a} to {b}" for a, b in zip(numbers, numbers[1:], strict=False) if b - a > step]
        if (gaps or step > 1) and (len(changing) == 1 or step == 1):
            what = (
                f"the numbers jump from {', '.join(gaps[:10])}" if gaps else f"sections are numbered in steps of {step}"
            )
            mention(f"{folder}: {what}; sections are put together without gaps, so z is wrong if some are missing")
    return tuple(changing[0]) if changing else ()


def _mention_subfolders(folder: Path) -> None:
    names = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and _holds_tiffs(entry)]
    if names:
        mention(f"{folder}: TIFFs in its folders {', '.join(names[:10])} are not read")


def _holds_tiffs(folder: Path) -> bool:
    try:
        return folder.suffix.lower() in SUFFIXES or bool(list_sections(folder))
    except OSError:
        return False


# --- one file --------------------------------------------------------------------------------------------------------


class _Stack:
    """The pages of one image in a TIFF, or of several equal sections, and what the file says about them.

    Attributes:
        shape, axes: of the array, in tifffile's letters.
        named: whether the axes have a meaning.
        inverted: whether 0 is white.
        coloured: whether values are numbers of colours, and not grey.
        orientation: TIFF's number for the corner of the first voxel; 1 is the upper left one.
        sizes: voxel sizes that the file states.
        files: the files with the pages.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path, self._key, self._lock = path, key, threading.Lock()
        self._process = os.getpid()
        self._copy: _Stack | None = None  # of a forked process
        self._file = tifffile.TiffFile(path)
        weakref.finalize(self, self._file.close)
        try:
            self._describe(key)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def here(self) -> _Stack:
        """The stack to read in this process: after a fork a copy, opened anew.

        An open file has one position, which parent and child would move under each other's hands.

        Raises:
            FormatError: the file has changed since it was opened first.
        """
        stack = self._copy or self
        if stack._process != os.getpid():
            stack = _Stack(self.path, self._key)
            if (stack.shape, stack.dtype) != (self.shape, self.dtype):
                raise FormatError(f"{self.path} has changed: it has the shape {stack.shape}, {stack.dtype}, by now")
            self._copy = stack
        return stack

    def _describe(self, key: str | None) -> None:
        _refuse_foreign_names(self.path, self._file.ome_metadata)
        pages = len(self._file.pages)
        if _ends_early(self._file):
            raise ValueError(f"its list of pages breaks off after {pages}")
        self._series, self.shape, self.axes = self._choose_series(key)
        page, self.dtype = self._series[0].keyframe, np.dtype(self._series[0].dtype).newbyteorder("=")
        self.named = len(self.axes) > 3 or self.axes.strip(_UNKNOWN) != "YX"
        self.inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and self.dtype != bool
        self.coloured = page.photometric == tifffile.PHOTOMETRIC.PALETTE and not _is_grey(page.colormap)
        self.orientation = page.tags.valueof("Orientation", 1)
        self.sizes = _sizes(self._file, int(key or 0), page)
        self._pages = [page for part in self._series for page in part.pages]
        if absent := sum(page is None for page in self._pages):
            raise FormatError(f"{self.path}: {absent} of {len(self._pages)} pages lie in files that are not there")
        self.files = self._list_files()
        self._start = self._series[0].dataoffset if len(self._series) == len(self.files) == 1 else None
        self._pages = [] if self._start is not None else self._pages
        self._check_bytes(page)

    @property
    def plane(self) -> tuple[int, ...]:
        """Voxels along y and x."""
        return self.shape[-2:]

    @property
    def depth(self) -> int:
        """The number of sections of a file of sections."""
        return self.shape[0] if len(self.shape) == 3 else 1

    def _choose_series(self, key: str | None) -> tuple[list[Any], tuple[int, ...], str]:
        """The series to read with their shape and axes: one, or all if they are equal pages."""
        series = list(self._file.series)
        if key is not None and (not key.isdecimal() or int(key) >= len(series)):
            raise FormatError(f"{self.path}: the key is {key!r}; it holds {len(series)} images: give a number from 0")
        first = series[int(key or 0)]
        if key is not None or len(series) == 1:
            return [first], tuple(first.shape), first.axes
        if len({(part.shape, part.axes, part.dtype) for part in series}) == 1 and first.axes == "YX":
            return series, (len(series), *first.shape), "QYX"
        shapes = "; ".join(f"{i}: {part.shape} {part.axes}" for i, part in enumerate(series[:10]))
        raise FormatError(
            f"{self.path}: holds {len(series)} images, or pages of several sizes ({shapes}); RAW_KEY, or "
            "LABELS_KEY, chooses one"
        )

    def _list_files(self) -> tuple[Path, ...]:
        """The file and those beside it with pages of its image; others are refused, whatever named them."""
        own, names = self.path.resolve(), {page.parent.filehandle.path for page in self._pages}
        others = sorted({Path(name).resolve() for name in names} - {own})
        if foreign := [other for other in others if other.parent != own.parent]:
            raise FormatError(
                f"{self.path}: takes pages from {foreign[0]}, which does not lie beside it, and is not read"
            )
        return (self.path, *others)

    def _check_bytes(self, page: Any) -> None:
        """Refuse a file that ends before its last voxel, and pages that are too large to unpack."""
        size, last = self.path.stat().st_size, 0
        if self._start is not None:
            last = self._start + math.prod(self.shape) * self.dtype.itemsize
        for part in self._pages:
            if part.parent.filehandle.path == self._file.filehandle.path:
                last = max(last, *(a + n for a, n in zip(part.dataoffsets, part.databytecounts, strict=False)))
        if last > size:
            raise ValueError(f"it ends after {size} bytes, and its voxels after {last}")
        if self._pages and math.prod(page.shape) * self.dtype.itemsize > MOST_BYTES:
            raise FormatError(
                f"{self.path}: a page of {page.shape} voxels is unpacked as a whole, and too large; save it as Zarr"
            )

    def cut(self, *slices: slice) -> np.ndarray:
        """Read a box of voxels in the file's order of axes."""
        leading = self.shape[:-2]
        if self.axes[-2:] != "YX" or self._pages and len(self._pages) != math.prod(leading):
            with self._lock:  # colours, or axes in an order that pages do not follow
                return np.asarray(self._series[0].asarray())[slices]
        counts = [s.stop - s.start for s in slices]
        numbers = np.arange(math.prod(leading)).reshape(leading)[slices[:-2]].reshape(-1)
        return np.stack([self.cut_section(int(number), *slices[-2:]) for number in numbers]).reshape(counts)

    def cut_section(self, number: int, y: slice, x: slice) -> np.ndarray:
        """Read a part of a section."""
        height, width = self.plane
        if self._start is not None:
            # not by a memory map: Python dies when a mapped file is cut off
            dtype, rows = self.dtype.newbyteorder(self._file.byteorder), y.stop - y.start
            offset = self._start + (number * height + y.start) * width * dtype.itemsize
            values = np.fromfile(self.path, dtype, rows * width, offset=offset).reshape(rows, width)
            return values[:, x].astype(self.dtype)
        part = self._pages[number]
        with self._lock:
            if part.parent.filehandle.closed:  # a neighbour of an OME-TIFF
                part.parent.filehandle.open()
            page = part.asarray()
        return page.reshape(height, width)[y, x]


def _is_grey(colours: np.ndarray | None) -> bool:
    """Whether a table of colours is the ramp from black to white."""
    return colours is not None and bool((colours >> 8 == np.arange(colours.shape[-1])).all())


def _ends_early(file: tifffile.TiffFile) -> bool:
    """Whether the list of pages goes on behind the end of the file, as after a broken copy."""
    file.filehandle.seek(file.pages.next_page_offset or 0)
    word = file.filehandle.read(file.tiff.offsetsize)
    offset = int.from_bytes(word, "little" if file.byteorder == "<" else "big")
    return len(word) < file.tiff.offsetsize or offset >= file.filehandle.size


def _refuse_foreign_names(path: Path, metadata: str | None) -> None:
    """Raise a FormatError if an OME-TIFF names pages in files of another folder; those beside it are read.

    tifffile opens whatever the file names: a downloaded one could name any file that you may read, or a pipe.
    """
    if "<!DOCTYPE" in (metadata or ""):
        raise FormatError(f"{path}: its OME-XML defines entities, as OME never does, and is not read")
    for node in ElementTree.fromstring(metadata).iter() if metadata else ():
        name = node.get("FileName", path.name)
        if Path(name).name != name or (path.parent / name).resolve().parent != path.resolve().parent:
            raise FormatError(f"{path}: takes pages from {name!r}, which does not lie beside it, and is not read")


def _sizes(file: tifffile.TiffFile, image: int, page: Any) -> dict[str, Measure]:
    """The voxel sizes that ImageJ or OME wrote for an image, where they have one for z."""
    sizes = {}
    if file.is_ome and file.ome_metadata:
        nodes = [node for node in ElementTree.fromstring(file.ome_metadata).iter() if node.tag.endswith("}Pixels")]
        stated = nodes[image].attrib if image < len(nodes) else {}
        if all(f"PhysicalSize{axis}" in stated for axis in "ZYX"):
            numbers = [stated[f"PhysicalSize{axis}"] for axis in "ZYX"]
            units = [stated.get(f"PhysicalSize{axis}Unit", "um") for axis in "ZYX"]
            sizes["PhysicalSize"] = Measure(numbers, units, "zyx")
    imagej = file.imagej_metadata if file.is_imagej else None
    if imagej and "spacing" in imagej and "XResolution" in page.tags and "YResolution" in page.tags:
        (a, b), (c, d) = (page.tags[f"{axis}Resolution"].value for axis in "YX")
        if a and c:
            unit = imagej.get("unit", "pixel")
            units = [imagej.get(f"{axis}unit", unit) for axis in "zyx"]
            sizes["ImageJ"] = Measure([imagej["spacing"], b / a, d / c], units, "zyx")
    return sizes
