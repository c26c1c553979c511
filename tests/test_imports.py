"""Who may import whom, and which heavy libraries load when; each guard is shown to be able to fail."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "reinforce"

# Module prefix -> prefixes of ours it may import. The order is the reading order: nothing imports what is above it.
ALLOWED: dict[str, tuple[str, ...]] = {
    "cli": ("",),
    "ray_train": ("runners", "student", "shards", "storage", "config"),
    "demo": (
        "demo",
        "config",
        "runners",
        "inspection",
        "sample",
        "shards",
        "storage",
        "student",
        "evaluation",
        "formatting",
    ),
    "exchange": (
        "exchange",
        "runners",
        "progress",
        "prefetch",
        "plan",
        "shard_report",
        "shards",
        "decode",
        "views",
        "storage",
        "sample",
        "config",
    ),
    # What runs on a device, without torch, typer or pydantic.
    "deploy.label": (
        "deploy.label",
        "deploy.model_file",
        "deploy.text_file",
        "label_names",
        "modality",
        "rgb",
        "formatting",
    ),
    "deploy": (
        "deploy",
        "modality",
        "student",
        "text_tower",
        "image_tower",
        "shards",
        "decode",
        "views",
        "storage",
        "sample",
        "config",
        "formatting",
        "weights",
        "software",
        "label_names",
    ),
    "student": (
        "student",
        "modality",
        "pseudo_labels",
        "replay",
        "exchange",
        "evaluation",
        "image_tower",
        "shards",
        "decode",
        "views",
        "selection",
        "weights",
        "storage",
        "sample",
        "config",
        "formatting",
        "software",
    ),
    "evaluation": (
        "evaluation",
        "modality",
        "image_tower",
        "prompts",
        "shards",
        "decode",
        "views",
        "selection",
        "weights",
        "storage",
        "sample",
        "config",
        "formatting",
    ),
    "inspection": (
        "inspection",
        "modality",
        "rgb",
        "neighbours",
        "replay",
        "shards",
        "views",
        "storage",
        "sample",
        "config",
        "decode",
        "plan",
        "formatting",
    ),
    # The one part of it that computes anything with models.
    "inspection.recompute": ("inspection", "shards", "sample", "config", "teachers", "weights"),
    "runners": (
        "runners",
        "banks",
        "builder",
        "corpora",
        "corpus_source",
        "inspection",
        "sample",
        "shard_work",
        "shard_report",
        "plan",
        "prefetch",
        "progress",
        "selection",
        "shards",
        "storage",
        "config",
        "weights",
        "formatting",
    ),
    "progress": ("shard_report", "plan", "prefetch", "shards", "storage", "formatting"),
    "builder": (
        "captioners",
        "collate",
        "corpora",
        "corpus_source",
        "shard_work",
        "overlap",
        "plan",
        "prefetch",
        "shard_report",
        "shards",
        "storage",
        "texts",
    ),
    "shard_work": ("plan", "prefetch", "sample", "shard_report", "shards", "spooled", "storage", "texts"),
    "spooled": ("shard_report", "shards", "storage"),
    "corpora": (
        "corpus_plan",
        "corpus_source",
        "overlap",
        "plan",
        "prefetch",
        "sample",
        "shard_report",
        "shards",
        "spooled",
        "storage",
        "texts",
    ),
    "texts": ("shards", "teachers"),
    "collate": ("prefetch", "shards"),
    "overlap": (),
    "shard_report": ("sample", "shards", "storage"),
    "prefetch": ("arrivals", "corpus_source", "plan", "config", "decode", "sample", "shards", "storage", "views"),
    "corpus_source": ("arrivals", "corpus_plan", "sample", "shards", "storage"),
    "arrivals": (),
    "plan": (
        "captioners",
        "corpus_plan",
        "teachers",
        "selection",
        "shards",
        "storage",
        "config",
        "weights",
        "software",
    ),
    "corpus_plan": ("config", "shards", "storage", "teachers"),
    "banks": ("prompts", "teachers", "shards", "storage", "config", "weights"),
    "selection": ("selection", "neighbours", "pseudo_labels", "shards", "storage", "config"),
    "replay": ("shards", "views", "sample", "config"),
    "neighbours": (),
    "prompts": ("storage", "config"),
    "teachers": ("teachers", "text_tower", "microbatch", "sample", "config", "weights"),
    "captioners": ("captioners", "microbatch", "sample", "config", "weights", "storage"),
    "microbatch": (),
    "text_tower": (),
    "image_tower": ("weights", "config"),
    "weights": ("config", "storage"),
    "views": ("views", "sample", "config"),
    "decode": ("modality", "rgb", "sample"),
    "rgb": (),
    "modality": ("rgb",),
    "pseudo_labels": ("shards",),
    "shards": ("shards", "label_names", "storage", "sample", "config"),
    "storage": ("storage",),
    "config": ("config",),
    "formatting": (),
    "software": (),
    "label_names": (),
    "sample": (),
}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(source: str, module: str, *, is_package: bool) -> set[str]:
    """The modules of ours that a source imports anywhere, functions included, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
            found.add(".".join([*base, *((node.module or "").split(".") if node.module else [])]))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reinforce":
            rest = (node.module or "").removeprefix("reinforce").lstrip(".")
            found.update({rest} if rest else {alias.name for alias in node.names})
        elif isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.split(".")[0] == "reinforce"]
            found.update(name.removeprefix("reinforce").lstrip(".") for name in ours)
    return found


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    allowed = ALLOWED[next(name for name in parents_of(module) if name in ALLOWED)]
    imported = imports_of(source, module, is_package=is_package)
    return sorted(name for name in imported if name and "" not in allowed and not {*parents_of(name)} & {*allowed})


