"""The objective: the reference's forward, gradients, step and whole loop; and its own rules."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.recorded import our_names
from tfclip import CLIPMemory, TFCLIPObjective, convert, functional
from tfclip.losses import identity_loss
from tfclip.objective import LOSS_WEIGHTS
from tfclip.training import Recipe, named_parameters

GOLDEN = Path(__file__).parent / "golden"
TEMPORAL_TERMS = {"identity_temporal": 1.0, "triplet_temporal": 1.0, "frame": 1.0}

# Zero in exact arithmetic, because a softmax and a distance do not see what all share; recorded is
# the noise of rounding, which Adam's first step turns into a sign.
NOISE = {"SSP.out_proj.0.bias", "SSP.out_proj.1.bias", "TMD.resblocks.0.mlp.c_proj.bias"}


def read(name: str) -> dict:
    return json.loads((GOLDEN / name).read_text())


def load_reference():
    """Return the recorded model and objective, in training mode without dropout."""
    path = GOLDEN / "state_dict.safetensors"
    model, objective = convert.from_reference(path, clip_length=4, with_objective=True)
    for module in objective.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(), objective.train()


def by_their_names(model, objective) -> dict[str, Tensor]:
    """Return parameters and buffers under the names of the reference."""
    ours = {f"model.{name}": x for name, x in model.named_parameters()}
    ours |= {f"objective.{name}": x for name, x in objective.named_parameters()}
    ours |= {f"objective.{name}": x for name, x in objective.named_buffers()}
    return {theirs: ours[name] for theirs, name in our_names().items()}


@pytest.fixture(scope="module")
def one_step(golden):
    """Run the recorded training step once: output, losses, gradients, values before and after."""
    inputs = golden("inputs")
    model, objective = load_reference()
    objective.set_memory(inputs["clip_memory"])
    tensors = by_their_names(model, objective)
    before = {name: x.detach().clone() for name, x in tensors.items()}
    optimizer = Recipe().optimizer(model, objective)
    output = model(inputs["frames"], inputs["cam_label"])
    losses = objective(output, inputs["target"])
    losses.total.backward()
    gradients = {name: x.grad for name, x in tensors.items() if x.grad is not None}
    optimizer.step()
    return {
        "output": output,
        "losses": losses,
        "gradients": gradients,
        "before": before,
        "after": {name: x.detach() for name, x in tensors.items()},
    }


def is_key_bias(name: str) -> bool:
    return name.endswith("attn.in_proj_bias")


def without_key_bias(name: str, gradient: Tensor) -> Tensor:
    """Drop the keys' third of a fused bias, whose gradient is zero but for noise."""
    if not is_key_bias(name):
        return gradient
    query, _, value = gradient.chunk(3)
    return torch.cat([query, value])


# --- golden: one training step -----------------------------------------------------------------


def test_every_term_and_the_total_are_the_recorded_ones(one_step):
    terms, losses = read("train_stats.json")["loss_terms"], one_step["losses"]
    parts = ("appearance", "projected", "temporal")
    expected = {
        "video_to_memory": terms["i2t_loss"],
        **{f"identity_{part}": x for part, x in zip(parts, terms["id_losses"], strict=True)},
        **{f"triplet_{part}": x for part, x in zip(parts, terms["triplet_losses"], strict=True)},
        "frame": terms["frame_loss"] / terms["T"],
    }
    assert {name: x.item() for name, x in losses.items()} == pytest.approx(expected, rel=1e-5)
    assert losses.total.item() == pytest.approx(terms["total"], rel=1e-5)


def test_features_and_prompt_are_the_recorded_ones(one_step, golden):
    recorded, output = golden("train_outputs"), one_step["output"]
    for ours, theirs in (
        (output.appearance, "img_feature"),
        (output.projected, "img_feature_proj"),
        (output.temporal, "cls_f_tp"),
        (output.projected_tokens, "ssp_visual_in"),
    ):
        torch.testing.assert_close(ours, recorded[theirs], atol=5e-5, rtol=0)


