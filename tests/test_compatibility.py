"""What PyTorch offers for any module works with every public module of this library."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import io
import pickle
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tfclip
from tests.module_cases import CASES, MASK, Case, arguments_of, build, run, tensors
from tests.threads import together
from tfclip import (
    TFCLIP,
    SequenceSpecificPrompt,
    TemporalMemoryDiffusion,
    TFCLIPOutput,
    attention,
)
from tfclip.attention import SelfAttention
from tfclip.backbones import CLIPVisionTransformer
from tfclip.training import TrainingStep

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=CASES, ids=lambda kind: kind.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def as_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, TFCLIPOutput):
        return TFCLIPOutput(*map(as_double, value))
    return value


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and all buffers, those too that are not saved."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def attributes_of(module: nn.Module) -> dict[tuple[str, str], Any]:
    """Return what every part of a module holds in its attributes."""
    return {
        (name, key): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
    }


def public_modules() -> set[type[nn.Module]]:
    """Return every module class that the library defines and that can be made."""
    found = set()
    for info in pkgutil.walk_packages(tfclip.__path__, "tfclip."):
        if info.name.endswith("__main__"):  # would run
            continue
        for value in vars(importlib.import_module(info.name)).values():
            if (
                inspect.isclass(value)
                and issubclass(value, nn.Module)
                and value.__module__.partition(".")[0] == "tfclip"
                and not value.__name__.startswith("_")
                and not inspect.isabstract(value)
            ):
                found.add(value)
    return found


def untried() -> str:
    """Say which modules are not in CASES; nothing when all are."""
    names = sorted(f"{kind.__module__}.{kind.__name__}" for kind in public_modules() - set(CASES))
    return f"add {', '.join(names)} to CASES in tests/module_cases.py" if names else ""


# --- the list ------------------------------------------------------------------------------------


def test_every_public_module_is_tried_here():
    assert not untried(), untried()
    assert set(CASES) == public_modules()


def test_a_module_that_is_not_tried_is_named_with_the_place_to_add_it(monkeypatch):
    new = type("Rotation", (nn.Module,), {"__module__": "tfclip.attention"})
    monkeypatch.setattr(attention, "Rotation", new, raising=False)
    assert untried() == "add tfclip.attention.Rotation to CASES in tests/module_cases.py"


# --- copies and weights --------------------------------------------------------------------------


def test_a_pickled_module_comes_back_as_it_was(case):
    module, arguments = build(case), arguments_of(case)
    loaded = pickle.loads(pickle.dumps(module))
    assert type(loaded) is type(module)
    assert not any(part.training for part in loaded.modules())
    assert list(state_of(loaded)) == list(state_of(module))
    torch.testing.assert_close(run(loaded, arguments), run(module, arguments), rtol=0, atol=0)


def test_a_deep_copy_computes_the_same_and_shares_nothing(case):
    module, arguments = build(case), arguments_of(case)
    expected = run(module, arguments)
    copied = copy.deepcopy(module)
    torch.testing.assert_close(run(copied, arguments), expected, rtol=0, atol=0)
    own = {tensor.data_ptr() for tensor in state_of(module).values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in state_of(copied).values())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    torch.testing.assert_close(run(module, arguments), expected, rtol=0, atol=0)


def test_a_state_dict_makes_another_module_the_same(case):
    module, other, arguments = build(case), build(case, seed=1), arguments_of(case)
    expected = run(module, arguments)
    if state_of(module):
        assert any(map(differ, run(other, arguments), expected))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    torch.testing.assert_close(run(other, arguments), expected, rtol=0, atol=0)


def differ(one: Tensor, other: Tensor) -> bool:
    return not torch.allclose(one, other, atol=1e-3)


def test_a_module_without_storage_is_filled_again(case):
    module, arguments = build(case), arguments_of(case)
    empty = copy.deepcopy(module).to("meta")
    assert all(tensor.is_meta for tensor in state_of(empty).values())
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(module.state_dict(), strict=True)
    with torch.no_grad():  # what is not saved is not in a state dict either
        for name, buffer in filled.named_buffers():
            if name not in module.state_dict():
                buffer.copy_(module.get_buffer(name))
    torch.testing.assert_close(run(filled, arguments), run(module, arguments), rtol=0, atol=0)


def test_a_module_computes_in_float64(case):
    module, arguments = build(case), arguments_of(case)
    expected = run(module, arguments)
    module.to(torch.float64)
    assert not any(tensor.dtype == torch.float32 for tensor in state_of(module).values())
    found = run(module, map(as_double, arguments))
    for precise, single in zip(found, expected, strict=True):
        if single.is_floating_point() and not case.gives_float32:
            assert precise.dtype == torch.float64
        torch.testing.assert_close(precise.float(), single.float(), atol=1e-4, rtol=1e-4)


# --- ways to call --------------------------------------------------------------------------------


def test_a_functional_call_uses_the_weights_that_it_is_given(case):
    module, other, arguments = build(case), build(case, seed=1), arguments_of(case)
    before = {name: tensor.clone() for name, tensor in state_of(module).items()}
    call = functools.partial(torch.func.functional_call, module, state_of(other))
    torch.testing.assert_close(
        run(lambda *inputs: call(inputs), arguments), run(other, arguments), rtol=0, atol=0
    )
    torch.testing.assert_close(state_of(module), before, rtol=0, atol=0)


# torch has no rule for its own attention on a processor, and says that this takes longer.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    "kind", [TemporalMemoryDiffusion, SequenceSpecificPrompt, CLIPVisionTransformer, TFCLIP]
)
def test_an_ensemble_by_vmap_gives_what_its_members_give(kind):
    case = CASES[kind]
    members, arguments = [build(case, seed) for seed in range(3)], arguments_of(case)
    if kind in (TemporalMemoryDiffusion, TFCLIP):
        arguments = arguments[:1]
    base = copy.deepcopy(members[0]).to("meta")
    weights, buffers = torch.func.stack_module_state(members)

    def member(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return tensors(torch.func.functional_call(base, (weights, buffers), arguments))[-1]

    with torch.no_grad():
        found = torch.func.vmap(member)(weights, buffers)
    expected = torch.stack([run(each, arguments)[-1] for each in members])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("outside", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize(
    "kind", [TemporalMemoryDiffusion, SequenceSpecificPrompt, CLIPVisionTransformer, TFCLIP]
)
def test_gradients_by_torch_func_are_those_of_autograd(kind, outside):
    case = CASES[kind]
    module, arguments = build(case), arguments_of(case)
    weights = dict(module.named_parameters())
    loss = tensors(module(*arguments))[-1].square().mean()
    expected = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)

    def measure(weights: dict[str, Tensor]) -> Tensor:
        return tensors(torch.func.functional_call(module, weights, arguments))[-1].square().mean()

    with outside():
        found = torch.func.grad(measure)({n: w.detach() for n, w in weights.items()})
    for name, gradient in zip(weights, expected, strict=True):
        gradient = torch.zeros_like(found[name]) if gradient is None else gradient
        torch.testing.assert_close(found[name], gradient, **CLOSE)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_short_way_of_inference_is_not_taken_under_vmap():  # it writes in place
    with torch.random.fork_rng():
        torch.manual_seed(0)
        members = [SelfAttention(256, 4).bfloat16() for _ in range(2)]
        x = torch.randn(3, 5, 256).bfloat16()
    stacked, _ = torch.func.stack_module_state(members)
    call = functools.partial(torch.func.functional_call, members[0], args=(x,))
    with torch.no_grad():
        found = torch.func.vmap(call)(stacked)
    expected = torch.stack([member(x) for member in members])
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_training_mode_and_back_changes_nothing(case):
    module, arguments = build(case), arguments_of(case)
    expected, before = run(module, arguments), attributes_of(module)
    assert all(part.training for part in module.train().modules())
    assert not any(part.training for part in module.eval().modules())
    assert attributes_of(module).keys() == before.keys()
    torch.testing.assert_close(run(module, arguments), expected, rtol=0, atol=0)


def test_a_forward_in_eval_mode_leaves_no_trace(case):
    module, arguments = build(case), arguments_of(case)
    given = copy.deepcopy(arguments)
    weights = {name: tensor.clone() for name, tensor in state_of(module).items()}
    attributes = attributes_of(module)
    run(module, arguments)
    torch.testing.assert_close(state_of(module), weights, rtol=0, atol=0)
    after = attributes_of(module)
    assert after.keys() == attributes.keys()
    assert all(after[key] is attributes[key] for key in after)
    torch.testing.assert_close(arguments, given, rtol=0, atol=0)


def test_autocast_changes_no_more_than_rounding(case):
    module, arguments = build(case), arguments_of(case)
    expected = run(module, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(module, arguments)
    for rough, exact in zip(found, expected, strict=True):
        scale = float(exact.abs().max())
        torch.testing.assert_close(rough.float(), exact.float(), atol=0.06 * scale, rtol=0)


def test_threads_get_what_each_gets_alone(case):
    module = build(case)
    weights = {name: tensor.clone() for name, tensor in state_of(module).items()}
    inputs = [arguments_of(case, seed) for seed in range(4)]
    alone = [run(module, arguments) for arguments in inputs]
    calls = [functools.partial(run, module, arguments) for arguments in inputs]
    for found, expected in zip(together(calls), alone, strict=True):
        for each in found:
            torch.testing.assert_close(each, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(state_of(module), weights, rtol=0, atol=0)


# --- the compiler --------------------------------------------------------------------------------


@pytest.fixture
def compiler():
    """A compiler that has compiled nothing yet."""
    torch._dynamo.reset()
    yield torch.compile
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_module_computes_the_same(case, compiler):
    module, arguments = build(case), arguments_of(case)
    compiled = compiler(module, backend="aot_eager", fullgraph=case.one_graph)
    torch.testing.assert_close(run(compiled, arguments), run(module, arguments), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TemporalMemoryDiffusion, SequenceSpecificPrompt])
def test_a_module_compiled_to_machine_code_computes_the_same(kind, compiler):
    case = CASES[kind]
    module, arguments = build(case), arguments_of(case)
    compiled = compiler(module, fullgraph=True)
    torch.testing.assert_close(run(compiled, arguments), run(module, arguments), **CLOSE)


@pytest.mark.slow
def test_a_compiled_model_takes_cameras_and_masks(compiler):
    model = build(CASES[TFCLIP])
    arguments = (*arguments_of(CASES[TFCLIP]), torch.tensor([2, -1]), MASK)
    compiled = compiler(model, backend="aot_eager")
    torch.testing.assert_close(run(compiled, arguments), run(model, arguments), **CLOSE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's
def test_a_compiled_training_step_learns_as_the_plain_one(compiler):
    case = CASES[TrainingStep]
    arguments = arguments_of(case)
    gradients = []
    for backend in (None, "aot_eager"):
        step = build(case)  # in eval mode nothing is dropped at random
        call = step if backend is None else compiler(step, backend=backend)
        call(*arguments)["loss"].backward()
        gradients.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad  # compilers may write zeros
                for name, p in step.named_parameters()
            }
        )
    assert sum(bool(gradient.any()) for gradient in gradients[0].values()) > 10
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_a_model_whose_tower_is_compiled_can_still_be_pickled_and_copied():
    model = build(CASES[TFCLIP])
    assert isinstance(model, TFCLIP)
    frames = torch.randint(256, (5, 3, 32, 16), dtype=torch.uint8)
    expected = model.encode_sequence(frames)
    model.compile_tower(frames=4)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(other.encode_sequence(frames), expected, **CLOSE)
