import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_trees import mars_tree
from tfclip.data import (
    Dataset,
    Protocol,
    Split,
    Tracklet,
    read_mars,
)
from tfclip.data.benchmarks.records import matched_queries
from tfclip.errors import TableError

# --- protocols -----------------------------------------------------------------------------------


def seen(*pairs):
    return tuple(
        Tracklet(name=str(i), frames=("x",), person=person, camera=camera)
        for i, (person, camera) in enumerate(pairs)
    )


def test_a_protocol_that_contradicts_itself_is_refused():
    def build(**changes):
        settings = {"name": "p", "query": [0], "gallery": [1], "description": "", **changes}
        return Protocol(**settings)

    for changes, message in (
        ({"exclude": "same"}, "exclude must be one of"),
        ({"frames": "some"}, "frames must be one of"),
        ({"ap": "area"}, "ap must be one of"),
        ({"query": []}, "query of protocol 'p' must be at least one row"),
        ({"gallery": [1, 1]}, "none twice"),
        ({"gallery": [-1]}, "none negative"),
        ({"repeats": [((0,), ())]}, "gallery of protocol 'p'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**changes)
    assert build(repeats=[([2], [3])]).splits == (Split((0,), (1,)), Split((2,), (3,)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12),
    st.sampled_from(["person_and_camera", "camera", "none"]),
    st.data(),
)
def test_a_query_is_matched_where_a_right_row_is_left(pairs, exclude, data):
    tracklets = seen(*pairs)
    rows = st.lists(st.integers(0, len(pairs) - 1), unique=True, min_size=1)
    query, gallery = data.draw(rows), data.draw(rows)
    expected = []
    for q in query:
        left = []
        for g in gallery:
            same_person = pairs[q][0] == pairs[g][0]
            same_camera = pairs[q][1] == pairs[g][1]
            gone = {
                "person_and_camera": same_person and same_camera,
                "camera": same_camera,
                "none": False,
            }[exclude]
            if same_person and not gone:
                left.append(g)
        if left:
            expected.append(q)
    assert (
        list(matched_queries(tracklets, Split(tuple(query), tuple(gallery)), exclude)) == expected
    )


@pytest.mark.parametrize(
    ("pairs", "cause"),
    [
        (((1, 0), (2, 0), (1, 0), (2, 0)), "every tracklet is of camera 0"),
        (((1, 0), (2, 1), (1, 0), (2, 1)), "every person was seen by one camera only"),
        (((1, 0), (2, 0), (3, 1), (4, 1)), "no person is in both"),
    ],
)
def test_a_protocol_without_a_single_match_is_refused_with_the_cause(pairs, cause):
    protocol = Protocol(name="p", query=[0, 1], gallery=[2, 3], description="")
    with pytest.raises(TableError, match=f"no query of protocol 'p' .*: {cause}"):
        Dataset(name="d", root="here", train=(), test=seen(*pairs), protocols={"p": protocol})


def test_a_data_set_holds_each_tracklet_once_and_its_protocols_rows():
    twice = (*seen((1, 0)), *seen((1, 1)))
    with pytest.raises(TableError, match="here: two test tracklets are called 0"):
        Dataset(name="d", root="here", train=(), test=twice, protocols={})
    protocol = Protocol(name="p", query=[0], gallery=[2], description="")
    with pytest.raises(TableError, match="asks for row 2 of 2 test tracklets"):
        Dataset(
            name="d", root="here", train=(), test=seen((1, 0), (1, 1)), protocols={"p": protocol}
        )
    dataset = Dataset(name="d", root="here", train=(), test=(), protocols={})
    with pytest.raises(ValueError, match="protocol of d must be one of"):
        dataset.protocol()


def test_the_first_protocol_is_the_one_to_report(tmp_path):
    dataset = read_mars(mars_tree(tmp_path))
    assert dataset.protocol() is dataset.protocol("official")
    with pytest.raises(ValueError, match=r"must be one of \('official', 'without-queries'\), got"):
        dataset.protocol("offical")
