"""Teachers of the Hugging Face Hub, from a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stable_baselines3 import PPO

from rldistill.core.errors import ConfigError, MissingExtraError, RLDistillError, UntrustedFileError
from rldistill.io import hub as io_hub
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import save_policy
from rldistill.teachers import hub as teachers_hub
from rldistill.teachers.hub import hub_paths, is_hub
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble, load_policy

from .. import hub_server
from ..hub_server import Hub

constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server.serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(teachers_hub, "REVISIONS", {})
        monkeypatch.setattr(teachers_hub, "_fetched", {})
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield hub


def forget() -> None:
    """Forget all that this process has fetched, as a new one does."""
    teachers_hub.REVISIONS.clear()
    teachers_hub._fetched.clear()


@pytest.fixture(scope="module")
def zoo_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a repository that rl-baselines3-zoo has pushed."""
    path = tmp_path_factory.mktemp("sb3") / "ppo-CartPole-v1.zip"
    PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0).save(path)
    return {
        "ppo-CartPole-v1.zip": path.read_bytes(),
        "ppo-CartPole-v1__policy.pth": b"unpacked",
        "args.yml": b"!!python/object/apply:collections.OrderedDict\n- - - env\n    - CartPole-v1\n",
        "config.yml": b"!!python/object/apply:collections.OrderedDict\n- - - n_envs\n    - 8\n",
        "README.md": b"card",
        "replay.mp4": b"video",
        "results.json": b"{}",
        "train_eval_metrics.zip": b"monitor files",
        ".gitattributes": b"",
    }


