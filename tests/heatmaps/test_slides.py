"""Regions of a pyramidal TIFF, read by OpenSlide."""

import numpy as np
import pytest
from score_files import write_slide

from mhimdist.errors import DataError
from mhimdist.heatmaps import slides
from mhimdist.heatmaps.slides import Region, file_of, opened, slides_in


def painted(height=600, width=800):
    """Red grows to the right, green downward."""
    pixels_YX3 = np.zeros((height, width, 3), np.uint8)
    pixels_YX3[..., 0] = np.linspace(0, 255, width)
    pixels_YX3[..., 1] = np.linspace(0, 255, height)[:, None]
    return pixels_YX3


@pytest.fixture
def path(tmp_path):
    write_slide(tmp_path / "slides" / "Tumor.001.tif", painted(), levels=3, mpp=0.5)
    return tmp_path / "slides" / "Tumor.001.tif"


def test_size_levels_and_micrometres_are_known(path):
    with opened(path) as slide:
        assert slide.size == (800, 600)
        assert slide.downsamples == pytest.approx((1, 2, 4))
        assert slide.mpp == pytest.approx(0.5)
        assert slide.power is None


@pytest.mark.parametrize("max_block", [2048, 100])
@pytest.mark.parametrize(("width", "height"), [(800, 600), (200, 150), (37, 29)])
def test_a_region_of_any_size_equals_the_pixels_there(path, monkeypatch, max_block, width, height):
    monkeypatch.setattr(slides, "MAX_BLOCK", max_block)
    with opened(path) as slide:
        read_YX3 = np.asarray(slide.read(Region(0, 0, 800, 600), width, height)).astype(int)
    assert read_YX3.shape == (height, width, 3)
    columns = ((np.arange(width) + 0.5) * 800 / width).astype(int)
    rows = ((np.arange(height) + 0.5) * 600 / height).astype(int)
    expected_YX3 = painted()[rows][:, columns].astype(int)
    # At the slide's margin OpenSlide blends a part of a pixel with the ground.
    assert abs(read_YX3 - expected_YX3)[:-1, :-1].max() <= 6
    assert abs(read_YX3 - expected_YX3).max() <= 16


def test_what_lies_outside_is_white(path):
    with opened(path) as slide:
        read_YX3 = np.asarray(slide.read(Region(-100, -100, 200, 200), 20, 20))
    assert (read_YX3[:9] == 255).all()
    assert (read_YX3[:, :9] == 255).all()
    assert (read_YX3[11:, 11:, 2] == 0).all()


def test_slides_are_found_by_name_whatever_their_case(path):
    found = slides_in(path.parent.parent)
    assert file_of("Tumor.001", found) == path
    assert file_of("tumor.001.TIF", found) == path
    assert file_of("tumor", found) is None
    (path.parent / "again").mkdir()
    (path.parent / "again" / "tumor.001.svs").write_bytes(b"")
    with pytest.raises(DataError, match=r"slide 'Tumor\.001' has several files: .*again/tumor\.001\.svs"):
        file_of("Tumor.001", slides_in(path.parent))


def test_bad_files_and_folders_are_named(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"no slide")
    with pytest.raises(DataError, match=r"OpenSlide cannot read .*a\.svs"), opened(tmp_path / "a.svs"):
        pass
    with pytest.raises(DataError, match=r"OpenSlide cannot read .*b\.svs"), opened(tmp_path / "b.svs"):
        pass
    with pytest.raises(DataError, match="nowhere is not a folder"):
        slides_in(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no slide file; expected \.bif"):
        slides_in(tmp_path / "empty")


def test_a_damaged_slide_is_named(tmp_path):
    path = tmp_path / "a.tif"
    rng = np.random.default_rng(0)
    write_slide(path, rng.integers(0, 255, (512, 512, 3), np.uint8).astype(np.uint8), levels=1)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"a\.tif"), opened(path) as slide:
        slide.read(Region(0, 0, 512, 512), 64, 64)


def test_without_openslide_the_extra_is_named(path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(DataError, match=r"not installed: pip install 'mhimdist\[slides\]'"), opened(path):
        pass
