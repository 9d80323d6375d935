import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.errors import IchError
from ich.images.slice_table import SCHEMA, read_table, readable, scan_audit, scan_order, to_frame, write_table

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
FLIPPED = [1.0, 0.0, 0.0, 0.0, -1.0, 0.0]
CORONAL = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]
COUNTS = ["slices", "ties", "gaps", "orientations", "unplaced", "out_of_plane"]


def row(name, position, orientation=AXIAL, series="ID_s1", split="train", **more):
    return {
        "SOPInstanceUID": name,
        "SeriesInstanceUID": series,
        "split": split,
        "ImagePositionPatient": position,
        "ImageOrientationPatient": orientation,
        "repaired": "",
        "status": "ok",
        "reason": "",
        "size": 1,
    } | more


def ordered(*rows):
    return scan_order(to_frame(list(rows)))


def tilted(degrees):
    """Row and column directions of a gantry tilted about the patient's left-right axis."""
    a = math.radians(degrees)
    return [1.0, 0.0, 0.0, 0.0, math.cos(a), math.sin(a)]


@given(
    degrees=st.floats(-35, 35),
    gap=st.floats(0.5, 10),
    shuffled=st.permutations(range(12)),
    drift=st.floats(-300, 300),
)
def test_tilted_slices_are_ordered_along_their_normal(degrees, gap, shuffled, drift):
    a = math.radians(degrees)
    normal = np.array([0, -math.sin(a), math.cos(a)])
    column = np.array([0, math.cos(a), math.sin(a)])
    # The table moves the origin within the slices' plane too, which moves the third coordinate.
    rows = [
        row(f"ID_{i:03}", list(k * gap * normal + k * drift * column), tilted(degrees)) for i, k in enumerate(shuffled)
    ]
    table = ordered(*rows)
    np.testing.assert_allclose(table["z"], gap * np.arange(12), atol=1e-6)
    assert table["order"].tolist() == list(range(12))
    assert table["SOPInstanceUID"].tolist() == [f"ID_{shuffled.index(k):03}" for k in range(12)]


def test_the_third_coordinate_alone_would_be_wrong():
    a = math.radians(20)
    normal, column = np.array([0, -math.sin(a), math.cos(a)]), np.array([0, math.cos(a), math.sin(a)])
    rows = [row(f"ID_{k}", list(5 * k * normal - 30 * k * column), tilted(20)) for k in range(5)]
    assert (np.diff([r["ImagePositionPatient"][2] for r in rows]) < 0).all()
    assert ordered(*rows)["SOPInstanceUID"].tolist() == [f"ID_{k}" for k in range(5)]


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
def test_z_is_in_millimetres_whatever_the_length_of_the_directions(scale):
    table = ordered(*(row(f"ID_{k}", [0.0, 0.0, 5.0 * k], [scale * v for v in AXIAL]) for k in range(3)))
    assert table["z"].tolist() == [0, 5, 10]


def test_slices_at_one_z_are_ordered_by_id():
    table = ordered(row("ID_c", [0, 0, 5]), row("ID_a", [1, 1, 5]), row("ID_b", [0, 0, 0]), row("ID_d", [0, 0, 9]))
    assert table["SOPInstanceUID"].tolist() == ["ID_b", "ID_a", "ID_c", "ID_d"]
    assert table["order"].tolist() == [0, 1, 2, 3]


def test_one_normal_serves_a_series_of_mixed_orientation():
    rows = [row(f"ID_{k}", [0, 0, 5.0 * k], AXIAL if k % 2 == 0 else FLIPPED) for k in range(6)]
    assert ordered(*rows)["z"].tolist() == [0, 5, 10, 15, 20, 25]
    # The normal is that of the first slice by id, wherever it stands in the table.
    assert ordered(*reversed(rows))["z"].tolist() == [0, 5, 10, 15, 20, 25]
    assert ordered(*rows[1:])["z"].tolist() == [-25, -20, -15, -10, -5]


@pytest.mark.parametrize("orientation", [[0.0] * 6, [1.0, 0, 0, 1.0, 0, 0], None])
def test_a_slice_without_a_direction_takes_that_of_its_series(orientation):
    table = ordered(row("ID_a", [0, 0, 3], orientation), row("ID_b", [0, 0, 1]), row("ID_c", [0, 0, 2]))
    assert table["SOPInstanceUID"].tolist() == ["ID_b", "ID_c", "ID_a"]


