"""Read what W&B wrote into a run's file: blocks of 32 KiB with records as LevelDB logs have them."""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class WandbRun:
    """What a run's file holds."""

    points: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    run_id: str = ""
    ended: bool = False

    def column(self, name: str) -> list[Any]:
        """Return the values of one metric, in order."""
        return [point[name] for point in self.points if name in point]


def read_when_written(path: Path, seconds: float = 60) -> WandbRun:
    """Read a file that a process of wandb's own may still be writing."""
    deadline = time.monotonic() + seconds
    while not (run := read_wandb(path)).ended and time.monotonic() < deadline:
        time.sleep(0.1)
    return run


def read_wandb(path: Path) -> WandbRun:
    from wandb.proto import wandb_internal_pb2

    content, position, parts, run = path.read_bytes(), 7, b"", WandbRun()
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            take(run, wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return run


def take(run: WandbRun, record: Any) -> None:
    if record.HasField("history"):
        values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        run.points.append(values)
    elif record.HasField("metric"):
        run.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
    elif record.HasField("run"):
        run.run_id = record.run.run_id
        update(run.config, record.run.config.update)
    elif record.HasField("config"):
        update(run.config, record.config.update)
    elif record.HasField("summary"):
        update(run.summary, record.summary.update)
    elif record.HasField("artifact"):
        run.artifacts.append(record.artifact)
    elif record.HasField("request") and record.request.HasField("log_artifact"):
        run.artifacts.append(record.request.log_artifact.artifact)
    run.ended = run.ended or record.HasField("exit")


def update(mapping: dict[str, Any], items: Any) -> None:
    for item in items:
        mapping["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
