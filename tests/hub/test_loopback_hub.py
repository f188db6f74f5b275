"""The Hub of the tests answers the real client as the real one does."""

import re
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import DROP, LOSE_ANSWER, TOKEN, USER, Hub

CARD = b"---\nlicense: mit\npipeline_tag: image-classification\n---\nText."
LARGE = bytes(range(256)) * 40


def add(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("__", "."), content) for name, content in files.items()]


def test_a_commit_is_a_snapshot_under_a_branch_and_a_tag(hub: Hub, api: HfApi):
    assert api.whoami()["name"] == USER
    assert api.create_repo("org/name", private=True).repo_id == "org/name"
    api.create_repo("org/name", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("org/name")
    first = api.model_info("org/name").sha
    done = api.create_commit("org/name", add(README__md=CARD, model__safetensors=LARGE), commit_message="one")
    info = api.model_info("org/name")
    assert (info.sha, info.pipeline_tag, info.private) == (done.oid, "image-classification", True)
    assert [c.commit_id for c in api.list_repo_commits("org/name")] == [done.oid, first]
    api.create_branch("org/name", branch="native", revision=first)
    api.create_tag("org/name", tag="v1")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("org/name", tag="v1")
    refs = api.list_repo_refs("org/name")
    assert {b.name: b.target_commit for b in refs.branches} == {"main": done.oid, "native": first}
    assert {t.name: t.target_commit for t in refs.tags} == {"v1": done.oid}
    api.create_commit("org/name", [CommitOperationDelete("README.md")], commit_message="two")
    assert set(api.list_repo_files("org/name")) == {".gitattributes", "model.safetensors"}
    assert set(api.list_repo_files("org/name", revision="v1")) == {".gitattributes", "model.safetensors", "README.md"}


def test_large_files_are_checked_and_sent_once(hub: Hub, api: HfApi):
    repository = hub.create("org/name")
    api.create_commit("org/name", add(model__safetensors=LARGE, config__json=b"{}"), commit_message="one")
    api.create_commit("org/name", add(copy__safetensors=LARGE), commit_message="two")
    (large, small) = api.get_paths_info("org/name", ["copy.safetensors", "config.json", "nothing"])
    assert large.lfs.sha256 == "".join(hub.uploads)
    assert (large.size, small.lfs) == (len(LARGE), None)
    assert small.blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git hash-object of two braces
    assert repository.contents()["copy.safetensors"] == LARGE
    wrong = f"{hub.url}/large-files/model/org/name/{'0' * 64}"
    assert huggingface_hub.utils.get_session().put(wrong, content=b"x").status_code == 400


def test_a_pull_request_starts_at_its_parent_and_merges_onto_what_main_has_become(hub: Hub, api: HfApi):
    repository = hub.create("org/name")
    base = api.model_info("org/name").sha
    theirs = repository.write({"theirs.txt": b"theirs"})
    done = api.create_commit(
        "org/name", add(ours__txt=b"ours"), commit_message="ours", create_pr=True, parent_commit=base
    )
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    assert set(api.list_repo_files("org/name", revision="refs/pr/1")) == {".gitattributes", "ours.txt"}
    (pull,) = api.get_repo_discussions("org/name", discussion_status="open", author=USER)
    assert (pull.title, pull.git_reference) == ("ours", "refs/pr/1")
    api.merge_pull_request("org/name", 1)
    assert set(repository.contents()) == {".gitattributes", "ours.txt", "theirs.txt"}
    assert api.get_discussion_details("org/name", 1).merge_commit_oid == api.model_info("org/name").sha != theirs
    for number in (2, 3):
        api.create_commit("org/name", add(ours__txt=b"%d" % number), commit_message="both", create_pr=True)
    api.merge_pull_request("org/name", 2)
    with pytest.raises(HfHubHTTPError, match="conflicts"):
        api.merge_pull_request("org/name", 3)
    api.change_discussion_status("org/name", 3, "closed")
    assert not list(api.get_repo_discussions("org/name", discussion_status="open"))


def test_a_commit_on_a_branch_that_moved_is_refused(hub: Hub, api: HfApi):
    repository = hub.create("org/name")
    old = api.model_info("org/name").sha
    hub.on("POST .*/commit/main", lambda: repository.write({"theirs.txt": b""}))
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("org/name", add(a__txt=b"a"), commit_message="a", parent_commit=old)
    assert set(repository.contents()) == {".gitattributes", "theirs.txt"}


def test_what_is_missing_has_the_error_that_the_client_knows(hub: Hub, api: HfApi, tmp_path: Path):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/nothing")
    hub.create("org/name").write({"a.txt": b"a"})
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_files("org/name", revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("org/name", "b.txt", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.url, token="hf_wrong").create_tag("org/name", tag="v1")
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit("org/name", add(README__md=b"---\n: [\n---\n"), commit_message="bad")


def test_files_are_read_whole_or_in_part(hub: Hub, api: HfApi, tmp_path: Path):
    hub.create("org/name", "dataset").write({"data/a.parquet": LARGE})
    (name,) = [entry.path for entry in api.list_repo_tree("org/name", "data", repo_type="dataset")]
    file = api.hf_hub_download("org/name", name, repo_type="dataset", cache_dir=tmp_path)
    assert Path(file).read_bytes() == LARGE
    address = f"{hub.url}/datasets/org/name/resolve/main/{name}"
    part = huggingface_hub.utils.get_session().get(address, headers={"Range": "bytes=250-260"})
    assert (part.status_code, part.content) == (206, LARGE[250:261])


def test_faults_happen_when_told_and_the_log_holds_no_token(hub: Hub, api: HfApi, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    repository = hub.create("org/name")
    hub.on("PUT /large-files", DROP)
    api.create_commit("org/name", add(model__safetensors=LARGE), commit_message="tried twice")
    assert len([request for request in hub.requests if request.startswith("PUT")]) == 2
    hub.on("POST .*/tag/", 403)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_tag("org/name", tag="v1")
    hub.on("POST .*/tag/", LOSE_ANSWER)
    with pytest.raises(huggingface_hub.utils.httpx.RemoteProtocolError):
        api.create_tag("org/name", tag="v2")
    assert set(repository.tags) == {"v2"}
    hub.on("HEAD .*/resolve/", DROP)
    with pytest.raises((LocalEntryNotFoundError, huggingface_hub.utils.httpx.RemoteProtocolError)):
        api.hf_hub_download("org/name", "model.safetensors", cache_dir=tmp_path)
    assert not re.search(TOKEN, repr(hub))