@pytest.mark.parametrize("orientation", [[0.0] * 6, [1.0, 0, 0, 1.0, 0, 0], None])
def test_a_series_without_any_direction_has_no_order(orientation):
    table = ordered(row("ID_a", [0, 0, 3], orientation), row("ID_b", [0, 0, 1], orientation))
    assert table["z"].isna().all()
    assert table["order"].isna().all()
    assert table["SOPInstanceUID"].tolist() == ["ID_a", "ID_b"]


def test_without_a_position_or_series_there_is_no_place_but_a_row():
    table = ordered(
        row("ID_a", None), row("ID_b", [0, 0, 7]), row("ID_c", [0, 0, 2], series=None), row("ID_d", [0, 0, 1])
    ).set_index("SOPInstanceUID")
    assert table.loc[["ID_d", "ID_b"], "order"].tolist() == [0, 1]
    assert table.loc[["ID_a", "ID_c"], ["z", "order"]].isna().all(axis=None)
    assert len(table) == 4


@pytest.mark.parametrize("first", ["ID_0", "ID_z"])
def test_a_localizer_among_the_slices_has_no_place_and_orders_nothing(first):
    rows = [row(f"ID_a{k}", [-125, -100, 5.0 * k], AXIAL if k != 3 else FLIPPED) for k in range(7)]
    table = ordered(row(first, [-125, -100, 12], CORONAL), *rows).set_index("SOPInstanceUID")
    assert table.loc[[f"ID_a{k}" for k in range(7)], "z"].tolist() == [0, 5, 10, 15, 20, 25, 30]
    assert table.loc[[f"ID_a{k}" for k in range(7)], "order"].tolist() == list(range(7))
    assert table.loc[first, ["z", "order"]].isna().all()
    audit = scan_audit(table.reset_index()).loc["ID_s1"]
    assert audit.to_dict() == {"slices": 8, "ties": 0, "gaps": 0, "orientations": 3, "unplaced": 1, "out_of_plane": 1}


@pytest.mark.parametrize(("degrees", "placed"), [(0.1, True), (0.45, True), (0.55, False), (179.8, True), (90, False)])
def test_what_half_a_degree_away_is_of_one_plane(degrees, placed):
    rows = [row(f"ID_{k}", [0, 0, k], AXIAL) for k in range(3)]
    table = ordered(*rows, row("ID_0a", [0, 0, 7], tilted(degrees))).set_index("SOPInstanceUID")
    assert table["order"].notna().to_dict() == {"ID_0": True, "ID_1": True, "ID_2": True, "ID_0a": placed}


def test_of_as_many_slices_in_two_planes_the_first_by_id_decides():
    for first, second in ((AXIAL, CORONAL), (CORONAL, AXIAL)):
        rows = [row(f"ID_{k}", [0, k, k], first if k < 2 else second) for k in range(4)]
        assert ordered(*reversed(rows))["order"].notna().tolist() == [True, True, False, False]


def test_positions_a_micrometre_apart_are_one_place():
    zs = {"ID_b": 0.0, "ID_a": 0.001, "ID_c": 5.0, "ID_e": 10.0, "ID_d": 10.000001, "ID_f": 15.0}
    table = ordered(*(row(name, [0, 0, z]) for name, z in zs.items()))
    assert table["SOPInstanceUID"].tolist() == sorted(zs)
    assert table["z"].tolist() == [0, 0, 5, 10, 10, 15]
    assert scan_audit(table).loc["ID_s1", ["ties", "gaps"]].tolist() == [2, 0]


