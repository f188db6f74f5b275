"""A release on the Hub is all there or not there, whatever happens in between; refusals come before any request."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from loopback_hub import DROP, LOSE_ANSWER, TOKEN, Hub
from loopback_repository import Repository
from safetensors.torch import save_file
from tiny_release import CARD, FailingApi, Interrupted, tensors, write_model

from maws_hf.hub.release import ReleaseError, describe_plan, push_release
from maws_hf.hub.release_checks import ReleaseCheckError
from maws_hf.hub.staging import Staging, StagingError, build_staging, read_staging

NAME = "org/tiny"


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return build_staging(write_model(tmp_path / "model"), tmp_path / "staging").folder


@pytest.fixture
def native(tmp_path: Path) -> Path:
    model = write_model(tmp_path / "ours", model_type="maws_vit", seed=5)
    return build_staging(model, tmp_path / "native", native=True).folder


def of_another(tmp_path: Path, seed: int = 1) -> Path:
    return build_staging(write_model(tmp_path / f"model{seed}", seed=seed), tmp_path / f"staging{seed}").folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in read_staging(folder).everything}


def on(repository: Repository, revision: str) -> dict[str, bytes]:
    return {name: data for name, data in repository.contents(revision).items() if name != ".gitattributes"}


def test_main_becomes_exactly_the_folder_in_one_commit_with_a_tag(hub: Hub, api: HfApi, staging: Path, native: Path):
    repository = hub.create(NAME)
    repository.write({"old.bin": b"old", "old/notes.txt": b"old", "README.md": b"old"}, title="before")
    before = repository.branches["main"]
    release = push_release(staging, NAME, tag="v1.0", native=native, api=api)
    assert on(repository, "main") == on(repository, "v1.0") == contents(staging)
    assert on(repository, "native") == on(repository, "v1.0-native") == contents(native)
    assert ".gitattributes" in repository.contents()
    assert [c.oid for c in repository.history("main")][1] == before
    assert (release.commit, release.pull_request) == (repository.tags["v1.0"], 1)
    assert release.native_commit == repository.branches["native"]
    assert "revision='v1.0'" in str(release)
    # The branch in our own format starts before any release and shares nothing with main.
    assert repository.history("native")[1].title == "initial commit"


def test_a_new_repository_is_made_and_the_same_call_changes_nothing_more(hub: Hub, api: HfApi, staging: Path):
    push_release(staging, NAME, tag="v1", api=api, private=True)
    repository = hub.repository(NAME)
    assert repository.private
    state = (dict(repository.branches), dict(repository.tags), list(repository.pulls), list(hub.uploads))
    release = push_release(staging, NAME, tag="v1", api=api)
    assert (release.pull_request, release.commit) == (None, repository.tags["v1"])
    push_release(staging, NAME, tag="v1-again", api=api)
    assert repository.tags.pop("v1-again") == repository.tags["v1"]
    assert (repository.branches, repository.tags, [*repository.pulls], hub.uploads) == state


def test_a_later_release_replaces_main_and_an_earlier_command_does_not_bring_the_old_one_back(
    hub: Hub, api: HfApi, staging: Path, tmp_path: Path
):
    push_release(staging, NAME, tag="v1", api=api)
    push_release(of_another(tmp_path), NAME, tag="v2", api=api)
    repository = hub.repository(NAME)
    release = push_release(staging, NAME, tag="v1", api=api)
    assert release.commit == repository.tags["v1"]
    assert on(repository, "main") == on(repository, "v2") == contents(of_another(tmp_path))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_call_leaves_main_whole_and_the_same_command_finishes(
    hub: Hub, api: HfApi, staging: Path, native: Path, tmp_path: Path, after: bool
):
    """Case 34: the call number k fails, for every k; nothing is sent twice."""
    old = of_another(tmp_path)
    for k in range(100):
        name = f"org/tiny{k}"
        push_release(old, name, api=api)
        repository = hub.repository(name)
        before, received = repository.commits[repository.branches["main"]], len(hub.uploads)
        failing = FailingApi(api, k, after=after)
        try:
            push_release(staging, name, tag="v1", native=native, api=failing)
            break
        except Interrupted:
            pass
        now = repository.commits[repository.branches["main"]]
        assert now.files == before.files or on(repository, "main") == contents(staging)
        assert "v1" not in repository.tags or on(repository, "v1") == contents(staging)
        push_release(staging, name, tag="v1", native=native, api=api)
        assert on(repository, "main") == on(repository, "v1") == contents(staging)
        assert on(repository, "native") == on(repository, "v1-native") == contents(native)
        assert len(repository.history("main")) == 3, "a release is one commit, also after an interruption"
        assert [pull.status for pull in repository.pulls.values()].count("open") == 0
        assert len(hub.uploads) - received == 2, "one file of weights for each branch"
    assert k == len(failing.calls) > 15
    assert {"create_repo", "create_branch", "create_commit", "merge_pull_request", "create_tag"} <= {*failing.calls}


def test_large_files_that_have_arrived_are_not_sent_again(hub: Hub, api: HfApi, tmp_path: Path):
    model, shards = write_model(tmp_path / "model"), ["model-00001-of-00002", "model-00002-of-00002"]
    (model / "model.safetensors").unlink()
    for shard, (name, tensor) in zip(shards, tensors().items(), strict=True):
        save_file({name: tensor}, model / f"{shard}.safetensors")
    places = {name: f"{shard}.safetensors" for shard, name in zip(shards, tensors(), strict=True)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    staging = build_staging(model, tmp_path / "staging").folder
    hub.on("PUT /large-files", 403, nth=2)
    with pytest.raises(ReleaseError, match="answered 403"):
        push_release(staging, NAME, tag="v1", api=api)
    assert (len(hub.uploads), on(hub.repository(NAME), "main")) == (1, {})
    push_release(staging, NAME, tag="v1", api=api)
    assert len({*hub.uploads}) == len(hub.uploads) == 2
    assert on(hub.repository(NAME), "v1") == contents(staging)


def test_an_open_pull_request_of_other_content_is_closed_and_that_of_somebody_else_left_alone(
    hub: Hub, api: HfApi, staging: Path, tmp_path: Path
):
    repository = hub.create(NAME)
    for folder in (of_another(tmp_path), staging):
        with pytest.raises(Interrupted):
            push_release(folder, NAME, tag="v1", api=StopAt(api, "merge_pull_request"))
    # A page of the same name by somebody else, and one of ours by hand.
    repository.pulls[1].author, repository.pulls[1].status = "stranger", "open"
    by_hand = [huggingface_hub.CommitOperationAdd("theirs.txt", b"theirs")]
    api.create_commit(NAME, by_hand, commit_message="by hand", create_pr=True)
    push_release(of_another(tmp_path, 2), NAME, tag="v1", api=api)
    by_title = {pull.number: pull.status for pull in repository.pulls.values()}
    assert by_title == {1: "open", 2: "closed", 3: "open", 4: "merged"}


class StopAt(FailingApi):
    """Raises in place of the first call of that name."""

    def __init__(self, api: HfApi, name: str):
        super().__init__(api, -1)
        self.stop = name

    def __getattr__(self, name: str):
        if name == self.stop:
            raise Interrupted(name)
        return super().__getattr__(name)


@pytest.mark.parametrize("moment", ["POST .*/preupload/", "POST .*/commit/main"])
def test_a_branch_that_moved_is_an_error_and_their_commit_stays(hub: Hub, api: HfApi, staging: Path, moment: str):
    repository = hub.create(NAME)
    hub.on(moment, lambda: repository.write({"theirs.txt": b"theirs"}))
    with pytest.raises(ReleaseError, match="changed the branch main"):
        push_release(staging, NAME, tag="v1", api=api)
    assert on(repository, "main") == {"theirs.txt": b"theirs"}
    assert not repository.tags
    push_release(staging, NAME, tag="v1", api=api)
    assert on(repository, "main") == on(repository, "v1") == contents(staging)
    assert repository.history("main")[1].files["theirs.txt"].content == b"theirs"
    assert [pull.status for pull in repository.pulls.values()] == ["closed", "merged"]


def test_main_that_moves_in_the_very_moment_of_the_merge_gets_no_tag(hub: Hub, api: HfApi, staging: Path):
    repository = hub.create(NAME)
    hub.on("POST .*/merge", lambda: repository.write({"theirs.txt": b"theirs"}))
    with pytest.raises(ReleaseError, match=r"main moved while .*\(theirs\.txt\); no tag was set"):
        push_release(staging, NAME, tag="v1", api=api)
    assert not repository.tags


def test_a_native_branch_that_moved_is_refused_by_the_hub(hub: Hub, api: HfApi, staging: Path, native: Path):
    repository = hub.create(NAME)
    hub.on("POST .*/commit/native", lambda: repository.write({"theirs.txt": b"theirs"}, revision="native"))
    with pytest.raises(ReleaseError, match="changed the branch native"):
        push_release(staging, NAME, tag="v1", native=native, api=api)
    assert not repository.tags
    assert on(repository, "native") == {"theirs.txt": b"theirs"}


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_that_comes_back_different_is_not_merged(hub: Hub, api: HfApi, staging: Path, file: str):
    repository = hub.create(NAME)

    def spoil() -> None:
        if repository.pulls and repository.pulls[1].status == "open":
            content = bytearray(repository.contents("refs/pr/1")[file])
            content[-1] ^= 1
            repository.write({file: bytes(content)}, revision="refs/pr/1")

    hub.on("GET .*/tree/refs/pr/1", spoil)
    with pytest.raises(ReleaseError, match=f"pull request 1 came back different .{file}.; main is unchanged"):
        push_release(staging, NAME, tag="v1", api=api)
    assert on(repository, "main") == {}
    push_release(staging, NAME, tag="v1", api=api)
    assert on(repository, "v1") == contents(staging)


def test_a_file_that_changes_while_it_is_sent_is_not_merged(hub: Hub, api: HfApi, staging: Path):
    repository, file = hub.create(NAME), staging / "config.json"
    changed = file.read_bytes().replace(b"pixio", b"oixip")  # as long as before
    hub.on("POST .*/preupload/", lambda: file.write_bytes(changed))
    with pytest.raises(ReleaseError, match=r"pull request 1 came back different \(config\.json\); main is unchanged"):
        push_release(staging, NAME, tag="v1", api=api)
    assert repository.contents("refs/pr/1")["config.json"] == changed
    assert on(repository, "main") == {}


def test_a_tag_of_another_release_is_refused_before_anything_is_sent(hub: Hub, api: HfApi, staging: Path, tmp_path):
    push_release(of_another(tmp_path), NAME, tag="v1", api=api)
    repository, received = hub.repository(NAME), list(hub.uploads)
    with pytest.raises(ReleaseError, match=r"the tag v1 holds another release \(model\.safetensors, release\.json\)"):
        push_release(staging, NAME, tag="v1", api=api)
    assert on(repository, "main") == contents(of_another(tmp_path))
    assert (hub.uploads, len(repository.pulls)) == (received, 1)


def test_a_private_release_is_not_put_into_a_public_repository(hub: Hub, api: HfApi, staging: Path):
    hub.create(NAME)
    with pytest.raises(ReleaseError, match="is public: make it private"):
        push_release(staging, NAME, api=api, private=True)
    assert on(hub.repository(NAME), "main") == {}


@pytest.mark.parametrize(
    ("fault", "where", "message"),
    [
        (403, "POST .*/repos/create", r"answered 403.*right to write"),
        (LOSE_ANSWER, "POST .*/merge", "connection to the Hub broke"),
        (DROP, "POST .*/commit", "connection to the Hub broke"),
        (LOSE_ANSWER, "POST .*/commit", "connection to the Hub broke"),
        (409, "POST .*/merge", "answered 409"),
    ],
)
def test_what_the_network_does_is_one_sentence_and_the_same_command_goes_on(
    hub: Hub, api: HfApi, staging: Path, fault, where: str, message: str
):
    hub.on(where, fault)
    with pytest.raises(ReleaseError, match=f"{message}.*the same command, typed again") as error:
        push_release(staging, NAME, tag="v1", api=api)
    assert TOKEN not in str(error.value)
    push_release(staging, NAME, tag="v1", api=api)
    assert on(hub.repository(NAME), "v1") == contents(staging)
    assert len(hub.uploads) == 1


def spoil_weights(folder: Path) -> None:
    save_file({**tensors(), "head": torch.tensor(float("nan"))}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "notes.txt").write_text("mine"), r"notes\.txt: is not on the list"),
        (lambda f: (f / "handler.py").symlink_to("/etc/hostname"), r"handler\.py: is a link"),
        (lambda f: (f / "handler.py").write_text("token = 'hf_" + "aB3" * 12 + "'"), r"handler\.py: line 1 holds"),
        (lambda f: (f / "README.md").write_text(CARD.replace("license: cc-by-nc-4.0\n", "")), r"README\.md: lacks"),
        (spoil_weights, r"model\.safetensors: holds NaN or infinity in head"),
    ],
    ids=["stray", "link", "secret", "card", "weights"],
)
def test_a_folder_that_must_not_leave_is_refused_without_a_request(hub, api, staging, spoil, message):
    spoil(staging)
    found = {name: (staging / name) for name in read_names(staging)}
    rewrite_manifest(staging, found)
    with pytest.raises(ReleaseCheckError, match=message):
        push_release(staging, NAME, tag="v1", api=api)
    assert hub.requests == []


def test_a_native_folder_that_must_not_leave_is_refused_without_a_request(hub, api, staging, native):
    (native / "handler.py").write_text("open('/home/me/data')")
    rewrite_manifest(native, {name: native / name for name in (*read_names(native), "handler.py")})
    with pytest.raises(ReleaseCheckError, match=r"handler\.py: line 1 names a place"):
        push_release(staging, NAME, tag="v1", native=native, api=api)
    assert hub.requests == []


def test_a_folder_changed_after_it_was_laid_out_is_refused_without_a_request(hub, api, staging):
    spoil_weights(staging)
    with pytest.raises(StagingError, match=r"no longer what release\.json says"):
        push_release(staging, NAME, api=api)
    assert hub.requests == []


def read_names(folder: Path) -> list[str]:
    return list(json.loads((folder / "release.json").read_text())["files"])


def rewrite_manifest(folder: Path, files: dict[str, Path]) -> None:
    from hashlib import sha256

    records = {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
        for name, path in files.items()
    }
    (folder / "release.json").write_text(json.dumps({"files": records}))


def test_offline_mode_and_a_missing_token_say_what_to_type_without_a_request(hub, staging, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ReleaseError, match="unset HF_HUB_OFFLINE"):
        push_release(staging, NAME, api=HfApi(endpoint=hub.url, token=TOKEN))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for token, stored in ((None, None), (False, None), (False, TOKEN)):  # False: that of the login is not to be used
        monkeypatch.setattr(huggingface_hub, "get_token", lambda stored=stored: stored)
        with pytest.raises(ReleaseError, match="hf auth login"):
            push_release(staging, NAME, api=HfApi(endpoint=hub.url, token=token))
    with pytest.raises(ReleaseError, match="is not organisation/name"):
        push_release(staging, "tiny", api=HfApi(endpoint=hub.url, token=TOKEN))
    assert hub.requests == []


def test_the_token_is_in_no_file_and_no_output(hub: Hub, api: HfApi, staging: Path, capsys):
    print(push_release(staging, NAME, tag="v1", api=api))
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    assert not [data for data in hub.repository(NAME).contents().values() if TOKEN.encode() in data]


def test_the_plan_names_every_file_with_its_place(staging: Path, native: Path):
    wanted = read_staging(staging)
    plan = describe_plan(wanted, read_staging(native), NAME, tag="v1")
    for folder, branch in ((wanted, "main"), (read_staging(native), "native")):
        assert isinstance(folder, Staging)
        for name, file in folder.everything.items():
            words = [name, f"{file.bytes:,}", file.sha256[:12], branch]
            assert [line for line in plan.splitlines() if line.split() == words], name
    assert f"pull request 'Release v1 [maws-hf {wanted.digest}]'" in plan
    assert "tag v1-native" in plan


def with_more_words(tmp_path: Path) -> Path:
    """The same model under another card."""
    model = write_model(tmp_path / "reworded", card=CARD + "\nMore words.\n")
    return build_staging(model, tmp_path / "reworded-staging").folder


def test_a_release_stopped_before_its_merge_burns_no_tag(hub: Hub, api: HfApi, staging: Path, native: Path, tmp_path):
    repository = hub.create(NAME)
    hub.on("POST .*/merge", 500)
    with pytest.raises(ReleaseError):
        push_release(staging, NAME, tag="v1", native=native, api=api)
    assert not repository.tags
    assert "native" not in repository.branches
    assert push_release(with_more_words(tmp_path), NAME, tag="v1", native=native, api=api).tag == "v1"


def test_an_old_tag_typed_again_moves_neither_branch(hub: Hub, api: HfApi, staging: Path, native: Path, tmp_path):
    repository = hub.create(NAME)
    push_release(staging, NAME, tag="v1", api=api)
    push_release(with_more_words(tmp_path), NAME, tag="v2", native=native, api=api)
    before = dict(repository.branches)
    other_native = build_staging(
        write_model(tmp_path / "o", seed=3, model_type="maws_vit"), tmp_path / "os", native=True
    )
    push_release(staging, NAME, tag="v1", native=other_native.folder, api=api)
    assert repository.branches == before


@pytest.mark.parametrize("tag", ["v 1", "..", "v1..2", "main", "native", "-x", "refs/heads/main"])
def test_a_tag_that_is_no_name_for_a_release_is_refused_before_any_request(
    hub: Hub, api: HfApi, staging: Path, tag: str
):
    with pytest.raises(ReleaseError, match="is no name for a release"):
        push_release(staging, NAME, tag=tag, api=api)
    assert not hub.requests
