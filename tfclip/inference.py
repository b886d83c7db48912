"""Ways in which a model computes in inference: its precision, a compiled tower, merged tokens.

``TFCLIP`` inherits them. Parameters stay as they are, and so do training and what is saved;
docs/speed.md tells what each costs.
"""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager

import torch

from tfclip import int8
from tfclip.backbones import Backbone
from tfclip.config import TFCLIPConfig


class InferenceOptions:
    """What a model with an image tower can be told to do faster; a base of ``TFCLIP``.

    Attributes:
        config: The configuration of the model.
        backbone: Its image tower.
    """

    config: TFCLIPConfig
    backbone: Backbone
    _multiplies_int8: bool = False
    _compiled_frames: int = 0  # as many as the compiled tower takes at once; 0 is not compiled

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(self.backbone.parameters()).dtype

    @property
    def precision(self) -> str:
        """What the model computes in: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``."""
        if self._multiplies_int8 and not self._why_not_int8():  # it may have been moved since
            return "int8"
        return str(self.dtype).removeprefix("torch.")

    def compile_tower(self, mode: str | None = None, *, frames: int = 8) -> None:
        """Let ``torch.compile`` compile the image tower, in place, when it is first used.

        Encoding then gives it pieces of one size, the last one filled up, so that it is compiled
        once, whatever the tracklets' lengths. docs/speed.md tells where it pays: on a GPU, and
        not on a CPU.

        Args:
            mode: Of ``torch.compile``; ``"reduce-overhead"`` records CUDA graphs.
            frames: Frames in a piece; 64 suits a GPU.

        Raises:
            ValueError: ``frames`` is less than 1, or the model multiplies 8-bit numbers.
        """
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        if self._multiplies_int8:
            raise ValueError("a tower that multiplies 8-bit numbers cannot be compiled as well")
        self.backbone.compile(mode=mode)
        self._compiled_frames = frames

    def quantize_dynamic(self, enabled: bool = True) -> None:
        """Multiply numbers of 8 bits in inference, in place: the fastest way on an x86 processor.

        Weights stay as they are, and so do training and what is saved. Of each linear layer in a
        CLIP transformer and in temporal diffusion a copy in 8 bits is kept, with a scale for each
        output channel; tokens are rounded as they come, each with a scale of its own, so that an
        embedding still depends on its own frames alone. The rest is computed in the type of the
        parameters; convert them to bfloat16 first. Short functions are compiled at first use, for
        which there must be a C++ compiler. docs/speed.md tells what it costs.

        Args:
            enabled: Whether to.

        Raises:
            ValueError: The processor or torch has no such products, the tower is compiled, or it is
                not one of CLIP's transformers.
        """
        if enabled and (reason := self._why_not_int8()):
            raise ValueError(f"this model cannot multiply 8-bit numbers: {reason}")
        self._multiplies_int8 = enabled

    def computing(self) -> AbstractContextManager[None]:
        """Let parts of the model multiply as ``precision`` says; its own methods see to it."""
        return int8.multiplying(self._multiplies_int8)

    def _why_not_int8(self) -> str | None:
        if not self.backbone.merges_tokens:
            return f"only CLIP's vision transformers do, got backbone {self.config.backbone!r}"
        if self.device.type != "cpu":
            return f"the model must be on a CPU, got {self.device}"
        if self.dtype not in (torch.float32, torch.bfloat16):
            return f"its parameters must be float32 or bfloat16, got {self.dtype}"
        if self._compiled_frames:
            return "its tower is compiled"
        return int8.why_not()

    def merge_tokens(self, number: int = 0) -> None:
        """Merge the most alike tokens of a frame as they go through the tower, to save work.

        What is computed is no longer exactly this model; docs/speed.md tells how much it costs.
        Merged tokens weigh as many as they stand for, and each patch gets a copy of its token
        before the temporal head looks at it.

        Args:
            number: Tokens to merge away in each block; 0, as in a new model, is none.

        Raises:
            ValueError: It is negative, or the tower is not one of CLIP's transformers.
            TypeError: It is no whole number.
        """
        number = operator.index(number)
        if number < 0:
            raise ValueError(f"number must be at least 0, got {number}")
        if number and not self.backbone.merges_tokens:
            raise ValueError(
                f"number must be 0 for {self.config.backbone!r}: only CLIP's vision transformers "
                f"merge tokens, got {number}"
            )
        self.backbone.merged_tokens = number
