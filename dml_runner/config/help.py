"""Help that is read off the schema and conf/: options with a line each, keys with meaning, range and default."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dml_runner import plugins
from dml_runner.config import folders, starts
from dml_runner.errors import ConfigError, Problem, did_you_mean
from dml_runner.run import Run
from dml_runner.schema.base import Section, meanings
from dml_runner.validation import keys

WIDTH = 100

BENCH = """\
Measure what the runner costs on this machine, and what it survives.

  loop               the training loop, in microseconds an update over a loop of plain PyTorch written by hand
  trainer            a step of fine-tuning, beside the Trainer of the transformers library
  finetune           bert, elmo and gpt: fine-tuned on labelled texts after pre-training, and from scratch
  parity             the same job under every layout, every family and every way to recompute, beside one process
  comm               all-reduce, broadcast and others by every algorithm: time and bytes beside the bound
  links              the same, or any job, on hosts with links of a set rate, made here. Needs root
  server             push and pull of a parameter server on such hosts, beside the laws of its traffic. Needs root
  loopback           the same over the loopback, beside plain messages
  overlap            gradients summed while backward goes on, on such hosts, beside each of the two alone. Needs root
  ddp                strategy=all_reduce on such hosts, beside a script of DistributedDataParallel by hand. Needs root
  bubble             a pipeline's idle time and kept activations under every schedule, beside their laws
  split              strategy=pipeline or tensor, beside a script by hand on the same pieces of torch
  straggler          loss over time of bsp, ssp and asp when a worker is slow now and then
  faults             killed and frozen ranks, signals, kills inside a save, flipped bits: real ones, on real runs

Words of loop:
  steps=500          updates timed in each turn of each loop
  pairs=20           turns of each loop
  with=accelerate,lightning
                     other loops that take turns too, where they are installed; with= for none
  format=table       or json

Words of trainer:
  data=FILE          labelled texts to train on
  eval=FILE          held-out ones
  recipe=recipes/bert_sst2.yaml
                     the job of both sides
  steps=40           updates timed in each turn of each side
  pairs=9            turns of each side
  accuracy=false     true: train each side to the recipe's end too, and evaluate it
  to=FILE.md         write the table there too, between the marks <!-- trainer --> and <!-- /trainer -->
  format=table       or json

Words of finetune:
  data=FILE          labelled texts to train on
  eval=FILE          held-out ones
  only=bert,elmo,gpt families, in this order
  bert=RUN elmo=RUN gpt=RUN
                     a finished run of pre-training in place of a new one
  recipes=recipes    folder of <family>_pretrain.yaml
  steps=500          updates of fine-tuning, and from scratch
  batch=32           texts of an update
  resume=FOLDER      go on with a measurement that was broken off
  outputs=outputs    folder under which measurements are kept
  to=FILE.md         write the table there too, between the marks <!-- finetune --> and <!-- /finetune -->
  format=table       or json

Words of parity:
  layouts=single,tensor_2
                     some of them, by the names of the table; all otherwise
  families=gpt,bert  likewise
  recompute=none,full
                     likewise: none, full, full_2 (what enters every second block is kept), selective
  to=FILE.md         write the tables there too, between the marks <!-- parity --> and <!-- /parity -->
  format=table       or json

Words of comm; under torchrun it measures the ranks that were started:
  ranks=2            processes on this machine
  sizes=64k,1m,8m    bytes of the whole tensor; k, m and g are powers of 1000
  collectives=all_reduce,broadcast
                     all of them otherwise: reduce_scatter, all_gather, reduce, gather too
  algorithms=backend,ring,tree,hierarchical
                     those that a collective has
  node=2             ranks a node of the hierarchical algorithm
  rounds=7           times each is measured, in turn with the others
  to=FOLDER          write comm.json and the plot comm.png there too; to=FILE.md: the table, between the
                     marks <!-- comm --> and <!-- /comm -->, and the plot beside the file
  format=table       or json

Words of links:
  hosts=4 mbit=400   hosts, and 10^6 bits a second that each sends and receives
  delay_ms=0         milliseconds that each packet takes from host to host
  mb=8               10^6 bytes of the whole tensor
  collectives=all_reduce
                     and algorithms=, node=, rounds=, format=, to=, as in comm, by the name of links, or
                     links_delay where packets take time

Words of links where a job follows, as in links hosts=4 mbit=400 -- train FILE.yaml, a rank a host:
  hosts= mbit= delay_ms=
  lost=end           what follows when a rank fails: end the others, or lost=go_on
  to=FOLDER          keep what ranks other than 0 print, and the bytes of each link as links.json
  format=table       or json

