import cv2
import numpy as np
import pandas as pd
import pytest
from test_pictures import HU, SEPARATE, THREE, write_images

from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.report import pictures, viewer


def frames(ids):
    labels = pd.DataFrame(0, pd.Index(ids, name=INDEX_NAME), list(LABELS))
    labels.loc[ids[0], ["subdural", "any"]] = 1
    return labels, labels.astype(np.float32) * 0.5 + 0.25


def scan_of(tmp_path, settings=THREE):
    return pictures.find_scans(write_images(tmp_path, settings), "ID_01")  # the series of ID_00 to ID_02, downwards


@pytest.mark.parametrize("settings", [THREE, SEPARATE, HU], ids=["channels", "separate", "hu"])
def test_it_shows_the_slice_in_its_windows(tmp_path, settings):
    scan = scan_of(tmp_path, settings)
    figure = viewer.slice_view(tmp_path, scan, settings, 1)
    expected = pictures.windows_of(tmp_path, scan["path"].iloc[1], settings)
    assert [axes.get_title() for axes in figure.axes] == list(expected) == ["brain", "subdural", "bone"]
    for axes, picture in zip(figure.axes, expected.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), picture)
    assert figure.get_suptitle() == "ID_01   slice 1 of 0 to 2   z -5.0 mm"


def test_it_shows_labels_and_what_was_predicted_along_the_scan(tmp_path):
    scan = scan_of(tmp_path)
    assert scan["SOPInstanceUID"].tolist() == ["ID_02", "ID_01", "ID_00"]
    labels, predictions = frames(["ID_00", "ID_01"])
    figure = viewer.slice_view(tmp_path, scan, THREE, 2, labels, predictions)
    assert figure.get_suptitle().endswith("has subdural, any")
    curves = {line.get_label(): line for line in figure.axes[-1].lines}
    np.testing.assert_array_equal(curves["subdural"].get_ydata(), [np.nan, 0.25, 0.75])  # ID_02 has no prediction
    np.testing.assert_array_equal(curves["epidural"].get_ydata(), [np.nan, 0.25, 0.25])
    assert figure.axes[-1].lines[-1].get_xdata() == [2, 2]  # here we are
    assert [bar.get_height() for bar in figure.axes[-1].patches] == [0, 0, -0.05]
    assert viewer.slice_view(tmp_path, scan, THREE, 1, labels, predictions).get_suptitle().endswith("has no bleed")
    without = viewer.slice_view(tmp_path, scan, THREE, 1, predictions=predictions)
    assert not without.axes[-1].patches
    assert without.get_suptitle().endswith("mm")


def test_a_slice_that_could_not_be_read_is_black_and_reported(tmp_path):
    figure = viewer.slice_view(tmp_path, scan_of(tmp_path), THREE, 0)
    assert "no image: truncated" in figure.get_suptitle()
    assert [axes.get_title() for axes in figure.axes] == ["brain", "subdural", "bone"]
    assert all(axes.images[0].get_array().max() == 0 for axes in figure.axes)


def test_all_slices_give_pictures_of_one_size(tmp_path):
    scan, (labels, predictions) = scan_of(tmp_path), frames(["ID_00", "ID_01"])
    drawn = [pictures.png(viewer.slice_view(tmp_path, scan, THREE, k, labels, predictions)) for k in range(3)]
    assert len({cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape for data in drawn}) == 1


def test_what_is_no_place_of_one_scan_is_reported(tmp_path):
    scan = scan_of(tmp_path)
    for place in (-1, 3):
        with pytest.raises(IchError, match=rf"no place {place} in a scan of 3 slices"):
            viewer.slice_view(tmp_path, scan, THREE, place)
    study = pictures.find_scans(write_images(tmp_path), "ID_study")
    with pytest.raises(IchError, match=r"several series, ID_series0, ID_series1"):
        viewer.slice_view(tmp_path, study, THREE, 0)
