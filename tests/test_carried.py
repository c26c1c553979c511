"""What a driver hands to worker processes that have none of its profiles, files and environment."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from reinforce.storage import Carried, StorageError, accept, aws, carry, open_store
from tests.s3_server import FaultyProxy, S3Server, make_certificate, use_test_credentials

SECRET = "s3cr3t/ThatMustNotBe+Seen0123456789abcdef"
TOKEN = "FwoGZXIvYXdzEXAMPLETOKEN"
NOWHERE = {
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Profiles:
    """The driver's files: profile `in`, whose keys may change, and `role`, a role that `in` may assume."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._credentials = folder / "credentials"
        self.config = folder / "config"
        role = "role_arn = arn:aws:iam::123456789012:role/builder\nsource_profile = in\n"
        settings = f"region = eu-west-3\nendpoint_url = {endpoint}\n"
        self.config.write_text(f"[profile in]\n{settings}[profile role]\n{role}{settings}")
        self.use_keys("OLDKEY")

    def use_keys(self, key_id: str) -> None:
        secret = f"aws_secret_access_key = {SECRET}\naws_session_token = {TOKEN}\n"
        self._credentials.write_text(f"[in]\naws_access_key_id = {key_id}\n{secret}")


@pytest.fixture
def profiles(tmp_path: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Profiles:
    use_test_credentials(monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setattr(aws, "accepted", {})
    return Profiles(tmp_path, proxy.endpoint)


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest) -> str:
    return server.make_bucket(f"bucket-{abs(hash(request.node.nodeid))}")


def run_worker(code: str, *carried: Carried) -> str:
    """A process with nothing of the driver's but what arrives on its standard input."""
    start = "import pickle, sys\nfrom reinforce import storage\nfrom reinforce.storage import aws\n"
    start += "def receive():\n    storage.accept(pickle.load(sys.stdin.buffer))\n"
    command = [sys.executable, "-c", start + code]
    messages = b"".join(map(pickle.dumps, carried))
    done = subprocess.run(command, input=messages, capture_output=True, env=NOWHERE, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode()


def keys_seen(proxy: FaultyProxy, method: str) -> list[str]:
    """The ids of the access keys that requests were signed with."""
    signed = [request.authorization for request in proxy.requests if request.method == method]
    return [authorization.partition("Credential=")[2].partition("/")[0] for authorization in signed]


def test_a_worker_without_profiles_reads_and_writes(profiles: Profiles, proxy: FaultyProxy, bucket: str) -> None:
    uri = f"s3://{bucket}/x?profile=in"
    open_store(uri).put("from_driver", b"hello")
    carried = carry([f"s3://{bucket}/other/part?profile=in", "/a/local/path"])
    proxy.requests.clear()
    code = f"""
receive()
store = storage.open_store({uri!r})
print(store.read("from_driver").decode(), store.put_if_absent("from_worker", b"hello"))
try:
    storage.open_store({uri.replace("in", "other")!r}).read("x")
except storage.StorageError as error:
    print(error)
"""
    lines = run_worker(code, carried).splitlines()
    assert lines[0] == "hello True"
    assert "profile (other) could not be found" in lines[1]
    assert open_store(uri).read("from_worker") == b"hello"
    assert all("/eu-west-3/s3/" in request.authorization for request in proxy.requests)
    assert keys_seen(proxy, "PUT") == ["OLDKEY"]


def test_renewed_credentials_reach_a_store_that_is_open(profiles: Profiles, proxy: FaultyProxy, bucket: str) -> None:
    uri = f"s3://{bucket}?profile=in"
    before = carry([uri])
    profiles.use_keys("NEWKEY")
    after = carry([uri])
    assert before != after
    # A life below 5 minutes makes obstore ask again for a request, though not within 0.1 s of the last.
    code = f"""
import time
from datetime import timedelta
aws.CREDENTIAL_LIFE = timedelta(minutes=1)
receive()
store = storage.open_store({uri!r})
store.put("a", b"1")
receive()
time.sleep(0.3)
store.put("b", b"1")
"""
    run_worker(code, before, after)
    assert keys_seen(proxy, "PUT") == ["OLDKEY", "NEWKEY"]


def test_an_assumed_role_is_carried_and_not_assumed_again(profiles: Profiles, proxy: FaultyProxy, bucket: str) -> None:
    uri = f"s3://{bucket}?profile=role"
    first = carry([uri])
    assert carry([uri]) == first
    assert len(keys_seen(proxy, "POST")) == 1
    run_worker(f"receive()\nstorage.open_store({uri!r}).put('x', b'1')", first)
    (access,) = first.stores.values()
    assert access.keys is not None
    assert access.keys.token is not None
    assert keys_seen(proxy, "PUT") == [access.keys.access_key] != ["OLDKEY"]


def test_what_is_equal_and_what_is_not(profiles: Profiles, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = [f"s3://{bucket}/a?profile=in", f"s3://{bucket}/b?profile=in", f"s3://{bucket}?anonymous=true"]
    carried = carry(uris)
    assert len(carried.stores) == 2
    assert carry(reversed(uris)) == carried == pickle.loads(pickle.dumps(carried))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert carry(uris) != carried


def test_no_secret_is_shown(profiles: Profiles, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    carried = carry([f"s3://{bucket}/a?profile=in"])
    assert repr(carried) == str(carried) == f"Carried(s3://{bucket})"
    shown = f"{carried.stores}"
    assert not any(secret in shown for secret in (SECRET, TOKEN, "OLDKEY"))


def test_the_role_of_a_machine_stays_there(profiles: Profiles, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.credentials
    import botocore.session

    def own_role(_: object) -> botocore.credentials.Credentials:
        return botocore.credentials.Credentials("ROLEKEY", SECRET, TOKEN, method="iam-role")

    uri = f"s3://{bucket}?profile=in"
    with monkeypatch.context() as patch:
        patch.setattr(botocore.session.Session, "get_credentials", own_role)
        carried = carry([uri])
    (access,) = carried.stores.values()
    assert access.keys is None
    assert b"ROLEKEY" not in pickle.dumps(carried)
    # The worker has its own.
    own = "import os\nos.environ.update(AWS_ACCESS_KEY_ID='OWNKEY', AWS_SECRET_ACCESS_KEY='x')\n"
    run_worker(f"{own}receive()\nstorage.open_store({uri!r}).put('x', b'1')", carried)
    code = f"""
receive()
try:
    storage.open_store({uri!r}).put("y", b"1")
except storage.StorageError as error:
    print(error)
"""
    assert "no AWS credentials found on this machine (the driver uses a role" in run_worker(code, carried)


def test_an_anonymous_store_and_a_private_authority(
    server: S3Server, profiles: Profiles, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    with FaultyProxy(server.endpoint, certificate=certificate, key=key) as proxy:
        uri = f"s3://{bucket}/p?endpoint_url={proxy.endpoint}&anonymous=true"
        carried = carry([uri])
        authority.unlink()
        assert run_worker(f"receive()\nprint(list(storage.open_store({uri!r}).list()))", carried) == "[]\n"
        assert [request.authorization for request in proxy.requests] == [""]


def test_the_environment_of_hubs_and_other_clouds_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    ours = {"HF_TOKEN": "hf_secret", "AZURE_STORAGE_ACCOUNT_NAME": "account", "GOOGLE_SERVICE_ACCOUNT": "/key.json"}
    ours["OPENAI_API_KEY"] = "sk-secret"
    for name, value in {**ours, "HF_HOME": "/here", "AWS_PROFILE": "in"}.items():
        monkeypatch.setenv(name, value)
    carried = carry(["gs://bucket/x", "az://container/y"])
    assert (carried.environment, carried.stores) == (ours, {})
    code = "import os\nreceive()\nprint(os.environ['HF_TOKEN'], os.environ['AZURE_STORAGE_ACCOUNT_NAME'])"
    assert run_worker(code, carried) == "hf_secret account\n"


def test_what_cannot_be_reached_is_told_by_the_driver(profiles: Profiles, bucket: str) -> None:
    with pytest.raises(StorageError, match=r"profile.*nobody.*AWS_CONFIG_FILE"):
        carry([f"s3://{bucket}?profile=nobody"])
    with pytest.raises(StorageError, match="no AWS credentials found: set AWS_PROFILE"):
        carry([f"s3://{bucket}"])
    profiles.config.write_text("[profile in]\ncredential_process = /bin/false\n")
    os.unlink(profiles.config.with_name("credentials"))
    with pytest.raises(StorageError, match="cannot get AWS credentials for profile in") as caught:
        carry([f"s3://{bucket}?profile=in"])
    assert "\n" not in str(caught.value)


def test_what_one_driver_carried_stays_when_less_is_carried(profiles: Profiles, bucket: str) -> None:
    accept(carry([f"s3://{bucket}?profile=in"]))
    accept(carry([]))
    assert list(aws.accepted) == [("s3", bucket, (("profile", "in"),))]