Words of server:
  workers=4 servers=1,2,4
                     worker hosts, and numbers of servers in turn
  placement=dedicated,colocated
                     servers on hosts of their own, and on the first workers' hosts
  mbit=200           10^6 bits a second that each host sends and receives
  mb=32 buckets=128  10^6 bytes of weights, and messages they travel in
  rounds=7           steps that count
  to=FILE.md         write the table there too, between the marks <!-- server --> and <!-- /server -->
  format=table       or json

Words of loopback, and to=, format= as of server:
  workers=1,2 buckets=1,4,16
                     numbers in turn, with one server
  mb=64 rounds=5     as of server

Words of overlap, and rounds=, to=, format= as of server:
  hosts=4 mbit=400   hosts, and 10^6 bits a second that each sends and receives
  mb=8 layers=16     10^6 bytes of gradients, and buckets they come in
  algorithms=backend,ring
                     or tree, hierarchical

Words of ddp, and to=, format= as of server:
  hosts=4 mbit=400   as of overlap
  steps=20 pairs=9   updates timed in each turn of each side, and turns

Words of bubble, and to=, format= as of server:
  ranks=4,2 microbatches=8,16
                     numbers in turn
  schedules=naive,gpipe,1f1b,interleaved_1f1b,zero_bubble
                     all of them otherwise
  ms=20 rounds=3     milliseconds that a rank's forward sleeps, and steps that count

Words of split, and steps=, pairs= as of ddp:
  what=pipeline      or tensor: how the model is split over two ranks
  layers=6 hidden=256 vocabulary=2048
                     of a gpt
  batch=8 length=64 microbatches=4
                     texts of an update, their tokens, and micro-batches of a pipeline
  to=FILE.md format=table
                     the marks are <!-- split_pipeline --> and <!-- /split_pipeline -->, or split_tensor

Words of straggler:
  seconds=12 seeds=5 of training, and jobs of each kind
  who=one            one worker is slow now and then, or who=any of them
  chance=0.3 least_ms=20 most_ms=100
                     how often it sleeps longer than the 20 ms of a step, and how much
  staleness=3        of ssp
  lr=0.5 momentum=0 batch=32 every=25
                     of sgd, samples of a step, and steps between two evaluations, at which all workers meet
  to=FILE.md format=table
                     the marks are <!-- straggler_one --> and <!-- /straggler_one -->, or straggler_any; with momentum,
                     straggler_one_momentum, straggler_any_momentum

Words of faults:
  only=kill2,term    experiments to make; all of them otherwise (about 25 minutes)
  tries=20           draws of each
  seed=1             of the draws: which rank, which step
  resume=FOLDER      go on with a measurement that was broken off
  outputs=outputs    folder under which measurements are kept
  data.path=FILE     text of the job whose saves are timed
  format=table       or json"""

EVAL = """\
Tell what a saved step of a run is worth: its loss and metrics on held-out data. They are printed, and
written to RUN/eval/<time>.json with the step, digests of the data and the layout. Nothing else of the run
is touched, and it may still train.

Words:
  run=PATH           a run folder, whose newest sound step is taken, or a step folder in it

Words of the job, each as in dml train; what is not typed is the run's own:
  data.eval_path=FILE, data=OPTION, data.KEY=VALUE
                     other held-out data, in the run's own tokens and labels
  strategy=OPTION, hardware=OPTION, their KEYs
                     how many ranks share the work; one, unless a strategy is typed. On a CPU a rank
                     computes with one thread, and any number of ranks comes to the same figures
  train.metrics=[accuracy,f1]
                     what is told beside the loss
  train.micro_batch=8
                     samples a rank computes at once
  train.precision=fp32
                     number format of matrix products
  outputs=FOLDER     under which prepared data is kept

Instead of evaluating, a language model goes on with a text:
  prompt=TEXT        its beginning
  tokens=200         how many more
  temperature=0.8    below 1 the likely gets likelier; 0: always the likeliest
  top_k=40           draw from the likeliest so many; all of them otherwise
  seed=1             of the draws

Or its model is written for others:
  export=hf to=DIR   a folder that the transformers library loads"""

VERBS = {
    "train": ("[FILE.yaml or RUN folder] [group=option] [key=value] ... [-m]", "Train the job that the words describe, or continue a run."),
    "plan": ("[FILE.yaml or RUN folder] [group=option] [key=value] ... [format=json]", "Say what the job will cost, before anything runs."),
    "eval": ("run=PATH [key=value] ...", EVAL),
    "bench": ("NAME [key=value] ...", BENCH),
}
"""Verb -> its operands, and what it does."""

FLAGS = """
Words:
  FILE.yaml          a job file; its defaults start with config, and its keys win over the options'
  group=option       choose an option of a group; group=help lists them
  key=value          set a key, as in train.steps=200; +key=value does the same
  ~key               remove a key
  -m                 train every combination of key=a,b and key=range(1,4) and group=glob(*)
  --cfg job          print the composed job as YAML and stop
  --info defaults    print the chosen options and the files they come from, and stop
  plugins=FILE.py    load options of your own; [a.py,b.py] several. Installed packages need no word
  ${oc.env:NAME}     as a value: read from the environment, and written nowhere
