"""Recipes: what is accepted, what is refused and how it is said."""

import math
from pathlib import Path

import pytest
import yaml

from reinforce.config import BuildConfig, ConfigError, ViewPolicy, builtin_recipes, load_recipe, parse_recipe

OPENAI = {"kind": "openai", "model": "m", "prompt": "p", "endpoint": "http://host/v1"}


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_recipe_that_comes_along_is_valid(name: str) -> None:
    assert load_recipe(name).build.teachers


def test_the_recipe_dime_fm_is_as_published() -> None:
    recipe = load_recipe("dime_fm")
    student = recipe.student
    assert student is not None
    loss, optimizer, views = student.loss, student.optimizer, recipe.build.views
    assert (loss.vl_weight, loss.pvl_weight, loss.udist_weight, loss.cosine_weight) == (0.7, 0.3, 0, 0)
    assert (loss.vl_temperature, loss.pvl_temperature, loss.udist_temperature, loss.similarity_scale) == (1, 3, 7, 100)
    assert (optimizer.learning_rate, optimizer.min_learning_rate, optimizer.weight_decay) == (8e-4, 4e-5, 0.05)
    assert (optimizer.betas, student.epochs, student.model.image_size) == ((0.9, 0.999), 100, 224)
    assert optimizer.warmup_steps == 4 * 40e6 / student.batch_size
    assert (views.scale, views.num_ops, views.hflip) == ((0.08, 1.0), 0, 0.5)
    assert recipe.build.source.max_captions == 0
    swin = "student.model={backbone: swin_tiny_patch4_window7_224, image_size: 224, embed_dim: 768, text: null, "
    swin += "drop_path: 0.2}"
    other = load_recipe("dime_fm", [swin]).student
    assert other is not None
    assert other.model.embed_dim == student.model.embed_dim == 768
    assert other.model.drop_path == 0.2
    assert {name: len(load_recipe(name).build.corpora) for name in ("dime_fm", "dime_fm_cifar10", "demo_dime_fm")} == {
        "dime_fm": 1,
        "dime_fm_cifar10": 1,
        "demo_dime_fm": 1,
    }


def test_overrides_are_yaml(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("build: {teachers: {a: {model: 'ViT-B-32:openai'}}}")
    overrides = ["build.views.count=3", "build.teachers.a.precision=bf16", "build.source.captions=[json.text, txt]"]
    recipe = load_recipe(str(tmp_path / "r.yaml"), overrides)
    assert recipe.build.views.count == 3
    assert recipe.build.teachers["a"].precision == "bf16"
    assert recipe.build.source.captions == ("json.text", "txt")
    cleared = load_recipe("mobileclip", ["build.captioners={}"])
    assert cleared.build.captioners == {}


def test_a_modality_is_a_suffix_or_more(tmp_path: Path) -> None:
    content = {"modalities": {"thermal": ".IR.jpg", "depth": {"suffix": "depth.png", "range": [500, 4000.5]}}}
    build = parse_recipe({"build": content}).build
    assert {name: (m.suffix, m.range) for name, m in build.modalities.items()} == {
        "thermal": ("ir.jpg", "type"),
        "depth": ("depth.png", (500.0, 4000.5)),
    }
    assert build.source.modalities == {"thermal": "ir.jpg", "depth": "depth.png"}
    assert BuildConfig.model_validate(build.model_dump(mode="json")) == build
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"build": content}))
    overridden = load_recipe(str(tmp_path / "r.yaml"), ["build.modalities.thermal.range=[0,1e3]"]).build.modalities
    assert (overridden["thermal"].suffix, overridden["thermal"].range) == ("ir.jpg", (0, 1000))


