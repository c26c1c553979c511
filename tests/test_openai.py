"""The captioner behind an endpoint, against a real server: order, retries, refusals, and what is never shown."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from reinforce.captioners import Captioner, CaptionRequest, endpoint, load_captioner
from reinforce.captioners.cleaning import MAX_REDRAWS
from reinforce.captioners.endpoint import EndpointError
from reinforce.config import CaptionerConfig
from reinforce.teachers import FakeTeacher
from reinforce.weights import ModelError
from tests.chat_server import MODEL, Answer, Asked, ChatServer, completion, error, grey_image, serve_chat
from tests.fakes import fake_plan, run
from tests.tars import pairs, write_tar

KEY = "sk-ThatMustNotBeSeen"
PROBE = 43  # the grey of the image that the captioner sends of itself


@pytest.fixture
def _served() -> Iterator[tuple[ChatServer, str]]:
    with serve_chat() as served:
        yield served


@pytest.fixture
def chat(_served: tuple[ChatServer, str], monkeypatch: pytest.MonkeyPatch) -> ChatServer:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    _served[0].reset()
    return _served[0]


@pytest.fixture
def url(_served: tuple[ChatServer, str]) -> str:
    return _served[1]


def load(url: str, **settings: Any) -> Captioner:
    fields: dict[str, Any] = {"prompt": "Describe it.", "image_size": 32, "num_captions": 2, "retries": 2} | settings
    config = CaptionerConfig(kind="openai", endpoint=url, **{"model": MODEL, **fields})
    return load_captioner("remote", config, device=torch.device("cpu"), batch_size=4)


def requests_of(*greys: int) -> list[CaptionRequest]:
    return [CaptionRequest(stem="s", key=str(g), seed=2**63 + g, image=grey_image(g)) for g in greys]


def greys_of(captions: list[list[str]]) -> list[set[str]]:
    return [{text.partition(",")[0] for text in texts} for texts in captions]


def one_line(raised: pytest.ExceptionInfo[Exception]) -> str:
    message = str(raised.value)
    assert "\n" not in message
    assert KEY not in message
    return message


def test_captions_come_in_order_from_one_request_an_image(chat: ChatServer, url: str) -> None:
    delays = np.random.default_rng(0).uniform(0, 0.03, 40)
    chat.answer = lambda asked: Answer(body=completion([*asked.texts()]).body, delay_s=delays[asked.grey])
    captioner = load(url + "/", concurrency=6, top_p=0.8, temperature=0.5, max_new_tokens=12)
    assert (captioner.is_remote, captioner.image_size, chat.asked) == (True, 32, [])
    for greys in (range(20), range(20, 40)):
        captions = captioner.caption(requests_of(*greys))
        assert greys_of(captions) == [{f"grey {grey}"} for grey in greys]
        assert {len(texts) for texts in captions} == {2}
    assert 1 < chat.most_in_flight <= 6
    assert len(chat.asked) == len({asked.payload["seed"] for asked in chat.asked}) == 40
    assert all(0 <= asked.payload["seed"] < 2**31 for asked in chat.asked)
    payload = chat.asked[0].payload
    assert payload["messages"][0]["content"][1] == {"type": "text", "text": "Describe it."}
    settings = {"model": MODEL, "n": 2, "max_tokens": 12, "top_p": 0.8, "temperature": 0.5}
    assert {name: payload[name] for name in settings} == settings
    assert {headers["Authorization"] for headers in chat.headers} == {f"Bearer {KEY}"}


def test_the_server_sees_the_clean_view(chat: ChatServer, url: str) -> None:
    rows, columns = np.mgrid[0:32, 0:32]
    image = np.stack([4 * rows, 4 * columns, 255 - 3 * rows - 3 * columns], axis=-1).astype(np.uint8)
    load(url).caption([CaptionRequest(stem="s", key="k", seed=1, image=image)])
    assert np.abs(chat.asked[0].image.astype(int) - image).mean() < 2


def test_without_a_key_none_is_sent(chat: ChatServer, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "  other\n")
    load(url, api_key_env="MINE")
    load(url, api_key_env="NOT_THERE")
    assert [headers.get("Authorization") for headers in chat.headers] == ["Bearer other", None]


@pytest.mark.parametrize("refuses", [False, True])
def test_where_n_is_not_heeded_each_caption_is_asked_for(chat: ChatServer, url: str, refuses: bool) -> None:
    def answer(asked: Asked) -> Answer:
        return error(400, "n must be 1") if refuses and "n" in asked.payload else completion([asked.texts()[0]])

    chat.answer = answer
    captioner = load(url, num_captions=3, concurrency=1)
    for grey in (1, 2):
        captions = captioner.caption(requests_of(grey))
        assert (greys_of(captions), len(set(captions[0]))) == ([{f"grey {grey}"}], 3)
    assert [asked.num_choices for asked in chat.asked] == [3, *([1] * (5 + refuses))]
    answered = [asked.payload["seed"] for asked in chat.asked if not (refuses and asked.num_choices > 1)]
    assert len(set(answered)) == 6


def test_repeats_and_empty_texts_are_asked_for_again(chat: ChatServer, url: str) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.grey == 1:
            return completion([" same\n", "same"] if asked.number == 0 else [f"new {asked.payload['seed']}"])
        return completion(["", None] if asked.number == 0 else [None])

    chat.answer = answer
    captions = load(url).caption(requests_of(1, 2))
    assert captions[0][0] == "same"
    assert captions[0][1].startswith("new ")
    assert captions[1] == []
    assert len(chat.asked) == 2 * (1 + MAX_REDRAWS)


@pytest.mark.parametrize(
    "bad",
    [
        error(500, "oops"),
        error(408, "late"),
        error(429, "slower"),
        Answer(drop=True),
        Answer(body=b"<html>sign in</html>"),
        Answer(body={"error": {"message": "upstream"}}),
        Answer(body={"choices": []}),
        Answer(body={"choices": [{"message": "text"}]}),
        Answer(body=b'{"choices": [{"mess'),
    ],
)
def test_what_may_pass_is_tried_again(chat: ChatServer, url: str, bad: Answer) -> None:
    chat.answer = lambda asked: bad if asked.number < 2 and asked.grey % 2 else completion([*asked.texts()])
    captions = load(url).caption(requests_of(1, 2, 3))
    assert greys_of(captions) == [{"grey 1"}, {"grey 2"}, {"grey 3"}]
    assert len(chat.asked) == 3 + 1 + 3


def test_a_slow_answer_is_given_up_and_asked_for_again(chat: ChatServer, url: str) -> None:
    slow = Answer(delay_s=1)
    chat.answer = lambda asked: slow if asked.number == 0 else completion([*asked.texts()])
    assert greys_of(load(url, timeout_s=0.5).caption(requests_of(1, 2))) == [{"grey 1"}, {"grey 2"}]
    chat.answer = lambda asked: slow
    with pytest.raises(EndpointError) as raised:
        load(url, timeout_s=0.2, retries=0).caption(requests_of(3))
    assert "no answer within 0.2 s" in one_line(raised)


def test_retry_after_is_waited_for(chat: ChatServer, url: str) -> None:
    busy = error(429, "busy", Retry_After="1")
    chat.answer = lambda asked: busy if asked.number == 0 else completion([*asked.texts()])
    assert greys_of(load(url).caption(requests_of(1))) == [{"grey 1"}]
    assert chat.asked[1].at_s - chat.asked[0].at_s >= 1
    assert [endpoint._seconds(text) for text in ("7", "86400", "-1", "Fri, 27 Nov 2026 03:00:00 GMT", "")] == [
        7,
        endpoint.LONGEST_RETRY_AFTER_S,
        0,
        0,
        0,
    ]


def test_an_endpoint_that_stays_down_is_an_error_and_no_empty_captions(chat: ChatServer, url: str) -> None:
    captioner = load(url, concurrency=1)
    chat.answer = lambda asked: (
        error(503, f"overloaded\n{KEY}" + 190 * "." + KEY) if asked.grey == 2 else completion([*asked.texts()])
    )
    with pytest.raises(EndpointError) as raised:
        captioner.caption(requests_of(1, 2, 3, 4))
    message = one_line(raised)
    assert message.startswith(f"model {MODEL} at {url}: 3 attempts failed (503: overloaded ***...")
    assert KEY[:3] not in message
    asked = [asked.grey for asked in chat.asked]
    assert (asked[:4], 4 in asked) == ([1, 2, 2, 2], False)
    chat.reset()
    assert greys_of(captioner.caption(requests_of(5, 6))) == [{"grey 5"}, {"grey 6"}]
    assert 4 not in {asked.grey for asked in chat.asked}  # nor has it been asked for after the error


def test_a_server_that_is_not_there_is_told_at_once(chat: ChatServer) -> None:
    with pytest.raises(EndpointError) as raised:
        load("http://127.0.0.1:9/v1")
    assert "at http://127.0.0.1:9/v1: 2 attempts failed (Cannot connect" in one_line(raised)


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "variable OPENAI_API_KEY"), (402, "no such"), (404, "a base URL such as"), (307, "")]
)
def test_a_wrong_key_or_model_is_refused_when_loaded(chat: ChatServer, url: str, status: int, hint: str) -> None:
    chat.models = ["another"]
    chat.answer = lambda asked: error(status, f"no such thing: {KEY}", Location=url)
    with pytest.raises(ModelError) as raised:
        load(url)
    message = one_line(raised)
    assert f"model {MODEL} at {url}: {status}: no such thing: ***" in message
    assert hint in message
    assert [asked.grey for asked in chat.asked] == [PROBE]


def test_a_wrong_url_is_refused_when_loaded(chat: ChatServer, url: str) -> None:
    with pytest.raises(ModelError, match="404: Not Found; endpoint is a base URL"):
        load(url.removesuffix("/v1"))


@pytest.mark.parametrize("models", [None, ["tiny-vlm:latest"]])
def test_a_list_of_models_is_not_the_last_word(chat: ChatServer, url: str, models: list[str] | None) -> None:
    chat.models = models
    assert greys_of(load(url).caption(requests_of(1))) == [{"grey 1"}]
    assert [asked.grey for asked in chat.asked] == [PROBE, 1]


def test_a_refused_image_has_no_captions_and_its_neighbours_have(chat: ChatServer, url: str) -> None:
    captioner = load(url)
    chat.answer = lambda asked: error(400, "unsafe") if asked.grey in (2, 4) else completion([*asked.texts()])
    assert greys_of(captioner.caption(requests_of(1, 2, 3))) == [{"grey 1"}, set(), {"grey 3"}]
    assert PROBE not in {asked.grey for asked in chat.asked}
    assert captioner.caption(requests_of(4)) == [[]]
    assert [asked.num_choices for asked in chat.asked if asked.grey == 3] == [2]
    chat.answer = lambda asked: error(400, "this model takes no images")
    with pytest.raises(ModelError) as raised:
        captioner.caption(requests_of(5, 6))
    assert "400: this model takes no images" in one_line(raised)
    assert captioner.caption([]) == []


def test_an_interrupt_does_not_wait_for_the_server(chat: ChatServer, url: str) -> None:
    captioner = load(url, concurrency=2)
    released = threading.Event()

    def answer(asked: Asked) -> Answer:
        if len(chat.asked) > 1 and asked is chat.asked[1]:
            os.kill(os.getpid(), signal.SIGINT)
        released.wait(10)
        return completion([*asked.texts()])

    chat.answer = answer
    # What a shell starts in the background ignores interrupts, and so would this process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            captioner.caption(requests_of(1, 2, 3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert chat.num_in_flight == 2  # still busy with what nobody waits for
    chat.answer = lambda asked: completion([*asked.texts()])
    assert greys_of(captioner.caption(requests_of(7, 8))) == [{"grey 7"}, {"grey 8"}]
    assert 3 not in {asked.grey for asked in chat.asked}
    released.set()


def test_a_proxy_is_used_and_netrc_is_not(
    chat: ChatServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine captioner.invalid login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", url.removesuffix("/v1").replace("//", "//me:secret@"))
    load("http://captioner.invalid/v1")
    assert chat.paths == ["http://captioner.invalid/v1/models"]
    assert (chat.headers[0]["Authorization"], "Proxy-Authorization" in chat.headers[0]) == (f"Bearer {KEY}", True)
    monkeypatch.setenv("https_proxy", os.environ["http_proxy"])  # a proxy that makes no tunnels
    with pytest.raises(EndpointError, match="501") as raised:
        load("https://captioner.invalid/v1")
    assert "secret" not in one_line(raised)


def test_the_fingerprint_is_of_what_was_asked_and_not_of_how_it_was_reached(chat: ChatServer, url: str) -> None:
    content = load(url).content()
    assert load(url + "/", concurrency=3, timeout_s=9, retries=1, api_key_env="NOT_THERE").content() == content
    others: list[dict[str, Any]] = [
        {"prompt": "x"},
        {"top_p": 0.5},
        {"temperature": 2.0},
        {"image_size": 64},
        {"max_new_tokens": 9},
    ]
    assert [load(url, **other).content() == content for other in others] == [False] * len(others)
    assert content["sampler"] == "server"
    assert load(url).describe() == {**content, "endpoint": url}


def shards_of(folder: Path) -> Path:
    for shard in range(2):
        write_tar(folder / "source" / f"{shard}.tar", pairs(5, start=5 * shard))
    return folder / "source"


def build(captioner: Captioner, source: Path, output: Path) -> Any:
    plan = fake_plan(teachers=[FakeTeacher("large", dim=12, image_size=24)], captioners=[captioner])
    return run(plan, source, output)


def test_a_build_whose_endpoint_fails_for_a_while(chat: ChatServer, url: str, tmp_path: Path) -> None:
    source, output = shards_of(tmp_path), tmp_path / "out"
    captioner = load(url, retries=0)

    def answer(asked: Asked) -> Answer:
        images = [before.image.tobytes() for before in chat.asked]
        if len(set(images)) > 6:  # within the second shard
            return error(500, f"out of memory {KEY}")
        return error(400, "unsafe") if asked.image.tobytes() == images[0] else completion([*asked.texts()])

    chat.answer = answer
    summary = build(captioner, source, output)
    assert list(summary.failed) == ["1"]
    assert "500: out of memory" in summary.failed["1"]
    assert not (output / "captions" / "remote" / "1.parquet").exists()
    chat.reset()
    assert build(captioner, source, output).failed == {}
    written = [pq.read_table(output / "captions" / "remote" / f"{shard}.parquet") for shard in range(2)]
    assert [table["captions"].null_count for table in written] == [1, 0]
    text = pq.read_table(output / "embeddings" / "large" / "text" / "remote" / "1.parquet")
    assert (text.num_rows, text["caption_001"].null_count) == (5, 0)
    everything = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in data for data in everything)


def test_a_key_that_is_withdrawn_ends_the_build(chat: ChatServer, url: str, tmp_path: Path) -> None:
    captioner = load(url)
    chat.answer = lambda asked: error(401, "expired")
    with pytest.raises(ModelError) as raised:
        build(captioner, shards_of(tmp_path), tmp_path / "out")
    assert "401: expired; the key is read from" in one_line(raised)
    assert not list((tmp_path / "out").rglob("*.parquet"))