def parents_of(module: str) -> list[str]:
    """A module's name and those of the packages around it, innermost first."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: module_of(path) or "reinforce")
def test_the_import_rules_hold(path: Path) -> None:
    module = module_of(path)
    if module in ("", "__main__"):
        return
    assert violations(path.read_text(), module, is_package=path.name == "__init__.py") == []


def test_a_broken_import_rule_is_noticed() -> None:
    assert violations("from reinforce.runners import build", "builder") == ["runners"]
    assert violations("def f():\n    import reinforce.cli", "shards.reader") == ["cli"]
    assert violations("from ..plan import BuildPlan", "storage.local") == ["plan"]
    assert violations("from .store import Store", "storage.local") == []
    assert violations("from reinforce.deploy.export import export_onnx", "deploy.label.command") == ["deploy.export"]
    assert violations("from reinforce.deploy.model_file import ModelCard", "deploy.label.command") == []


@cache
def modules_after(statement: str) -> frozenset[str]:
    """What a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return frozenset(done.stdout.split())


HEAVY = {"torch", "ray", "transformers", "open_clip", "pyarrow", "numpy", "PIL", "obstore", "boto3"}


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import reinforce", HEAVY),
        ("import reinforce.cli", HEAVY),
        ("import reinforce.config", HEAVY),
        ("import reinforce.storage", HEAVY),
        ("import reinforce.views.draw", HEAVY - {"numpy"}),
        ("import reinforce.shards.dataset", {"torch", "ray", "transformers", "open_clip", "obstore"}),
        ("import reinforce.runners", {"ray", "open_clip", "boto3"}),
        ("import reinforce.selection", {"torch", "ray", "transformers", "open_clip", "obstore"}),
    ],
)
def test_heavy_libraries_load_only_where_they_are_used(statement: str, heavy: set[str]) -> None:
    assert modules_after(statement) & heavy == set()


def test_selecting_loads_no_torch(tmp_path: Path) -> None:
    golden = str(PACKAGE.parent / "tests" / "golden" / "dataset")
    arguments = ["select", golden, "--output", str(tmp_path / "s"), "--min-score", "-1", "--dedup", "0.99"]
    arguments += ["--bank", "scenes"]
    loaded = modules_after(f"from reinforce.cli import app\napp({arguments}, standalone_mode=False)")
    assert loaded >= {"reinforce.selection.duplicates", "reinforce.shards.banks"}
    assert loaded & {"torch", "ray", "transformers", "open_clip", "reinforce.teachers"} == set()


def test_a_heavy_import_is_noticed() -> None:
    assert "numpy" in modules_after("import reinforce.views.draw")
    assert "torch" in modules_after("import reinforce.teachers")


TEACHER_COMPUTE = {"ray", "reinforce.teachers", "reinforce.captioners", "reinforce.builder", "reinforce.runners"}


def test_training_loads_no_teacher_compute() -> None:
    modules = {"reinforce.student.train", "reinforce.evaluation", "reinforce.deploy.export", "reinforce.ray_train"}
    loaded = modules_after(f"import {', '.join(sorted(modules))}")
    assert loaded >= modules
    assert loaded & TEACHER_COMPUTE == set()


def test_an_inspection_that_computes_nothing_loads_no_teachers() -> None:
    modules = {"reinforce.inspection.stats", "reinforce.inspection.verify", "reinforce.cli.verify"}
    loaded = modules_after(f"import {', '.join(sorted(modules))}")
    assert loaded >= modules
    assert loaded & {*TEACHER_COMPUTE, "torch"} == set()
    assert "reinforce.teachers" in modules_after("import reinforce.inspection.recompute")
    assert violations("from reinforce.teachers import Teacher", "inspection.verify") == ["teachers"]


def test_teacher_compute_is_noticed() -> None:
    assert modules_after("import reinforce.runners") & TEACHER_COMPUTE >= {"reinforce.teachers", "reinforce.captioners"}
    assert violations("from reinforce.teachers import Teacher", "student.train") == ["teachers"]
