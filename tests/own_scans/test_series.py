"""Which series are read, which are skipped, and what is reported of them."""

import numpy as np
import pytest
from made_scans import head, write_scan
from scipy import ndimage

from ich.own_scans import kernels, parts
from ich.own_scans.find import find_series, read_slices
from ich.own_scans.kernels import SHARP, noise, sharpness


def outcomes(folder, **options):
    """By uid: the reason, or "read"; all files are counted."""
    result = find_series([folder], **options)
    assert sum(series.files for series in result.series) == sum(path.is_file() for path in folder.rglob("*"))
    return {series.uid: series.reason or series.status for series in result.series}


def notes(folder):
    (series,) = (candidate for candidate in find_series([folder]).series if candidate.status == "read")
    return "; ".join(series.notes)


def tilted(angle, number, step=5.0):
    angle = np.deg2rad(angle)
    return {
        "ImageOrientationPatient": [1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle))],
        "ImagePositionPatient": [-125.0, -100.0, number * step],
    }


SAGITTAL, CORONAL = [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("reason", "tags"),
    [
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("other_plane", {"ImageOrientationPatient": SAGITTAL}),
        ("other_plane", {"ImageOrientationPatient": CORONAL}),
        ("other_modality", {"Modality": "MR"}),
        ("other_modality", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}),
        ("no_image", {"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67"}),
        ("no_image", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}),
        ("secondary_capture", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("secondary_capture", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        ("not_hu", {"RescaleType": "Z_EFF"}),
        ("derived", {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "CBF"]}),
        ("derived", {"ImageType": ["DERIVED", "SECONDARY", "MIP"]}),
        ("unsupported", {"PhotometricInterpretation": "RGB"}),
    ],
)
def test_what_is_no_axial_slice_in_hu_is_skipped(tmp_path, reason, tags):
    write_scan(tmp_path / "a")
    write_scan(tmp_path / "b", series="1.2.8", **tags)
    assert outcomes(tmp_path) == {"1.2.7": "read", "1.2.8": reason}
    assert outcomes(tmp_path, all_series=True) == {"1.2.7": "read", "1.2.8": reason}


def test_a_series_of_fewer_than_five_slices_is_skipped_unless_all_are_read(tmp_path):
    write_scan(tmp_path / "a", slices=4)
    write_scan(tmp_path / "b", series="1.2.8", slices=5)
    write_scan(tmp_path / "c", series="1.2.9", slices=2)
    assert outcomes(tmp_path) == {"1.2.7": "too_few", "1.2.8": "read", "1.2.9": "too_few"}
    assert set(outcomes(tmp_path, all_series=True).values()) == {"read"}


# -------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize(
    "kernels_of",
    [
        ("SOFT", "STANDARD", "DETAIL", "LUNG", "BONE", "BONEPLUS", "EDGE"),
        ("H10s", "H31s", "H40s", "H50s", "H60f", "H70h"),
        ("J30s", "J40s 3", "J70h 2"),
        ("Hr40f 3", "Hr59", "Br64", "Hr68"),
        ("FC21", "FC26", "FC30", "FC81"),
        ("UA", "UB", "UC", "YB", "YC", "YD"),
        ("A", "B", "C", "D"),
    ],
)
def test_the_kernels_of_a_vendor_are_ordered_from_soft_to_sharp(kernels_of):
    values = [sharpness(kernel) for kernel in kernels_of]
    assert values == sorted(values)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    "kernel", ["STANDARD", "H31s", "J30s", "Hr40", "FC21", "UB", "SOFT", "H_SOFT_B", "FC64", "HD STND"]
)
def test_soft_kernels_are_no_sharp_ones(kernel):
    assert sharpness(kernel) < SHARP


@pytest.mark.parametrize(
    "kernel", ["BONE", "BONEPLUS", "EDGE", "H60s", "J70h", "Hr64", "FC30", "FC81", "YB", "YC", "LUNG"]
)
def test_sharp_kernels_are_sharp(kernel):
    assert sharpness(kernel) >= SHARP


