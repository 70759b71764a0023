"""Export of a dataset as a folder of LeRobot, a LeRobotDataset of version 3.0."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import Columns
from rldistill.data.dataset import Dataset, episode_rows
from rldistill.data.manifest import Manifest
from rldistill.io.atomic import write_foreign_json
from rldistill.io.progress import Progress, stage_progress

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{FILE}.mp4"
MAX_DIMENSIONS = 5
MAX_VIDEO_S = 1_000
"""Length at which a video file is full: LeRobot compares times in float32, to within 0.0001 s."""
QUANTILES = {"min": 0.0, "max": 1.0, "q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
LOSSLESS = ["-qp", "0", "-g", "2", "-preset", "veryfast", "-movflags", "+faststart"]
"""Options of ffmpeg; every second frame is a key frame, as in videos of LeRobot, for fast random access."""

Ints = NDArray[np.int64]


def export_lerobot(source: Path | str, folder: Path | str, fps: int = 30, progress: Progress | bool = True) -> None:
    """Write a dataset as a LeRobotDataset of version 3.0, which `LeRobotDataset(name, root=folder)` loads.

    A vector becomes `observation.state`, a picture `observation.image`, and an entry of a dict `observation.KEY` or
    `observation.images.KEY`. Pictures are bytes with 1 or 3 channels; of a stack of frames, the newest is stored.
    Videos are H.264 in RGB without loss (libx264rgb, `-qp 0`). `action` is the action that was taken, by the teacher,
    a student or at random. `next.done` marks the end of an episode and `next.truncated` an end by a time limit; an
    episode that had not ended has neither. Labels and last observations are not exported. A second has `fps` steps.

    Raises:
        ConfigError: The folder exists, or LeRobot cannot store these observations.
    """
    target = Path(folder)
    if fps < 1:
        raise ConfigError(f"fps: expected at least 1, found {fps}.")
    if os.path.lexists(target):
        raise ConfigError(f"{folder}: the folder exists. Choose another one, or delete it.")
    data, manifest = Dataset.read([Path(source)]), Manifest.read(Path(source))
    data.require_every_label("LeRobot")
    temporary = target.with_name(f".{os.getpid()}.tmp.{target.name}")
    try:
        with stage_progress(progress, "export", "steps") as report:
            _write(temporary, data, manifest.env.id, fps, report)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _observation_keys(spec: PolicySpec) -> tuple[dict[str, str], dict[str, str]]:
    """Return the entries of an observation, numbers and pictures, by feature; raise ConfigError if one does not fit."""
    numbers, pictures = {}, {}
    for name, part in spec.entries.items():
        where = f"observation {name}".strip()
        has_colors = len(part.shape) == 3 and bool({1, 3} & {*part.shape[::2]})
        if "/" in name:
            raise ConfigError(f"{where}: LeRobot allows no / in a name. Rename the entry with a wrapper.")
        if spec.frames or (has_colors and part.dtype == "uint8" and not part.nvec):
            pictures[f"observation.images.{name}" if name else "observation.image"] = name
        elif len(part.shape) <= MAX_DIMENSIONS:
            numbers[f"observation.{name or 'state'}"] = name
        else:
            raise ConfigError(f"{where}: LeRobot stores up to {MAX_DIMENSIONS} dimensions. Flatten it with a wrapper.")
    if both := numbers.keys() & pictures.keys():
        raise ConfigError(f"observation: two entries are named {min(both)} in LeRobot. Rename one with a wrapper.")
    return numbers, pictures


def _observations(data: Dataset, name: str, rows: Ints) -> NDArray[Any]:
    """Return an entry of the observations of some transitions; of a stack of frames, the newest."""
    if data.spec.frames:
        return data.obs.take(data.row[rows], 0)
    whole = data.observations(rows)
    array: NDArray[Any] = (split_parts(whole, data.spec)[name] if data.spec.parts else whole).numpy()
    if not np.isfinite(array).all():
        where = f"observation {name}".strip()
        raise ConfigError(f"{where}: NaN or infinite numbers, which have no statistics. Clip them with a wrapper.")
    return array.astype(data.spec.entries[name].dtype)


def _write(folder: Path, data: Dataset, task: str, fps: int, report: Progress) -> None:
    """Write all files of a LeRobotDataset."""
    numbers, pictures = _observation_keys(data.spec)
    episodes = episode_rows(data.columns)
    lengths = np.array([len(rows) for rows in episodes])
    stops = np.cumsum(lengths)
    columns = _columns(data, numbers, episodes, fps)
    steps = pa.table({key: _arrow(column) for key, column in columns.items()})
    with pq.ParquetWriter(_path(folder, DATA_PATH), steps.schema) as writer:  # one row group per episode, as LeRobot
        for stop, length in zip(stops, lengths, strict=True):
            writer.write_table(steps.slice(stop - length, length))
    features: dict[str, Any] = {}
    statistics: dict[str, list[Columns]] = {}
    for key, column in columns.items():
        features[key] = {"dtype": str(column.dtype), "shape": [*column.shape[1:]] or [1], "names": None}
        statistics[key] = [_column_statistics(part) for part in (*np.split(column, stops[:-1]), column)]
    table: dict[str, Any] = {
        "episode_index": np.arange(len(episodes)),
        "tasks": [[task]] * len(episodes),
        "length": lengths,
        "dataset_from_index": stops - lengths,
        "dataset_to_index": stops,
    }
    files, starts = _video_files(lengths, fps)
    for number, (key, name) in enumerate(pictures.items()):
        table[f"videos/{key}/file_index"] = files
        table[f"videos/{key}/from_timestamp"] = starts / fps
        table[f"videos/{key}/to_timestamp"] = (starts + lengths) / fps
        videos = [_path(folder, VIDEO_PATH, key, file) for file in files]
        counts = []
        for stop, count in zip(stops, _write_videos(videos, data, name, episodes, fps), strict=True):
            counts.append(count[..., None, None])
            report.update(number * len(data) + int(stop), len(pictures) * len(data))
        pairs = zip([*lengths, len(data)], [*counts, np.sum(counts, 0)], strict=True)
        statistics[key] = [_statistics(np.arange(256) / 255, length, count) for length, count in pairs]
        height, width = _rgb(_observations(data, name, episodes[0][:1])).shape[1:3]
        features[key] = _video_feature(height, width, fps)
    indices = [f"{kind}/chunk_index" for kind in ("data", "meta/episodes", *(f"videos/{key}" for key in pictures))]
    table |= dict.fromkeys([*indices, "data/file_index", "meta/episodes/file_index"], np.zeros_like(lengths))
    for key, parts in statistics.items():
        table |= {f"stats/{key}/{name}": [part[name].tolist() for part in parts[:-1]] for name in parts[0]}
    pq.write_table(pa.table(table), _path(folder, f"meta/episodes/{FILE}.parquet"))
    pq.write_table(_task_table(task), folder / "meta" / "tasks.parquet")
    whole = {key: {name: value.tolist() for name, value in parts[-1].items()} for key, parts in statistics.items()}
    write_foreign_json(folder / "meta" / "stats.json", whole)
    totals = {"total_episodes": len(episodes), "total_frames": len(data), "total_tasks": 1}
    limits = {"chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}  # defaults of LeRobot
    paths = {"data_path": DATA_PATH, "video_path": VIDEO_PATH if pictures else None}
    info = {"codebase_version": "v3.0", "robot_type": None, "fps": fps, "splits": {"train": f"0:{len(episodes)}"}}
    write_foreign_json(folder / "meta" / "info.json", info | totals | limits | paths | {"features": features})


def _path(folder: Path, template: str, key: str = "", file: int = 0) -> Path:
    path = folder / template.format(video_key=key, chunk_index=0, file_index=file)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _task_table(task: str) -> pa.Table:
    """Return the table of tasks with the text as its index for pandas."""
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": [index]}
    return pa.table({"task_index": [0], "task": [task]}, metadata={"pandas": json.dumps(pandas)})


def _columns(data: Dataset, numbers: dict[str, str], episodes: list[Ints], fps: int) -> Columns:
    """Return the columns of `data/`, `[N]` for one number and `[N, ...]` otherwise."""
    rows, columns = np.concatenate(episodes), data.columns
    lengths = [len(episode) for episode in episodes]
    frame = np.concatenate([np.arange(length) for length in lengths])
    whole: Columns = {
        **{key: _observations(data, name, rows) for key, name in numbers.items()},
        "action": columns["action"][rows],
        "next.reward": columns["reward"][rows],
        "next.done": (columns["terminated"] | columns["truncated"])[rows],
        "next.truncated": columns["truncated"][rows],
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(episodes)), lengths),
        "index": np.arange(len(rows)),
        "task_index": np.zeros_like(rows),
    }
    return {key: column.reshape(-1) if column.size == len(rows) else column for key, column in whole.items()}


def _video_feature(height: int, width: int, fps: int) -> dict[str, Any]:
    stream = {"height": height, "width": width, "codec": "h264", "pix_fmt": "gbrp", "fps": fps, "channels": 3}
    info = {f"video.{key}": value for key, value in stream.items()} | {"has_audio": False, "is_depth_map": False}
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": info}


def _rgb(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pictures `[T, H, W]`, `[T, C, H, W]` or `[T, H, W, C]` as `[T, H, W, 3]`."""
    frames = frames[..., None] if frames.ndim == 3 else frames
    if frames.shape[3] not in (1, 3):
        frames = np.moveaxis(frames, 1, 3)
    return np.broadcast_to(frames, (*frames.shape[:3], 3))


