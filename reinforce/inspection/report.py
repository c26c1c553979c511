"""The report: one self-contained page of figures as charts and of samples, to decide by whether a dataset is good.

Pictures are inlined, nothing is fetched, no scripts. A page of 48 samples is below 5 MB, takes the download of up to 6
source shards, and is the same bytes for the same dataset.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reinforce.inspection import charts
from reinforce.inspection.cards import CardMaker
from reinforce.inspection.corpus_words import corpus_line
from reinforce.inspection.figures import Figures
from reinforce.inspection.gallery import Gallery, ShownSample, make_gallery
from reinforce.inspection.plots import number_words
from reinforce.inspection.remarks import remarks
from reinforce.inspection.values import ORIGINAL
from reinforce.inspection.words import bank_line, count, format_bytes, label
from reinforce.sample import DropReason
from reinforce.shards.dataset import open_dataset

_TEMPLATES = Path(__file__).with_name("page")
_VIEW_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Of the crops: told apart by the colour-blind too (Okabe and Ito)."""
_MOST_RUNS = 2
_MOST_CHARACTERS = 400

Section = tuple[str, str, str, list[tuple[ShownSample, str]]]
"""Anchor, title, a line of introduction, and samples with where they stand."""


def write_report(
    uri: str, path: Path, figures: Figures, *, root: str | None = None, num_samples: int = 48
) -> list[str]:
    """Writes the page to `path`. `figures` are those of the same dataset; `root` is where its source is now.

    Returns why images could not be shown, a line for each cause; the page says so too. Raises `FormatError` if there is
    no dataset.
    """
    dataset = open_dataset(uri)
    maker = CardMaker(dataset, figures)
    gallery = make_gallery(dataset, figures, maker, root, num_samples)
    path.write_text(_render(figures, gallery, maker), encoding="utf-8")
    return gallery.faults


def _render(figures: Figures, gallery: Gallery, maker: CardMaker) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": _breakable,
        "pc": lambda value: f"{value:.2f}%",
        "plain": _plain,
        "score": lambda value: "–" if value is None else number_words(value),
        "seconds": charts.seconds_words,
        "short": lambda value: f"{value:.4g}",
        "visible": lambda value: f"{max(value, 0.4):.2f}%",
    }
    low = {(cosine.teacher, cosine.source): cosine.matched.q05 for cosine in figures.cosines}
    low |= {(drift.teacher, "view"): drift.cosine.q05 for drift in figures.drifts}
    sections = _sections(gallery, maker)
    text = environment.get_template("report.html").render(
        _charts(figures),
        figures=figures,
        name=figures.uri.rstrip("/").rsplit("/", 1)[-1],
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        gallery=gallery,
        sections=sections,
        contents=_contents(figures, gallery, sections),
        totals=_totals(figures),
        remarks=remarks(figures),
        norm_error=max((s.max_norm_error for s in figures.signals if s.max_norm_error is not None), default=None),
        sampled=_sampled(figures),
        duplicate_words=" and ".join(found.teacher for found in figures.duplicates),
        teachers=maker.teachers,
        size=maker.size,
        low=low,
        colours=_VIEW_COLOURS,
        counted=count,
        bank_line=bank_line,
        corpus_line=corpus_line,
    )
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _charts(figures: Figures) -> dict[str, Any]:
    cosines = sorted(figures.cosines, key=lambda found: (found.teacher, found.source != ORIGINAL, found.source))
    latest = sorted(figures.runs, key=lambda run: (run.start, run.run))[-_MOST_RUNS:]
    return {
        "completeness": charts.completeness(figures),
        "sizes": charts.sizes(figures),
        "drops": charts.drops(figures),
        "nulls": charts.nulls(figures),
        "captions": [(source, charts.lengths(source.words)) for source in figures.captions],
        "scores": [
            (teacher, charts.scores(list(rows))) for teacher, rows in groupby(cosines, key=lambda found: found.teacher)
        ],
        "drifts": [(found, charts.drift(found), charts.drift_by_view(found)) for found in figures.drifts],
        "agreement": charts.agreement(figures.agreements),
        "duplicates": charts.duplicates(figures.duplicates),
        "corpora": [
            (corpus, charts.sentence_drops(corpus), charts.sentence_teachers(corpus), charts.lengths(corpus.words))
            for corpus in figures.corpora
        ],
        "runs": [(run, charts.stages(run), charts.run_words(run)) for run in latest],
    }