"""


def group_help(group: str, file: Path | None = None) -> str:
    """A group's options, one a line: ``  option   meaning``; those of the user's own conf/ folders, of plugins and packages too.

    Installed packages that have options are loaded for it; what is wrong with one stands below.

    Raises:
        ConfigError: there is no such group.
    """
    problems = plugins.find_all()
    options = folders.options(group, file)
    if not options:
        known = folders.groups(file)
        raise ConfigError(Problem(group, "no such group", allowed=", ".join(known), hint=did_you_mean(group, known)))
    width = max(map(len, options))
    lines = [f"  {option:<{width}}   {_first_line(place)}".rstrip() for option, place in options.items()]
    return "".join(f"{line}\n" for line in (*lines, *problems))


def verb_help(verb: str) -> str:
    """Everything about a verb, at 100 columns: usage, words, and for train and plan every key of every group.

    Raises:
        ConfigError: there is no such verb.
    """
    if verb not in VERBS:
        raise ConfigError(Problem(verb, "no such verb", allowed=", ".join(VERBS), hint=did_you_mean(verb, list(VERBS))))
    operands, meaning = VERBS[verb]
    head = f"usage: dml {verb} {operands}\n\n{meaning}\n"
    return head + FLAGS + "".join(_key_help()) if verb in ("train", "plan") else head


def _key_help() -> Iterator[str]:
    root, chosen = starts.read(folders.conf_folder() / "config.yaml"), starts.chosen()
    yield "\nThe job:\n"
    yield from _rows(Run, "", root, [key for key, *_ in keys.fields(Run) if "." not in key])
    for name, field in Run.model_fields.items():
        classes = keys.section_classes(field.annotation)
        if classes and name not in keys.groups():
            yield f"\n{_head(name)}\n"
            yield from _rows(classes[0], f"{name}.", root[name])
    for group, classes in keys.groups().items():
        options = folders.options(group)
        text = f"{_head(group)} Options: {', '.join(options)}. Default: {chosen.get(group, 'none')}."
        yield f"\n{textwrap.fill(text, WIDTH, subsequent_indent='  ', break_on_hyphens=False)}\n"
        yield from _group_rows(group, classes, chosen.get(group, ""))


def _head(name: str) -> str:
    return f"{name}: {_flat(meanings(Run)[name])}"


def _group_rows(group: str, classes: list[type[Section]], default: str) -> Iterator[str]:
    """Keys that every class has come first, with the default option's values; then each class's own."""
    options = list(folders.options(group))
    names = [default, *(option for option in options if option != default)]
    defaults = {option: starts.values(group, option) for option in names if option in options}
    seen: set[str] = {"name"}
    for option, values in defaults.items():
        owner = keys.chosen(classes, values)
        fresh = [key for key, *_ in keys.fields(owner)] if owner else []
        fresh = [key for key in fresh if key not in seen]
        if owner and fresh:
            if len(classes) > 1 and option != default:
                yield f"  with {group}={option}\n"
            yield from _rows(owner, f"{group}.", values, fresh)
            seen.update(fresh)


def _rows(owner: type[Section], prefix: str, values: dict[str, Any], only: list[str] | None = None) -> Iterator[str]:
    for key, field, section in keys.fields(owner):
        if only is not None and key not in only:
            continue
        value = _default(values, key)
        facts = "no default" if value == "???" else f"default {value}"
        yield _wrapped(f"  {prefix + key:<26} {facts:<18} {keys.describe(keys.annotation_of(field))}", 6) + "\n"
        yield _wrapped("      " + _flat(meanings(section).get(key.rpartition(".")[2], "")), 6) + "\n"


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, replace_whitespace=False)


def _flat(text: str) -> str:
    return " ".join(text.replace("``", "").split())


def _default(values: dict[str, Any], key: str) -> str:
    node: Any = values
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return "null" if node is None else str(node).lower() if isinstance(node, bool) else str(node)


def _first_line(place: Path | type[Section]) -> str:
    """What an option is: the first comment of its YAML, or of a plugin's class the first sentence."""
    if not isinstance(place, Path):
        return " ".join((place.__doc__ or "").strip().partition("\n\n")[0].split())
    for line in place.read_text(encoding="utf-8", errors="replace").splitlines():
        text = line.strip()
        if text.startswith("#") and not text.startswith("# @"):
            return text.lstrip("# ").strip()
        if text and not text.startswith("#"):
            break
    return ""
