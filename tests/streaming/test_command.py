"""The options of ``adaftr-fast stream``."""

from adaftr_fast.cli import main
from adaftr_fast.cli.app import build_parser
from tests.streaming.test_kills import SCHEMA


def fails(capsys, *arguments):
    assert main(["stream", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_wrong_options_end_in_one_line(tmp_path, capsys):
    (tmp_path / "shop.toml").write_text(SCHEMA)
    needed = f"--dataset {tmp_path}/shop.toml --out {tmp_path}/out".split()
    both = "adaftr-fast stream: stream: expected --folder or --kafka_topic, and not both"
    assert fails(capsys, *needed) == both
    assert fails(capsys, *needed, "--folder", tmp_path, "--kafka_topic", "a") == both
    assert fails(capsys, *needed, "--folder", tmp_path / "none").endswith("none: expected a folder to watch")
    wrong = fails(capsys, *needed, "--folder", tmp_path, "--keep", "0")
    assert wrong == "adaftr-fast stream: keep: expected a number of at least 1, got 0"
    several = fails(capsys, "--dataset", "census", "--out", tmp_path / "out", "--folder", tmp_path)
    assert "expected a schema of one file" in several
    assert not (tmp_path / "out").exists()


def test_a_file_of_options_may_hold_all(tmp_path):
    file = tmp_path / "stream.toml"
    topic = 'kafka_topic = "shop"\n[kafka_settings]\n"security.protocol" = "SSL"\n'
    for text, epochs in (("batch_size = 64", 1), ("max_epochs = 3", 3)):  # a chunk is trained for one epoch by default
        file.write_text(f"{topic}[training]\n{text}\n")
        words = f"stream --dataset a --out c --config {file}".split()
        found = build_parser(words).parse_args(words).stream
        assert (found.kafka_topic, found.training.max_epochs) == ("shop", epochs)
        assert found.kafka_settings == {"security.protocol": "SSL"}