@pytest.mark.parametrize("kernel", ["", "unheard of", "FC77", "77"])
def test_of_an_unknown_kernel_the_name_says_nothing(kernel):
    assert sharpness(kernel) is None


def test_of_series_at_the_same_positions_the_softer_kernel_is_read(tmp_path):
    write_scan(tmp_path / "a", ConvolutionKernel="H60s")
    write_scan(tmp_path / "b", series="1.2.8", ConvolutionKernel=["H31s", "3"])
    write_scan(tmp_path / "c", series="1.2.9", ConvolutionKernel="H70h", step=1.0, slices=26, SliceThickness=1)
    result = find_series([tmp_path])
    assert {series.uid: series.reason for series in result.series} == {
        "1.2.7": "sharper_kernel",
        "1.2.8": "",
        "1.2.9": "sharper_kernel",
    }
    assert "H31s" in result.series[0].detail or "H31s" in result.series[1].detail
    assert set(outcomes(tmp_path, all_series=True).values()) == {"read"}


def test_no_series_is_skipped_for_one_that_is_skipped_itself(tmp_path):
    """The first is longer than the last by more than the second covers."""
    write_scan(tmp_path / "a", slices=21, ConvolutionKernel="EDGE")
    write_scan(tmp_path / "b", slices=18, series="1.2.8", ConvolutionKernel="BONE")
    write_scan(tmp_path / "c", slices=15, series="1.2.9", ConvolutionKernel="SOFT")
    assert outcomes(tmp_path) == {"1.2.7": "read", "1.2.8": "sharper_kernel", "1.2.9": "read"}


@pytest.mark.parametrize(
    "other",
    [
        {"StudyInstanceUID": "1.2.99"},
        {"FrameOfReferenceUID": "1.2.99"},
        {"PatientID": "p2"},
        {"AcquisitionNumber": 2},
        {"AcquisitionTime": "101500"},
        {"AcquisitionDate": "20200102"},
        {"AcquisitionDate": "20200102", "AcquisitionTime": None},
        {"AcquisitionDate": None, "AcquisitionTime": "101500"},
        {"ContrastBolusAgent": "Iopamidol"},
        {"first": 100.0},  # elsewhere
        {"slices": 5, "first": 10.0},  # covers three fifths of it
    ],
    ids=str,
)
def test_a_sharp_kernel_is_read_where_the_softer_shows_other_slices(tmp_path, other):
    tags = {"AcquisitionNumber": 1, "AcquisitionDate": "20200101", "AcquisitionTime": "100000"}
    write_scan(tmp_path / "a", ConvolutionKernel="BONE", **tags)
    write_scan(tmp_path / "b", series="1.2.8", **tags | other)
    assert outcomes(tmp_path)["1.2.7"] == "read"
    assert "sharp" in notes(tmp_path / "a")


def test_a_scan_at_midnight_is_one(tmp_path):
    tags = {"ConvolutionKernel": "BONE", "AcquisitionDate": "20191231", "AcquisitionTime": "235950"}
    write_scan(tmp_path / "a", **tags)
    write_scan(tmp_path / "b", series="1.2.8", AcquisitionDate="20200101", AcquisitionTime="000005")
    assert outcomes(tmp_path) == {"1.2.7": "sharper_kernel", "1.2.8": "read"}


