"""Every public module of the library: how it is made, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tfclip import (
    TFCLIP,
    CLIPMemory,
    MemoryDiffusion,
    SequenceSpecificPrompt,
    TemporalMemoryConstruction,
    TemporalMemoryDiffusion,
    TFCLIPConfig,
    TFCLIPObjective,
    TFCLIPOutput,
)
from tfclip.attention import DropPath, QuickGELU, SelfAttention
from tfclip.backbones import CLIPResNet, CLIPVisionTransformer, TimmBackbone, build_backbone
from tfclip.export.graph import ClipEncoder
from tfclip.prompt import CrossAttention, PromptLayer
from tfclip.temporal import (
    AverageHead,
    ConstructionHead,
    ConvolutionHead,
    DiffusionHead,
    TransformerHead,
    TransformerTokenHead,
)
from tfclip.training import TrainingStep

CONFIG = TFCLIPConfig(
    backbone_options={"width": 64, "layers": 2, "output_dim": 32},
    frame_size=(32, 16),
    clip_length=4,
    num_cameras=3,
    neck="after",
)
RESNET = CONFIG.replace(
    backbone="RN50",
    backbone_options={"layers": [1, 1, 1, 1], "width": 8, "heads": 4, "output_dim": 32},
    num_cameras=0,
)
TIMM = CONFIG.replace(
    backbone="timm:vit_base_patch16_clip_quickgelu_224.openai",
    backbone_options={"embed_dim": 64, "depth": 2, "num_heads": 2},
    activation=None,
)
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
IDENTITIES = torch.tensor([0, 0, 3, 3])


class Case(NamedTuple):
    """How a module is made and called."""

    build: Callable[[], nn.Module]
    arguments: Callable[[], tuple[Any, ...]]
    one_graph: bool = True
    """Whether its forward can be compiled to one graph: it looks at no value, copies no module."""
    gives_float32: bool = False
    """Whether its result has this type whatever its weights have."""


def tokens() -> Tensor:
    return torch.randn(2, 4, 3, 64)


def clips(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 3, 32, 16)


def pixels() -> Tensor:
    return torch.randint(256, (2, 4, 3, 32, 16), dtype=torch.uint8)


def head(kind: Callable[[], nn.Module]) -> Case:
    return Case(kind, lambda: (tokens(), torch.randn(2, 4, 32), MASK))


def backbone(config: TFCLIPConfig) -> Case:
    codes = (lambda: (torch.randn(3, 64),)) if config.num_cameras else tuple
    return Case(
        lambda: build_backbone(config),
        lambda: (torch.randn(3, 3, 32, 16), *codes()),
        one_graph=not config.is_timm,  # whose tower is copied to add the codes
    )


def objective() -> TFCLIPObjective:
    return TFCLIPObjective(CONFIG, 5, torch.randn(5, 32))


def output() -> TFCLIPOutput:
    shapes = {
        "appearance": (64,),
        "projected": (32,),
        "temporal": (64,),
        "frame_temporal": (4, 64),
        "frame_projected": (4, 32),
        "projected_tokens": (3, 32),
        "embedding": (160,),
    }
    return TFCLIPOutput(**{name: torch.randn(4, *shape) for name, shape in shapes.items()})


# A new module is added here. What else it may take (no mask, another depth) is the business of its
# own tests: these cases are for what is done to modules, not for what they compute.
CASES: dict[type[nn.Module], Case] = {
    TFCLIP: Case(lambda: TFCLIP(CONFIG), lambda: (clips(),)),
    TFCLIPObjective: Case(objective, lambda: (output(), IDENTITIES), one_graph=False),
    TrainingStep: Case(
        lambda: TrainingStep(TFCLIP(CONFIG), objective()),
        lambda: (clips(4), None, IDENTITIES),
        one_graph=False,
    ),
    ClipEncoder: Case(
        lambda: ClipEncoder(TFCLIP(CONFIG), "uint8"), lambda: (pixels(),), gives_float32=True
    ),
    TemporalMemoryDiffusion: Case(
        lambda: TemporalMemoryDiffusion(64, 2, 2, drop_path=0.5), lambda: (tokens(), MASK)
    ),
    TemporalMemoryConstruction: Case(
        lambda: TemporalMemoryConstruction(64, 2, temporal_position=True),
        lambda: (tokens(), MASK),
    ),
    MemoryDiffusion: Case(
        lambda: MemoryDiffusion(64, 2, drop_path=0.5), lambda: (tokens(), torch.randn(2, 4, 64))
    ),
    DiffusionHead: head(lambda: DiffusionHead(CONFIG, 64)),
    ConstructionHead: head(lambda: ConstructionHead(CONFIG, 64)),
    AverageHead: head(lambda: AverageHead(32)),
    ConvolutionHead: head(lambda: ConvolutionHead(32)),
    TransformerHead: head(lambda: TransformerHead(CONFIG, 32)),
    TransformerTokenHead: head(lambda: TransformerTokenHead(CONFIG, 32)),
    SequenceSpecificPrompt: Case(
        lambda: SequenceSpecificPrompt(64), lambda: (torch.randn(5, 64), torch.randn(2, 3, 64))
    ),
    PromptLayer: Case(
        lambda: PromptLayer(64, 2, 0.1, self_attention=True),
        lambda: (torch.randn(2, 5, 64), torch.randn(2, 3, 64)),
    ),
    CrossAttention: Case(
        lambda: CrossAttention(64, 2, 0.1), lambda: (torch.randn(2, 5, 64), torch.randn(2, 3, 64))
    ),
    CLIPMemory: Case(lambda: CLIPMemory(torch.randn(5, 32)), tuple),
    CLIPVisionTransformer: backbone(CONFIG),
    CLIPResNet: backbone(RESNET),
    TimmBackbone: backbone(TIMM),
    SelfAttention: Case(
        lambda: SelfAttention(64, 2), lambda: (torch.randn(2, 5, 64), torch.rand(2, 5))
    ),
    DropPath: Case(lambda: DropPath(0.5), lambda: (torch.randn(2, 5, 64),)),
    QuickGELU: Case(QuickGELU, lambda: (torch.randn(2, 5, 64),)),
}


def build(case: Case, seed: int = 0) -> nn.Module:
    """Make a module in eval mode whose every parameter is random, so that none hides as a zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = case.build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(
                    torch.randn_like(parameter), alpha=0.1 if parameter.ndim < 2 else 0.02
                )
    return module.eval()


def arguments_of(case: Case, seed: int = 0) -> tuple[Any, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(100 + seed)
        return case.arguments()


def tensors(result: Any) -> list[Tensor]:
    """Return all tensors of what a module returned, in whatever it put them."""
    if isinstance(result, Tensor):
        return [result]
    parts = result.values() if isinstance(result, Mapping) else result
    return [tensor for part in parts for tensor in tensors(part)]


def run(module: Callable[..., Any], arguments: Iterable[Any]) -> list[Tensor]:
    with torch.no_grad():
        return tensors(module(*arguments))
