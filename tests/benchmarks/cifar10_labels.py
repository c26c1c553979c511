"""CIFAR-10's training shards with labels, which their keys tell: what a linear probe is trained on, or held out.

python -m tests.benchmarks.cifar10_labels FOLDER
"""

import argparse
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.studies import SHARED
from tests.tars import write_tar


def write_labelled(folder: Path, shared: Path, stems: Sequence[str] | None = None) -> Path:
    """Writes the images of `shared`'s training shards, by default of all, each with a `.cls`, and the class names.

    Returns `folder`; keys and stems are those of the shards, whose order is kept.
    """
    cifar10 = shared / "data/cifar10"
    names = (cifar10 / "classnames.txt").read_text().split()
    for shard in sorted((cifar10 / "train").glob("*.tar")):
        if stems is not None and shard.stem not in stems:
            continue
        members = []
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                if suffix == "jpg":
                    file = tar.extractfile(member)
                    assert file is not None
                    members.append((member.name, file.read()))
                    members.append((f"{key}.cls", str(names.index(key.rpartition("_")[0])).encode()))
        write_tar(folder / shard.name, members)
    (folder / "classnames.txt").write_text("\n".join(names))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, default=SHARED, help="where CIFAR-10 is")
    arguments = parser.parse_args()
    folder = write_labelled(arguments.folder, arguments.shared)
    print(f"{folder}: {len(list(folder.glob('*.tar')))} shards with labels")


if __name__ == "__main__":
    main()