def order_by_loops(rows):
    """z and order by id, as `scan_order` says them, one slice after another."""
    result = {slice_["SOPInstanceUID"]: (None, None) for slice_ in rows}
    normals = {}
    for slice_ in rows:
        if slice_["ImageOrientationPatient"] is not None:
            normal = np.cross(slice_["ImageOrientationPatient"][:3], slice_["ImageOrientationPatient"][3:])
            if np.linalg.norm(normal):
                normals[slice_["SOPInstanceUID"]] = normal / np.linalg.norm(normal)

    def are_coplanar(a, b):
        return abs(normals[a] @ normals[b]) >= math.cos(math.radians(0.5))

    for series in {slice_["SeriesInstanceUID"] for slice_ in rows} - {None}:
        members = sorted(slice_["SOPInstanceUID"] for slice_ in rows if slice_["SeriesInstanceUID"] == series)
        directed = [id_ for id_ in members if id_ in normals]
        if not directed:
            continue
        chosen = max(directed, key=lambda id_: sum(are_coplanar(id_, other) for other in directed))  # the first
        for split in ("train", "test"):
            placed = [
                (float(normals[chosen] @ slice_["ImagePositionPatient"]), slice_["SOPInstanceUID"])
                for slice_ in rows
                if slice_["SeriesInstanceUID"] == series
                and slice_["split"] == split
                and slice_["ImagePositionPatient"] is not None
                and (slice_["SOPInstanceUID"] not in normals or are_coplanar(slice_["SOPInstanceUID"], chosen))
            ]
            tied, before = [], -math.inf
            for z, name in sorted(placed):
                tied.append((z if z - before >= 0.01 else tied[-1][0], name))
                before = z
            result |= {name: (z, place) for place, (z, name) in enumerate(sorted(tied))}
    return result


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ID_a", "ID_a", "ID_b", None]),
            st.sampled_from(["train", "train", "train", "test"]),
            st.none() | st.tuples(st.integers(-3, 3), st.sampled_from([0, 0, 1e-6, 0.001, 0.008, 0.1])),
            st.sampled_from([AXIAL, AXIAL, AXIAL, FLIPPED, tilted(0.3), tilted(0.7), tilted(20), CORONAL,
                             [0.0] * 6, None]),
        ),
        max_size=25,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_the_order_is_what_plain_loops_give(drawn, random):
    names = [f"ID_{k:03}" for k in range(len(drawn))]
    random.shuffle(names)
    rows = [
        row(name, None if z is None else [3.0, 5.0, 2.5 * z[0] + z[1]], orientation, series, split)
        for name, (series, split, z, orientation) in zip(names, drawn, strict=True)
    ]
    table = ordered(*rows).set_index("SOPInstanceUID")
    for name, (z, place) in order_by_loops(rows).items():
        got = table.loc[name]
        assert (pd.isna(got["order"]) and pd.isna(got["z"])) if place is None else got["order"] == place
        assert z is None or abs(got["z"] - z) < 1e-9
    in_place = table.dropna(subset="order")
    assert in_place.groupby(["split", "SeriesInstanceUID"])["order"].apply(lambda o: o.is_monotonic_increasing).all()


def test_each_series_counts_for_itself_and_splits_stay_together():
    rows = [
        row(f"ID_{s}{k}", [0, 0, k], series=f"ID_s{s}", split="test" if s == 1 else "train")
        for s in (2, 1, 0)
        for k in (1, 0)
    ]
    table = ordered(*rows)
    assert table["split"].tolist() == ["test"] * 2 + ["train"] * 4
    assert table["order"].tolist() == [0, 1] * 3
    assert table["SeriesInstanceUID"].tolist() == ["ID_s1"] * 2 + ["ID_s0"] * 2 + ["ID_s2"] * 2


def test_a_series_in_both_splits_is_counted_in_each():
    table = ordered(*(row(f"ID_{k}", [0, 0, k], split=("train", "test")[k % 2]) for k in range(4)))
    assert table["order"].tolist() == [0, 1, 0, 1]


def test_all_unread_and_none_at_all():
    bad = {"SOPInstanceUID": "ID_a", "split": "train", "status": "truncated", "reason": "cut", "size": 3}
    table = ordered(bad)
    assert table.loc[0, "status"] == "truncated"
    assert table[["z", "order", "Rows"]].isna().all(axis=None)
    assert len(ordered()) == 0


@given(st.permutations(range(6)))
def test_the_order_of_the_rows_does_not_matter(permutation):
    rows = [row(f"ID_{k}", [0, 0, (k * 7) % 3]) for k in range(5)] + [row("ID_5", None, None, series=None)]
    pd.testing.assert_frame_equal(ordered(*(rows[k] for k in permutation)), ordered(*rows))


# ------------------------------------------------------------------------------------------------------- the audit


def scan(zs, series="ID_s1", **more):
    return [row(f"{series}_{k:03}", None if z is None else [0, 0, z], series=series, **more) for k, z in enumerate(zs)]


@pytest.mark.parametrize(
    ("zs", "gaps", "ties"),
    [
        ([0, 5, 10, 15, 20], 0, 0),
        ([0, 5, 10, 20, 25], 1, 0),  # one is missing
        ([0, 5, 10, 30, 35, 40, 50, 55], 2, 0),
        ([0, 2.5, 5, 7.5, 12.5, 17.5, 22.5], 0, 0),  # a change of spacing, as scanners make it above the skull's base
        ([0, 5, 10, 15, 17.5, 20, 22.5], 0, 0),
        ([0, 10, 15, 20], 1, 0),  # the second is missing
        ([0, 5, 10, 20], 1, 0),
        ([0, 5, 5, 10, 10, 10, 15], 0, 3),
        ([0, 5, 5, 15, 15, 20], 0, 2),  # beside ties nothing can be compared
        ([0, 50], 0, 0),
        ([7], 0, 0),
        ([0, 5, 12, 17, 24], 0, 0),  # less than half as long again
    ],
)
def test_gaps_and_ties_are_counted(zs, gaps, ties):
    audit = scan_audit(ordered(*scan(zs)))
    assert audit.columns.tolist() == COUNTS
    assert audit.loc["ID_s1"].tolist() == [len(zs), ties, gaps, 1, 0, 0]