def test_scores_are_the_recorded_scores(golden):
    inputs, recorded = golden("inputs"), golden("train_outputs")
    model, objective = load_reference()
    objective.set_memory(inputs["clip_memory"])
    output = model(inputs["frames"], inputs["cam_label"])
    prompt = objective.updated_memory(output) - inputs["clip_memory"]
    torch.testing.assert_close(prompt, recorded["ssp_out"], atol=5e-5, rtol=0)
    scores = {
        "cls_score": ("appearance", "appearance", output.appearance),
        "cls_score_proj": ("projected", "projected", output.projected),
        "cls_score_proj_temp": ("temporal", "temporal", output.temporal),
        "cls_score_proj_frame": ("temporal", "frame", output.frame_temporal.flatten(0, 1)),
    }
    for name, (classifier, neck, features) in scores.items():
        ours = objective.classifiers[classifier](objective.necks[neck](features))
        torch.testing.assert_close(ours, recorded[name], atol=2e-5, rtol=0)


def test_batch_statistics_after_the_forward_are_the_recorded_ones(one_step, golden):
    after = one_step["after"]
    for name, expected in golden("train_outputs").items():
        if name.startswith("bn_after."):
            ours = after[name.removeprefix("bn_after.")]
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_gradients_are_the_recorded_gradients(one_step, golden):
    for name, expected in golden("train_grads").items():
        ours = without_key_bias(name, one_step["gradients"][name])
        expected = without_key_bias(name, expected)
        assert (ours - expected).norm() <= 2e-5 * expected.norm(), name


def test_gradient_statistics_of_every_parameter_are_the_recorded_ones(one_step):
    gradients = one_step["gradients"]
    recorded = read("train_stats.json")["per_parameter"]
    assert set(gradients) == {name for name, stats in recorded.items() if stats["grad"]}
    for name, gradient in gradients.items():
        stats = recorded[name]["grad"]
        if name in NOISE:
            assert gradient.abs().max() < 1e-6
            continue
        assert gradient.norm().item() == pytest.approx(stats["l2"], rel=2e-5), name
        assert gradient.abs().max().item() == pytest.approx(stats["abs_max"], rel=1e-4), name
        # A sum may cancel: what remains is as exact as its summands, not as itself.
        slack = 2e-5 * stats["l2"] * gradient.numel() ** 0.5
        assert gradient.sum().item() == pytest.approx(stats["sum"], abs=slack), name


def test_values_after_one_step_are_the_recorded_values(one_step, golden):
    for name, expected in golden("train_after_one_step").items():
        torch.testing.assert_close(one_step["after"][name], expected, atol=1e-6, rtol=0)


def test_every_parameter_moves_as_far_as_in_the_reference(one_step):
    for name, stats in read("train_stats.json")["per_parameter"].items():
        if name not in one_step["after"]:
            assert stats["delta"]["l2"] == 0, name  # what nothing reads, we do not have
            continue
        moved = one_step["after"][name] - one_step["before"][name]
        if name in NOISE or is_key_bias(name):  # the sign of noise decides where these go
            assert moved.abs().max() <= 1.01e-5, name
            continue
        assert moved.norm().item() == pytest.approx(stats["delta"]["l2"], rel=2e-3, abs=1e-12)


# --- golden: the whole loop --------------------------------------------------------------------


