"""Remote data sets on an S3 server and an HTTP server of this machine."""

import errno
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import boto3
import pytest
import torch
from feature_folders import shard_folder, write_features
from remote_reader import read_all

from data_prep.digits import ensure
from mhimdist.config.train import ConfigWarning, Loading
from mhimdist.data import opening as data_opening
from mhimdist.data import shard_cache
from mhimdist.data.manifest import Manifest
from mhimdist.data.opening import open_bags
from mhimdist.data.read_ahead import read_ahead
from mhimdist.data.remote import RemoteFolder, absolute, is_remote
from mhimdist.data.shard_cache import ShardCache
from mhimdist.data.shards import BagShards
from mhimdist.errors import ConfigError, CorruptShard, ManifestError, RemoteDataError

TESTS = Path(__file__).parents[1]


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shard_cache, "_RETRY_S", 0.01)
    monkeypatch.setenv("MHIMDIST_SHARD_CACHE", str(tmp_path / "cache"))
    write_features(tmp_path)
    return shard_folder(tmp_path, shard_bytes=4_000)


@pytest.fixture
def bucket(s3: str, shards: Path, request: pytest.FixtureRequest) -> str:
    """The URL of the shards in a new bucket."""
    name = f"b{abs(hash(request.node.name))}"
    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket=name)
    for path in shards.iterdir():
        client.put_object(Bucket=name, Key=f"some/shards/{path.name}", Body=path.read_bytes())
    return f"s3://{name}/some/shards"


class Server(http.server.SimpleHTTPRequestHandler):
    """A file server that records its requests and can withhold shards."""

    asked: ClassVar[list[str]] = []
    released: ClassVar = threading.Event()
    delay_s = 0.0

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.endswith(".tar"):
            self.released.wait(self.delay_s)
        super().do_GET()

    def copyfile(self, *files: Any) -> None:
        with suppress(BrokenPipeError):  # the reader was killed, or has read enough
            super().copyfile(*files)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(shards: Path) -> Iterator[str]:
    """The URL of the shards on a web server."""
    Server.asked.clear()
    Server.released.clear()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Server, directory=shards.parent)
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/shards"
        server.shutdown()
        thread.join()


def assert_same(remote: BagShards, shards: Path) -> None:
    local = BagShards(shards)
    assert remote.digest == local.digest
    rows = [4, 0, 5, 3, 2, 1]
    assert torch.equal(remote.load(rows).features_TD, local.load(rows).features_TD)
    assert remote.keys == local.keys


def cached(shards: Path) -> list[Path]:
    return sorted((shards.parent / "cache").glob("*.tar"))


def test_a_bucket_is_read_like_a_folder(bucket: str, shards: Path) -> None:
    bags = BagShards(bucket)
    assert not (shards.parent / "cache").exists()  # opening needs only the manifest
    bags.load([0])
    assert len(cached(shards)) == 1
    assert_same(bags, shards)
    assert len(cached(shards)) == len(list(shards.glob("*.tar")))
    assert (shards.parent / "cache").stat().st_mode & 0o777 == 0o700


def test_a_bucket_is_read_while_it_is_appended_to(bucket: str, shards: Path, s3: str) -> None:
    name = f"shard-{len(list(shards.glob('*.tar'))):06d}.tar"
    client = boto3.client("s3", endpoint_url=s3)
    put = partial(client.put_object, Bucket=bucket.split("/")[2])
    put(Key=f"some/shards/{name}", Body=b"new")
    with pytest.raises(ManifestError, match=f"{bucket} does not hold .*: {name}: not in the manifest"):
        BagShards(bucket)
    put(Key="some/shards/.arriving", Body=f"{name}\n".encode())
    assert_same(BagShards(bucket), shards)


def test_a_manifest_without_end_is_not_read_to_it(
    web: str, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        len(RemoteFolder(web).read("manifest.parquet", 10**9)) == (shards / "manifest.parquet").stat().st_size
    )
    monkeypatch.setattr("mhimdist.data.remote.CHUNK_BYTES", 100)
    assert len(RemoteFolder(web).read("manifest.parquet", 250)) == 300
    monkeypatch.setattr("mhimdist.data.shards.MAX_BYTES", 250)
    monkeypatch.setattr("mhimdist.data.manifest.MAX_BYTES", 250)
    with pytest.raises(ManifestError, match="has more than 250 bytes, too many for a manifest"):
        BagShards(web)


