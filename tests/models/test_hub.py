"""Hub ids, against a hub on this machine: what is asked for, and every refusal."""

import errno
import json

import huggingface_hub
import numpy as np
import pytest

from jtok import models
from jtok.errors import CheckpointError, MissingFileError, WriteError
from jtok.models import storage
from jtok.testing import tiny_model, tiny_vocabulary
from tests.models import hub as hubs

NAME = "org/tiny"
WEIGHTS = "model.safetensors"
UNWANTED = (
    "README.md",
    "adapter.safetensors",
    "consolidated.00.pth",
    "flax_model.msgpack",
    "model.pt",
    "modeling_x.py",
    "onnx/model.onnx",
    "pytorch_model.bin",
    "tf_model.h5",
    "x.gguf",
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository; the client's cache is empty."""
    import huggingface_hub.file_download

    source = tmp_path / "source"
    models.save(tiny_model(), source)
    tiny_vocabulary().save(source)
    with hubs.running() as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        # Retries wait for seconds.
        monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda s: None)
        huggingface_hub.close_session()
        hub.files[NAME] = {file.name: file.read_bytes() for file in source.iterdir()}
        hub.files[NAME] |= dict.fromkeys(UNWANTED, b"\x80never")
        yield hub
        huggingface_hub.close_session()


def test_only_what_is_needed_is_downloaded_and_only_once(hub):
    folder = storage.resolve(NAME)
    wanted = ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in folder.iterdir()) == wanted
    assert hub.sent() == wanted
    for name in wanted:
        assert (folder / name).read_bytes() == hub.files[NAME][name]
    hub.asked.clear()
    assert storage.resolve(NAME) == folder
    assert hub.sent() == []
    assert storage.resolve(NAME, local_files_only=True) == folder
    hub.shutdown()
    hub.server_close()
    assert storage.resolve(NAME) == folder  # the network is away, the files are not


def test_a_hub_id_loads_as_its_folder_does(hub):
    # Without the tokenizer, which has more ids than the model has rows.
    hub.files["org/other"] = dict(hub.files[NAME])
    del hub.files["org/other"]["tokenizer.json"]
    model = models.load("org/other", revision="v1", token="secret")
    assert model.vocabulary is None
    expected = tiny_model().params["embed"]["tokens"]
    np.testing.assert_array_equal(model.params["embed"]["tokens"], expected)
    again = models.load("org/other", revision="v1", local_files_only=True)
    np.testing.assert_array_equal(again.params["embed"]["tokens"], expected)


def test_revision_and_token_are_sent(hub):
    hub.gated.add(NAME)
    storage.resolve(NAME, revision="v1", token="secret")
    assert f"/api/models/{NAME}/revision/v1" in [asked.path for asked in hub.asked]
    assert {asked.token for asked in hub.asked} == {"secret"}


def test_no_token_is_sent_without_one(hub):
    storage.resolve(NAME, token=False)
    assert {asked.token for asked in hub.asked} == {None}


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_gated_repository_says_what_to_do(hub, token):
    hub.gated.add(NAME)
    with pytest.raises(MissingFileError, match="'org/tiny' is gated.*accept.*token="):
        storage.resolve(NAME, token=token)


@pytest.mark.parametrize("token", [None, "secret"])
def test_a_missing_repository_is_named(hub, token):
    with pytest.raises(MissingFileError, match="'org/nowhere' is no folder here and"):
        storage.resolve("org/nowhere", token=token)


def test_a_missing_revision_is_named(hub):
    with pytest.raises(MissingFileError, match="revision: the hub's 'org/tiny' has no"):
        storage.resolve(NAME, revision="v9")


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_a_hub_that_fails_is_named(hub, status):
    hub.failing = status
    with pytest.raises(MissingFileError, match="'org/tiny' .*hub did not answer"):
        storage.resolve(NAME)


@pytest.mark.parametrize("where", [WEIGHTS, "config.json"])
def test_a_download_that_breaks_is_named_and_a_retry_works(hub, where):
    hub.dies_in.add(where)
    with pytest.raises(MissingFileError, match="'org/tiny' .*hub did not answer"):
        storage.resolve(NAME)
    # What came is not taken for the whole.
    with pytest.raises(CheckpointError):
        models.load(NAME, local_files_only=True)
    hub.dies_in.clear()
    folder = storage.resolve(NAME)
    assert (folder / where).read_bytes() == hub.files[NAME][where]


def test_without_a_network_or_a_copy(hub):
    hub.shutdown()
    hub.server_close()
    for local in (False, True):
        with pytest.raises(MissingFileError, match="'org/tiny' is no folder here"):
            models.load(NAME, local_files_only=local)


def test_offline_by_the_environment(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingFileError, match="'org/tiny' is no folder here"):
        storage.resolve(NAME)
    assert hub.asked == []


def test_all_shards_are_downloaded(hub, tmp_path):
    place = tmp_path / "sharded"
    models.save(tiny_model(), place, max_shard_bytes=40_000)
    hub.files["org/big"] = {file.name: file.read_bytes() for file in place.iterdir()}
    shards = sorted(place.glob("model-*.safetensors"))
    assert len(shards) > 2
    folder = storage.resolve("org/big")
    assert hub.sent() == sorted(hub.files["org/big"])
    with storage.TensorFiles.open(folder) as got, storage.TensorFiles.open(place) as to:
        assert got.names() == to.names()
        for name in got:
            np.testing.assert_array_equal(got.read(name), to.read(name))


def test_a_repository_that_lacks_a_shard(hub, tmp_path):
    place = tmp_path / "sharded"
    models.save(tiny_model(), place, max_shard_bytes=40_000)
    files = {file.name: file.read_bytes() for file in place.iterdir()}
    index = json.loads(files["model.safetensors.index.json"])
    lost = sorted(set(index["weight_map"].values()))[1]
    del files[lost]
    hub.files["org/big"] = files
    with pytest.raises(
        MissingFileError, match=f"1 of its .* not in the folder: {lost}"
    ):
        models.load("org/big")


def test_a_repository_without_safetensors(hub):
    hub.files["org/old"] = {
        name: hub.files[NAME][name] for name in ("config.json", "pytorch_model.bin")
    }
    with pytest.raises(
        MissingFileError, match=r"no weights there; expected model\.saf"
    ):
        models.load("org/old")
    assert hub.sent() == ["config.json"]


def test_a_full_disk_is_not_taken_for_a_network(hub, monkeypatch):
    def download(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(WriteError, match="'org/tiny' cannot be stored.*No space left"):
        storage.resolve(NAME)