def test_the_recorded_loop_from_memory_to_mean_average_precision(golden):
    facts, recorded = read("loop.json"), golden("loop_outputs")
    inputs = {name: x.float() for name, x in golden("loop_inputs").items()}
    model, objective = load_reference()
    with torch.inference_mode():
        clips = [inputs[f"memory.{i}"] for i in range(len(facts["memory_labels"]))]
        features = torch.stack([model.eval()(x).projected.mean(0) for x in clips])
    memory = CLIPMemory.from_features(
        features.clone(), torch.tensor(facts["memory_labels"]), num_identities=7
    )
    torch.testing.assert_close(memory(), recorded["memory"], atol=5e-5, rtol=0)
    objective.set_memory(memory)

    optimizer = Recipe().optimizer(model, objective)
    schedule = Recipe().schedule(optimizer)
    model.train()
    losses, rates = [], []
    for _ in range(facts["epochs"]):
        for i in range(facts["iters_per_epoch"]):
            output = model(inputs[f"train.{i}"], torch.tensor(facts["train_cams"][i]))
            total = objective(output, torch.tensor(facts["train_labels"][i])).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
            rates.append(schedule.get_last_lr()[0])
        schedule.step()
    assert losses == pytest.approx(facts["loss_per_iteration"], rel=1e-5)
    assert rates == pytest.approx(facts["lr_group0_per_iteration"])
    after = by_their_names(model, objective)
    for name, expected in recorded.items():
        ours = name.removeprefix("after.")
        if name.startswith("after.") and ours in after:
            torch.testing.assert_close(after[ours], expected, atol=4e-6, rtol=1e-5)

    with torch.inference_mode():
        features = model.eval()(inputs["eval"], torch.tensor(facts["eval_cams"])).embedding
    torch.testing.assert_close(features, recorded["eval_features"], atol=5e-5, rtol=0)
    unit, queries = F.normalize(features, dim=1), slice(0, facts["num_query"])
    distance = functional.squared_euclidean_distance(unit[queries], unit)
    torch.testing.assert_close(distance, recorded["eval_distmat"], atol=2e-5, rtol=0)
    people, cameras = facts["eval_pids"], facts["eval_cams"]
    result = functional.evaluate_ranking(
        distance, people[queries], people, cameras[queries], cameras
    )
    assert result.mAP == pytest.approx(facts["mAP"])
    assert result.cmc.tolist() == pytest.approx(facts["cmc"])


# --- what holds of any weights -----------------------------------------------------------------


@pytest.fixture
def batch(tiny_config):
    random = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 4, 3, *tiny_config.frame_size, generator=random)
    return frames, torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 3, 3])


def make_objective(config, **options) -> TFCLIPObjective:
    torch.manual_seed(0)
    memory = torch.randn(5, 32)
    return TFCLIPObjective(config, 5, memory, **{"dropout": 0.0, **options})


def test_the_total_is_the_weighted_sum_of_the_named_terms(tiny_model, tiny_config, batch):
    frames, cameras, identities = batch
    for loss, weights in LOSS_WEIGHTS.items():
        losses = make_objective(tiny_config, loss=loss)(tiny_model(frames, cameras), identities)
        assert set(losses) == set(weights)
        expected = sum(weights[name] * losses[name].item() for name in losses)
        assert losses.total.item() == pytest.approx(expected, rel=1e-5)
        assert "total=" in repr(losses)
        assert len(losses) == len(weights)


def test_weights_of_the_users_own_choose_the_terms(tiny_model, tiny_config, batch):
    frames, cameras, identities = batch
    objective = make_objective(tiny_config, loss={"triplet_projected": 2.0})
    losses = objective(tiny_model(frames, cameras), identities)
    assert list(losses) == ["triplet_projected"]
    torch.testing.assert_close(losses.total, 2 * losses["triplet_projected"])


def test_temporal_losses_of_the_release_do_not_reach_the_backbone(tiny_model, tiny_config, batch):
    frames, cameras, identities = batch
    objective = make_objective(tiny_config, loss=TEMPORAL_TERMS)
    objective(tiny_model.train()(frames, cameras), identities).total.backward()
    learned = {n for n, p in named_parameters(tiny_model, objective) if p.grad is not None}
    temporal = {n for n, _ in tiny_model.named_parameters() if n.startswith("temporal.")}
    assert learned == {
        *(f"model.{name}" for name in temporal),
        "objective.classifiers.temporal.weight",
        "objective.necks.temporal.weight",
        "objective.necks.frame.weight",
    }