def test_a_web_server_is_read_like_a_folder_and_asked_once(web: str, shards: Path) -> None:
    for _ in range(2):
        bags = BagShards(web)
        assert_same(bags, shards)
    names = [path.rsplit("/", 1)[1] for path in Server.asked]
    tars = [name for name in names if name.endswith(".tar")]
    assert sorted(tars) == sorted(path.name for path in shards.glob("*.tar"))
    assert names.count("manifest.parquet") == 2


def test_the_shards_of_an_epoch_are_brought_ahead(web: str, shards: Path) -> None:
    bags = open_bags(web, Loading(shard_cache=shards.parent / "cache"))
    with read_ahead(bags, [[5], [0]]) as batches:
        next(batches)
        deadline = time.monotonic() + 300
        while len(cached(shards)) < len({bags._shards[row] for row in (5, 0)}):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert open_bags(web, Loading(shard_cache=shards.parent / "cache")) is bags


def _reader(url: str, cache: Path, limit_bytes: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "remote_reader", url, str(cache), str(limit_bytes)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.long
def test_processes_of_a_node_share_the_cache(web: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "delay_s", 0.05)
    readers = [_reader(web, shards.parent / "cache", 10**9) for _ in range(2)]
    local = BagShards(shards)
    expected = [float(local.load([row]).features_TD.sum()) for row in range(len(local))]
    for reader in readers:
        output, _ = reader.communicate()
        assert json.loads(output) == expected
    tars = [path for path in Server.asked if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) == len(list(shards.glob("*.tar")))
    assert not list((shards.parent / "cache").glob("*.part"))


def test_all_together_keep_the_limit_of_the_cache(web: str, shards: Path) -> None:
    limit_bytes = 2 * max(path.stat().st_size for path in shards.glob("*.tar"))
    cache = shards.parent / "cache"
    local = BagShards(shards)
    expected = [float(local.load([row]).features_TD.sum()) for row in range(len(local))]
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(read_all, web, cache, limit_bytes) for _ in range(4)]
        while not all(each.done() for each in reading):
            before, total = set(cache.glob("*.tar")), sum(_sizes(cache))
            # A shard may have gone, and another come, while the sizes were added up.
            assert total <= limit_bytes or before != set(cache.glob("*.tar"))
            time.sleep(0.002)
    assert all(each.result() == expected for each in reading)
    assert not list(cache.glob("*.part"))


def _sizes(cache: Path) -> Iterator[int]:
    """The sizes of the shards at one moment, without those that vanish meanwhile."""
    for path in cache.glob("*.tar"):
        with suppress(FileNotFoundError):
            yield path.stat().st_size


def test_the_least_recently_used_shard_goes_first(bucket: str, shards: Path) -> None:
    manifest = Manifest.read(shards)
    first, second, third = manifest.info.shards[:3]
    cache = ShardCache(shards.parent / "cache", first.bytes + second.bytes + third.bytes - 1)
    source = RemoteFolder(bucket)
    cache.open(first, source).close()
    cache.open(second, source).close()
    os.utime(cache.path(second), (1, 1))
    held = cache.open(first, source)
    cache.open(third, source).close()
    assert [cache.path(shard).exists() for shard in (first, second, third)] == [True, False, True]
    cache.open(second, source).close()
    with held:
        assert held.read() == (shards / first.name).read_bytes()  # even if it was removed meanwhile


def test_files_of_others_are_never_removed(bucket: str, shards: Path) -> None:
    first, second = Manifest.read(shards).info.shards[:2]
    folder = shards.parent / "cache"
    folder.mkdir()
    names = ("mine.tar", f"{'a' * 64}.tar.part", f"{'a' * 63}.tar", f"{'A' * 64}.tar", "download.part")
    for name in names:
        (folder / name).write_bytes(bytes(first.bytes))
        os.utime(folder / name, (1, 1))
    cache, source = ShardCache(folder, max(first.bytes, second.bytes)), RemoteFolder(bucket)
    for shard in (first, second):
        cache.open(shard, source).close()
    assert [cache.path(shard).exists() for shard in (first, second)] == [False, True]
    assert all((folder / name).stat().st_size == first.bytes for name in names)


