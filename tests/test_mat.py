import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_trees import element, mat_file, variable, write_mat
from tests.real_data import real
from tfclip.data.mat import read_mat, read_matrix, whole_numbers
from tfclip.errors import MissingExtraError, TableError

TABLE = np.array([[1, 16, 1, 1], [17, 96, 1, 2], [97, 110, -1, 6]], dtype=np.int32)


def packed(content):
    return struct.pack("<II", 15, len(content)) + content


@pytest.fixture
def file(tmp_path):
    """Write bytes to a file; give its path."""

    def write(content):
        path = tmp_path / "table.mat"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("code", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
def test_every_numeric_class_comes_back_as_it_was(file, code, order, compress):
    values = np.array([[0, 1, 2], [100, 5, 127]], dtype=code)
    path = file(mat_file(variable("x", values, order=order), order=order, compress=compress))
    found = read_mat(path)["x"]
    assert found.dtype == np.dtype(code)
    assert found.tolist() == values.tolist()


def test_matlab_stores_doubles_as_the_smallest_integers_that_hold_them(file):
    path = file(mat_file(variable("ls_set", np.array([[1.0, 300.0]]), stored="u2")))
    found = read_mat(path)["ls_set"]
    assert found.dtype == np.float64
    assert found.tolist() == [[1.0, 300.0]]


def test_one_file_can_hold_several_variables_and_an_empty_one(file):
    parts = [
        variable("a", TABLE),
        variable("none", np.zeros((0, 4))),
        variable("long_name", TABLE.T),
    ]
    found = read_mat(file(mat_file(*parts)))
    assert list(found) == ["a", "none", "long_name"]
    assert found["none"].shape == (0, 4)
    assert found["long_name"].tolist() == TABLE.T.tolist()


@pytest.mark.parametrize(
    "flags", [1, 2, 4, 5, 17, 9 | 0x0200, 6 | 0x0800], ids=lambda flags: f"class-{flags:#x}"
)
def test_variables_of_other_classes_are_passed_over(file, flags):
    other = variable("other", np.array([[1, 2]], np.uint8), flags=flags)
    assert list(read_mat(file(mat_file(other, variable("x", TABLE))))) == ["x"]


def test_a_variable_that_is_not_there_is_named_with_those_that_are(file):
    path = file(mat_file(variable("b", TABLE), variable("a", TABLE)))
    assert read_matrix(path, ("c", "a")).tolist() == TABLE.tolist()
    with pytest.raises(TableError, match=r"table\.mat has no numeric variable x or y; it has a, b"):
        read_matrix(path, ("x", "y"))


def test_whole_numbers_are_whole():
    assert whole_numbers(np.array([[3.0, -1.0]]), "f").dtype == np.int64
    for values, message in (
        ([[1.0, 2.5]], "whole numbers, got 2.5"),
        ([[np.nan]], "must be finite"),
        ([[1e300]], "within"),
    ):
        with pytest.raises(TableError, match=message):
            whole_numbers(np.array(values), "f")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a MATLAB file: it has 0 bytes"),
        (b"no MATLAB file at all".ljust(200), "header says otherwise"),
        (mat_file(variable("x", TABLE))[:-9], "truncated or damaged: an element of"),
        (mat_file(variable("x", TABLE), compress=True)[:-4], "truncated or damaged"),
        (mat_file(variable("x", TABLE)) + b"abc", "3 bytes are left where an element should be"),
        (mat_file(element(9, b"12345678")), "an element of type 9 stands where a variable should"),
        (mat_file(element(15, b"12345678")[:16]), "does not unpack"),
        (mat_file(packed(zlib.compress(variable("x", TABLE))[:-2])), "ends too early"),
        (mat_file(packed(zlib.compress(variable("x", TABLE) * 2))), "holds 2 variables, not one"),
        (mat_file(variable("x", TABLE, shape=(3, 5))), r"x is \(3, 5\) and has 48 bytes"),
        (mat_file(variable("x", TABLE, shape=(-3, -4))), r"x is \(-3, -4\)"),
        (mat_file(variable("x", TABLE, shape=(12,))), "size of x is not two or more numbers"),
        (mat_file(variable("x", np.array([[1]], np.int16), stored="f8")), "stored as type 9"),
        (mat_file(variable("x", TABLE, flags=9)), "a value of x does not fit its class"),
        (mat_file(element(14, element(5, b"1234"))), "does not begin with its class"),
    ],
)
def test_a_file_that_breaks_the_format_is_refused_with_the_reason(file, content, message):
    with pytest.raises(TableError, match=message):
        read_mat(file(content))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(TableError, match=r"cannot read .*x\.mat: No such file"):
        read_mat(tmp_path / "x.mat")


