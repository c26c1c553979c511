"""Labels and prompt templates: files beside the shards in CLIP_benchmark's layout, given ones, open_clip's sets.

Both are text files with one entry a line. CLIP_benchmark writes `{c}` where the class name goes, everyone else `{}`.
"""

from reinforce.config import ConfigError
from reinforce.config.recipe import TEMPLATE_SETS
from reinforce.storage import open_parent, open_store

CLASSNAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
DEFAULT_TEMPLATES = ("a photo of a {}.",)

_MOST_SHOWN = 60


def read_classnames(root: str, given: str | None) -> tuple[str, ...]:
    """Names in the order of their labels: from `given`, or found in the shards' folder or the one above it."""
    if given:
        uri, names = given, read_labels(given, option="--classnames")
    else:
        found = find_classnames(root)
        if found is None:
            raise ConfigError(f"no {CLASSNAMES_FILE} in {root} or the folder above it: pass --classnames FILE")
        names, uri = found
    if len(names) < 2:
        raise ConfigError(f"{uri}: {len(names)} class names; zero-shot classification needs at least 2")
    return names


def find_classnames(root: str) -> tuple[tuple[str, ...], str] | None:
    """Names and the URI of their file in the shards' folder or the one above it, if there is one."""
    text, uri = _beside(root, CLASSNAMES_FILE)
    return None if text is None else (_labels(text, uri), uri)


def read_labels(uri: str, *, option: str) -> tuple[str, ...]:
    """The labels of a file; `option` is what gave it, for messages. Raises `ConfigError`."""
    return _labels(_read(uri, option), uri)


def read_templates(root: str, given: str | None) -> tuple[str, ...]:
    """Templates with `{}` for the class name: given as for `read_template_set`, those beside the shards, or one."""
    if given:
        return read_template_set(given, option="--templates")
    text, uri = _beside(root, TEMPLATES_FILE)
    return DEFAULT_TEMPLATES if text is None else _templates(text, uri)


def read_template_set(given: str, *, option: str) -> tuple[str, ...]:
    """The templates of a file, or of one of open_clip's sets; `option` is what gave it. Raises `ConfigError`."""
    if given in TEMPLATE_SETS:
        import open_clip

        sets = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
        return tuple(template("{}") for template in sets[given])
    return _templates(_read(given, option, f" (nor {' or '.join(TEMPLATE_SETS)}, open_clip's sets)"), given)


def prompt(template: str, name: str) -> str:
    """The template with the class name in it; other braces stay as they are."""
    return template.replace("{}", name)


def _labels(text: str, uri: str) -> tuple[str, ...]:
    names = tuple(line.strip() for line in text.rstrip().split("\n"))
    if not all(names):
        raise ConfigError(
            f"{uri}: line {names.index('') + 1} is empty; labels count lines, so each must be a class name"
        )
    return names


def _templates(text: str, uri: str) -> tuple[str, ...]:
    templates = []
    for number, line in enumerate(text.split("\n"), start=1):
        template = line.strip().replace("{c}", "{}")
        if template and "{}" not in template:
            raise ConfigError(f"{uri}: line {number} has no {{}} for the class name: {template[:_MOST_SHOWN]!r}")
        templates += [template] if template else []
    if not templates:
        raise ConfigError(f"{uri}: holds no template; write one a line, such as: a photo of a {{}}.")
    return tuple(templates)


def _read(uri: str, option: str, hint: str = "") -> str:
    store, name = open_parent(uri)
    try:
        return _decode(store.read(name), uri)
    except FileNotFoundError:
        raise ConfigError(f"{option} {uri}: no such file{hint}") from None


def _beside(root: str, name: str) -> tuple[str | None, str]:
    for store in (open_store(root), open_parent(root)[0]):
        try:
            return _decode(store.read(name), store.uri_of(name)), store.uri_of(name)
        except FileNotFoundError:
            continue
    return None, ""


def _decode(data: bytes, uri: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{uri}: is not UTF-8 text") from None