def test_orientations_that_differ_are_counted_and_noise_is_not():
    a = [*scan([0, 5]), row("ID_f", [0, 0, 9], FLIPPED), row("ID_t", [0, 0, 12], tilted(10))]
    noise = [1.0, 0.0001, 0.0, -0.0001, 1.0, -0.0]
    b = [*scan([0, 5], "ID_s2"), row("ID_n", [0, 0, 9], noise, series="ID_s2")]
    c = [*scan([0, 5], "ID_s3"), row("ID_0", [0, 0, 9], [0.0] * 6, "ID_s3"), row("ID_1", [0, 0, 12], None, "ID_s3")]
    d = [row(f"ID_d{k}", [0, 0, k], [0.0] * 6, "ID_s4") for k in range(3)]
    audit = scan_audit(ordered(*a, *b, *c, *d))
    assert audit["orientations"].to_dict() == {"ID_s1": 3, "ID_s2": 1, "ID_s3": 1, "ID_s4": 0}
    assert audit["unplaced"].to_dict() == {"ID_s1": 1, "ID_s2": 0, "ID_s3": 0, "ID_s4": 3}
    assert audit["out_of_plane"].to_dict() == {"ID_s1": 1, "ID_s2": 0, "ID_s3": 0, "ID_s4": 0}


def test_an_audit_of_nothing_and_of_what_has_no_series():
    for table in (ordered(), ordered(*scan([0, 5], None))):
        audit = scan_audit(table)
        assert len(audit) == 0
        assert audit.columns.tolist() == COUNTS
        assert (audit.dtypes == "int64").all()


def audit_by_loops(table):
    counts_by_series = {}
    for series in sorted(set(table["SeriesInstanceUID"].dropna())):
        counts = dict.fromkeys(COUNTS, 0)
        normals = set()
        for split in ("test", "train"):
            rows = table[(table["SeriesInstanceUID"] == series) & (table["split"] == split)]
            counts["slices"] += len(rows)
            unplaced = rows[rows["z"].isna()]
            counts["unplaced"] += len(unplaced)
            columns = rows[["ImageOrientationPatient", "ImagePositionPatient"]].astype(object)
            columns = columns.where(columns.notna(), None)
            for place, orientation, position in columns.itertuples():
                if isinstance(orientation, (list, np.ndarray)):
                    normal = np.cross(orientation[:3], orientation[3:])
                    if np.linalg.norm(normal):
                        counts["out_of_plane"] += place in unplaced.index and position is not None
                        normals.add(tuple(np.round(normal / np.linalg.norm(normal), 2) + 0.0))
            zs = sorted(rows["z"].dropna())
            steps = [after - before for before, after in pairwise(zs)]
            counts["ties"] += sum(step == 0 for step in steps)
            for place, step in enumerate(steps):
                beside = [s for s in steps[max(0, place - 1) : place] + steps[place + 1 : place + 2] if s > 0]
                counts["gaps"] += bool(beside) and step > 1.5 * max(beside)
        counts_by_series[series] = counts | {"orientations": len(normals)}
    return counts_by_series


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ID_a", "ID_b", None]),
            st.sampled_from(["train", "test"]),
            st.none() | st.integers(0, 12),
            st.sampled_from([AXIAL, AXIAL, AXIAL, FLIPPED, tilted(20), CORONAL, [0.0] * 6, None]),
        ),
        max_size=25,
    )
)
def test_the_audit_is_what_plain_loops_count(drawn):
    rows = [
        row(f"ID_{k:03}", None if z is None else [0, 0, 2.5 * z], orientation, series, split)
        for k, (series, split, z, orientation) in enumerate(drawn)
    ]
    table = ordered(*rows)
    assert scan_audit(table).to_dict("index") == audit_by_loops(table)


# --------------------------------------------------------------------------------------------------------- files


