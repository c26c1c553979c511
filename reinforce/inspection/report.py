"""The contact sheet: one self-contained page, because a wrong augmentation or a broken captioner is found by eye first.

Pictures are inlined, nothing is fetched, no scripts. A page of 24 samples takes the download of up to 4 source shards
and is a few MB.
"""

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reinforce.inspection.cards import CardMaker, SampleCard
from reinforce.inspection.figures import Figures
from reinforce.inspection.values import evenly
from reinforce.inspection.words import count, facts, format_bytes, label, sampled_line, size_line
from reinforce.shards.dataset import open_dataset
from reinforce.storage import open_store

_MOST_SHARDS = 4
_TEMPLATE = Path(__file__).with_name("contact_sheet.html")
_COLOURS = ("#666", "#c0392b", "#2471a3", "#1e8449", "#b9770e", "#7d3c98", "#117a65", "#a04000")


def write_contact_sheet(
    uri: str, path: Path, figures: Figures, *, root: str | None = None, num_samples: int = 24
) -> None:
    """Writes the page to `path`. `figures` are those of the same dataset; `root` is where its source is now.

    The samples are spread evenly over up to 4 of the shards in `figures.sampled_stems`, always the same ones. Raises
    `StorageError` if the source cannot be reached and `FormatError` if it cannot be read.
    """
    dataset = open_dataset(uri)
    maker = CardMaker(dataset, figures, open_store(root or dataset.document["source_root"]))
    stems = evenly(figures.sampled_stems, min(_MOST_SHARDS, num_samples))
    cards = [card for stem in stems for card in maker.cards(stem, -(-num_samples // len(stems)))][:num_samples]
    path.write_text(_render(figures, cards, maker), encoding="utf-8")


def _render(figures: Figures, cards: list[SampleCard], maker: CardMaker) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"bytes": format_bytes, "label": _breakable, "score": _score}
    low = {(cosine.teacher, cosine.source): cosine.matched.q05 for cosine in figures.cosines}
    low |= {(drift.teacher, "view"): drift.cosine.q05 for drift in figures.drifts}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        figures=figures,
        cards=cards,
        teachers=maker.teachers,
        size=maker.size,
        num_views=maker.num_views,
        low=low,
        colours=_COLOURS,
        facts=facts(figures),
        counted=count,
        size_line=size_line(figures),
        sampled_line=sampled_line(figures),
    )


def _breakable(text: str) -> Markup:
    """A path that may break after a slash or an underscore, shortened as in the table."""
    escaped = str(Markup.escape(label(text)))
    return Markup(escaped.replace("/", "/<wbr>").replace("_", "_<wbr>"))


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
