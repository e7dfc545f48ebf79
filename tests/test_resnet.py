"""The residual networks: published sizes, batch norm over ranks, and image data whose transforms know no layout."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import in_group
from torch import nn

from dml_runner import models
from dml_runner.comm.counter import Sent
from dml_runner.comm.world import World
from dml_runner.config import compose
from dml_runner.data import open_data, prepare
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.parallel.batch_norm import BatchNorm, connect

IMAGENET = DataFacts("images", 100, 10, 1, 0, 0, 0, {}, "", 1000, (3, 224, 224))
LABELS = Task("classify", "images")


@pytest.mark.parametrize(
    ("size", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)]
)
def test_published_sizes(size: int, parameters: int) -> None:
    with torch.device("meta"):
        model = models.build(compose([f"model=resnet{size}", "data=synthetic"]).run.model, IMAGENET)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def images(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(2).add(1).to(dtype)


def filled(norm: Any, dtype: torch.dtype) -> Any:
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, -1.0, 0.0]))
    return norm.to(dtype)


def share_of(world: World) -> slice:
    """This rank's uneven share of seven images."""
    bounds = [0, 2, 7] if world.size == 2 else [0, 1, 3, 7]
    return slice(bounds[world.rank], bounds[world.rank + 1])


def normalise_share(world: World, double: bool) -> list[Any]:
    """One rank's share through the synchronised norm: output, gradient, this rank's weight gradients, running statistics."""
    dtype = torch.float64 if double else torch.float32
    norm, sent = filled(BatchNorm(3, True), dtype), Sent()
    connect(norm, sent, None)
    x = images(dtype)[share_of(world)].requires_grad_()
    out = norm(x)
    out.sin().sum().backward()
    assert sent.take() == (7 + 6) * 8 * 2 * (world.size - 1) // world.size
    found = (out, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
    return [tensor.detach().tolist() for tensor in found]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("double", "within"), [(True, 1e-10), (False, 1e-5)], ids=["fp64", "fp32"])
def test_batch_norm_over_ranks_is_that_of_the_whole_batch(tmp_path: Path, size: int, double: bool, within: float) -> None:
    """As a share of the largest value, against torch's own norm in fp64."""
    norm, x = filled(nn.BatchNorm2d(3), torch.float64), images(torch.float64).requires_grad_()
    out = norm(x)
    out.sin().sum().backward()
    shares = [[torch.tensor(value, dtype=torch.float64) for value in share] for share in in_group(size, normalise_share, tmp_path, double)]
    outs, gradients, weights, biases, means, variances = zip(*shares, strict=True)
    for mine, theirs in (
        (torch.cat(outs), out),
        (torch.cat(gradients), x.grad),
        (sum(weights), norm.weight.grad),
        (sum(biases), norm.bias.grad),
        *((mean, norm.running_mean) for mean in means),
        *((variance, norm.running_var) for variance in variances),
    ):
        assert float((mine - theirs).detach().abs().max()) <= within * float(theirs.detach().abs().max())


def normalise_alone(world: World) -> list[Any]:
    """One rank's share through a norm that is not synchronised: output and running statistics."""
    norm = filled(BatchNorm(3, False), torch.float64)
    out = norm(images(torch.float64)[share_of(world)])
    out.sum().backward()
    return [tensor.detach().tolist() for tensor in (out, norm.running_mean, norm.running_var)]


def test_without_synchronising_ranks_normalise_alone_and_share_the_mean_of_their_statistics(tmp_path: Path) -> None:
    alone = [filled(nn.BatchNorm2d(3), torch.float64) for _ in range(2)]
    outs = [norm(part) for norm, part in zip(alone, images(torch.float64).split([2, 5]), strict=True)]
    for share, out in zip(in_group(2, normalise_alone, tmp_path), outs, strict=True):
        mine, mean, variance = (torch.tensor(value, dtype=torch.float64) for value in share)
        torch.testing.assert_close(mine, out.detach(), atol=1e-12, rtol=0)
        torch.testing.assert_close(mean, (alone[0].running_mean + alone[1].running_mean) / 2, atol=1e-12, rtol=0)
        torch.testing.assert_close(variance, (alone[0].running_var + alone[1].running_var) / 2, atol=1e-12, rtol=0)


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    norm = filled(BatchNorm(3, True), torch.float32).requires_grad_(False).train()
    norm(images(torch.float32))
    assert norm.running_mean.tolist() == [0.0, 0.0, 0.0]


