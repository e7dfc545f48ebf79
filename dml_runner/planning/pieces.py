"""What the pieces of a model compute, hold and hand on: each kind of piece is run once, forward and backward, without memory.

The tensors are torch's fake ones: they have a shape, a type and a device, so that the kernels are those of the device, autocast's casts
included. Blocks of one class, print and shapes are one kind; so a model of a hundred blocks is measured as fast as one of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from dml_runner.facts import Piece, Size
from dml_runner.models.base import Batch, Model
from dml_runner.parallel.stages import users
from dml_runner.planning.ledger import Ledger
from dml_runner.planning.regions import Regions

SAMPLES = (2, 3)
"""Micro-batches that are run: two, to tell what grows with the samples from what does not."""
WITH_LENGTH = ("inputs", "characters", "mask", "before", "segments")
"""What of a batch has the text's length as its second dimension; ``targets`` too, where they have two."""


def measure_pieces(model: Model, length: int, bf16: bool, gpu: bool) -> tuple[Piece, ...]:
    """The pieces of a meta-built ``model`` that trains on texts of ``length`` tokens: stem, blocks and head, or all as one.

    Its tensors outside of blocks, and those of a block of each kind, are replaced by fake ones: build another to go on with.

    Args:
        model: built on the meta device.
        length: of a text; for images it is not read.
        bf16: whether matrix products are computed in bf16.
        gpu: whether the device is a GPU, where attention keeps no matrix even where it drops out (Dao et al. 2022).
    """
    model.train()
    measuring = _Measuring(model, length, bf16, gpu)
    return (measuring.whole(),) if model.undivided is not None else tuple(measuring.pieces())


@dataclass(frozen=True)
class _Form:
    """What a piece gets: shape without the samples, type, and whether backward goes on before it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    differentiable: bool

    def make(self, samples: int) -> Tensor:
        """A tensor of this form."""
        return torch.empty(samples, *self.shape, dtype=self.dtype, requires_grad=self.differentiable)


@dataclass(frozen=True)
class _Seen:
    """What one run of a piece showed; pairs are bytes and the part of them that a tensor split divides."""

    forward_flops: int
    backward_flops: int
    boundary_bytes: int
    kept: tuple[int, int]
    keeps_input: bool
    keeps_output: bool
    products: tuple[int, int]
    kept_products: tuple[int, int]
    peak: tuple[int, int]
    output: tuple[int, int]
    differentiable: bool


Call = Callable[[Any, Batch], tuple[Tensor, Any]]
"""Runs a piece: from what it gets and a batch to what it gives, and what else stays alive until its backward has run."""


class _Measuring:
    """One model, whose pieces are measured one after the other."""

    def __init__(self, model: Model, length: int, bf16: bool, gpu: bool) -> None:
        self.model = model
        self.length = length
        self.bf16 = bf16
        self.gpu = gpu
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def whole(self) -> Piece:
        """The model as one piece."""
        self._make_fake(self.model.modules())
        names = tuple(name for name, _ in self.model.named_parameters())
        return replace(self._measure(self._lose, None, self.model)[0], name="model", tensors=names)

    def pieces(self) -> Iterator[Piece]:
        """Stem, blocks, head."""
        model, found = self.model, users(self.model)
        order = [name for name, _ in model.named_parameters()]
        names = [tuple(name for name in order if name in of) for of in (found.stem, *found.blocks, found.head - found.stem)]
        inside = {id(module) for block in model.blocks for module in block.modules()}
        self._make_fake(module for module in model.modules() if id(module) not in inside)
        stem, form = self._measure(self._embed, None, model)
        yield replace(stem, name="stem", tensors=names[0])
        known: dict[Any, tuple[Piece, _Form]] = {}
        for number, block in enumerate(model.blocks):
            kind = (type(block), repr(block), tuple((p.shape, p.requires_grad) for p in block.parameters()), form)
            if kind not in known:
                self._make_fake(block.modules())
                known[kind] = self._measure(partial(self._pass, block), form, block)
            piece, form = known[kind]
            yield replace(piece, name=f"blocks.{number}", tensors=names[number + 1])
        head, _ = self._measure(self._finish, form, model)
        yield replace(head, name="head", tensors=names[-1], borrowed=tuple(name for name in order if name in found.shared))

    def _embed(self, _: None, batch: Batch) -> tuple[Tensor, Any]:
        return self.model.embed(batch), None

    def _pass(self, block: nn.Module, x: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        return block(x, batch), None

    def _finish(self, x: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        output = self.model.finish(x, batch)
        return self.model.loss(output, batch)[0], output

    def _lose(self, _: None, batch: Batch) -> tuple[Tensor, Any]:
        output = self.model(batch)
        return self.model.loss(output, batch)[0], output

    def _make_fake(self, modules: Iterable[nn.Module]) -> None:
        """Give modules, without what is below them, tensors that seem to stand on the CPU."""
        with self.fake:
            for module in modules:
                module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"), recurse=False)

    def _measure(self, call: Call, form: _Form | None, module: nn.Module) -> tuple[Piece, _Form]:
        """A piece without its names, and the form of what it gives."""
        with self.fake, ExitStack() as stack:
            if self.gpu:
                stack.enter_context(_Fused())
            with torch.no_grad(), self._autocast():  # what is worked out at the first call is there from then on
                y, _ = call(*self._given(form, SAMPLES[0]))
            gives = _Form(tuple(y.shape[1:]), y.dtype, differentiable=False)
            few, many = (self._run(call, form, module, samples) for samples in SAMPLES)
            to_inputs = 0 if form is None or not form.differentiable else self._flops_to_inputs(call, form)
        return _piece(few, many, to_inputs), replace(gives, differentiable=few.differentiable)

    def _given(self, form: _Form | None, samples: int) -> tuple[Tensor | None, Batch]:
        return None if form is None else form.make(samples), batch_of(self.model, samples, self.length)

    def _run(self, call: Call, form: _Form | None, module: nn.Module, samples: int) -> _Seen:
        """Forward and backward, into gradients that are there already."""
        x, batch = self._given(form, samples)
        parameters = [p for p in module.parameters() if p.requires_grad and p.device.type != "meta"]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        regions, needed = Regions(self.model, module), set()
        ledger = Ledger(regions.divide)

        def pack(tensor: Tensor) -> Tensor:
            ledger.keep(tensor)
            needed.add(tensor.untyped_storage()._cdata)
            return tensor

        with ledger:
            with regions, saved_tensors_hooks(pack, lambda tensor: tensor), self._autocast():
                y, alive = call(x, batch)
            forward, boundary = ledger.flops, y.nbytes if y.dim() else 0
            kept, keeps_output = ledger.kept([y]), y.dim() > 0 and ledger.is_kept(y)
            products = ledger.products(), ledger.kept_products()
            output = ledger.let_go(alive)
            keeps_input = x is not None and x.untyped_storage()._cdata in needed
            if y.requires_grad:
                y.backward(torch.empty_like(y))
        for parameter in parameters:
            parameter.grad = None
        del alive
        return _Seen(
            forward, ledger.flops - forward, boundary, kept, keeps_input, keeps_output, *products, ledger.peak, output, y.requires_grad
        )

    def _flops_to_inputs(self, call: Call, form: _Form) -> int:
        """FLOPs a sample of a backward that leaves gradients of weights out."""
        x, batch = self._given(form, SAMPLES[0])
        with self._autocast():
            y, _ = call(x, batch)
        assert x is not None
        with Ledger(lambda *_: False) as ledger:
            torch.autograd.grad(y, x, torch.empty_like(y))
        return int(ledger.flops) // SAMPLES[0]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()


class _Fused(TorchFunctionMode):
    """Inside, attention drops nothing: on the CPU its fused kernel cannot, and on a GPU that makes no difference to what is kept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any other function runs as it is."""
        if func is scaled_dot_product_attention:
            kwargs = {**(kwargs or {}), "dropout_p": 0.0}
        return func(*args, **(kwargs or {}))


def batch_of(model: Model, samples: int, length: int) -> dict[str, Tensor]:
    """A batch of ``samples`` as the data brings them: ``model.example``, its texts ``length`` tokens long; on torch's default device."""
    return {name: _lengthened(name, tensor, length) for name, tensor in model.example(samples).items()}