VALID = mat_file(
    variable("track_train_info", TABLE),
    variable("q", np.array([[1.0, 2.0]]), stored="u1"),
    variable("text", np.array([[1, 2]], np.uint8), flags=4),
)
PACKED = mat_file(variable("track_train_info", TABLE), compress=True)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([VALID, PACKED]),
    st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=8),
    st.integers(0, 400),
)
def test_mutated_bytes_give_matrices_or_a_table_error(tmp_path_factory, content, changes, cut):
    mutated = bytearray(content)
    for place, value in changes:
        mutated[place % len(mutated)] = value
    path = tmp_path_factory.getbasetemp() / "mutated.mat"
    path.write_bytes(bytes(mutated[: len(mutated) - cut] if cut < 100 else mutated))
    try:
        found = read_mat(path)
    except (TableError, MissingExtraError):
        return
    assert all(isinstance(matrix, np.ndarray) for matrix in found.values())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_after_a_header_give_matrices_or_a_table_error(tmp_path_factory, tail):
    path = tmp_path_factory.getbasetemp() / "any.mat"
    path.write_bytes(mat_file() + tail)
    try:
        read_mat(path)
    except TableError:
        return


# --- version 7.3 ---------------------------------------------------------------------------------


def test_a_file_of_version_7_3_without_h5py_names_the_extra(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    path = file(b"MATLAB 7.3 MAT-file, made up".ljust(600))
    with pytest.raises(MissingExtraError, match=r"needs h5py; .* pip install 'tfclip\[mat\]'"):
        read_mat(path)


def test_a_file_of_version_7_3_has_the_shape_that_matlab_shows(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "info_test.mat"
    with h5py.File(path, "w", userblock_size=512) as opened:
        opened["query"] = np.array([[1.0], [4.0], [9.0]])  # MATLAB's 1 x 3
        opened["text"] = np.bytes_("hello")
        opened.create_group("group")
    with path.open("r+b") as opened:
        opened.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    assert {name: matrix.tolist() for name, matrix in read_mat(path).items()} == {
        "query": [[1.0, 4.0, 9.0]]
    }
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(TableError, match=r"info_test\.mat is truncated or damaged"):
        read_mat(path)


# --- real data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variable_name", "shape"),
    [
        ("tracks_train_info", "track_train_info", (8298, 4)),
        ("tracks_test_info", "track_test_info", (12180, 4)),
        ("query_IDX", "query_IDX", (1, 1980)),
    ],
)
def test_the_official_tables_of_mars_are_read(name, variable_name, shape):
    path = real("mars_info", f"{name}.mat")
    found = read_mat(path)
    assert {key: matrix.shape for key, matrix in found.items()} == {variable_name: shape}
    assert whole_numbers(found[variable_name], path).max() < 10**6


def test_written_files_are_read_back_by_name(tmp_path):
    path = write_mat(
        tmp_path / "a" / "x.mat", {"query_IDX": np.array([[4, 5]], np.uint16)}, compress=True
    )
    assert read_matrix(path, ("query_IDX",)).tolist() == [[4, 5]]