def _fill_disk(folder: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk of a folder be full after so many bytes."""
    allocate = os.posix_fallocate

    def limited(descriptor: int, start: int, num_bytes: int) -> None:
        if sum(path.stat().st_size for path in folder.iterdir()) + num_bytes > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, start, num_bytes)

    monkeypatch.setattr(os, "posix_fallocate", limited)


@pytest.mark.faults(29)
def test_a_full_disk_is_a_limit_too(bucket: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = Manifest.read(shards).info.shards[:3]
    cache, source = ShardCache(shards.parent / "cache"), RemoteFolder(bucket)
    _fill_disk(cache.folder, first.bytes + second.bytes + third.bytes - 1, monkeypatch)
    for shard in (first, second):
        cache.open(shard, source).close()
    os.utime(cache.path(second), (1, 1))
    cache.open(third, source).close()
    assert [cache.path(shard).exists() for shard in (first, second, third)] == [True, False, True]
    _fill_disk(cache.folder, second.bytes - 1, monkeypatch)
    with pytest.raises(RemoteDataError, match=rf"has no room for {second.bytes} bytes: No space left on dev"):
        cache.open(second, source)
    assert not cached(shards)  # all were evicted before the error


def test_a_removed_shard_is_unmapped_and_brought_again(bucket: str, shards: Path) -> None:
    largest = max(path.stat().st_size for path in shards.glob("*.tar"))
    bags = BagShards(bucket, shard_cache=ShardCache(shards.parent / "cache", largest))
    for _ in range(2):
        assert_same(bags, shards)
        assert len(cached(shards)) == len(bags._mapped._maps) == 1


def test_a_shard_above_the_limit_is_refused(bucket: str, shards: Path) -> None:
    bags = BagShards(bucket, shard_cache=ShardCache(shards.parent / "cache", 100))
    with pytest.raises(ConfigError, match=r"shard-\d+\.tar has \d+ bytes, above the limit of 100"):
        bags.load([0])


def test_a_cache_that_cannot_keep_the_data_is_said_before_training(bucket: str, shards: Path) -> None:
    sizes = [path.stat().st_size for path in shards.glob("*.tar")]
    names = {"shard_cache": shards.parent / "cache"}
    open_bags(bucket, Loading(**names, shard_cache_gib=sum(sizes) / 2**30))
    with pytest.warns(
        ConfigWarning, match=r"its shards have .* above the .* \(loading\.shard_cache_gib\): ev"
    ):
        bags = open_bags(bucket, Loading(**names, shard_cache_gib=(sum(sizes) - 1) / 2**30))
    assert_same(bags, shards)  # it still works
    with pytest.raises(
        ConfigError, match=r"shard-\d+\.tar alone has .* above the .*\(loading\.shard_cache_gib"
    ):
        open_bags(bucket, Loading(**names, shard_cache_gib=(max(sizes) - 1) / 2**30))


def test_a_disk_that_cannot_keep_the_data_is_said_before_training(
    bucket: str, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [path.stat().st_size for path in shards.glob("*.tar")]
    folder = shards.parent / "cache"
    free = sum(sizes)

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=free - sum(each.stat().st_size for each in path.glob("*.tar")))

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert_same(open_bags(bucket, Loading(shard_cache=folder)), shards)  # cached shards count as room
    data_opening._open.cache_clear()
    assert_same(open_bags(bucket, Loading(shard_cache=folder)), shards)
    data_opening._open.cache_clear()
    free -= 1
    with pytest.warns(
        ConfigWarning, match=rf"above the .* that the disk of the shard cache {folder} has for"
    ):
        open_bags(bucket, Loading(shard_cache=folder))


@pytest.mark.faults(1)
@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_is_caught_on_arrival(seed: int, web: str, shards: Path) -> None:
    row = Manifest.read(shards).rows.to_pylist()[0]
    path = shards / row["shard"]
    content = bytearray(path.read_bytes())
    content[seed * len(content) // 5] ^= 1 << seed  # a tar header, padding or payload
    path.write_bytes(content)
    bags = BagShards(web)
    with pytest.raises(CorruptShard, match=rf"{web}/{row['shard']}: expected sha256 [0-9a-f]+, got"):
        bags.load([0])
    assert sum(asked.endswith(row["shard"]) for asked in Server.asked) == shard_cache.ATTEMPTS
    assert list((shards.parent / "cache").glob("*.*r*t*")) == []  # neither the shard nor a partial one


def test_a_shard_of_another_length_is_caught_before_or_on_arrival(
    bucket: str, web: str, shards: Path, s3: str
) -> None:
    name = Manifest.read(shards).info.shards[0].name
    size = (shards / name).stat().st_size
    with (shards / name).open("ab") as file:
        file.write(b"more")
    bags = BagShards(web)  # HTTP has no listing
    with pytest.raises(CorruptShard, match=f"{name}: expected {size} bytes, got {size + 4} or more"):
        bags.load([0])
    os.truncate(shards / name, size - 4)
    with pytest.raises(CorruptShard, match=f"{name}: expected {size} bytes, got {size - 4}$"):
        bags.load([0])
    (shards / name).unlink()
    with pytest.raises(RemoteDataError, match=f"{name}: no such file"):
        bags.load([0])
    client = boto3.client("s3", endpoint_url=s3)
    client.put_object(Bucket=bucket.split("/")[2], Key=f"some/shards/{name}", Body=b"short")
    with pytest.raises(ManifestError, match=f"{name}: expected {size} bytes, got 5"):
        BagShards(bucket)


@pytest.mark.long
def test_a_killed_process_leaves_nothing_that_looks_whole(
    web: str, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shards.parent / "cache"
    monkeypatch.setattr(Server, "delay_s", 600.0)
    reader = _reader(web, cache, 10**9)
    while not list(cache.glob("*.part")):
        assert reader.poll() is None
        time.sleep(0.005)
    reader.kill()
    reader.communicate()
    Server.released.set()
    (part,) = cache.glob("*.part")
    manifest = Manifest.read(shards)
    other = next(shard for shard in manifest.info.shards if shard.sha256 != part.stem)
    ShardCache(cache, other.bytes + 100).open(other, RemoteFolder(web)).close()
    assert not part.exists()  # it counts against the limit and is evicted first
    assert_same(BagShards(web), shards)


def test_a_cached_file_cut_off_by_a_crash_is_brought_again(bucket: str, shards: Path) -> None:
    BagShards(bucket).load([0])
    os.truncate(cached(shards)[0], 10)
    assert_same(BagShards(bucket), shards)


def test_a_place_that_is_not_there(s3: str, web: str, tmp_path: Path) -> None:
    with pytest.raises((RemoteDataError, ManifestError), match="s3://nowhere/shards"):
        BagShards("s3://nowhere/shards")
    with pytest.raises(ManifestError, match=f"no manifest at {web}/elsewhere/"):
        BagShards(f"{web}/elsewhere")
    with pytest.raises(RemoteDataError, match=r"http://127\.0\.0\.1:9/shards/manifest\.parquet cannot"):
        BagShards("http://127.0.0.1:9/shards")


@pytest.mark.faults(7)
@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch sentinel",
        "pipe://touch sentinel",
        "sh:touch sentinel",
        "s3://bucket/x::pipe://y",
        "simplecache::s3://bucket",
        "s3:bucket",
        "reference://x",
        "ftp://host/x",
    ],
)
def test_only_known_schemes_are_taken(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (BagShards, RemoteFolder, absolute, partial(ensure, home=tmp_path)):
        with pytest.raises(ConfigError, match="expected a folder or a URL of s3, gs, "):
            use(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults(37)
def test_passwords_are_refused_and_queries_are_not_shown(web: str, shards: Path) -> None:
    with pytest.raises(ConfigError, match="credentials belong in the environment") as error_info:
        is_remote("https://user:hunter2@host/shards")
    assert "hunter2" not in str(error_info.value)
    bags = BagShards(f"{web}?token=hunter2")
    assert_same(bags, shards)
    assert all(path.endswith("?token=hunter2") for path in Server.asked)
    bags._mapped._maps.clear()
    for path in (*shards.iterdir(), *cached(shards)):
        path.unlink()
    with pytest.raises(RemoteDataError) as error_info:
        bags.load([0])
    assert "hunter2" not in str(error_info.value)


def test_urls_pass_through_to_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ensure("s3://bucket/shards", tmp_path) == "s3://bucket/shards"
    assert absolute("s3://bucket/shards/") == "s3://bucket/shards"
    monkeypatch.chdir(tmp_path)
    assert (
        absolute("x") == absolute(Path("x")) == absolute(f"file://{tmp_path}/x") == tmp_path.resolve() / "x"
    )
    (tmp_path / "s3:" / "odd").mkdir(parents=True)
    assert not is_remote("s3:/odd")  # an existing folder has this name


def test_a_cache_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache.os, "getuid", lambda: 12345)
    with pytest.raises(ConfigError, match="belongs to user"):
        ShardCache(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"shard cache .*/file/below: Not a directory"):
        ShardCache(tmp_path / "file" / "below")
