"""Folders of image files: read as they are, learned alike on any number of ranks, and every file that is no image is named."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import losses, on_ranks, read
from PIL import Image
from sklearn.datasets import load_digits

import dml_runner
from dml_runner import cli
from dml_runner.data import open_data, prepare
from dml_runner.data.parts import pictures
from dml_runner.errors import ConfigError
from dml_runner.facts import DataFacts, Task
from dml_runner.schema.data import ImageFolder

LABELS = Task("classify", reads="images")
SKIP = "data.bad=skip passes over such images and counts them"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digits(root: str = "digits", count: int = 120, ending: str = "png", first: int = 0) -> str:
    """The first digits as files, those of each class in a folder of its own."""
    found = load_digits()
    for number in range(first, first + count):
        place = Path(root) / str(found.target[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(found.images[number] * (255 / 16)).astype(np.uint8)).save(place / f"{number:04}.{ending}")
    return root


def two_classes(root: str = "pictures", each: int = 10, size: tuple[int, int] = (6, 4)) -> Path:
    """Coloured images of random pixels, as many of ``cat`` as of ``dog``."""
    for label, kind in enumerate(("cat", "dog")):
        (Path(root) / kind).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            coloured(number * 2 + label, size).save(Path(root) / kind / f"{number}.png")
    return Path(root)


def coloured(seed: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def words(path: str | Path, **others: Any) -> ImageFolder:
    keys: dict[str, Any] = {"eval_path": None, "bad": "stop", "size": None, "pad": 0, "flip": False, "crop": 1.0}
    return ImageFolder.model_validate(
        {"name": "image_folder", "path": str(path), **keys, "mean": None, "std": None, "workers": 0, **others}
    )


def prepared(path: str | Path, **others: Any) -> DataFacts:
    return prepare(words(path, **others), LABELS, Path("cache"))


def refused(path: str | Path, **others: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepared(path, **others)
    return str(caught.value).splitlines()


def picks(*samples: int, epoch: int = 0) -> np.ndarray:
    return np.array([[sample, epoch] for sample in samples])


# --- good files ----------------------------------------------------------------------------------------------------------


def test_classes_are_the_folders_and_every_tenth_image_is_held_out() -> None:
    facts = prepared(digits())
    assert (facts.kind, facts.train_samples, facts.eval_samples, facts.classes, facts.image) == ("images", 108, 12, 10, (1, 8, 8))
    assert facts.labels == tuple("0123456789")
    files = sorted(Path("digits").glob("*/*"))
    kept = [file for number, file in enumerate(files, 1) if number % 10]
    data = open_data(words("digits"), LABELS, facts, 0)
    batch = data.train_batch(picks(*range(108)))
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in kept])).double() / 255
    assert batch["targets"].tolist() == [int(file.parent.name) for file in kept]
    expected = (pixels - pixels.mean()) / pixels.std(correction=0)
    torch.testing.assert_close(batch["images"][:, 0].double(), expected, atol=1e-5, rtol=1e-5)
    held_out = [int(file.parent.name) for number, file in enumerate(files, 1) if number % 10 == 0]
    assert data.eval_batch(np.arange(12))["targets"].tolist() == held_out
    assert prepared("digits") == facts


def test_colours_deep_greys_palettes_and_floats_are_read_as_what_they_show() -> None:
    root = two_classes(size=(3, 2))
    grey = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
    Image.fromarray(grey).save(root / "cat" / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(root / "cat" / "deep.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(root / "cat" / "float.tif")
    Image.fromarray(grey).convert("LA").save(root / "cat" / "clear.png")
    Image.fromarray(grey).convert("P").save(root / "cat" / "palette.png", transparency=b"\1\2\3")
    Image.fromarray(np.stack([grey] * 4, axis=2), "RGBA").save(root / "cat" / "alpha.webp", lossless=True, exact=True)
    facts = prepared(root, mean=(0, 0, 0), std=(1, 1, 1), eval_path=str(two_classes("held", size=(3, 2))))
    assert facts.image == (3, 2, 3)
    named = sorted(file.name for file in (root / "cat").iterdir())
    data = open_data(words(root, mean=(0, 0, 0), std=(1, 1, 1)), LABELS, facts, 0)
    batch = data.train_batch(picks(*(number for number, name in enumerate(named) if not name[0].isdigit())))
    expected = torch.from_numpy(grey).float().div(255).expand(6, 3, 2, 3)
    torch.testing.assert_close(batch["images"], expected, atol=1e-6, rtol=0)


def test_images_of_other_sizes_need_a_size_and_a_batch_is_the_same_however_it_is_divided() -> None:
    root = two_classes()
    coloured(99, (9, 12)).save(root / "dog" / "0.png")
    assert refused(root) == [
        "data.size: null leaves images as they are stored, and these differ in size; got dog/0.png (9 x 12) and cat/0.png (6 x 4); "
        "data.size=N scales each and cuts the middle out"
    ]
    chosen = words(root, size=5, pad=1, flip=True, crop=0.5)
    facts = prepare(chosen, LABELS, Path("cache"))
    assert facts.image == (3, 5, 5)
    data = open_data(chosen, LABELS, facts, 3)
    some = np.array([[5, 0], [9, 0], [5, 1], [17, 2]])
    whole = data.train_batch(some)["images"]
    assert torch.equal(whole, torch.cat([data.train_batch(some[place : place + 1])["images"] for place in range(4)]))
    assert not torch.equal(whole[0], whole[2])
    assert torch.equal(data.eval_batch(np.array([1]))["images"], data.eval_batch(np.array([0, 1]))["images"][1:])


def test_a_folder_named_for_it_is_held_out_and_files_may_lie_deeper() -> None:
    root, held = two_classes(), two_classes("held", each=3)
    (root / "dog" / "more").mkdir()
    coloured(7).save(root / "dog" / "more" / "x.png")
    (root / "dog" / ".hidden").write_text("no image")
    (root / "readme.txt").write_text("in no class")
    facts = prepared(root, eval_path=str(held))
    assert (facts.train_samples, facts.eval_samples, facts.labels) == (21, 6, ("cat", "dog"))
    assert list(facts.digests) == [str(root), str(held)]


def test_names_need_not_be_text() -> None:
    root = two_classes()
    for name in (b"\xe9", b"\xea"):
        os.rename(root / "cat" if name == b"\xe9" else root / "dog", os.path.join(os.fsencode(root), name))
    facts = prepared(root)
    assert facts.labels == ("\\xe9", "\\xea")
    assert open_data(words(root), LABELS, facts, 0).train_batch(picks(0, 17))["targets"].tolist() == [0, 1]


def test_what_was_noted_is_used_again_until_a_file_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    root = two_classes()
    facts = prepared(root)
    with monkeypatch.context() as unread:
        unread.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
        assert prepared(root) == facts
    os.utime(root / "cat" / "0.png", (1, 1))
    assert prepared(root).digests == facts.digests
    coloured(99).save(root / "cat" / "0.png")
    assert prepared(root).digests != facts.digests


def test_memory_does_not_grow_with_the_images_and_preparing_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    for number in range(24):
        place = Path("large") / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (700, 700), (number, 0, 9)).save(place / f"{number}.png", compress_level=1)
    tracemalloc.start()
    facts = prepared("large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 700 * 700 * 3, "of 24 images"
    kept = sum(file.stat().st_size for file in Path(facts.store).iterdir())
    assert kept < 5000
    script = (
        "import sys; from pathlib import Path; from dml_runner.data import prepare; from dml_runner.facts import Task\n"
        "from dml_runner.schema.data import ImageFolder\n"
        "prepare(ImageFolder.model_validate_json(sys.argv[1]), Task('classify', reads='images'), Path('fresh'))\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script, words("large").model_dump_json()], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# --- bad files -----------------------------------------------------------------------------------------------------------


def spoil(root: Path) -> dict[str, str]:
    """Files that are no images, and an empty class; what is wrong with each, in the order in which they are met."""
    coloured(1, (60, 40)).save(root / "cat" / "torn.jpg")
    whole = (root / "cat" / "torn.jpg").read_bytes()
    (root / "cat" / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "text.png").write_text("no image at all")
    (root / "cat" / "zero.png").write_bytes(b"")
    Image.fromarray(np.array([[0, np.nan, 1], [np.inf, 0, 0]], np.float32)).save(root / "dog" / "nan.tif")
    Image.fromarray(np.array([[0, 2.5]], np.float32)).save(root / "dog" / "range.tif")
    Image.new("1", (12_000, 12_000)).save(root / "dog" / "bomb.png")
    (root / "dog" / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    os.mkfifo(root / "dog" / "pipe.png")
    (root / "dog" / "gone.png").symlink_to("nowhere.png")
    (root / "emu").mkdir()
    known = "no image of a known format (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)"
    return {
        "cat/text.png": known,
        "cat/torn.jpg": "no whole image (image file is truncated",
        "cat/zero.png": "the file is empty",
        "dog/bomb.png": "an image of more than 67,108,864 pixels",
        "dog/gone.png": "no plain file",
        "dog/nan.tif": "2 of 6 pixels are NaN or infinite",
        "dog/pipe.png": "no plain file",
        "dog/range.tif": "float pixels are 0 to 1; these are 0 to 2.5",
        "dog/script.eps": known,
        "emu": "the folder of a class is empty",
    }


def test_bad_files_stop_with_their_names_and_their_count_or_are_skipped_and_counted() -> None:
    root = two_classes()
    wrong = spoil(root)
    lines = refused(root)
    for line, (name, what) in zip(lines[:-1], wrong.items(), strict=True):
        assert line.startswith(f"data.path: {what}")
        assert line.endswith(f" at {root}/{name}")
    assert lines[-1] == f"data.bad: 10 of 30 images are malformed; got stop; {SKIP}"
    good = two_classes("good")
    facts, clean = prepared(root, bad="skip"), prepared(good)
    assert (facts.skipped, facts.train_samples, facts.eval_samples, facts.labels) == (10, 18, 2, ("cat", "dog"))
    batches = [open_data(words(path), LABELS, found, 0).train_batch(picks(*range(18))) for path, found in ((root, facts), (good, clean))]
    assert torch.equal(batches[0]["images"], batches[1]["images"])


@pytest.mark.parametrize("name", ["cat/text.png", "cat/torn.jpg", "cat/zero.png", "dog/bomb.png", "dog/nan.tif", "dog/pipe.png", "emu"])
def test_one_bad_file_is_enough(name: str) -> None:
    wrong = spoil(two_classes("all"))
    root = two_classes()
    (Path("all") / name).rename(root / name)
    first, last = refused(root)
    assert first.startswith(f"data.path: {wrong[name]}")
    assert first.endswith(f" at {root}/{name}")
    assert last == f"data.bad: 1 of 21 images are malformed; got stop; {SKIP}"


def test_pillow_own_limit_and_broken_headers_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (two_classes() / "cat" / "0.png").read_bytes()
    with monkeypatch.context() as strict:
        strict.setattr("PIL.Image.MAX_IMAGE_PIXELS", 4)
        with pytest.raises(pictures.Unreadable, match=r"^an image of more than 67,108,864 pixels$"):
            pictures.pixels_of(whole)
    told = set()
    for at in range(len(whole)):
        try:
            pictures.pixels_of(whole[:at] + bytes((whole[at] ^ 0x40,)) + whole[at + 1 :])
        except pictures.Unreadable as wrong:
            told.add(str(wrong))
    assert len(told) > 2
    assert all(len(line.splitlines()) == 1 for line in told)


def test_folders_that_are_not_there_or_hold_no_classes() -> None:
    assert refused("nowhere") == ["data.path: cannot read the folder; got nowhere (No such file or directory)"]
    root = two_classes()
    assert refused(root, eval_path="nowhere") == ["data.eval_path: cannot read the folder; got nowhere (No such file or directory)"]
    assert refused(root / "cat" / "0.png") == ["data.path: cannot read the folder; got pictures/cat/0.png (Not a directory)"]
    assert refused(root / "cat") == ["data.path: no folders in it, and each class is one; got pictures/cat"]


def test_too_few_images_or_classes_and_a_class_that_is_not_learned() -> None:
    root = two_classes(each=2)
    hint = "every tenth image is held out; or name others by data.eval_path"
    assert refused(root) == [f"data.path: too few good images; got 4; allowed at least 10; {hint}"]
    (root / "cat").rename("cat")
    held = two_classes("held")
    assert refused(root, eval_path=str(held)) == [
        "data.eval_path: the label 'cat' is in no training image at held/cat/0.png (held out)",
        f"data.bad: 10 of 22 images are malformed; got stop; {SKIP}",
    ]
    assert refused(root, eval_path=str(held), bad="skip") == [
        "data.path: every training image has the same label; got 'dog'; allowed at least 2 labels"
    ]


def test_held_out_images_of_a_class_that_is_not_learned_are_skipped() -> None:
    root, held = two_classes(), two_classes("held", each=3)
    (held / "ant").mkdir()
    coloured(5).save(held / "ant" / "0.png")
    facts = prepared(root, eval_path=str(held), bad="skip")
    assert (facts.eval_samples, facts.skipped, facts.labels) == (6, 1, ("cat", "dog"))
    data = open_data(words(root, eval_path=str(held), mean=(0, 0, 0), std=(1, 1, 1)), LABELS, facts, 0)
    batch = data.eval_batch(np.arange(6))
    assert batch["targets"].tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.asarray(Image.open(held / "cat" / "0.png")).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(batch["images"][0].numpy(), expected)


def test_numbers_for_channels_that_are_not_there_and_models_that_read_no_images() -> None:
    root = two_classes()
    assert refused(root, mean=(0.5,), std=(1, 1, 1, 1)) == [
        "data.mean: not a number for each channel; got 1; allowed 3",
        "data.std: not a number for each channel; got 4; allowed 3",
    ]
    with pytest.raises(ConfigError, match=r"^data: holds images, and the model reads tokens; got data=image_folder; model=resnet$"):
        prepare(words(root), Task("next_token", length=8), Path("cache"))


def test_a_file_that_changes_or_goes_after_all_was_prepared() -> None:
    root = two_classes()
    data = open_data(words(root), LABELS, prepared(root), 0)
    told = r"^data: an image is not what it was when the data was prepared; got pictures/cat/0.png \({}.*\); start again$"
    coloured(1, (9, 9)).save(root / "cat" / "0.png")
    with pytest.raises(ConfigError, match=told.format("other channels, or another size")):
        data.train_batch(picks(0))
    (root / "cat" / "0.png").write_text("no image")
    with pytest.raises(ConfigError, match=told.format("no image of a known format")):
        data.train_batch(picks(0))
    (root / "cat" / "0.png").unlink()
    with pytest.raises(ConfigError, match=told.format("No such file or directory")):
        data.train_batch(picks(0))


# --- runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_over_one_and_two_ranks_its_evaluation_and_its_refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder / digits(ending="jpg", count=200)
    job = ["model=resnet", "model.width=4", "model.depths=[1,1]", "hardware=cpu", "data=image_folder", f"data.path={root}"]
    job += ["data.flip=true", "data.pad=1", "train.steps=8", "train.global_batch=12", "train.log_every=1", f"outputs={folder}"]
    runs = [folder / f"run-{ranks}" for ranks in (1, 2)]
    for ranks, run in enumerate(runs, start=1):
        assert dml_runner.train([*job, *on_ranks(ranks), f"run={run}"]).status == "completed"
    one, two = map(losses, runs)
    assert len(one) == 8
    assert two == pytest.approx(one, abs=1e-4)
    found = [read(run, "summary.json")["eval"] for run in runs]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    capsys.readouterr()
    assert cli.main(["eval", f"run={runs[0]}"]) == 0
    figures = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(figures["loss"]) == pytest.approx(found[0]["eval_loss"], abs=1e-4)
    (root / "9").rename(root / "nine")
    assert cli.main(["eval", f"run={runs[0]}"]) == 2
    assert "data: other labels than the run's, or in another order; got" in capsys.readouterr().err
    (root / "3" / "zero.jpg").write_bytes(b"")
    assert cli.main(["train", *job, f"run={folder / 'never'}"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"data.path: the file is empty at {root}/3/zero.jpg",
        f"data.bad: 1 of 201 images are malformed; got stop; {SKIP}",
    ]
    assert not (folder / "never").exists()