def native_files(policy: NetworkPolicy, folder: Path) -> dict[str, bytes]:
    save_policy(policy, folder, {})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_repository_of_the_zoo_is_read_like_its_folder(hub: Hub, zoo_files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add("sb3/ppo-CartPole-v1", **zoo_files)
    teacher = load_policy("hub:sb3/ppo-CartPole-v1")
    (tmp_path / "local.zip").write_bytes(zoo_files["ppo-CartPole-v1.zip"])
    obs = torch.randn(5, 4)
    assert torch.equal(teacher(obs)[0].params, load_policy(tmp_path / "local.zip")(obs)[0].params)
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == {"ppo-CartPole-v1.zip", "args.yml", "config.yml"}  # and nothing else
    count = len(hub.requests)
    load_policy("hub:sb3/ppo-CartPole-v1")
    assert len(hub.requests) == count  # resolved once


def test_folder_of_this_package_and_one_file_of_several(hub: Hub, teacher: NetworkPolicy, tmp_path: Path) -> None:
    files = native_files(teacher, tmp_path / "policy")
    more = {f"export__{name}": b"other" for name in ("student.onnx", "parity.json")}
    hub.add("me/own", **files, **more, **{f"second__{name}": content for name, content in files.items()})
    obs = torch.randn(5, 4)
    for path in ("hub:me/own", "hub:me/own/second", "hub:me/own@main"):
        assert torch.equal(load_policy(path)(obs)[0].params, teacher(obs)[0].params)
    names = [request.partition("/resolve/")[2].partition("/")[2] for request in hub.requests if "/resolve/" in request]
    assert not [name for name in names if name.startswith("export")]


def test_branch_tag_and_commit_are_their_own_versions(hub: Hub, teacher: NetworkPolicy, tmp_path: Path) -> None:
    first = native_files(teacher, tmp_path / "first")
    repository = hub.add("me/own", **first)
    old = repository.revisions["v1"] = repository.revisions["main"]
    with torch.no_grad():
        other = load_policy(tmp_path / "first")
        other.output.bias += 1.0  # type: ignore[attr-defined]
    repository.commit(native_files(other, tmp_path / "second"))  # type: ignore[arg-type]
    obs = torch.randn(3, 4)
    now, before = (load_policy(tmp_path / name)(obs)[0].params for name in ("second", "first"))
    assert torch.equal(load_policy("hub:me/own")(obs)[0].params, now)
    for revision in ("v1", old):
        assert torch.equal(load_policy(f"hub:me/own@{revision}")(obs)[0].params, before)


def test_teacher_in_the_cache_needs_no_hub(
    hub: Hub, teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/own", **native_files(teacher, tmp_path / "policy"))
    load_policy("hub:me/own")
    forget()
    hub.broken = True
    load_policy("hub:me/own")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_policy("hub:me/own")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    load_policy("hub:me/own")
    with pytest.raises(ConfigError, match=r"teacher: hub:me/other: the Hub cannot be reached \(.*\), and the cache"):
        load_policy("hub:me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"teacher: hub:me/other: HF_HUB_OFFLINE is set, and the cache .*\. Unset it\."
    ):
        load_policy("hub:me/other")


CASES: list[tuple[str, dict[str, bytes], type[RLDistillError], str]] = [
    ("hub:no/thing", {}, ConfigError, r"no such repository, or it is private\. Check the name, or log in"),
    ("hub:me/own@v9", {"a.zip": b""}, ConfigError, r"no such revision\. Name a branch, a tag or a commit"),
    ("hub:me/own", {"README.md": b""}, UntrustedFileError, r"no teacher that can be read\. Found README\.md; expected"),
    ("hub:me/own", {"agent.pkl": b"", "a.py": b""}, UntrustedFileError, r"no teacher that can be read"),
    ("hub:me/own", {"a.zip": b"", "b.zip": b""}, ConfigError, r"Name one of a\.zip, b\.zip, as in hub:me/own/a\.zip\."),
    ("hub:me/own/c.zip", {"a.zip": b""}, ConfigError, r"the repository has no c\.zip\. Its files: a\.zip\."),
    ("hub:me/own/../x", {"a.zip": b""}, ConfigError, r"expected hub:OWNER/NAME\[/FILE\]\[@REVISION\]"),
    ("hub:sb3", {}, ConfigError, r"teacher: hub:sb3: expected hub:OWNER/NAME"),
    ("hub:ppo-CartPole-v1", {}, ConfigError, r"expected hub:OWNER/NAME\[/FILE\]\[@REVISION\], as in hub:sb3/ppo"),
    ("hub:me/own", {"large.zip": b""}, UntrustedFileError, r"large\.zip has 3,000,000,000 bytes, above the limit"),
    ("hub:me/gated", {"a.zip": b""}, ConfigError, r"the repository asks for access\. Accept its conditions"),
    ("hub:me/own", {"a.zip": b"no zip"}, RLDistillError, r"a\.zip"),
]


@pytest.mark.parametrize(("path", "files", "error", "problem"), CASES)
def test_bad_repository_is_one_line(
    path: str, files: dict[str, bytes], error: type[RLDistillError], problem: str, hub: Hub
) -> None:
    for name in ("me/own", "me/gated"):
        repository = hub.add(name, **files)
        repository.gated = name == "me/gated"
        repository.sizes = {"large.zip": 3_000_000_000} if "large.zip" in files else {}
    with pytest.raises(error, match=problem) as caught:
        load_policy(path)
    assert len(str(caught.value).splitlines()) == 1


def test_names_that_lead_out_of_the_cache_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.add("me/own", **{"../../escaped.zip": b"x", "README.md": b""})
    with pytest.raises(UntrustedFileError, match="no teacher that can be read"):
        load_policy("hub:me/own")
    assert not list(tmp_path.rglob("escaped*"))


def test_file_that_grew_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/own", **{"a.zip": b"x" * 100}).sizes = {"a.zip": 5}
    monkeypatch.setattr(io_hub, "MAX_WEIGHTS_BYTES", 50)
    with pytest.raises(UntrustedFileError, match="100 bytes, above the limit of 50"):
        load_policy("hub:me/own")


def test_paths_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub("hub:agent")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub.py").write_text("agent = None")
    monkeypatch.syspath_prepend(str(tmp_path))  # which is restored afterwards
    assert is_hub("hub:sb3/ppo-LunarLander-v2")
    assert is_hub("hub:ppo-LunarLander-v2")
    assert not is_hub("hub:agent")  # functions of the user's module `hub`
    assert not is_hub("hub:agent@weights/a.pt")
    assert not is_hub("zoo:cartpole-ppo")
    members = (SavedTeacher("hub:a/b"), SavedTeacher("zoo:cartpole-ppo"))
    assert [*hub_paths({"x": [TeacherEnsemble(members), "hub:c/d@v1"], "y": 3})] == ["hub:a/b", "hub:c/d@v1"]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rldistill\[hub\]'"):
        load_policy("hub:sb3/ppo-LunarLander-v2")
