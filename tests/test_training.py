"""The recipe: learning rates, decay and schedule of the reference, for every parameter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.recorded import our_names
from tfclip import TFCLIPObjective, convert
from tfclip.training import Recipe, named_parameters

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def reference():
    path = GOLDEN / "state_dict.safetensors"
    return convert.from_reference(path, clip_length=4, with_objective=True)


def rates(recipe, model, objective):
    """Return learning rate and weight decay of each parameter by its name."""
    groups = recipe.optimizer(model, objective).param_groups
    of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in named_parameters(model, objective)}


def test_every_parameter_learns_at_the_rate_and_decay_of_the_reference(reference):
    renamed = our_names()
    recorded = json.loads((GOLDEN / "optimizer_groups.json").read_text())
    ours = rates(Recipe(), *reference)
    theirs = {
        renamed[name]: group
        for name, group in recorded["groups"].items()
        if name not in recorded["no_gradient_in_official_forward"]
    }
    assert ours.keys() == theirs.keys()
    for name, (rate, decay) in ours.items():
        assert rate == pytest.approx(theirs[name]["lr"]), name
        assert decay == theirs[name]["weight_decay"], name


def test_the_optimizer_is_the_reference_optimizer(reference):
    recorded = json.loads((GOLDEN / "optimizer_groups.json").read_text())
    optimizer = Recipe().optimizer(*reference)
    assert type(optimizer) is torch.optim.Adam
    assert recorded["optimizer"] == "Adam"
    # Releases of torch before the option have the coupled decay only.
    decoupled = optimizer.defaults.get("decoupled_weight_decay", False)
    assert decoupled == recorded["decoupled_weight_decay"]
    for name in ("betas", "eps", "amsgrad"):
        assert optimizer.defaults[name] == pytest.approx(recorded[name])


def test_the_schedule_is_the_reference_schedule_for_every_epoch():
    recorded = json.loads((GOLDEN / "lr_schedule.json").read_text())
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": r} for r in (5e-6, 1e-5)]
    optimizer = torch.optim.Adam(parameters)
    schedule = Recipe.preset("reference").schedule(optimizer)
    for epoch, *expected in recorded["rows"]:
        assert schedule.last_epoch == epoch
        assert schedule.get_last_lr() == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        schedule.step()


def test_new_modules_learn_faster_where_the_recipe_says_so(tiny_model, tiny_config):
    objective = TFCLIPObjective(tiny_config, num_identities=5)
    slow, fast = (
        rates(Recipe(new_module_multiplier=factor), tiny_model, objective) for factor in (1, 10)
    )
    faster = {name for name in slow if fast[name][0] > slow[name][0]}
    assert faster == {n for n in slow if n.startswith(("model.temporal.", "objective.prompt."))}
    assert all(fast[name][0] == pytest.approx(10 * slow[name][0]) for name in faster)


def test_frozen_parameters_are_not_in_the_optimizer(tiny_model, tiny_config):
    objective = TFCLIPObjective(tiny_config, num_identities=5)
    tiny_model.backbone.freeze()
    names = rates(Recipe(), tiny_model, objective)
    assert not [name for name in names if name.startswith("model.backbone.")]
    assert not [name for name in names if "necks" in name and name.endswith("bias")]


def test_presets_have_the_epochs_they_are_named_for():
    assert Recipe.preset("reference") == Recipe()
    paper = Recipe.preset("paper60")
    assert [paper.factor(epoch) for epoch in (29, 30, 49, 50, 59)] == pytest.approx(
        [1, 0.1, 0.1, 0.01, 0.01]
    )
    assert paper.epochs == 60


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Recipe.preset("best"), "preset must be one of"),
        (lambda: Recipe(epochs=0), "epochs must be at least 1"),
        (lambda: Recipe(identities_per_batch=1), "identities_per_batch must be at least 2"),
        (lambda: Recipe(learning_rate=-1), "learning_rate must be at least 0"),
        (lambda: Recipe(milestones=(3, -1)), "milestones must be at least 0"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
