"""`dml eval`: from words to figures, to a text, or to a folder. Torch is imported once the words are accepted."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dml_runner import config, metrics
from dml_runner.errors import DmlError, LaunchError, Problem, RunFailed
from dml_runner.generation import read_generation_file
from dml_runner.job import read_job_file
from dml_runner.launch import command
from dml_runner.launch.eval_words import EvalWords, eval_words, run_folder_of
from dml_runner.launch.request import Request, may_have_ranks, preload
from dml_runner.loops.stop import Reason
from dml_runner.pretrained import tokenizer_of
from dml_runner.run_folder import RunFolder
from dml_runner.schema.data import Texts
from dml_runner.seat import given_by_launcher

if TYPE_CHECKING:
    from dml_runner.launch.evaluation import Result
    from dml_runner.launch.prepare import Prepared

AS_TRAINED = (
    "strategy=single",
    "tracker=local",
    "model.pretrained=null",
    "checkpoint.best=null",
    "train.stop.metric=null",
    "train.global_batch=null",
    "train.accumulation=1",
    "train.epochs=null",
    "train.max_hours=null",
    "train.compile=false",
)
"""What of the run's words an evaluation does without, or does otherwise unless it is told to."""


def evaluate(words: Sequence[str], began: float) -> Reason:
    """Evaluate, go on with a text or export, as ``words`` ask, and print what came of it; why it ended early, if it did.

    Args:
        began: when the command began, in seconds since 1970.

    Raises:
        DmlError: the words were refused, or a rank failed.
    """
    if given_by_launcher(os.environ):
        return _join(words, began)
    asked = eval_words(words)
    if asked.export is not None:
        from dml_runner.launch.export import export_hf

        export_hf(asked.run, asked.export)
    elif asked.prompt is not None:
        from dml_runner.launch.prompt import go_on

        print(go_on(asked.run, asked.prompt))
    else:
        return _evaluate(asked, began)
    return Reason.NONE


def _join(words: Sequence[str], began: float) -> Reason:
    """Evaluate as the rank the launcher made of this process; rank 0 reports, on the screen it had before it became a rank."""
    from dml_runner.launch import outside

    screens = {number: os.dup(number) for number in (1, 2)}
    reason, work = outside.join(lambda given: _prepare(_held_out(eval_words(words)), began, given.world), words)
    for number, screen in screens.items():
        os.dup2(screen, number)
        os.close(screen)
    return _report(work, reason) if os.environ["RANK"] == "0" else reason


def _held_out(asked: EvalWords) -> EvalWords:
    """The words, if they ask for what ranks can share."""
    if asked.prompt is not None or asked.export is not None:
        word = "prompt" if asked.prompt is not None else "export"
        raise LaunchError(Problem(word, "is the work of one process", hint="start it without a launcher"))
    return asked


def _evaluate(asked: EvalWords, began: float) -> Reason:
    request = _request(asked)
    if may_have_ranks(request.run):
        preload()
    start = _start(request, asked, began, None)
    work = start.start.folder
    try:
        reason = command.execute(start)
    except DmlError as error:
        if not isinstance(error, RunFailed):  # whose lines name the ranks' logs
            shutil.rmtree(work.path, ignore_errors=True)
        raise
    return _report(work, reason)


def _prepare(asked: EvalWords, began: float, world: tuple[int, int]) -> Prepared:
    return _start(_request(asked), asked, began, world)


def _request(asked: EvalWords) -> Request:
    """The run's own words with those of the evaluation; a micro-batch is the run's last one unless it is typed."""
    folder = RunFolder(run_folder_of(asked.run))
    tree = read_job_file(folder.job).tree
    micro = read_generation_file(folder.generation(folder.next_generation() - 1)).layout.batch.micro_batch
    words = [*AS_TRAINED, f"train.micro_batch={micro}", *asked.job]
    composed = config.recompose(tree, words)
    if isinstance(composed.run.data, Texts) and tokenizer_of(folder.path):
        composed = config.recompose(tree, [*words, "data.tokenizer=null"])  # the run's, which its task brings
    metrics.check(composed.run)
    return Request(composed, folder)


def _start(request: Request, asked: EvalWords, began: float, world: tuple[int, int] | None) -> Prepared:
    from dml_runner.launch.evaluation import prepare

    own_data = not any(word.lstrip("+~").partition("=")[0].split(".")[0] == "data" for word in asked.job)
    start = prepare(request, asked.run, own_data, began, world)
    for line in start.start.notices:
        print(line, file=sys.stderr, flush=True)
    return start


def _report(work: RunFolder, reason: Reason) -> Reason:
    """Print and keep the figures; of an evaluation that was broken off nothing is kept."""
    if reason is not Reason.NONE:
        shutil.rmtree(work.path, ignore_errors=True)
        return reason
    from dml_runner.launch.evaluation import collect

    result = collect(work)
    rows = list(_rows(result))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows), flush=True)
    print(result.file, file=sys.stderr, flush=True)
    return reason


def _rows(result: Result) -> Iterator[tuple[str, str]]:
    figures = dict(result.figures)
    yield "step", str(result.step)
    yield "loss", f"{figures.pop('eval_loss'):.6f}"
    samples = figures.pop("eval_samples")
    if "perplexity" in figures:
        yield "perplexity", f"{figures.pop('perplexity'):.4f}"
    yield from ((name.removeprefix("eval_"), f"{value:.6f}") for name, value in figures.items())
    yield "samples", f"{samples}"
    yield "seconds", f"{result.seconds:.2f}"
