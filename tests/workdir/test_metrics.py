"""What a damaged file and a failing disk do to the metrics."""

import errno
import os
import threading

import pytest

from ssl_jax.workdir.metrics import MetricsError, MetricsWriter, read_metrics


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"step": 2, "loss"', "line 2"),
        (b"\xff\xfe\x00", "line 2"),
        (b"[" * 100_000, "line 2"),
        (b'{"loss": 1.0}', "line 2 .*no object with a step"),
        (b'["step"]', "line 2 .*no object with a step"),
        (b'{"step": "two"}', "line 2 .*no object with a step"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, line, reason):
    content = b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 3, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    for read in (lambda: read_metrics(tmp_path / "metrics.jsonl"), lambda: MetricsWriter(tmp_path, 3)):
        with pytest.raises(MetricsError, match=f"metrics.jsonl is damaged in {reason}"):
            read()
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_an_error_of_the_disk_surfaces_at_once(tmp_path, monkeypatch):
    from tensorboardX.record_writer import RecordWriter

    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricsWriter(tmp_path, 0)
    monkeypatch.setattr(RecordWriter, "flush", full)
    raised = []

    def write():
        try:
            for step in range(1, 40):
                writer.write(step, {"loss": 1.0})
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=write, daemon=True)  # so that one that waits forever fails, and does not hang
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert raised[0].errno == errno.ENOSPC and raised[0].filename == str(tmp_path / "tensorboard")
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = MetricsWriter(tmp_path, 4)
    writer.write(5, {"loss": 0.5, "lr": 0.25})
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, events = path.read_bytes(), []
    while content:  # records: length (8 bytes), its checksum (4), an event, its checksum (4)
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[12 + length + 4 :]
    first, start, metrics = events
    assert first.file_version == "brain.Event:2"
    assert start.step == 5 and start.session_log.status == start.session_log.START
    assert metrics.step == 5 and {v.tag: v.simple_value for v in metrics.summary.value} == {"loss": 0.5, "lr": 0.25}