def test_a_batch_is_the_same_however_it_is_divided() -> None:
    words = compose(["model=resnet", "data=digits", "data.pad=1", "data.flip=true", "data.crop=0.5", "data.size=12"]).run.data
    data = open_data(words, LABELS, prepare(words, LABELS, Path("unused")), 3)
    picks = np.array([[5, 0], [900, 0], [5, 1], [17, 2]])
    whole = data.train_batch(picks)
    parts = [data.train_batch(picks[index : index + 1]) for index in range(4)]
    assert torch.equal(whole["images"], torch.cat([part["images"] for part in parts]))
    assert whole["images"].shape == (4, 1, 12, 12)
    assert not torch.equal(whole["images"][0], whole["images"][2])
    held_out = data.eval_batch(np.array([0, 1]))
    assert torch.equal(held_out["images"], data.eval_batch(np.array([0, 1]))["images"])


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist(folder: Path) -> dict[str, Path]:
    """Four small files, two of them gzipped."""
    files = {
        "images": folder / "train-images-idx3-ubyte.gz",
        "labels": folder / "train-labels-idx1-ubyte",
        "held-out images": folder / "t10k-images-idx3-ubyte",
        "held-out labels": folder / "t10k-labels-idx1-ubyte.gz",
    }
    for name, path in files.items():
        count = 4 if name.startswith("held") else 10
        write_idx(path, np.arange(count * 6).reshape(count, 2, 3) if name.endswith("images") else np.arange(count) % 2)
    return files


def idx_facts(folder: Path) -> DataFacts:
    return prepare(compose(["model=resnet", "data=idx", f"data.path={folder}"]).run.data, LABELS, folder / "cache")


def test_idx_files(tmp_path: Path) -> None:
    mnist(tmp_path)
    facts = idx_facts(tmp_path)
    assert (facts.train_samples, facts.eval_samples, facts.classes, facts.image) == (10, 4, 2, (1, 2, 3))
    assert len(facts.digests) == 4


def test_without_held_out_files_every_tenth_image_is_held_out(tmp_path: Path) -> None:
    mnist(tmp_path)["held-out images"].unlink()
    assert (idx_facts(tmp_path).train_samples, idx_facts(tmp_path).eval_samples) == (9, 1)


def test_what_is_wrong_under_eval_path_is_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    mnist(tmp_path)
    files = mnist(tmp_path / "other")
    words = compose(["model=resnet", "data=idx", f"data.path={tmp_path}", f"data.eval_path={tmp_path / 'other'}"]).run.data
    images, labels = (files[f"held-out {kind}"] for kind in ("images", "labels"))

    def refusal() -> str:
        with pytest.raises(ConfigError) as refused:
            prepare(words, LABELS, tmp_path / "cache")
        return str(refused.value)

    assert prepare(words, LABELS, tmp_path / "cache").eval_samples == 4
    write_idx(images, np.zeros((4, 3, 3)))
    assert refusal() == f"data.eval_path: images of another size than {tmp_path}/train-images-idx3-ubyte.gz; got 3 x 3; allowed 2 x 3"
    write_idx(images, np.zeros((3, 2, 3)))
    assert refusal() == f"data.eval_path: {images} and {labels} do not go together; got 3 images, 4 labels"
    images.write_bytes(b"")
    assert refusal() == f"data.eval_path: the file is empty; got {images}"
    labels.unlink()
    assert refusal().startswith(f"data.eval_path: the labels of {images} are missing")


@pytest.mark.parametrize(
    ("name", "spoil", "line"),
    [
        ("images", lambda path: path.write_bytes(path.read_bytes()[:-12]), "data.path: cannot be read whole; got {path} ("),
        ("images", lambda path: write_idx(path, np.zeros((9, 2, 3))), "data.path: {path} and {folder}/train-labels-idx1-ubyte do not go"),
        ("labels", lambda path: path.write_bytes(b""), "data.path: the file is empty; got {path}"),
        (
            "labels",
            lambda path: path.write_bytes(b"\x00\x00\x0d\x01abcd"),
            "data.path: not an idx file of bytes in 1 dimension(s); got",
        ),
        ("labels", lambda path: path.write_bytes(path.read_bytes() + b"x"), "data.path: torn, or no whole file: it should hold 10 bytes"),
        ("labels", lambda path: path.unlink(), "data.path: the labels of {folder}/train-images-idx3-ubyte.gz are missing"),
        ("images", lambda path: path.unlink(), "data.path: holds no train-images-idx3-ubyte, .gz or not; got {folder}"),
        (
            "held-out labels",
            lambda path: write_idx(path, np.full(4, 7)),
            "data: a held-out image has a label that no training image has;",
        ),
        ("labels", lambda path: write_idx(path, np.zeros(10)), "data: too few images; got 1 labels"),
    ],
)
def test_what_is_wrong_with_idx_files_is_one_line(tmp_path: Path, name: str, spoil: Any, line: str) -> None:
    path = mnist(tmp_path)[name]
    spoil(path)
    with pytest.raises(ConfigError) as refused:
        idx_facts(tmp_path)
    (problem,) = str(refused.value).splitlines()
    assert problem.startswith(line.format(path=path, folder=tmp_path))
