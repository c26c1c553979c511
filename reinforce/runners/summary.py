"""What a build did, and the last lines it prints."""

from dataclasses import dataclass, field

from reinforce.formatting import format_counts, format_seconds
from reinforce.shard_report import ShardReport


@dataclass(slots=True)
class BuildSummary:
    """What a build did. `failed` maps the stem of each failed shard to its reason.

    `stopped` says why a run ended with `num_left` shards not tried to the end; None if it did not.
    """

    num_shards: int
    num_complete_before: int
    done: ShardReport
    elapsed_s: float
    failed: dict[str, str] = field(default_factory=dict)
    num_left: int = 0
    stopped: str | None = None
    banks: tuple[str, ...] = ()
    """Of each bank of which this run wrote files, what was written, in words."""
    suffixes: dict[str, str] = field(default_factory=dict)
    """Of the members of each modality."""


def describe(summary: BuildSummary) -> str:
    """The last lines a build prints."""
    done = summary.done
    finished = summary.num_shards - len(summary.failed) - summary.num_left
    lines = [f"{finished} of {summary.num_shards} shards complete ({summary.num_complete_before} were before this run)"]
    work = _describe_work(done)
    if work:
        written = f"{done.num_files:,} files, {done.num_bytes / 1e6:,.1f} MB in {format_seconds(summary.elapsed_s)}"
        lines.append("; ".join([*work, written]))
    lines += summary.banks
    for name, counts in (("dropped", done.drops), ("null", done.nulls), ("left out", done.counts)):
        if +counts:
            lines.append(f"{name}: {format_counts(counts)}")
    for name, suffix in summary.suffixes.items():
        if done.lacks_modality(name):
            lines.append(f"{name}: none of {done.num_kept:,} samples has a .{suffix} member")
    if done.micro_batches:
        sizes = ", ".join(f"{name} {size}" for name, size in sorted(done.micro_batches.items()))
        lines.append(f"micro-batch made smaller to fit the device: {sizes}")
    lines += [f"failed: {stem}: {reason}" for stem, reason in sorted(summary.failed.items())]
    if summary.stopped:
        lines.append(f"stopped: {summary.stopped}")
    return "\n".join(lines)


def _describe_work(done: ShardReport) -> list[str]:
    work = []
    if done.num_samples:
        work.append(
            f"{done.num_samples:,} samples, {done.num_kept:,} kept, {done.num_views:,} views, {done.num_captions:,} "
            "captions"
        )
    if done.num_sentences:
        cut = f", {done.num_truncated_sentences:,} of them cut" * bool(done.num_truncated_sentences)
        work.append(f"{done.num_sentences:,} sentences, {done.num_kept_sentences:,} kept{cut}")
    return work
