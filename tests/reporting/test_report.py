from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import rldistill
from rldistill.core.errors import CorruptArtifactError
from rldistill.core.spec import EnvConfig
from rldistill.evaluation.results import Evaluation, verdict
from rldistill.exporters.config import ExportConfig
from rldistill.exporters.export import export_policy
from rldistill.io.atomic import seal, write_json
from rldistill.io.metrics import Metrics
from rldistill.policies.network import NetworkPolicy
from rldistill.reporting import write_report
from rldistill.reporting.charts import LineStyle, Scale, bulk, lines_chart, palette
from rldistill.reporting.page import MAX_BYTES
from rldistill.reporting.sections import learning_lines, pareto_front

ZOO = Path(rldistill.__file__ or "").parent / "zoo"


@pytest.fixture
def run(tmp_path: Path, evaluation: dict[str, Any]) -> Path:
    write_json(tmp_path / "evaluation.json", evaluation)
    (tmp_path / "config.yaml").write_text("env: {id: CartPole-v1}\n# <script>alert(1)</script>\n")
    (tmp_path / "provenance.json").write_text('{"seed": 3}')
    for seed in (0, 1):
        folder = tmp_path / "students" / "small-mlp" / f"seed-{seed}"
        folder.mkdir(parents=True)
        rows = [{"epoch": n, "step": 100 * n, "heldout_loss": 1 / n, "agreement": 1 - 0.5 / n} for n in (1, 2, 3)]
        (folder / "metrics.jsonl").write_bytes(b"".join(seal(row, None) for row in rows))
    (tmp_path / "teacher").mkdir()
    curve = [{"step": n * 1_000, "seconds": n, "mean": n, "returns": [n]} for n in (1, 2)]
    (tmp_path / "teacher" / "curve.jsonl").write_bytes(b"".join(seal(row, None) for row in curve))
    (tmp_path / "videos").mkdir()
    for name in ("small-mlp-best", "small-mlp-best-teacher", "small-mlp-worst"):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(name.encode())
    return tmp_path


def test_repeated_episodes_are_a_warning(run: Path, evaluation: dict[str, Any]) -> None:
    assert "differ from each other" not in write_report(run).read_text()
    evaluation["policies"]["wide"]["distinct_episodes"] = 1
    write_json(run / "evaluation.json", evaluation)
    assert "Only 1 of the 2 episodes of wide differ from each other" in write_report(run).read_text()


def test_certificates_of_exports_are_in_the_report_and_the_card(run: Path, teacher: NetworkPolicy) -> None:
    config = ExportConfig(("c",), states=100, episodes=2)
    export_policy(teacher, EnvConfig("CartPole-v1"), run / "export" / "small-mlp", config, progress=False)
    text = write_report(run).read_text()
    assert "Exported files" in text
    assert "Certificate: passed." in text
    assert "Exported files of small\\-mlp" in (run / "MODEL_CARD.md").read_text().replace("small-mlp", "small\\-mlp")


