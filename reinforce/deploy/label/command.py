"""`reinforce label`: the arguments in, an exit status out.

0: all labelled. 1: some inputs could not be labelled; each had its line. 2: a usage error, in one line. 130:
interrupted. argparse, because typer and what the rest of the command line brings along would take longer to load than
many a model (decision 0027).
"""

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from reinforce.deploy.label.errors import LabelError
from reinforce.formatting import format_count

if TYPE_CHECKING:
    from reinforce.deploy.label.labelling import Labeller
    from reinforce.deploy.model_file import ModelLabels

MAX_PIXELS = 178_956_970
"""As `build.source.max_pixels`."""

_SECONDS = 10.0
_MAX_THREADS = 1024
_PACKAGES = {"numpy": "numpy", "PIL": "Pillow"}
"""What is installed, by what is imported; session.py says it of onnxruntime."""


def main(arguments: list[str]) -> int:
    """The exit status; everything a person can cause is a line, not a traceback."""
    # One thread is one thread: numpy's own would come on top of --threads. Read when numpy is imported, below.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return run(parser().parse_args(arguments))
    except LabelError as error:
        print(f"reinforce: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read has enough.
        _discard_output()
        return 141
    except OSError as error:  # of what is read, each has its line where it is read
        print(f"reinforce: label: standard output: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        _discard_output()
        return 2
    except ModuleNotFoundError as error:
        package = _PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        print(f"reinforce: label needs {package}: pip install {package}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _discard_output() -> None:
    # What is left in the buffer must go somewhere when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(options: argparse.Namespace) -> int:
    """Labels what is asked for, or measures it; raises LabelError."""
    if sys.stdout is None:
        raise LabelError("label: standard output is closed; send it to a file or a pipe")
    if sys.stdin is None and "-" in options.images:
        raise LabelError("label: - is standard input, and that is closed")
    if options.images.count("-") > 1:
        raise LabelError("label: - is given twice; there is one standard input")
    if options.text_model and not options.labels:
        raise LabelError("--text-model: goes with --labels, a file of new labels")
    if options.templates and not options.text_model:
        raise LabelError("--templates: goes with --text-model")
    if options.seconds is not None and not options.benchmark:
        raise LabelError("--seconds: goes with --benchmark")
    # Not before the arguments are known to be good: what is imported from here on loads numpy, Pillow and onnxruntime.
    labeller = _make_labeller(options)
    if "-" in options.images:
        from reinforce.deploy.label.modalities import check_stream

        check_stream(labeller.model.card, labeller.modality)
    if options.benchmark:
        return _benchmark(labeller, options.images, options.seconds or _SECONDS, options.json)
    return _label_all(labeller, options.images, options.json)


def _make_labeller(options: argparse.Namespace) -> "Labeller":
    from reinforce.deploy.label.labelling import Labeller
    from reinforce.deploy.label.labels import choose_labels, read_thresholds
    from reinforce.deploy.label.modalities import choose_modality
    from reinforce.deploy.label.output import use_utf8
    from reinforce.deploy.label.scores import make_scorer
    from reinforce.deploy.label.session import load_model

    use_utf8(options.json)
    # Before the model is loaded to stay, so that the two are not in memory together.
    new = _embed_new_labels(options) if options.text_model else None
    model = load_model(options.model, options.threads)
    modality = choose_modality(options.model, model.card, options.modality)
    labels = new or choose_labels(options.model, model.card, options.labels)
    scorer = make_scorer(
        labels,
        kind=options.scores,
        scale=options.scale,
        threshold=options.threshold,
        thresholds={} if options.thresholds is None else read_thresholds(options.thresholds, labels),
        top_k=options.top_k,
    )
    return Labeller(model=model, scorer=scorer, max_pixels=options.max_pixels, modality=modality)


def _label_all(labeller: "Labeller", images: list[str], as_json: bool) -> int:
    from reinforce.deploy.label.inputs import Encoded, Inputs, Unusable
    from reinforce.deploy.label.modalities import names_of, words_of
    from reinforce.deploy.label.output import print_labelled, print_note, print_unusable

    inputs = Inputs(images, names=names_of(labeller.model.card, labeller.modality))
    # A field for all rows or none: what has one modality need not say which.
    modality = labeller.modality if labeller.model.card.modalities else None
    num_inputs = num_unusable = num_outside = 0
    for item in inputs:
        num_inputs += 1
        if isinstance(item, Encoded):
            try:
                labelled = labeller.label(item.data)
                print_labelled(item.source, labelled, as_json, modality)
                num_outside += labelled.is_outside
                continue
            except LabelError as error:
                item = Unusable(item.source, str(error))
        num_unusable += 1
        print_unusable(item, as_json, modality)
    for note in inputs.notes():
        print_note(note)
    if num_outside:
        value_range = labeller.model.card.modalities[labeller.modality].range
        assert isinstance(value_range, tuple)
        where = f"wholly outside the range {words_of(value_range)} of {labeller.modality}"
        print_note(f"{format_count(num_outside, 'image')} {'lies' if num_outside == 1 else 'lie'} {where}")
    if num_unusable:
        print_note(f"{num_unusable:,} of {num_inputs:,} could not be labelled")
    return 1 if num_unusable else 0


def _embed_new_labels(options: argparse.Namespace) -> "ModelLabels":
    from reinforce.deploy.label.output import print_note
    from reinforce.deploy.label.session import load_model
    from reinforce.deploy.label.texts import read_new_labels

    card = load_model(options.model, options.threads).card
    new = read_new_labels(options.text_model, card, options.labels, options.templates, num_threads=options.threads)
    if new.num_cut_prompts:
        print_note(f"{new.num_cut_prompts:,} prompts are longer than the text tower reads, and were cut")
    return new.labels


def _benchmark(labeller: "Labeller", images: list[str], seconds: float, as_json: bool) -> int:
    from reinforce.deploy.label.benchmark import describe, run_benchmark
    from reinforce.deploy.label.output import print_note, print_unusable

    figures, unusable = run_benchmark(labeller, images, seconds)
    for item in unusable:
        print_unusable(item, as_json=False, modality=None)
    print(describe(figures, as_json), flush=True)
    if unusable:
        print_note(f"left out: {len(unusable):,} inputs that cannot be labelled")
    return 1 if unusable else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LabelError(f"label: {message} (reinforce label --help)")


def parser() -> argparse.ArgumentParser:
    """The arguments of `reinforce label`."""
    result = _Parser(
        prog="reinforce label",
        description="Label images with an exported model; onnxruntime, numpy and Pillow are all it needs.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("model", metavar="MODEL", type=Path, help="an ONNX file of reinforce export")
    add("images", metavar="IMAGE", nargs="+", help="image files, folders, or - for a stream of JPEGs on standard input")
    add("--modality", metavar="NAME", help="what the images are: rgb (the default) or another the model was trained on")
    add("--labels", metavar="FILE", type=Path, help="only these of the model's labels, one a line")
    add("--text-model", metavar="FILE", type=Path, help="of reinforce export --text: --labels are then any labels")
    add("--templates", metavar="FILE", type=Path, help="prompts for --text-model, with {}; default: a photo of a {}.")
    add("--scores", choices=("softmax", "independent"), default="softmax", help="default: softmax")
    add("--scale", metavar="X", type=_positive_float, help="the scale of the scores; default: the teacher's")
    add("--top-k", metavar="N", type=_positive_int, default=5, help="at most N labels an image; default: 5")
    add("--threshold", metavar="X", type=_finite_float, help="the least score; an image with none that high is unknown")
    add("--thresholds", metavar="FILE", type=Path, help="least scores by label: JSON, or lines of label, tab, value")
    add("--json", action="store_true", help="a line of JSON an image")
    add("--threads", metavar="N", type=_num_threads, default=1, help="threads of the model; default: 1")
    add("--max-pixels", metavar="N", type=_positive_int, default=MAX_PIXELS, help="refuse larger images")
    add("--benchmark", action="store_true", help="measure instead: time by stage, images a second, peak memory")
    add("--seconds", metavar="N", type=_positive_float, help="with --benchmark: how long; default: 10")
    return result


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def _num_threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_THREADS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {_MAX_THREADS}, not {text}")
    return int(text)


def _finite_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, not {text}")
    return number


def _positive_float(text: str) -> float:
    if (number := _finite_float(text)) <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number