def _lengthened(name: str, tensor: Tensor, length: int) -> Tensor:
    if name not in WITH_LENGTH and (name != "targets" or tensor.dim() < 2):
        return tensor
    return torch.zeros(tensor.shape[0], length, *tensor.shape[2:], dtype=tensor.dtype)


def _piece(few: _Seen, many: _Seen, to_inputs: int) -> Piece:
    """A piece without its names, from runs on ``SAMPLES``."""
    a_sample = SAMPLES[1] - SAMPLES[0]
    backward = (many.backward_flops - few.backward_flops) // a_sample
    return Piece(
        name="",
        tensors=(),
        borrowed=(),
        forward_flops=(many.forward_flops - few.forward_flops) // a_sample,
        backward_flops=backward,
        weight_flops=backward - to_inputs,
        boundary_bytes=(many.boundary_bytes - few.boundary_bytes) // a_sample,
        kept=_size(few.kept, many.kept),
        keeps_input=few.keeps_input,
        keeps_output=few.keeps_output,
        products=_size(few.products, many.products),
        kept_products=_size(few.kept_products, many.kept_products),
        peak=_size(few.peak, many.peak),
        output=_size(few.output, many.output),
    )


def _size(few: tuple[int, int], many: tuple[int, int]) -> Size:
    """The line through what micro-batches of ``SAMPLES`` hold; where it would begin below zero, it begins at zero."""
    (fixed, sample), (split_fixed, split_sample) = (_line(a, b) for a, b in zip(few, many, strict=True))
    return Size(fixed, sample, min(fixed, split_fixed), min(sample, split_sample))


def _line(few: int, many: int) -> tuple[int, int]:
    sample = (many - few) // (SAMPLES[1] - SAMPLES[0])
    fixed = few - SAMPLES[0] * sample
    return (fixed, sample) if fixed >= 0 else (0, -(-many // SAMPLES[1]))