def test_paths_resolve_against_the_recipe_and_hub_names_do_not(tmp_path: Path) -> None:
    teachers = {
        "a": {"model": "local-dir:models/a"},
        "b": {"model": "ViT-B-32", "checkpoint": "weights/b.pt"},
        "c": {"model": "ViT-B-32", "checkpoint": "s3://bucket/c.pt"},
        "d": {"model": "openai/clip-vit-base-patch32", "kind": "transformers"},
        "e": {"model": "./local", "kind": "transformers"},
        "f": {"model": "hf-hub:org/name"},
        "g": {"model": "local-dir:s3://bucket/g?profile=in"},
        "h": {"model": "s3://bucket/h", "kind": "transformers"},
    }
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "r.yaml").write_text(yaml.safe_dump({"build": {"teachers": teachers}}))
    loaded = load_recipe(str(tmp_path / "sub" / "r.yaml")).build.teachers
    assert loaded["a"].model == f"local-dir:{tmp_path}/sub/models/a"
    assert loaded["b"].checkpoint == f"{tmp_path}/sub/weights/b.pt"
    assert loaded["c"].checkpoint == "s3://bucket/c.pt"
    assert loaded["d"].model == "openai/clip-vit-base-patch32"
    assert loaded["e"].model == f"{tmp_path}/sub/local"
    assert loaded["f"].model == "hf-hub:org/name"
    assert loaded["g"].model == "local-dir:s3://bucket/g?profile=in"
    assert loaded["h"].model == "s3://bucket/h"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ({"views": {"cuont": 3}}, "build.views.cuont: no such field"),
        ({"modalities": {"rgb": "ir.jpg"}}, "build.modalities.rgb: name 'rgb' is taken by the image itself"),
        (
            {"modalities": {"a": "jpg"}},
            "build.modalities.a: suffix 'jpg' is not a modality's; use one such as 'ir.jpg'",
        ),
        ({"modalities": {"a": "x.png", "b": ".X.png"}}, "build.modalities: two modalities have one suffix"),
        (
            {"modalities": {"a": ["x.png"]}},
            "build.modalities.a: must be a suffix such as ir.jpg, or {suffix: ..., range",
        ),
        ({"modalities": {"a": {"sufix": "x.png"}}}, "build.modalities.a.sufix: no such field"),
        ({"modalities": {"a": {"range": "type"}}}, "build.modalities.a.suffix: Field required"),
        ({"modalities": {"a": {"suffix": "x.png", "range": [1, 1]}}}, "a.range: range [1, 1] must satisfy LOW < HIGH"),
        (
            {"modalities": {"a": {"suffix": "x.png", "range": "all"}}},
            "a.range: range 'all' must be type, image or [LOW",
        ),
        ({"modalities": {"a": {"suffix": "x.png", "range": [0, math.inf]}}}, "a.range: range [0, inf] must be type"),
        ({"modalities": {"a": {"suffix": "x.png", "range": ["nan", 1]}}}, "a.range: range ['nan', 1] must be type"),
        ({"modalities": {"a": {"suffix": "x.png", "range": [0, 10**400]}}}, "a.range: range [0, 100000"),
        ({"modalities": {"a": {"suffix": "x.png", "range": [False, True]}}}, "a.range: range [False, True] must be"),
        ({"modalities": {"a": {"suffix": "x.png", "range": [-1e308, 1e308]}}}, "two numbers of at most 3e+38"),
        ({"modalities": {"a": {"suffix": "x.png", "range": [1, 2, 3]}}}, "a.range: range [1, 2, 3] must be type"),
        ({"source": {"modalities": {"a": "x.png"}}}, "source.modalities: declare them in build.modalities instead"),
        ({"teachers": {"a": {}}}, "build.teachers.a.model: Field required"),
        ({"teachers": {"A": {"model": "x"}}}, "build.teachers.A: name 'A' must be of a-z"),
        ({"teachers": {"a": {"model": "x", "precision": "int8"}}}, "build.teachers.a.precision: Input should be"),
        ({"teachers": {"a": {"model": "x", "sha256": "abc"}}}, "build.teachers.a.sha256"),
        ({"teachers": {"a": {"model": "x:y", "checkpoint": "z"}}}, "checkpoint needs a bare open_clip architecture"),
        ({"captioners": {"original": {"kind": "files", "field": "json.x"}}}, "is taken by the source's own captions"),
        ({"captioners": {"c": {"kind": "files"}}}, "kind files needs either path or field"),
        ({"captioners": {"c": {"kind": "open_clip"}}}, "kind open_clip needs model"),
        (
            {"captioners": {"c": {"kind": "files", "field": "json.x", "prompt": "a"}}},
            "prompt is no field of kind files",
        ),
        ({"captioners": {"c": {"kind": "open_clip", "model": "a:b", "checkpoint": "c"}}}, "needs a bare open_clip"),
        ({"captioners": {"c": {"kind": "open_clip", "model": "a", "revision": "b"}}}, "revision is no field of kind"),
        ({"captioners": {"c": OPENAI | {"endpoint": None}}}, "kind openai needs endpoint"),
        ({"captioners": {"c": OPENAI | {"prompt": ""}}}, "kind openai needs prompt"),
        ({"captioners": {"c": OPENAI | {"model": None}}}, "kind openai needs model"),
        ({"captioners": {"c": OPENAI | {"precision": "bf16"}}}, "precision is no field of kind openai"),
        ({"captioners": {"c": OPENAI | {"endpoint": "h:8000/v1"}}}, "endpoint: must be a base URL such as"),
        ({"source": {"captions": ["csv"]}}, "caption field 'csv' must be 'txt' or 'json.FIELD'"),
        ({"source": {"modalities": {"t": "jpg"}}}, "suffix 'jpg' is not a modality's"),
        ({"source": {"modalities": {"t": "ir.jpg", "u": "IR.jpg"}}}, "two modalities have one suffix"),
        ({"views": {"ratio": [2, 1]}}, "ratio [2.0, 1.0] must satisfy"),
        ({"seed": -1}, "build.seed"),
    ],
)
def test_a_mistake_names_its_field(build: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe({"build": build})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", "http://me:s3cret@host:8000/v1"),
        ("endpoint", "https://host/v1?key=s3cret"),
        ("endpoint", "s3cret://host"),
        ("api_key_env", "sk-s3cret"),
        ("api_key_env", "s3cret"),
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"build.captioners.c.{field}: must ") as raised:
        parse_recipe({"build": {"captioners": {"c": OPENAI | {field: value}}}})
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("content", ["- a list", "a: [unclosed", "\x00", "just text"])
def test_what_is_no_recipe(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"recipe .*r\.yaml: "):
        load_recipe(str(tmp_path / "r.yaml"))


def test_the_default_policy_is_the_published_one() -> None:
    policy = ViewPolicy()
    assert (policy.scale, policy.ratio, policy.num_ops, policy.magnitude) == ((0.08, 1.0), (3 / 4, 4 / 3), 2, 9)
    assert (policy.hflip, policy.photometric) == (0.0, True)