def _totals(figures: Figures) -> list[tuple[str, str, str]]:
    """The few figures one asks for first: a name, a number, what it means."""
    not_selected = sum(drop.count for drop in figures.drops if drop.reason == DropReason.NOT_SELECTED)
    dropped = figures.num_samples - figures.num_kept - not_selected
    size = "" if figures.bytes_per_kept is None else f"{format_bytes(figures.bytes_per_kept)} a kept sample"
    if figures.all_source_bytes:
        share = 100 * figures.total_bytes / figures.all_source_bytes
        size += f", {share:.3g} % of the source"
    of_all = f"of {count(figures.num_samples, 'sample')} in {count(figures.num_shards, 'shard')}"
    totals = [("kept samples", f"{figures.num_kept:,}", of_all)]
    totals += [("dropped", f"{dropped:,}", f"{100 * dropped / max(figures.num_samples, 1):.2g} % of the samples")]
    totals += [("not asked for", f"{not_selected:,}", "by --select or --limit-samples")] if not_selected else []
    if figures.corpora:
        kept, files = (sum(getattr(c, name) for c in figures.corpora) for name in ("num_kept", "num_files"))
        totals += [("kept sentences", f"{kept:,}", f"without images, in {count(files, 'file')}")]
    return [*totals, ("size", format_bytes(figures.total_bytes), size.removeprefix(", "))]


def _sampled(figures: Figures) -> str:
    """What captions, cosines and norms are of."""
    of_samples = f"{count(figures.num_sampled_samples, 'sample')} of " if figures.num_sampled_samples else ""
    return f"From {of_samples}{len(figures.sampled_stems):,} of {count(figures.num_shards, 'shard')}."


def _sections(gallery: Gallery, maker: CardMaker) -> list[Section]:
    """The samples from the worst to the best end, then those at random."""
    ranking = gallery.ranking
    how = f"cosine of image and {ranking.source} caption"
    how += f" by {ranking.teachers[0]}" if len(ranking.teachers) == 1 else ""
    if len(ranking.teachers) > 1:
        how = f"{how}, the mean over {', '.join(ranking.teachers)} of each teacher's z-score"
    among = f"By {how}, among {len(ranking.places):,} ranked samples."
    red = "Views score their cosine to the clean view, captions theirs to the image. Red: below the 5 % quantile."
    if maker.why_no_views:
        red += f" Views cannot be replayed: {maker.why_no_views}."
    elif maker.num_views > len(maker.views) - 1:
        red += f" {len(maker.views) - 1} of {maker.num_views} augmented views are shown."
    sections = []
    for words, shown in (("lowest", gallery.worst), ("highest", gallery.best)):
        if shown:
            standings = [_standing(sample, words, gallery) for sample in shown]
            title = f"The {count(len(shown), f'{words}-scored sample')}"
            sections.append((words, title, f"{among} {red}", list(zip(shown, standings, strict=True))))
    if gallery.others:
        stems = count(len({shown.card.stem for shown in gallery.others}), "shard")
        title = f"{count(len(gallery.others), 'sample')} at random"
        sections.append(("random", title, f"From {stems}. {red}", [(shown, "") for shown in gallery.others]))
    return sections


def _standing(sample: ShownSample, words: str, gallery: Gallery) -> str:
    pick = sample.pick
    assert pick.score is not None
    assert pick.position is not None
    kind = "mean z" if len(gallery.ranking.teachers) > 1 else "cosine"
    place = words if pick.position == 1 else f"{_ordinal(pick.position)} {words}"
    return f"{place}, {kind} {number_words(pick.score)}"


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def _contents(figures: Figures, gallery: Gallery, sections: Sequence[Section]) -> list[tuple[str, str]]:
    """Anchors and titles of the sections there are."""
    every = [
        ("signals", "What is there", True),
        ("losses", "Drops and nulls", figures.drops or figures.left_out or any(s.nulls for s in figures.signals)),
        ("captions", "Captions", figures.captions),
        ("scores", "Image and caption", figures.cosines),
        ("views", "Views", figures.drifts),
        ("neighbours", "Neighbours", figures.agreements or figures.duplicates),
        ("sentences", "Sentences", figures.corpora),
        ("cost", "Cost", figures.runs),
        *((anchor, f"{anchor.capitalize()} samples", True) for anchor, *_ in sections),
        ("alike", "Look alike", gallery.groups),
        ("dropped", "Dropped", gallery.drops),
    ]
    return [(anchor, title) for anchor, title, is_there in every if is_there]


def _plain(text: str) -> str:
    """Text of unknown origin without control characters, cut if it is very long. The template escapes it."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"


def _breakable(text: str) -> Markup:
    """A path that may break after a slash or an underscore, shortened as in the table."""
    escaped = str(Markup.escape(_plain(label(text))))
    return Markup(escaped.replace("/", "/<wbr>").replace("_", "_<wbr>"))
