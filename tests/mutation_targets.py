"""The modules that ``tests/mutate.py`` changes, and the tests that are asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A module, the test files (or single tests) that speak of it, and the names to change."""

    path: str
    tests: tuple[str, ...]
    only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".")

    @property
    def label(self) -> str:
        return self.name.removeprefix("tfclip.")


def _named(file: str, tests: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{file}::test_{test}" for test in tests)


_RANKING = ("ranking", "ranking_result", "ranking_options")
_RERANKING = ("reranking", "reranking_alternatives", "rerank_search", "neighbour_lists")
_OPTIONS = ("reranking_options", "default_device")
_OF_FUNCTIONAL = {
    "distance": ("distance", "default_device", "ranking", "ranking_options"),
    "ranks": ("ranking_options", "default_device", "ranking"),
    "ranking": (*_RANKING, "default_device"),
    "result": (*_RANKING, "default_device"),
    "bootstrap": ("ranking_result",),
    "candidates": (*_RANKING, "verification"),
    "verification": ("verification", "default_device"),
    "identification": ("verification",),
    "calibration": ("calibration",),
    "clustering": ("clustering",),
    "reciprocal": ("default_device", *_RERANKING),
    "reranking": (*_OPTIONS, *_RERANKING),
    "sparse": ("sparse", "default_device", "reranking", "reranking_alternatives"),
    "neighbours": ("neighbours", *_OPTIONS, "reranking", "rerank_search"),
    "neighbour_lists": ("neighbour_lists", *_OPTIONS),
    "pairwise": ("neighbours", "default_device", "reranking", "rerank_search"),
    "products": ("products", "default_device", "reranking", "rerank_search"),
    "shortlist": ("neighbours", "default_device", "rerank_search", "reranking"),
    "approximate": ("approximate", *_OPTIONS, "rerank_search"),
    "camera_jaccard": ("reranking_alternatives", *_OPTIONS),
    "expansion": ("reranking_alternatives", *_OPTIONS),
    "graph_reranking": ("reranking_alternatives", *_OPTIONS),
}
_SPEED = (  # of test_speed.py what runs diffusion
    "the_mean_of_diffused_tokens_is_their_mean",
    "drop_path_still_drops_where_no_gradients_are_recorded",
    "a_hook_is_called_in_inference_too",
    "in_inference_a_model_gives_what_it_gives_in_training",
)
_FRAMES = (  # of test_frames.py what draws frames
    "sampling_equals_the_reference",
    "dense_clips_cover_every_frame_in_order",
    "restricted_samples_ascend_inside_the_tracklet",
    "a_seed_repeats_its_draw",
    "counts_below_one_are_refused",
)
_SAMPLINGS = ("sample_dense", "sample_restricted", "_check_counts")
TARGETS = {
    target.label: target
    for target in (
        Target("tfclip/losses.py", ("losses", "default_device")),
        Target("tfclip/diffusion.py", ("diffusion", "default_device", *_named("speed", _SPEED))),
        Target("tfclip/prompt.py", ("prompt",)),
        Target("tfclip/data/samplers.py", ("samplers", "clips", "default_device")),
        Target("tfclip/frames.py", _named("frames", _FRAMES), _SAMPLINGS),
        *(Target(f"tfclip/functional/{name}.py", of) for name, of in _OF_FUNCTIONAL.items()),
    )
}