def test_temporal_losses_reach_the_backbone_as_the_paper_has_it(tiny_config, batch):
    from tfclip import TFCLIP

    frames, cameras, identities = batch
    config = tiny_config.replace(temporal_detach=False)
    model, objective = TFCLIP(config).train(), make_objective(config, loss=TEMPORAL_TERMS)
    objective(model(frames, cameras), identities).total.backward()
    assert model.camera_embedding is not None
    assert model.camera_embedding.grad is not None
    assert model.backbone.tower.conv1.weight.grad.abs().sum() > 0


def test_every_parameter_but_frozen_shifts_learns_from_the_released_losses(
    tiny_model, tiny_config, batch
):
    frames, cameras, identities = batch
    objective = make_objective(tiny_config)
    objective(tiny_model.train()(frames, cameras), identities).total.backward()
    unused = [n for n, p in named_parameters(tiny_model, objective) if p.grad is None]
    assert unused == []
    frozen = [name for name, p in objective.named_parameters() if not p.requires_grad]
    assert frozen == [f"necks.{n}.bias" for n in ("appearance", "projected", "temporal", "frame")]


def test_the_order_of_identities_changes_nothing_but_names(tiny_model, tiny_config, batch):
    frames, cameras, identities = batch
    objective = make_objective(tiny_config, loss={"video_to_memory": 1.0}).eval()
    order = torch.tensor([3, 0, 4, 1, 2])
    output = tiny_model(frames, cameras)
    expected = objective(output, identities).total
    assert objective.memory is not None
    moved = copy.deepcopy(objective)
    moved.set_memory(objective.memory()[order])
    actual = moved(output, order.argsort()[identities]).total
    torch.testing.assert_close(actual, expected)


def test_without_a_prompt_logits_are_nearest_centroid_scores(tiny_model, tiny_config, batch):
    frames, cameras, identities = batch
    objective = make_objective(tiny_config, prompt="none", loss={"video_to_memory": 1.0})
    output = tiny_model(frames, cameras)
    assert objective.memory is not None
    expected = identity_loss(output.projected @ objective.memory().T, identities)
    torch.testing.assert_close(objective(output, identities).total, expected)


@pytest.mark.parametrize(("context", "length"), [("tokens", 9), ("frames", 4), ("clip", 1)])
def test_the_prompt_looks_at_the_context_it_is_given(
    tiny_model, tiny_config, batch, context, length
):
    seen = []
    objective = make_objective(tiny_config, context=context)
    assert objective.prompt is not None
    objective.prompt.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].shape[1]))
    objective(tiny_model(*batch[:2]), batch[2])
    assert seen == [length]


