"""Links in folders from elsewhere: within a folder, or the cache of Hugging Face, they work; others do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from rldistill.core.errors import UntrustedFileError, printable
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.evaluation.tables import TableCell, rich_table
from rldistill.io.untrusted import MAX_ENTRIES, load_yaml, read_own, require_confined, run_limited
from rldistill.reporting.page import write_report
from rldistill.students import Mlp
from rldistill.students.storage import load_native, save_policy

SPEC = PolicySpec((4,), "float32", CategoricalHead((2,)))


def test_policy_in_the_cache_of_hugging_face_is_read(tmp_path: Path) -> None:
    save_policy(Mlp((4,)).build(SPEC), tmp_path / "source", {})
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f3" / "student", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate((tmp_path / "source").iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../../blobs/{number}")
    assert load_native(snapshot).spec == SPEC
    (snapshot / "policy.json").unlink()
    (snapshot / "policy.json").symlink_to("/etc/passwd")
    with pytest.raises(UntrustedFileError, match=r"policy\.json: a link out of its folder"):
        load_native(snapshot)


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "videos/a-best.mp4", "videos", "students/x/y"])
def test_report_refuses_links_out_of_the_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(UntrustedFileError, match=f"{name}: a link out of its folder"):
        write_report(tmp_path / "run")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_tree_with_a_pipe_or_a_device_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "inside").symlink_to("b")
    require_confined(tmp_path / "a")
    if kind == "pipe":
        os.mkfifo(tmp_path / "a" / "b" / "x")
    else:
        (tmp_path / "a" / "b" / "x").symlink_to("/dev/zero")
    with pytest.raises(UntrustedFileError, match=r"not a regular file|a link out of"):
        require_confined(tmp_path / "a")
    require_confined(tmp_path / "a", ("b",))


def test_own_file_may_be_a_link_inside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    assert read_own(tmp_path / "b") == b"x"


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: " + "9" * 2_000, "a: " + "1:" * 2_000 + "1"])
def test_yaml_without_end_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text, yaml.SafeLoader)


def test_yaml_is_read_up_to_its_limit() -> None:
    assert load_yaml("a: &x {b: 1}\nc: {<<: *x}", yaml.SafeLoader) == {"a": {"b": 1}, "c": {"b": 1}}
    assert load_yaml("", yaml.SafeLoader) is None
    assert len(load_yaml("[" + "1, " * (MAX_ENTRIES - 2) + "]", yaml.SafeLoader)) == MAX_ENTRIES - 2
    with pytest.raises(yaml.YAMLError, match="more than 100,000 entries"):
        load_yaml("[" + "1, " * MAX_ENTRIES + "]", yaml.SafeLoader)


def test_work_beyond_the_limits_of_a_child_is_refused() -> None:
    run_limited("a", lambda: None)
    with pytest.raises(UntrustedFileError, match="a: it does not run within 1 GB of memory"):
        run_limited("a", lambda: bytearray(2 << 30))
    with pytest.raises(UntrustedFileError, match="broken"):
        run_limited("a", lambda: (_ for _ in ()).throw(ValueError("broken")))


def test_control_characters_never_reach_a_table() -> None:
    assert printable("a\x1b[31m\u202eb\n") == "a\\x1b[31m\\u202eb\n"
    table = rich_table([[TableCell("\x1b[1m", "[/x]\x07", "\x9b2J")]], "\x1b]0;x\x07")
    cells = [str(table.title), str(table.columns[0].header), *map(str, table.columns[0].cells)]
    assert all(line.isprintable() for cell in cells for line in cell.splitlines())
