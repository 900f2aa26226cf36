"""Files that hold a mapping: every way to be none is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.mapping_file import read_mapping


def test_anchors_and_merged_keys_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("small: &small {gpu: l40s, replicas: 1}\nlarge: {<<: *small, replicas: 4}\n")
    assert read_mapping(path, "")["large"] == {"gpu": "l40s", "replicas": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu: h100\nmodel: x\ngpu: l40s\n", r"a\.yaml:3: gpu: is stated before, too$"),
        ("base: {tp: 1, tp: 2}\n", r"a\.yaml:1: tp: is stated before, too$"),
        ("gpu: [\n", "is not YAML"),
        ("? [1, 2]\n: 3\n", "is not YAML"),
        ("- 1\n", "must hold a mapping of options$"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_mapping(path, " of options")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_mapping(tmp_path, "")