def test_attention_among_identities_computed_once_equals_one_for_each_clip(tiny_config):
    objective = make_objective(tiny_config)
    shared = objective.prompt
    assert shared is not None
    unshared = copy.deepcopy(shared)
    memory, tokens = torch.randn(5, 32), torch.randn(3, 9, 32)
    once, each = shared(memory, tokens), unshared(memory.expand(3, -1, -1), tokens)
    torch.testing.assert_close(once, each, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(once)
    (once * weights).sum().backward()
    (each * weights).sum().backward()
    pairs = zip(shared.named_parameters(), unshared.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        if name.startswith("prompt_projection"):  # zero but for noise: see NOISE
            continue
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_momentum_memory_moves_towards_the_mean_of_its_clips(tiny_model, tiny_config, batch):
    frames, cameras, identities = batch
    objective = make_objective(tiny_config, memory_momentum=0.75)
    assert objective.memory is not None
    before = objective.memory().clone()
    output = tiny_model.train()(frames, cameras)
    objective(output, identities).total.backward()  # the old rows are still there for this
    expected = before.clone()
    expected[0] = 0.75 * before[0] + 0.25 * output.projected[:2].mean(0)
    expected[3] = 0.75 * before[3] + 0.25 * output.projected[2:].mean(0)
    torch.testing.assert_close(objective.memory(), expected)
    objective.eval()(output, identities)
    torch.testing.assert_close(objective.memory(), expected)


def test_a_fixed_memory_stays_as_it_is(tiny_model, tiny_config, batch):
    objective = make_objective(tiny_config)
    assert objective.memory is not None
    before = objective.memory().clone()
    objective(tiny_model.train()(*batch[:2]), batch[2])
    assert torch.equal(objective.memory(), before)


def test_mixed_precision_gives_finite_losses_near_those_of_float32(tiny_model, tiny_config, batch):
    frames, cameras, identities = batch
    objective = make_objective(tiny_config).eval()
    expected = objective(tiny_model(frames, cameras), identities)
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(tiny_model(frames, cameras), identities)
    assert {x.dtype for x in losses.values()} == {torch.float32}
    assert losses.total.item() == pytest.approx(expected.total.item(), rel=0.05)


def test_memory_is_saved_and_loaded_with_the_objective(tiny_config):
    state = make_objective(tiny_config).state_dict()
    other = TFCLIPObjective(tiny_config, 5, torch.zeros(5, 32))
    other.load_state_dict(state)
    assert other.memory is not None
    assert torch.equal(other.memory(), state["memory.centroids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "best"}, "loss must be one of"),
        ({"loss": {"triplet": 1.0}}, "loss must name"),
        ({"loss": {}}, "loss must name"),
        ({"context": "pixels"}, "context must be one of"),
        ({"memory_momentum": 1.0}, "memory_momentum must be"),
        ({"prompt": "long"}, "variant must be"),
    ],
)
def test_a_wrong_option_is_one_sentence(tiny_config, options, message):
    with pytest.raises(ValueError, match=message):
        TFCLIPObjective(tiny_config, 5, **options)


@pytest.mark.parametrize(
    ("identities", "message"),
    [
        ([0, 0, 1], r"\(B,\)"),
        ([0, 0, 1, 5], "0 to 4"),
        ([0, 0, 1, -1], "0 to 4"),
        ([2, 2, 2, 2], "at least two different"),
    ],
)
def test_wrong_identities_are_one_sentence(tiny_model, tiny_config, batch, identities, message):
    output = tiny_model(*batch[:2])
    with pytest.raises(ValueError, match=message):
        make_objective(tiny_config)(output, torch.tensor(identities))


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (torch.zeros(4, 32), r"\(5, 32\)"),
        (torch.zeros(5, 16), r"\(5, 32\)"),
        (CLIPMemory(torch.zeros(5, 32), torch.tensor([0, 1, 2, 3, 5])), "each identity 0 to 4"),
    ],
)
def test_a_memory_that_does_not_fit_is_one_sentence(tiny_config, memory, message):
    with pytest.raises(ValueError, match=message):
        make_objective(tiny_config).set_memory(memory)


def test_without_a_memory_the_objective_says_so(tiny_model, tiny_config, batch):
    objective = TFCLIPObjective(tiny_config, 5)
    with pytest.raises(ValueError, match="memory must be set"):
        objective(tiny_model(*batch[:2]), batch[2])


def test_a_momentum_memory_refuses_an_identity_without_a_row():
    memory = CLIPMemory(torch.zeros(2, 3), torch.tensor([1, 4]))
    with pytest.raises(ValueError, match=r"a row in the memory, got \[0, 7\]"):
        memory.update(torch.zeros(3, 3), torch.tensor([7, 4, 0]), 0.5)


def test_a_memory_set_in_inference_mode_can_be_trained_with(tiny_model, tiny_config, batch):
    frames, cameras, identities = batch
    objective = make_objective(tiny_config)
    with torch.inference_mode():
        objective.set_memory(torch.randn(5, 32))
    objective(tiny_model.train()(frames, cameras), identities).total.backward()
    assert tiny_model.backbone.tower.proj.grad.abs().sum() > 0
    elsewhere = TFCLIPObjective(tiny_config, 5).to("meta")  # any other device
    with torch.inference_mode():
        elsewhere.set_memory(torch.randn(5, 32))
    assert elsewhere.memory is not None
    assert elsewhere.memory().device.type == "meta"
    assert not elsewhere.memory().is_inference()