@pytest.mark.parametrize(
    ("slices", "broken", "outcome"), [(12, 6, "sharper_kernel"), (12, 7, "read"), (40, 40, "read")]
)
@pytest.mark.parametrize("cut", [300, 0.9], ids=["header", "pixels"])
def test_no_series_is_skipped_for_one_of_which_most_is_broken(tmp_path, slices, broken, outcome, cut):
    write_scan(tmp_path / "a", slices=slices, ConvolutionKernel="BONE")
    soft = write_scan(tmp_path / "b", slices=slices, series="1.2.8")
    for number in range(broken):
        path = soft[(number * 7 + slices // 2) % slices]  # spread, so that those that are left cover the scan
        data = path.read_bytes()
        path.write_bytes(data[: data.index(b"\x28\0\x10\0US") if cut == 300 else int(len(data) * cut)])
    by_uid = outcomes(tmp_path)
    assert by_uid["1.2.7"] == outcome
    assert by_uid["1.2.8"] == ("damaged" if broken == slices and cut == 300 else "read")


def test_unnamed_kernels_are_distinguished_by_the_noise_in_the_brain(tmp_path):
    rng = np.random.default_rng(0)
    sharp = [(hu + rng.normal(0, 25, hu.shape)).astype(np.int16) for hu in head(8, 64)]
    write_scan(tmp_path / "a", slices=8, pixels=sharp, ConvolutionKernel="X1")
    write_scan(tmp_path / "b", slices=8, series="1.2.8", pixels=head(8, 64), ConvolutionKernel="X2")
    write_scan(tmp_path / "c", slices=8, series="1.2.9", pixels=head(8, 64), ConvolutionKernel="X3")
    assert outcomes(tmp_path) == {"1.2.7": "sharper_kernel", "1.2.8": "read", "1.2.9": "read"}


def test_two_scans_that_nothing_tells_apart_are_not_judged_by_noise_unless_they_lie_in_one_place(tmp_path):
    rng = np.random.default_rng(0)
    noisy = [(hu + rng.normal(0, 25, hu.shape)).astype(np.int16) for hu in head(8, 64)]
    drop = ["FrameOfReferenceUID", "ConvolutionKernel"]
    write_scan(tmp_path / "a", slices=8, pixels=noisy, drop=drop)
    write_scan(tmp_path / "b", slices=8, series="1.2.8", pixels=head(8, 64), drop=drop, first=0.7)
    assert outcomes(tmp_path) == {"1.2.7": "read", "1.2.8": "read"}
    write_scan(tmp_path / "b", slices=8, series="1.2.8", pixels=head(8, 64), drop=drop)
    assert outcomes(tmp_path) == {"1.2.7": "sharper_kernel", "1.2.8": "read"}


def test_the_noise_of_thin_slices_is_no_sign_of_a_sharp_kernel(tmp_path):
    rng = np.random.default_rng(0)
    flat = [np.full((64, 64), 35, np.int16)] * 8
    thick, thin = ([(hu + rng.normal(0, level, hu.shape)).astype(np.int16) for hu in flat] for level in (5, 5 * 5**0.5))
    write_scan(tmp_path / "a", slices=8, pixels=thick, ConvolutionKernel="X1")
    write_scan(tmp_path / "b", slices=8, series="1.2.8", pixels=thin, ConvolutionKernel="X2", SliceThickness=1)
    assert outcomes(tmp_path) == {"1.2.7": "read", "1.2.8": "read"}


def test_noise_is_measured_in_hu():
    rng = np.random.default_rng(0)
    for level in (4.0, 20.0):
        hu = np.full((64, 64), 35.0) + rng.normal(0, level, (64, 64))
        assert noise([hu.astype(np.int16)]) == pytest.approx(level, rel=0.15)
    assert np.isnan(noise([np.full((64, 64), -1000, np.int16)]))
    assert np.isnan(noise([]))
    assert kernels.NOISIER > 1


def test_an_image_of_one_energy_is_skipped_beside_an_ordinary_one(tmp_path):
    vmi = ["DERIVED", "PRIMARY", "AXIAL", "VMI"]
    write_scan(tmp_path / "a", ImageType=vmi)
    assert "one energy" in notes(tmp_path)
    write_scan(tmp_path / "b", series="1.2.8")
    assert outcomes(tmp_path) == {"1.2.7": "derived", "1.2.8": "read"}


# ------------------------------------------------------------------------------------------------------- duplicates


def test_copies_of_a_slice_are_one(tmp_path):
    write_scan(tmp_path / "a")
    write_scan(tmp_path / "b", PatientID="p1", ImageComments="exported again")
    result = find_series([tmp_path])
    (series,) = result.series
    assert (len(series.slices), series.files) == (6, 12)
    assert "6 file(s) that repeat" in series.notes[0]


def test_of_two_copies_the_whole_one_is_read(tmp_path):
    for folder, damaged in (("a", 1), ("b", 2)):
        path = write_scan(tmp_path / folder)[damaged]
        path.write_bytes(path.read_bytes()[:-100])
    (series,) = find_series([tmp_path]).series
    assert (len(series.slices), series.files) == (6, 12)
    for (_, hu), expected in zip(read_slices(series), head(), strict=False):
        np.testing.assert_array_equal(hu, expected)


def test_two_slices_of_one_uid_fail_their_series(tmp_path):
    write_scan(tmp_path / "a")
    write_scan(tmp_path / "b", pixels=[hu + 1 for hu in head()], slices=1)
    write_scan(tmp_path / "c", series="1.2.8")
    assert outcomes(tmp_path)["1.2.7"] == "conflict"
    # The same pixels at another place are another slice too.
    write_scan(tmp_path / "b", slices=1, first=1.0)
    result = find_series([tmp_path])
    failed, read = result.series
    assert (failed.status, failed.reason, failed.files) == ("failed", "conflict", 7)
    assert "1.2.7.1" in failed.detail
    assert read.status == "read"


def test_slices_that_two_series_name_alike_are_reported(tmp_path):
    write_scan(tmp_path / "a")
    write_scan(tmp_path / "b", series="1.2.8", uid="1.2.7", slices=5)
    series = find_series([tmp_path]).series
    for item in series:
        assert "5 slices with a SOPInstanceUID that a slice of another series has too" in item.notes


def test_a_series_of_broken_files_has_failed(tmp_path):
    for path in write_scan(tmp_path):
        data = path.read_bytes()
        path.write_bytes(data[: data.index(b"\xe0\x7f\x10\0") - 20])
    (series,) = find_series([tmp_path]).series
    assert (series.uid, series.status, series.reason, series.files) == ("1.2.7", "failed", "damaged", 6)
    write_scan(tmp_path / "a", slices=1, uid="1.2.7.9")
    (series,) = find_series([tmp_path]).series
    assert (series.reason, series.files) == ("too_few", 7)
    assert series.detail == "1 slice, and 6 broken files; expected 5 slices or more"


# ------------------------------------------------------------------------------------------------- planes and stacks


def test_one_uid_with_two_planes_gives_the_axial_slices(tmp_path):
    odd = {"ImageOrientationPatient": CORONAL}
    write_scan(tmp_path, slices=8, change={0: odd, 1: odd})
    result = find_series([tmp_path])
    assert [(series.uid, series.reason, series.files) for series in result.series] == [
        ("1.2.7", "", 6),
        ("1.2.7#2", "other_plane", 2),
    ]


def test_one_uid_with_two_tilts_gives_two_series(tmp_path):
    change = {number: tilted(15, number) for number in range(5)}
    write_scan(tmp_path, slices=11, change=change)
    result = find_series([tmp_path])
    assert [(series.uid, series.status, series.files) for series in result.series] == [
        ("1.2.7", "read", 6),
        ("1.2.7#2", "read", 5),
    ]
    assert "tilted by 15°" in "; ".join(result.series[1].notes)


@pytest.mark.parametrize(
    "tag",
    [{"AcquisitionNumber": 2}, {"ConvolutionKernel": "SOFT"}, {"SliceThickness": 2.5}, {"ContrastBolusAgent": "X"}, {}],
)
def test_scans_of_one_place_under_one_uid_are_distinguished(tmp_path, tag):
    write_scan(tmp_path / "a", AcquisitionNumber=1)
    later = {"AcquisitionNumber": 1, "InstanceNumber": 7} | tag
    write_scan(tmp_path / "b", uid="1.2.8", pixels=head()[::-1], **later)
    result = find_series([tmp_path], all_series=True)
    assert [(series.uid, series.status, series.files) for series in result.series] == [
        ("1.2.7", "read", 6),
        ("1.2.7#2", "read", 6),
    ]
    for series in result.series:
        assert len({slice_file.file.split("/")[0] for slice_file in series.slices}) == 1
        assert [slice_file.z for slice_file in series.slices] == [0, 5, 10, 15, 20, 25]


def test_a_perfusion_study_is_skipped_unless_all_are_read(tmp_path):
    for time in range(5):
        write_scan(tmp_path / f"{time}", uid=f"1.2.8.{time}", AcquisitionNumber=time)
    result = find_series([tmp_path])
    assert [(series.reason, series.files) for series in result.series] == [("dynamic", 6)] * 5
    assert {series.status for series in find_series([tmp_path], all_series=True).series} == {"read"}


def test_pieces_of_one_scan_stay_together(tmp_path):
    """The posterior fossa in 2.5 mm, the rest in 5: behind one another, under one uid."""
    write_scan(tmp_path / "a", step=2.5)
    write_scan(tmp_path / "b", uid="1.2.8", first=15.0)
    (series,) = find_series([tmp_path]).series
    assert len(series.slices) == 12
    assert "changes, from 2.5 to 5.0 mm" in "; ".join(series.notes)


def test_a_slice_of_another_size_or_at_the_place_of_another_stays(tmp_path):
    large = ndimage.zoom(head()[2], 2, order=1)
    write_scan(tmp_path / "a", slices=10, pixels=[*head()[:2], large, *head()[3:]])
    write_scan(tmp_path / "b", slices=1, uid="1.2.8", first=20.0)
    (series,) = find_series([tmp_path]).series
    assert len(series.slices) == 11
    assert "1 slice of another size than 32 × 32: 64 × 64" in series.notes
    assert "1 slice at the position of another" in series.notes
    assert [hu.shape for _, hu in read_slices(series)].count((64, 64)) == 1


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_slices_come_in_the_usual_orientation(tmp_path, angle, mirrored):
    """However the file stores them, by the directions that it tells."""
    turns = angle // 90
    right, down = np.array([1, 0, 0]), np.array([0, 1, 0])
    stored = head()
    if mirrored:
        stored, right = [hu[:, ::-1] for hu in stored], -right
    for _ in range(turns):
        # Counter-clockwise: the last column becomes the first row.
        stored, right, down = [np.rot90(hu) for hu in stored], down, -right
    orientation = [float(value) for value in (*right, *down)]
    write_scan(tmp_path, pixels=stored, ImageOrientationPatient=orientation)
    (series,) = find_series([tmp_path]).series
    assert [slice_file.z for slice_file in series.slices] == [0, 5, 10, 15, 20, 25]
    for (_, hu), expected in zip(read_slices(series), head(), strict=False):
        np.testing.assert_array_equal(hu, expected)
    assert any("turned" in note for note in series.notes) == (angle != 0 or mirrored)
    assert series.oriented


@pytest.mark.parametrize("lacking", [1, 6])
@pytest.mark.parametrize("orientation", [None, [0, 0, 0, 0, 0, 0]])
def test_slices_that_do_not_say_how_they_lie_are_reported(tmp_path, lacking, orientation):
    write_scan(tmp_path, change={k: {"ImageOrientationPatient": orientation} for k in range(lacking)})
    (series,) = find_series([tmp_path]).series
    assert not series.oriented
    expected = f"{'no' if lacking == 6 else '1 slice without'} ImageOrientationPatient: taken as axial"
    assert sum(note.startswith(expected) for note in series.notes) == 1


def test_a_turn_of_a_slice_that_is_not_square_turns_its_sides_and_spacing(tmp_path):
    stored = [hu[:20].T for hu in head()]
    write_scan(tmp_path, pixels=stored, ImageOrientationPatient=[0, 1, 0, 1, 0, 0], PixelSpacing=[0.4, 0.6])
    (series,) = find_series([tmp_path]).series
    assert (series.rows, series.columns, series.pixel_spacing) == (20, 32, (0.6, 0.4))
    assert next(read_slices(series))[1].shape == (20, 32)


# ------------------------------------------------------------------------------------------------------------ notes


@pytest.mark.parametrize(
    ("note", "tags"),
    [
        ("a contrast agent was given: ", {"ContrastBolusAgent": "Iopamidol"}),
        ("BodyPartExamined is CHEST", {"BodyPartExamined": "CHEST"}),
        ("a sharp one", {"ConvolutionKernel": "BONE"}),
        ("less than a whole head", {}),
    ],
)
def test_what_is_odd_is_reported(tmp_path, note, tags):
    write_scan(tmp_path, **tags)
    assert note in notes(tmp_path)


def test_nothing_is_reported_of_an_ordinary_scan(tmp_path):
    write_scan(tmp_path, slices=30, ContrastBolusAgent="None")
    assert notes(tmp_path) == ""


def test_a_modality_in_lower_case_is_ct(tmp_path):
    write_scan(tmp_path, slices=5, Modality="ct")
    assert outcomes(tmp_path) == {"1.2.7": "read"}


def test_600_slices_are_read(tmp_path):
    (path,) = write_scan(tmp_path, slices=1, first=1000.25, uid="1.2.7.1000")
    data = path.read_bytes()
    for number in range(1, 600):
        named = data.replace(b"1.2.7.1000.1", f"1.2.7.{1000 + number}.1".encode())
        (tmp_path / f"{number}").write_bytes(named.replace(b"1000.25", f"{1000.25 + number / 4:.2f}".encode()))
    (series,) = find_series([tmp_path]).series
    assert (len(series.slices), series.spacing) == (600, 0.25)
    assert series.notes == ()


def test_a_missing_slice_is_a_gap(tmp_path):
    write_scan(tmp_path, slices=30)[10].unlink()
    assert notes(tmp_path) == "1 gap(s) of up to 10.0 mm, where slices may be missing"


def test_a_tilted_gantry_is_reported_and_its_z_is_along_the_normal(tmp_path):
    write_scan(tmp_path, slices=30, change={number: tilted(20, number) for number in range(30)})
    (series,) = find_series([tmp_path]).series
    assert series.notes == ("the slices are tilted by 20° (gantry or reformatted)",)
    assert series.spacing == pytest.approx(5 * np.cos(np.deg2rad(20)))


def test_without_positions_slices_are_in_the_order_of_their_numbers(tmp_path):
    change = {number: {"InstanceNumber": 30 - number} for number in range(30)}
    paths = write_scan(tmp_path, slices=30, change=change, drop=["ImagePositionPatient"])
    (series,) = find_series([tmp_path]).series
    assert [slice_file.file for slice_file in series.slices] == [path.name for path in reversed(paths)]
    assert all(np.isnan(slice_file.z) for slice_file in series.slices)
    assert series.notes == ("the positions of the slices are unknown: they are in the order of InstanceNumber",)
    assert series.spacing is None


def test_without_a_series_uid_a_folder_is_a_series(tmp_path):
    write_scan(tmp_path / "one", drop=["SeriesInstanceUID"])
    write_scan(tmp_path / "two", drop=["SeriesInstanceUID"], uid="1.2.8")
    result = find_series([tmp_path])
    assert [(series.status, series.files) for series in result.series] == [("read", 6), ("read", 6)]
    assert {series.uid for series in result.series} == {f"folder {tmp_path.name}/{name}" for name in ("one", "two")}
    assert all("SeriesInstanceUID" in "; ".join(series.notes) for series in result.series)


def test_an_oblique_normal_has_a_length_of_one():
    assert np.linalg.norm(parts.normal_of([1, 0, 0, 0, 0.8, -0.6])) == pytest.approx(1)
    assert np.isnan(parts.normal_of([1, 0, 0, 1, 0, 0])).all()
