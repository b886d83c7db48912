"""Adapters: what trackers ask for and give back, by contract, and with the trackers themselves.

The second half runs where a tracker is installed; docs/trackers.md says with which versions it did.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tfclip import TFCLIP, TFCLIPConfig, TrackletEncoder
from tfclip.errors import FrameError
from tfclip.tracking import CropEncoder, embedding_distance, tracked_boxes
from tfclip.tracking.adapters import to_edges


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"width": 64, "layers": 2, "heads": 2, "output_dim": 32}
    config = TFCLIPConfig(backbone_options=sizes, frame_size=(32, 16), clip_length=4)
    return TFCLIP(config).eval()


FRAME = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)  # BGR
BOXES = np.array([[10.0, 5.0, 30.0, 45.0], [40.0, 20.0, 60.0, 60.0]])  # left, top, right, bottom


def expected(model, boxes: Any = BOXES, frame=FRAME) -> np.ndarray:
    """Each box cut by hand, its colours turned round, as a tracklet of one frame."""
    rows = []
    for left, top, right, bottom in np.asarray(boxes).astype(int):
        crop = np.ascontiguousarray(frame[top:bottom, left:right, ::-1])
        rows.append(model.encode_sequence([crop]))
    return torch.stack(rows).numpy()


def close(found, wanted) -> None:
    np.testing.assert_allclose(np.stack(list(found)), wanted, atol=1e-5, rtol=0)


# --- what trackers ask for -----------------------------------------------------------------------


def test_roboflow_gets_rows_of_length_one_for_its_detections(model):
    detections = SimpleNamespace(xyxy=BOXES.astype(np.float32))
    found = CropEncoder(model).extract_features(detections, FRAME)
    assert (found.dtype, found.shape) == (np.float32, (2, model.embedding_dim))
    close(found, expected(model))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_boxmot_gets_the_same_and_can_ask_for_sizes(model):
    encoder = CropEncoder(model, batch_size=1)
    close(encoder.get_features(BOXES, FRAME), expected(model))
    assert encoder.input_shape == (32, 16)
    assert encoder.embedding_dim == 160
    assert encoder.device == torch.device("cpu")


def test_ultralytics_calls_it_with_centres_and_more_columns(model):
    centres = np.concatenate([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], 1)
    rows = np.concatenate([centres, [[0.0], [1.0]]], axis=1).astype(np.float32)
    found = CropEncoder(model)(FRAME, rows)
    assert isinstance(found, list)
    close(found, expected(model))


def test_deep_sort_gets_crops_described_or_corners_and_sizes(model):
    encoder = CropEncoder(model)
    crops = [FRAME[5:45, 10:30], FRAME[20:60, 40:60]]
    close(encoder.predict(crops), expected(model))
    ltwh = np.concatenate([BOXES[:, :2], BOXES[:, 2:] - BOXES[:, :2]], 1)
    close(encoder.box_encoder("ltwh")(FRAME, ltwh), expected(model))
    close(encoder.box_encoder("ltrb")(FRAME, BOXES), expected(model))


def test_paths_are_rgb_by_themselves_whatever_the_frames_are(model, tmp_path):
    paths = []
    for place, (left, top, right, bottom) in enumerate(BOXES.astype(int)):
        path = tmp_path / f"{place}.png"
        Image.fromarray(FRAME[top:bottom, left:right, ::-1]).save(path)
        paths.append(path)
    for channels in ("bgr", "rgb"):
        found = CropEncoder(model, channels=channels).extract_features_from_paths(
            [str(paths[0]), paths[1]], batch_size=1
        )
        close(found, expected(model))
    raw = CropEncoder(model).extract_features_from_paths(paths, normalize=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.1
    assert CropEncoder(model).extract_features_from_paths([]).shape == (0, 160)


def test_the_order_of_colours_matters_and_is_right(model):
    right = expected(model)
    close(CropEncoder(model).get_features(BOXES, FRAME), right)
    rgb_frame = np.ascontiguousarray(FRAME[..., ::-1])
    close(CropEncoder(model, channels="rgb").get_features(BOXES, rgb_frame), right)
    wrong = CropEncoder(model, channels="rgb").get_features(BOXES, FRAME)
    assert np.abs(wrong - right).max() > 1e-3


def test_no_detections_are_no_rows(model):
    encoder = CropEncoder(model)
    assert encoder.extract_features(SimpleNamespace(xyxy=np.empty((0, 4))), FRAME).shape == (0, 160)
    assert encoder.get_features(np.array([]), FRAME).shape == (0, 160)
    assert encoder(FRAME, np.empty((0, 5))) == []
    assert encoder.predict([]) == []


def test_boxes_outside_are_clipped_or_described_by_the_nearest_pixel(model):
    encoder = CropEncoder(model)
    boxes = [[-10, -10, 20, 30], [200, 10, 220, 40], [30, 30, 30, 50], [-50, -50, -40, -10]]
    found = encoder.get_features(boxes, FRAME)
    nearest = [[0, 0, 20, 30], [79, 25, 80, 26], [30, 40, 31, 41], [0, 0, 1, 1]]
    close(found, expected(model, nearest))
    assert encoder.num_outside == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.get_features([[0, 0, np.nan, 1]], FRAME), FrameError, "boxes must be finite"),
        (lambda e: e.get_features([[0, 0, 1]], FRAME), FrameError, r"boxes must be \(M, 4\)"),
        (lambda e: e.get_features(BOXES, FRAME / 255), FrameError, "frame must be uint8"),
        (lambda e: e.get_features(BOXES, "frame.jpg"), TypeError, "frame must be an ndarray"),
        (lambda e: e.extract_features(BOXES, FRAME), TypeError, r"detections must have .xyxy"),
        (lambda e: e.extract_features_from_paths("a.png"), TypeError, "paths must be several"),
        (lambda e: e.predict([FRAME[:0]]), FrameError, r"np_images\[0\] must have at least"),
        (lambda e: e.box_encoder("tlwh"), ValueError, "boxes must be one of"),
        (lambda e: e.update_tracklets(BOXES, FRAME), ValueError, "tracklets must be given"),
    ],
)
def test_bad_input_is_one_sentence(model, call, error, message):
    with pytest.raises(error, match=message):
        call(CropEncoder(model))


def test_options_that_cannot_be_are_refused(model):
    with pytest.raises(ValueError, match="tracklets must have the same model"):
        CropEncoder(model, tracklets=TrackletEncoder(TFCLIP(model.config)))
    with pytest.raises(ValueError, match="channels must be one of"):
        CropEncoder(model, channels="BGR")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        CropEncoder(model, batch_size=0)


def test_edges_of_each_form():
    assert to_edges(np.array([[10.0, 20.0, 4.0, 6.0]]), "ltwh").tolist() == [[10, 20, 14, 26]]
    assert to_edges(np.array([[10.0, 20.0, 4.0, 6.0]]), "xywh").tolist() == [[8, 17, 12, 23]]


# --- what trackers give back ---------------------------------------------------------------------

WANTED = [[10, 5, 20, 40], [40, 20, 20, 40]]  # left, top, width, height


def deep_sort_track(key, edges, *, confirmed=True, age=0):
    return SimpleNamespace(
        track_id=key,
        to_ltrb=lambda orig: np.array(edges) if orig else np.zeros(4),
        is_confirmed=lambda: confirmed,
        time_since_update=age,
    )


def norfair_object(key, edges):
    points = np.array(edges).reshape(2, 2)
    return SimpleNamespace(id=key, last_detection=SimpleNamespace(points=points))


def results(ids, edges):
    rows = torch.tensor(np.array(edges, dtype=np.float32))
    return SimpleNamespace(
        boxes=SimpleNamespace(id=None if ids is None else torch.tensor(ids), xyxy=rows)
    )


OBJECTS = [norfair_object(3, BOXES[0]), norfair_object(8, BOXES[1]), norfair_object(None, BOXES[0])]
FORMS = {
    "supervision": (
        SimpleNamespace(
            tracker_id=np.array([3, -1, 8]), xyxy=np.array([BOXES[0], BOXES[0], BOXES[1]])
        ),
    ),
    "rows": (np.concatenate([BOXES, [[3, 0.9, 0, 1], [8, 0.8, 0, 0]]], axis=1),),
    "results": (results([3.0, 8.0], BOXES),),
    "list of results": ([results([3.0, 8.0], BOXES)],),
    "deep sort": (
        [
            deep_sort_track(3, BOXES[0]),
            deep_sort_track(4, BOXES[0], confirmed=False),
            deep_sort_track(8, BOXES[1]),
            deep_sort_track(5, BOXES[1], age=1),
        ],
    ),
    "norfair": (
        [*OBJECTS, norfair_object(4, BOXES[0])],
        [one.last_detection for one in OBJECTS],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_tracks_that_were_seen_are_read_from_any_tracker(form):
    ids, boxes = tracked_boxes(*FORMS[form])
    assert ids == [3, 8]
    assert boxes.tolist() == WANTED


@pytest.mark.parametrize(
    "nothing",
    [
        SimpleNamespace(tracker_id=None, xyxy=BOXES),
        SimpleNamespace(tracker_id=np.array([], dtype=int), xyxy=np.empty((0, 4))),
        np.empty((0, 8)),
        np.array([]),
        results(None, BOXES),
        SimpleNamespace(boxes=None),
        [],
    ],
)
def test_nobody_is_nobody(nothing):
    ids, boxes = tracked_boxes(nothing)
    assert ids == []
    assert boxes.shape == (0, 4)


def test_what_no_tracker_returns_is_refused():
    with pytest.raises(TypeError, match="tracked must be supervision Detections, an array"):
        tracked_boxes("tracks")
    with pytest.raises(TypeError, match="must hold deep-sort-realtime or norfair tracks"):
        tracked_boxes([1, 2])
    with pytest.raises(ValueError, match="tracked must be rows of left, top, right, bottom, id"):
        tracked_boxes(np.zeros((2, 4)))


def test_a_crop_that_the_tracker_asked_for_is_not_read_again(model, monkeypatch):
    sizes = []
    forward = model.backbone.forward
    monkeypatch.setattr(
        model.backbone, "forward", lambda x, codes: (sizes.append(len(x)), forward(x, codes))[1]
    )
    encoder = CropEncoder(model, tracklets=TrackletEncoder(model))
    video = [np.roll(FRAME, shift, axis=1).copy() for shift in range(5)]
    tracked = FORMS["rows"][0].copy()
    for time, frame in enumerate(video):
        encoder.get_features(BOXES, frame)
        found = encoder.update_tracklets(tracked, frame, time)
    assert sizes == [2] * 5
    tracked[0, 0] += 1  # a box that the tracker has moved
    found = encoder.update_tracklets(tracked, video[-1], 5)
    assert sizes == [2] * 5 + [1]
    crops = [frame[20:60, 40:60, ::-1].copy() for frame in [*video, video[-1]]]
    torch.testing.assert_close(found[8], model.encode_sequence(crops), atol=1e-5, rtol=0)
    crops = [frame[5:45, 10:30, ::-1].copy() for frame in video] + [
        video[-1][5:45, 11:30, ::-1].copy()
    ]
    torch.testing.assert_close(found[3], model.encode_sequence(crops), atol=1e-5, rtol=0)


def test_a_frame_whose_buffer_is_used_again_is_read_again(model):
    encoder = CropEncoder(model, tracklets=TrackletEncoder(model))
    frame = FRAME.copy()
    encoder.get_features(BOXES, frame)
    frame[:] = frame[:, ::-1].copy()  # as VideoCapture.read(frame) does
    found = encoder.update_tracklets(FORMS["rows"][0], frame)
    crop = frame[5:45, 10:30, ::-1].copy()
    torch.testing.assert_close(found[3], model.encode_sequence([crop]), atol=1e-5, rtol=0)


def test_distance_of_embeddings_that_norfair_asks_for():
    one, other = SimpleNamespace(embedding=[3, 0]), SimpleNamespace(embedding=[1, 1])
    followed = SimpleNamespace(last_detection=other)
    assert embedding_distance(one, followed) == pytest.approx(1 - 2**-0.5)
    assert embedding_distance(one, SimpleNamespace(embedding=None)) == 1
    with pytest.raises(FrameError, match="embeddings must have one width, got 2 and 1"):
        embedding_distance(one, SimpleNamespace(embedding=[1]))


# --- the trackers themselves ---------------------------------------------------------------------


def walk(num_frames: int = 24):
    """Two drawn people who pass one another: frames (BGR), and their true boxes."""
    random = np.random.default_rng(0)
    backdrop = random.integers(90, 110, (120, 240, 3), dtype=np.uint8)
    people = [random.integers(0, 120, (60, 24, 3)), random.integers(130, 256, (60, 24, 3))]
    for step in range(num_frames):
        frame = backdrop.copy()
        boxes = []
        for person, (left, top) in zip(people, [(8 * step, 20), (200 - 8 * step, 50)], strict=True):
            frame[top : top + 60, left : left + 24] = person
            boxes.append([left, top, left + 24, top + 60])
        yield frame, np.array(boxes, dtype=np.float64)


def check_tracklets(encoder: CropEncoder, calls: int) -> None:
    """The tracker used the encoder, kept two people apart, and their tracklets grew."""
    assert encoder.tracklets is not None
    assert calls > 10
    ids, embeddings = encoder.tracklets.embeddings()
    assert len(ids) == 2
    assert torch.isfinite(embeddings).all()
    assert min(encoder.tracklets.state(key).num_used for key in ids) >= 15


class Counting(CropEncoder):
    """Counts the frames for which a tracker asked."""

    def __init__(self, model):
        super().__init__(model, tracklets=TrackletEncoder(model))
        self.calls = 0

    def _describe(self, crops, normalize, *, keep=False):
        self.calls += 1
        return super()._describe(crops, normalize, keep=keep)


@pytest.mark.filterwarnings("default")
def test_supervision_and_the_trackers_of_roboflow(model):
    supervision = pytest.importorskip("supervision")
    trackers = pytest.importorskip("trackers")
    encoder, tracker = Counting(model), trackers.ByteTrackTracker(minimum_consecutive_frames=1)
    for time, (frame, boxes) in enumerate(walk()):
        detections = supervision.Detections(
            xyxy=boxes, confidence=np.full(2, 0.9), class_id=np.zeros(2, dtype=int)
        )
        features = encoder.extract_features(detections, frame)
        close(features, expected(model, boxes, frame))
        encoder.update_tracklets(tracker.update(detections), frame, time)
    check_tracklets(encoder, encoder.calls)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name", ["botsort", "strongsort", "deepocsort", "boosttrack", "hybridsort"]
)
def test_boxmot(model, name):
    boxmot = pytest.importorskip("boxmot")

    kinds = {kind.lower(): kind for kind in dir(boxmot)}
    encoder = Counting(model)
    options = {"use_embeddings": True} if name == "boosttrack" else {}
    tracker = getattr(boxmot, kinds[name])(reid_model=encoder, **options)
    for time, (frame, boxes) in enumerate(walk()):
        rows = np.concatenate([boxes, [[0.9, 0]] * 2], axis=1).astype(np.float32)
        encoder.update_tracklets(tracker.update(rows, frame), frame, time)
    check_tracklets(encoder, encoder.calls)


@pytest.mark.filterwarnings("default")
def test_ultralytics(model):
    results = pytest.importorskip("ultralytics.engine.results")
    trackers = pytest.importorskip("ultralytics.trackers.bot_sort")
    utils = pytest.importorskip("ultralytics.utils")
    checks = pytest.importorskip("ultralytics.utils.checks")

    options = {
        **utils.YAML.load(checks.check_yaml("botsort.yaml")),
        "with_reid": False,
        "gmc_method": "none",
    }
    tracker = trackers.BOTSORT(utils.IterableSimpleNamespace(**options))
    tracker.args.with_reid = True
    tracker.args.model = "tfclip"  # anything but "auto", which reads the detector's features
    tracker.encoder = encoder = Counting(model)
    for time, (frame, boxes) in enumerate(walk()):
        rows = np.concatenate([boxes, [[0.9, 0]] * 2], axis=1).astype(np.float32)
        tracked = tracker.update(results.Boxes(rows, frame.shape[:2]), frame)
        encoder.update_tracklets(tracked, frame, time)
    check_tracklets(encoder, encoder.calls)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("way", ["embedder", "embeds"])
def test_deep_sort_realtime(model, way):
    module = pytest.importorskip("deep_sort_realtime.deepsort_tracker")
    encoder = Counting(model)
    tracker = module.DeepSort(embedder=None, n_init=1)
    if way == "embedder":
        tracker.embedder = encoder
    for time, (frame, boxes) in enumerate(walk()):
        ltwh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        raw = [(row.tolist(), 0.9, "person") for row in ltwh]
        embeds = None if way == "embedder" else encoder.box_encoder("ltwh")(frame, ltwh)
        tracked = tracker.update_tracks(raw, embeds=embeds, frame=frame)
        encoder.update_tracklets(tracked, frame, time)
    check_tracklets(encoder, encoder.calls)


@pytest.mark.filterwarnings("default")
def test_norfair(model):
    norfair = pytest.importorskip("norfair")
    encoder = Counting(model)
    tracker = norfair.Tracker(
        distance_function="iou",
        distance_threshold=0.8,
        initialization_delay=1,
        reid_distance_function=embedding_distance,
        reid_distance_threshold=0.5,
        reid_hit_counter_max=10,
    )
    for time, (frame, boxes) in enumerate(walk()):
        features = encoder.get_features(boxes, frame)
        detections = [
            norfair.Detection(box.reshape(2, 2), embedding=feature)
            for box, feature in zip(boxes, features, strict=True)
        ]
        tracked = tracker.update(detections)
        encoder.update_tracklets(tracked, frame, time, detections=detections)
    check_tracklets(encoder, encoder.calls)
