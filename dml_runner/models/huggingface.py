"""Any model of the transformers library, trained whole: its AutoModel classes build it, and everything else is as with ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from dml_runner.facts import DataFacts, TensorPlan
from dml_runner.models.base import Batch, Foreign, Guess, Model, Publication
from dml_runner.models.parts.cache import KeyValueCache
from dml_runner.models.parts.classifier import guess_labels, label_loss, last_real
from dml_runner.models.parts.hf_config import check_positions, construct, published_names, read_config
from dml_runner.models.parts.language import guess_tokens, token_loss
from dml_runner.models.parts.unfilled import Unfilled
from dml_runner.schema.model import Huggingface as HuggingfaceWords

OURS = "theirs."
"""What our names of its tensors begin with."""
INITIAL_STD = 0.02
"""Where config.json says nothing of it."""
NOT_PUBLISHED = ("_name_or_path", "auto_map")
"""What of a config.json tells where it came from, or which code of its author to run."""


class Huggingface(Model):
    """A module of the transformers library in our order: built without memory, its weights drawn by name, then loaded.

    Parameters that are one have one name, in checkpoints too; buffers that no file holds are worked out as the library does.
    """

    undivided = "a model of the transformers library runs as a whole"

    def __init__(self, words: HuggingfaceWords, config: Any, image: tuple[int, ...]) -> None:
        super().__init__()
        self.words = words
        self.theirs: Any = construct(words, config)
        self._config = config
        self._image = image
        self._tied = tied_names(self.theirs)
        self._layers = repeated(self.theirs)
        self.register_state_dict_post_hook(_without_tied)  # type: ignore[no-untyped-call]
        check_positions(words, self.theirs)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]  # under its own name it would be in the state twice
        """Its layers, to count those that are frozen by; none where it has no row of modules of one kind."""
        layers: nn.ModuleList = self.theirs.get_submodule(self._layers) if self._layers else nn.ModuleList()
        return layers

    def forward(self, batch: Batch, cache: KeyValueCache | None = None) -> Tensor:
        """Logits: of the next or the hidden tokens (batch, length, vocabulary), or of the labels (batch, classes).

        A decoder's labels are told from the last token that is no padding, as the library does where it knows what padding is. Nothing is
        kept in a ``cache``.
        """
        mask = batch.get("mask")
        if self.words.reads == "images":
            logits = self.theirs(pixel_values=batch["images"]).logits
        else:
            seen = {"input_ids": batch["inputs"], "attention_mask": None if mask is None else mask.long()}
            if self.words.task == "sequence_classification" and isinstance(getattr(self.theirs, "score", None), nn.Linear):
                logits = self.theirs.score(last_real(self.theirs.base_model(**seen).last_hidden_state, mask))
            else:
                logits = self.theirs(**seen).logits
        assert isinstance(logits, Tensor)
        return logits

    def embed(self, batch: Batch) -> Tensor:
        """Never called: a model of the library runs as a whole."""
        raise AssertionError(self.undivided)

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        """Never called."""
        raise AssertionError(self.undivided)

    def stem(self) -> Sequence[nn.Module]:
        """What stands before the layers, in the order in which the library names its modules."""
        found: list[nn.Module] = []
        module: nn.Module = self.theirs
        for part in self._layers.split(".") if self._layers else ():
            for name, child in module.named_children():
                if name == part:
                    break
                found.append(child)
            module = module.get_submodule(part)
        return found

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy of the tokens or the label, summed over ``targets``, and their number."""
        return (label_loss if self.words.objective == "classify" else token_loss)(output, batch["targets"])

    def guess(self, output: Tensor, batch: Batch) -> Guess:
        """The likeliest tokens or labels, and those that came."""
        return (guess_labels if self.words.objective == "classify" else guess_tokens)(output, batch["targets"])

    def example(self, samples: int) -> dict[str, Tensor]:
        """Images, or texts of two tokens."""
        labels = torch.zeros(samples, dtype=torch.int64)
        if self.words.reads == "images":
            return {"images": torch.zeros(samples, *self._image), "targets": labels}
        ids = torch.zeros(samples, 2, dtype=torch.int64)
        return {"inputs": ids, "targets": labels if self.words.objective == "classify" else ids}

    def tensor_plan(self) -> TensorPlan:
        """Nothing of it is divided."""
        return TensorPlan(whole={"theirs": "a model of the transformers library is not split"})

    def initialise_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """N(0, ``initializer_range``); norms 1, biases and the row of a padding token 0."""
        owner, _, leaf = name.rpartition(".")
        module = self.get_submodule(owner)
        if parameter.dim() < 2:
            parameter.fill_(1.0 if leaf != "bias" and "norm" in f"{type(module).__name__} {owner}".lower() else 0.0)
            return
        parameter.normal_(0.0, getattr(self._config, "initializer_range", None) or INITIAL_STD, generator=generator)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            parameter[module.padding_idx].zero_()

    def initialise_buffers(self) -> None:
        """As the library's constructor fills them; positions and wavelengths stand in no file."""
        buffers = dict(self.theirs.named_buffers())
        if not buffers:
            return
        with torch.device("cpu"), Unfilled():  # memory that nobody writes to is not taken
            filled = dict(construct(self.words, self._config).named_buffers())
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(filled[name])

    def head_parameters(self) -> int:
        """What a classifier has beside the library's bare model."""
        if self.words.objective != "classify":
            return 0
        bare = {id(parameter) for parameter in self.theirs.base_model.parameters()}
        return sum(parameter.numel() for parameter in self.parameters() if id(parameter) not in bare)

    def publication(self) -> Publication | None:
        """As the library writes it."""
        config = json.loads(self._config.to_json_string(use_diff=False)) | {"architectures": [type(self.theirs).__name__]}
        config = {key: value for key, value in config.items() if key not in NOT_PUBLISHED}
        own = {name.removeprefix(OURS): tensor for name, tensor in self.state_dict(keep_vars=True).items()}
        tensors = {OURS + name: Foreign((published,)) for name, published in published_names(self.theirs, own).items()}
        prefix = f"{self.theirs.base_model_prefix}."
        body, pooler = OURS + prefix, f"{OURS}{prefix}pooler."  # language models are published without one
        head = frozenset(name for name in tensors if not name.startswith(body) or name.startswith(pooler))
        return Publication(config, tensors, head, prefix)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of any module; parameters that are one stay one where they move to another device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, first in self._tied.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.theirs.get_submodule(owner), leaf, self.theirs.get_parameter(first))
        return self


def tied_names(module: nn.Module) -> dict[str, str]:
    """Each further name of a parameter, with its first."""
    first: dict[int, str] = {}
    named = [(name, first.setdefault(id(parameter), name)) for name, parameter in module.named_parameters(remove_duplicate=False)]
    return {name: other for name, other in named if name != other}


def repeated(module: nn.Module) -> str:
    """Name of the longest row of modules of one class; empty: there is none."""
    rows = {name: each for name, each in module.named_modules() if isinstance(each, nn.ModuleList) and len({type(m) for m in each}) == 1}
    return max(rows, key=lambda name: len(rows[name]), default="")


def _without_tied(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(module, Huggingface)
    for name in module._tied:
        del state[prefix + OURS + name]


def build(words: HuggingfaceWords, data: DataFacts) -> Huggingface:
    """The model of ``words.source`` for ``words.task``, with as many labels as the words or, where they are open, the data.

    Raises:
        ConfigError: the library is not installed, it has no such model, or the model cannot hold what the data brings.
    """
    return Huggingface(words, read_config(words, data), data.image)