def _arrow(column: NDArray[Any]) -> pa.Array:
    array = pa.array(column.reshape(-1))
    for size in reversed(column.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _video_files(lengths: Ints, fps: int) -> Ints:
    """Return `[2, E]`, the number of the video file of each episode, and the episode's first frame in it."""
    file, end, places = 0, 0, []
    for length in lengths:
        if end and end + length > MAX_VIDEO_S * fps:
            file, end = file + 1, 0
        places.append((file, end))
        end += length
    return np.array(places).T


def _write_videos(paths: list[Path], data: Dataset, name: str, episodes: list[Ints], fps: int) -> Iterator[Ints]:
    """Write each episode into its file; yield how often each byte occurs in its red, green and blue, `[256, 3]`."""
    import imageio.v2 as imageio

    for path, group in groupby(zip(paths, episodes, strict=True), key=itemgetter(0)):
        with imageio.get_writer(
            path, fps=fps, codec="libx264rgb", pixelformat="rgb24", macro_block_size=1, ffmpeg_params=LOSSLESS
        ) as writer:
            for _, rows in group:
                frames = _rgb(_observations(data, name, rows))
                for frame in frames:
                    writer.append_data(frame)  # type: ignore[attr-defined]
                yield _byte_counts(frames)


def _byte_counts(values: NDArray[np.uint8]) -> Ints:
    return np.stack([np.bincount(column, minlength=256) for column in values.reshape(-1, values.shape[-1]).T], 1)


def _column_statistics(column: NDArray[Any]) -> Columns:
    """Return the statistics of a column over all dimensions but the last, as LeRobot computes them."""
    values = column.reshape(-1, column.shape[-1] if column.ndim > 1 else 1)
    if values.dtype == np.uint8:  # pictures of another form; their copy as float64 might not fit in memory
        return _statistics(np.arange(256.0), len(column), _byte_counts(values))
    return _statistics(values.astype(np.float64), len(column))


def _statistics(values: NDArray[np.float64], count: int, weights: Ints | None = None) -> Columns:
    """Return the statistics of values `[M, ...]`, or of values `[M]` that occur `weights` `[M, ...]` times."""
    if weights is not None:
        values = np.broadcast_to(values, weights.T.shape).T
    mean = np.average(values, 0, weights)
    quantiles = np.quantile(values, [*QUANTILES.values()], axis=0, weights=weights, method="inverted_cdf")
    statistics = {"mean": mean, "std": np.sqrt(np.average(np.square(values - mean), 0, weights))}
    return statistics | dict(zip(QUANTILES, quantiles, strict=True)) | {"count": np.array([count])}