def test_round_trip_keeps_every_column_and_its_type(tmp_path):
    whole = row(
        "ID_b", [1.5, -2, 3.25], PatientID="ID_p", StudyInstanceUID="ID_t", PixelSpacing=[0.5, 0.25], Rows=512,
        Columns=500, BitsStored=12, PixelRepresentation=0, RescaleIntercept=-1024.0, RescaleSlope=1.0,
        path="train/ID_b.png",
    )  # fmt: skip
    bad = {"SOPInstanceUID": "ID_a", "split": "train", "status": "truncated", "reason": "cut;\n“so”", "size": 3}
    path = tmp_path / "folder" / "slices.parquet"
    table = ordered(whole, bad)
    write_table(table, path)
    assert pq.read_schema(path).equals(SCHEMA)
    back = read_table(path)
    assert back["SOPInstanceUID"].tolist() == ["ID_b", "ID_a"]
    rows = pq.read_table(path).to_pylist()
    assert rows[0] == dict.fromkeys(SCHEMA.names) | whole | {"z": 3.25, "order": 0}
    assert rows[1] == dict.fromkeys(SCHEMA.names) | bad
    write_table(back, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_the_same_rows_are_the_same_bytes_however_they_came(tmp_path):
    rows = [row(f"ID_{k}", [0, 0, k], Rows=4, path=f"train/ID_{k}.png") for k in range(3)]
    bad = {"SOPInstanceUID": "ID_x", "split": "train", "status": "truncated", "reason": "cut", "size": 3}
    at_once = to_frame(rows)
    # Beside a row without numbers, integers become floats: they must come back as they were.
    beside = to_frame([*rows, bad]).iloc[:3]
    assert at_once["Rows"].dtype != beside["Rows"].dtype
    joined = pd.concat([to_frame(rows[:1]), to_frame([bad]), to_frame(rows[1:])])
    joined = joined[joined["status"] == "ok"]
    written = []
    for number, table in enumerate((at_once, beside, joined)):
        path = tmp_path / f"{number}.parquet"
        write_table(scan_order(table), path)
        written.append(path.read_bytes())
    assert written[0] == written[1] == written[2]


def test_a_missing_table_says_what_to_run(tmp_path):
    with pytest.raises(IchError, match=r"slices\.parquet does not exist; run scripts/preprocess\.py"):
        read_table(tmp_path / "slices.parquet")


def test_what_is_no_table_is_reported(tmp_path):
    path = tmp_path / "slices.parquet"
    write_table(ordered(row("ID_a", [0, 0, 0])), path)
    whole = path.read_bytes()
    for data in (b"", b"SOPInstanceUID,z\n", whole[:-9], whole[len(whole) // 2 :]):
        path.write_bytes(data)
        with pytest.raises(IchError, match=r"slices\.parquet is not a slice table .*; delete it"):
            read_table(path)


def test_some_columns_are_those_of_the_whole(tmp_path):
    path = tmp_path / "slices.parquet"
    write_table(ordered(row("ID_a", [0, 0, 0], size=3), row("ID_b", [0, 0, 1])), path)
    columns = ["size", "SOPInstanceUID", "z"]
    pd.testing.assert_frame_equal(read_table(path, columns), read_table(path)[columns])
    pq.write_table(pq.read_table(path).drop_columns(["order"]), path)
    with pytest.raises(IchError, match=r"lacks order; .*another version"):
        read_table(path, columns)


def test_a_lacking_column_is_named(tmp_path):
    path = tmp_path / "slices.parquet"
    pq.write_table(pa.Table.from_pylist([row("ID_a", None)], SCHEMA).drop_columns(["z", "order"]), path)
    with pytest.raises(IchError, match=r"lacks order, z; .*another version"):
        read_table(path)


def test_other_types_are_reported_and_further_columns_are_left_out(tmp_path):
    path = tmp_path / "slices.parquet"
    table = pa.Table.from_pylist([row("ID_a", None)], SCHEMA)
    pq.write_table(table.append_column("crop", [[1]]), path)
    assert read_table(path).columns.tolist() == SCHEMA.names
    at = SCHEMA.names.index("z")
    pq.write_table(table.set_column(at, "z", [["up"]]), path)
    with pytest.raises(IchError, match=r"slices\.parquet holds other types .*another version"):
        read_table(path)


def test_a_slice_that_stands_twice_is_named(tmp_path):
    path = tmp_path / "slices.parquet"
    write_table(to_frame([row("ID_a", None), row("ID_b", None), row("ID_b", None)]), path)
    with pytest.raises(IchError, match="lists ID_b twice"):
        read_table(path)


def test_readable_are_those_of_the_split_with_an_image():
    table = ordered(
        row("ID_a", [0, 0, 0]), row("ID_b", [0, 0, 1], status="truncated"), row("ID_c", [0, 0, 2], split="test")
    )
    assert readable(table, "train").index.tolist() == ["ID_a"]
    assert readable(table, "test").index.tolist() == ["ID_c"]
    assert readable(table, "train").index.name == "SOPInstanceUID"
