"""The options of ``adaftr-fast stream``."""

import pytest

from adaftr_fast.cli.app import parse
from adaftr_fast.cli.train import Stream
from tests.cli.conftest import fails
from tests.extras.streaming.test_kills import SCHEMA


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "adaftr-fast stream: stream: expected --folder or --kafka_topic, and not both"),
        (
            "--folder HERE --kafka_topic a",
            "adaftr-fast stream: stream: expected --folder or --kafka_topic, and not both",
        ),
        ("--folder HERE/none", "none: expected a folder to watch"),
        (
            "--folder HERE --settle nan",
            "adaftr-fast stream: settle: expected a finite number of at least 0, got nan",
        ),
        ("--folder HERE --dataset census", "expected a schema of one file"),
    ],
)
def test_wrong_options_end_in_one_line(tmp_path, capsys, options, message):
    (tmp_path / "shop.toml").write_text(SCHEMA)
    command = f"stream --dataset HERE/shop.toml --out HERE/out {options}".replace(
        "HERE", str(tmp_path)
    )
    assert message in fails(command.split(), capsys)
    assert not (tmp_path / "out").exists()


def test_a_file_of_options_may_hold_all(tmp_path):
    file = tmp_path / "stream.toml"
    topic = 'kafka_topic = "shop"\nout = "c"\n[kafka_settings]\n"security.protocol" = "SSL"\n'
    # a chunk is trained for one epoch by default
    for text, epochs in (("batch_size = 64", 1), ("max_epochs = 3", 3)):
        file.write_text(f"{topic}[training]\n{text}\n")
        _, _, options = parse(f"stream --dataset a --config {file}".split())
        found = Stream.of(options)
        assert (found.kafka_topic, found.out, found.config.training.max_epochs) == (
            "shop",
            "c",
            epochs,
        )
        assert found.kafka_settings == {"security.protocol": "SSL"}