class Page(HTMLParser):
    """The tags of a page, and whether they are closed in order."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_report_is_one_page_without_requests(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert page.count("link") == page.count("img") == 0
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]  # that of the films, without a file
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links
    assert all(link is not None and link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert not list(run.glob(".*tmp*"))


def test_the_report_shows_everything(run: Path, evaluation: dict[str, Any]) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    assert verdict(Evaluation.parse(evaluation, Path("evaluation.json"))).replace("'", "&#39;") in text
    assert "larger than the teacher" in text
    assert "4.0 times fewer" in text
    assert page.count("video") == 3
    assert "<b>small-mlp</b>, best episode: 450.00" in text
    assert "<b>teacher</b>, same seed: 500.00" in text
    assert "<b>small-mlp</b>, worst episode: 400.00" in text
    assert "rldistill run config.yaml" in text
    assert "env: {id: CartPole-v1}" in text
    # a dot for each of 12 episodes and a mark for each of 4 policies; ends of three curves: teacher, loss, agreement;
    # the front of 3 policies that have parameters
    assert page.count("circle") == 12 + 4 + 3 + 3
    # in two charts, two training seeds and their mean; in one, the teacher; and the front
    assert page.count("polyline") == 2 * 3 + 1 + 1


def test_text_of_files_is_escaped(run: Path, evaluation: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script>"
    evaluation["env"] = evil
    evaluation["policies"][evil] = evaluation["policies"].pop("wide")
    write_json(run / "evaluation.json", evaluation)
    (run / "provenance.json").write_text(evil)
    assert "<script>alert" not in write_report(run).read_text()
    assert "<b>" not in lines_chart({"<b>": [(0, 1), (1, 2)]}, "<b>", "<b>", LineStyle({"<b>": '"><b>'}))


def test_an_evaluation_alone_makes_a_report(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    write_json(tmp_path / "evaluation.json", evaluation)
    text = write_report(tmp_path).read_text()
    for left_out in ("Learning curves", "Fidelity", "Robustness", "Performance profiles", "<video"):
        assert left_out not in text
    assert "There are no videos" in text
    assert "<code>config.yaml</code> is missing" in text


def test_videos_have_room_for_the_best_first(run: Path) -> None:
    for path in (run / "videos").iterdir():
        path.unlink()
    # three quarters of what a page may have become base64: two films of a third each, and no third
    third = bytes(MAX_BYTES * 3 // 4 // 3)
    for name in ("small-mlp-worst", "small-mlp-best", "wide-best"):
        (run / "videos" / f"{name}.mp4").write_bytes(third)
    (run / "videos" / "wide-median.mp4").write_bytes(b"small enough")
    (run / "videos" / "unknown-best.mp4").write_bytes(b"of another run")
    path = write_report(run)
    assert path.stat().st_size <= MAX_BYTES
    shown = re.findall(r"<b>(.*?)</b>, (\w+) episode", path.read_text())
    assert shown == [("small-mlp", "best"), ("wide", "best"), ("wide", "median")]
    assert "1 more videos did not fit" in path.read_text()


def test_broken_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    (run / "disagreements" / "wide").mkdir(parents=True)
    document = {"unit": "nats", "names": [], "groups": [[{"regret": 1}]]}
    write_json(run / "disagreements" / "wide" / "disagreements.json", document)
    (run / "search").mkdir()
    (run / "search" / "search.json").write_text("{")
    student = run / "students" / "small-mlp" / "seed-0"
    Metrics(student).end()
    (student / "policy.json").write_text('{"student": "linear"}')
    text = write_report(run).read_text()
    said = re.findall("Not shown: (.*?)</p>", text)
    assert len(said) == 3
    assert all(any(f"{name}.json" in each for each in said) for name in ("search", "disagreements", "policy"))
    assert ">Results<" in text


def test_moments_are_shown_as_values(run: Path) -> None:
    folder = run / "disagreements" / "small-mlp"
    folder.mkdir(parents=True)
    moment = {
        "training_seed": 1,
        "episode": 7,
        "step": 40,
        "regret": 1.25,
        "student_action": 0,
        "teacher_action": [1, 0.5],
        "student": [0.5],
        "teacher": [0.25],
        "frame": None,
        "obs": [0.125, *range(30)],
    }
    document = {"unit": "return", "names": [f"cart[{k}]" for k in range(31)], "groups": [[moment]]}
    write_json(folder / "disagreements.json", document)
    text = write_report(run).read_text()
    assert "teacher <b>(1, 0.5)</b>, student <b>0</b>; regret 1.25" in text
    assert "training seed 1, episode 7, step 40" in text
    assert "<dt>cart[0]</dt><dd>0.125</dd>" in text
    assert "and 7 more values" in text  # 31 numbers, of which 24 are shown


def test_students_that_learn_from_reward_have_curves_too(run: Path) -> None:
    seed = run / "students" / "wide" / "seed-0"
    seed.mkdir(parents=True)
    rows = [{"step": 100, "return": 20.0}, {"step": 200, "return": None, "score": 30.0}]
    (seed / "metrics.jsonl").write_bytes(b"".join(seal(row, None) for row in rows))
    assert learning_lines(seed.parent, "step", "return") == [[(100, 20.0)]]
    assert learning_lines(seed.parent, "step", "score") == [[(200, 30.0)]]
    assert learning_lines(seed.parent, "epoch", "heldout_loss") == []
    assert "Students: return of validation episodes" in write_report(run).read_text()


def test_pareto_front_by_hand() -> None:
    points = {"teacher": (1_000.0, 1.0), "tied": (300.0, 0.9), "small": (250.0, 0.9), "bad": (400.0, 0.2)}
    assert pareto_front(points) == ["small", "teacher"]
    assert pareto_front({"equal-size": (9.0, 0.1), "better": (9.0, 0.3)}) == ["better"]


def test_of_very_many_episodes_some_are_drawn(run: Path, evaluation: dict[str, Any]) -> None:
    assert "Only a part of the episodes has a dot" not in write_report(run).read_text()
    evaluation["episodes"] = 1_300
    for name, entry in evaluation["policies"].items():
        for own in entry["runs"]:
            own["returns"] = [20.0 if name == "random" else 400.0] * 1_300
    write_json(run / "evaluation.json", evaluation)
    text = write_report(run).read_text()
    assert text.count("<title>20.00</title>") == 434  # every third: ceil(1,300 / 3)
    assert "Only a part of the episodes has a dot" in text


def test_outliers_leave_room_for_the_others() -> None:
    # Of -1,000 and 0 to 20, 90% lie between 0 and 19: -1,000 is more than that span away, so that the end is -19 / 4.
    assert bulk([*range(21), -1_000]) == (-4.75, 20)
    assert bulk([3, 5, 4]) == (3, 5)
    assert bulk([7, 7]) == (7, 7)


def test_rounds_of_dagger_stand_one_after_the_other(run: Path) -> None:
    seed = run / "students" / "small-mlp" / "seed-0"
    for number in (2, 10):
        (seed / f"round-{number}").mkdir()
        row = {"epoch": 1, "step": 9, "heldout_loss": 2, "agreement": None}
        (seed / f"round-{number}" / "metrics.jsonl").write_bytes(seal(row, None))
    assert learning_lines(run / "students" / "small-mlp", "epoch", "heldout_loss")[0] == [
        (1, 2),
        (2, 2),
        (3, 1),
        (4, 1 / 2),
        (5, 1 / 3),
    ]
    assert [x for x, _ in learning_lines(run / "students" / "small-mlp", "epoch", "agreement")[0]] == [3, 4, 5]
    write_report(run)


def test_a_missing_or_broken_file_is_named(run: Path, evaluation: dict[str, Any]) -> None:
    path = run / "evaluation.json"
    broken: list[tuple[object, str]] = [
        ({"env": "x"}, "env_kwargs: is missing"),
    ]
    policies = copy.deepcopy(evaluation["policies"])
    del policies["wide"]["mean"]["ci95"]
    broken.append((evaluation | {"policies": policies}, r"policies\.wide\.mean\.ci95: is missing"))
    broken.append((evaluation | {"policies": {"random": evaluation["policies"]["random"]}}, "no policy is a teacher"))
    for value, message in broken:
        write_json(path, value)
        with pytest.raises(CorruptArtifactError, match=message):
            write_report(run)
    path.write_text("[]")
    with pytest.raises(CorruptArtifactError, match="not a JSON object with its sha256"):
        write_report(run)
    path.write_text(json.dumps(evaluation)[:-9])
    with pytest.raises(CorruptArtifactError, match=r"evaluation\.json: not valid JSON"):
        write_report(run)
    path.unlink()
    with pytest.raises(CorruptArtifactError, match=r"evaluation\.json: .*Run `rldistill evaluate`"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("line", ['{"epoch": 4, "heldo\n', "7\n"])
def test_damaged_curve_is_named_with_its_line(run: Path, line: str) -> None:
    metrics = run / "students" / "small-mlp" / "seed-1" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + line)
    with pytest.raises(CorruptArtifactError, match=r"seed-1/metrics\.jsonl: line 4"):
        write_report(run)


def test_curve_cut_by_a_kill_is_drawn(run: Path) -> None:
    metrics = run / "students" / "small-mlp" / "seed-1" / "metrics.jsonl"
    whole = learning_lines(metrics.parents[1], "epoch", "heldout_loss")
    metrics.write_text(metrics.read_text() + '{"step": 4, "epoch": 4, "heldo')
    assert learning_lines(metrics.parents[1], "epoch", "heldout_loss") == whole
    write_report(run)


def test_odd_evaluations_make_a_report_too(run: Path, evaluation: dict[str, Any]) -> None:
    teacher, student, random = (evaluation["policies"][name] for name in ("teacher", "small-mlp", "random"))
    nothing = {"normalized": None}
    same = {"runs": [{"training_seed": None, "returns": [1e6, 1e6]}], "mean": {"value": 1e6, "ci95": [1e6, 1e6]}}
    continuous = {"agreement": None, "action_rmse": 0.125}
    for policies in (
        {"teacher": teacher, "random": random},
        {"teacher": teacher | nothing | same, "small-mlp": student | nothing | same | continuous},
    ):
        write_json(run / "evaluation.json", evaluation | {"policies": policies})
        text = write_report(run).read_text()
        assert "NaN" not in text
    assert "0.125" in text


def test_the_table_fits_a_terminal(evaluation: dict[str, Any]) -> None:
    evaluation["policies"]["[red]x"] = evaluation["policies"].pop("wide")
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(Evaluation.parse(evaluation, Path("evaluation.json")))
    text = captured.get()
    for word in ("policy", "mean return", "normalized", "agreement", "parameters", "latency", "env steps"):
        assert word in text
    assert "5,000" in text
    assert "87.5%" in text
    assert "larger" in text
    assert "[red]x" in text
    assert "…" not in text


def test_scales_by_hand() -> None:
    scale = Scale.covering([0, 10], padding=0.1)
    assert (scale.low, scale.high) == (-1, 11)
    assert scale(5) == pytest.approx(0.5)
    assert [text for _, text in scale.ticks()] == ["0", "2", "4", "6", "8", "10"]
    log = Scale.covering([0.001, 1_000], padding=0, log=True)
    assert [text for _, text in log.ticks()] == ["0.001", "0.01", "0.1", "1", "10", "100", "1k"]
    assert [place for place, _ in log.ticks()] == pytest.approx([n / 6 for n in range(7)])
    assert Scale.covering([3, 3])(3) == pytest.approx(0.5)


@pytest.mark.parametrize("path", list(ZOO.glob("*/evaluation.json")), ids=lambda path: path.parent.name)
def test_shipped_evaluations_are_read(path: Path) -> None:
    evaluation = Evaluation.read(path)
    assert evaluation.teacher.mean.value > evaluation.policies["random"].mean.value
    # A teacher in half precision was compared with its weights of before, as a student.
    assert verdict(evaluation).startswith(("No student was evaluated.", "The student float32 keeps 95%"))


def test_each_student_has_its_colour(evaluation: dict[str, Any]) -> None:
    assert palette(Evaluation.parse(evaluation, Path("evaluation.json")).policies) == {
        "teacher": "teacher",
        "small-mlp": "c0",
        "wide": "c1",
        "random": "random",
    }
