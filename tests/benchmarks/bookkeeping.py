"""What finding out what is left to do of a large dataset costs: time and memory before the first shard is computed.

    python -m tests.benchmarks.bookkeeping        (about 4 minutes on two cores; 400,000 empty files in TMPDIR)

65,536 source shards with 4 signals each, one in a hundred with a file missing: the source is listed, the documents are
compared, the output is listed and subtracted, in a process of its own. From a local folder; over HTTP from a stand-in
for S3 that serves the files of that folder; and from the same with the time to answer that S3 takes for a page.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from reinforce.captioners import FakeCaptioner
from reinforce.config import BuildConfig
from reinforce.plan import BuildPlan
from reinforce.prefetch import Task, missing_of
from reinforce.runners import asked, command
from reinforce.shards.dataset import DATASET_FILE, read_document
from reinforce.shards.schema import failure_file, spine_file
from reinforce.storage import Store, open_store
from reinforce.teachers import FakeTeacher

T = TypeVar("T")

NUM_SHARDS = 65_536
SHARDS_A_FOLDER = 1024
INCOMPLETE_EVERY = 100
PAGE_KEYS = 1000
PAGE_DELAY_S = 0.1


def four_signals() -> BuildPlan:
    """Captions, an image and two text embeddings, of models that need not be loaded."""
    model = {"kind": "open_clip", "model": "unused"}
    config = BuildConfig.model_validate({"teachers": {"teacher": model}, "captioners": {"captioner": model}})
    return BuildPlan(config, [FakeTeacher("teacher")], [FakeCaptioner("captioner")])


def write_stand_ins(folder: Path) -> None:
    """The source and what a build left of the output, as empty files, and the documents of the output."""
    plan = four_signals()
    output = open_store(str(folder / "output"), create=True)
    plan.record_dataset(output, open_store(str(folder / "source")).uri)
    plan.record_signals(output)
    files: list[Callable[[str], str]] = [spine_file, *(signal.file for signal in plan.signals)]
    for number in range(NUM_SHARDS):
        stem = f"{number // SHARDS_A_FOLDER:03d}/{number:06d}"
        names = [f"source/{stem}.tar", *(f"output/{file(stem)}" for file in files)]
        if number % INCOMPLETE_EVERY == 0:
            del names[1 + number // INCOMPLETE_EVERY % len(files)]
        for name in names:
            if number % SHARDS_A_FOLDER <= 1:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))


class Stages:
    """Seconds of wall and CPU, of all threads, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}

    def measure(self, stage: str, run: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = run()
        self.seconds[stage] = time.perf_counter() - wall, time.process_time() - cpu
        return answer


def plan_a_resume(source: str, output: Store, plan: BuildPlan, stages: Stages) -> list[Task]:
    """What `build` does before it computes, but for loading models."""

    def compare_documents() -> None:
        assert read_document(output, DATASET_FILE)
        plan.record_dataset(output, source)
        plan.record_signals(output)

    def subtract() -> tuple[list[Task], set[str]]:
        tasks = [task for ref in refs if (task := missing_of(ref, plan, existing))]
        return tasks, {task.shard.stem for task in tasks if failure_file(task.shard.stem) in existing}

    stages.measure("compare the documents", compare_documents)
    _, refs = stages.measure("find the shards", lambda: asked._find_shards([source], None, None))
    refs = asked._narrow(refs, None, None)
    stages.measure("sweep temporaries", output.sweep_temporaries)
    existing = stages.measure("list the output", lambda: command.existing_files(output, plan))
    tasks, _ = stages.measure("subtract, one machine", subtract)
    stems = stages.measure(
        "subtract, Ray driver", lambda: [ref.stem for ref in refs if not plan.is_complete(ref.stem, existing)]
    )
    assert stems == [task.shard.stem for task in tasks]
    return tasks


def measure_here(source: str, output: str) -> None:
    """Plans in this process and prints the costs."""
    plan, stages = four_signals(), Stages()
    before_mb, highest_mb = status_mb("VmRSS"), status_mb("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    tasks = stages.measure("together", lambda: plan_a_resume(source, open_store(output), plan, stages))
    peak_mb = status_mb("VmHWM")
    assert len(tasks) == -(-NUM_SHARDS // INCOMPLETE_EVERY)
    assert all(task.needs_spine + len(task.missing) == 1 for task in tasks)
    memory = {"peak": max(peak_mb, highest_mb), "above the imports": peak_mb - before_mb}
    print(json.dumps({"seconds": stages.seconds, "mb": memory}))


def status_mb(field: str) -> float:
    # Not `memory.status_kb`: importing that module loads the model libraries, which are no part of planning.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024


class BucketHandler(BaseHTTPRequestHandler):
    """Serves a folder as the bucket of that name: pages of its listing, its documents, and no creation of either."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 20
    folder: Path
    page_delay_s: float
    keys: list[str]
    items: list[str]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/cpu":
            self._answer(200, str(time.process_time()).encode())
        elif "list-type" in query:
            assert "delimiter" not in query, "only whole listings are served"
            time.sleep(self.page_delay_s)
            self._answer(200, self._page(query["prefix"], query.get("continuation-token")).encode())
        else:
            file = self.folder.parent / unquote(url.path[1:])
            self._answer(200, file.read_bytes()) if file.is_file() else self._answer(404, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(412, b"")

    def log_message(self, *_: object) -> None:
        pass

    def _page(self, prefix: str, token: str | None) -> str:
        start = int(token) if token else bisect_left(self.keys, prefix)
        end = min(start + PAGE_KEYS, bisect_left(self.keys, f"{prefix}\U0010ffff"))
        is_last = end < start + PAGE_KEYS
        following = "" if is_last else f"<NextContinuationToken>{end}</NextContinuationToken>"
        head = f"<IsTruncated>{'false' if is_last else 'true'}</IsTruncated>{following}"
        return f"<ListBucketResult>{head}{''.join(self.items[start:end])}</ListBucketResult>"

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"0"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve_here(folder: Path, page_delay_s: float) -> None:
    """Serves the folder until killed, and prints the port."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    BucketHandler.folder, BucketHandler.page_delay_s, BucketHandler.keys = folder, page_delay_s, sorted(sizes)
    BucketHandler.items = [
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"
        f"&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>{sizes[key]}</Size>"
        f"<StorageClass>STANDARD</StorageClass></Contents>"
        for key in BucketHandler.keys
    ]
    server = ThreadingHTTPServer(("127.0.0.1", 0), BucketHandler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def serving(folder: Path, page_delay_s: float) -> Iterator[str]:
    """The endpoint of a server in a process of its own."""
    server = subprocess.Popen([*_COMMAND, "serve", str(folder), str(page_delay_s)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.wait()


_COMMAND = [sys.executable, "-m", "tests.benchmarks.bookkeeping"]
_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "unused", "AWS_SECRET_ACCESS_KEY": "unused", "AWS_CONFIG_FILE": os.devnull}


def report(where: str, source: str, output: str) -> None:
    measured = subprocess.run(
        [*_COMMAND, "measure", source, output],
        env=os.environ | _ENVIRONMENT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    costs = json.loads(measured.stdout)
    print(f"\n| {where} | wall | CPU |\n|---|---|---|")
    for stage, (wall_s, cpu_s) in costs["seconds"].items():
        print(f"| {stage} | {wall_s:.2f} s | {cpu_s:.2f} s |")
    print(", ".join(f"{name}: {mb:.0f} MB" for name, mb in costs["mb"].items()), flush=True)


def report_bucket(where: str, folder: Path, page_delay_s: float) -> None:
    with serving(folder, page_delay_s) as endpoint:

        def server_cpu_s() -> float:
            return float(urllib.request.urlopen(f"{endpoint}/cpu").read())

        before_s = server_cpu_s()
        uris = [f"s3://{folder.name}/{name}?endpoint_url={quote(endpoint, safe=':/')}" for name in ("source", "output")]
        report(where, *uris)
        print(f"the server's CPU: {server_cpu_s() - before_s:.2f} s", flush=True)


def compare_stores() -> None:
    with tempfile.TemporaryDirectory(prefix="bookkeeping-") as temporary:
        folder = Path(temporary) / "bucket"
        write_stand_ins(folder)
        report("a local folder", str(folder / "source"), str(folder / "output"))
        report_bucket("a bucket", folder, 0)
        report_bucket(f"a bucket that takes {PAGE_DELAY_S} s for a page", folder, PAGE_DELAY_S)


def main() -> None:
    match sys.argv[1:]:
        case ["measure", source, output]:
            measure_here(source, output)
        case ["serve", folder, page_delay_s]:
            serve_here(Path(folder), float(page_delay_s))
        case _:
            compare_stores()


if __name__ == "__main__":
    main()
