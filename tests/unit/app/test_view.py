"""A view is a link, a command line and a deployment; files can only be named by keys."""

from __future__ import annotations

import itertools
import json
import shlex
from urllib.parse import parse_qsl, urlencode

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from app import library, work
from app.view import View
from simulator import Deployment
from simulator.cli import app
from simulator.cli.deployment_options import OPTIONS, read_deployment
from simulator.cli.technique_options import OPTIONS as TECHNIQUES
from simulator.errors import ConfigurationError

views = st.fixed_dictionaries(
    {},
    optional={
        "num_prompts": st.integers(1, 100_000),
        "request_rate": st.floats(0.01, 10_000),
        "input_sigma": st.floats(0, 3),
        "turns": st.integers(1, 100),
        "gpu": st.sampled_from(["l40s-48gb", "b200-sxm-180gb"]),
        "tensor_parallel_size": st.integers(1, 64),
        "dtype": st.sampled_from(["fp8", "int4"]),
        "enable_prefix_caching": st.sampled_from(["on", "off"]),
        "flash_attention": st.sampled_from(["on", "off"]),
        "enforce_eager": st.sampled_from(["on", "off"]),
        "kv_offloading_size": st.floats(0.5, 64),
        "attention": st.sampled_from(["mha", "gqa-4"]),
        "guided_decoding": st.floats(0.01, 1),
        "speculation": st.sampled_from(["draft", "eagle", "ngram"]),
        "acceptance": st.floats(0, 1),
        "draft_tokens": st.integers(1, 8),
        "max_num_seqs": st.integers(1, 4096),
        "ttft": st.floats(0, 1e5),
        "intervals": st.booleans(),
    },
)


@given(values=views)
@settings(max_examples=60, deadline=None)
def test_a_link_restores_the_view(values):
    view = View.of(values)
    assert View.of(dict(parse_qsl(urlencode(view.query)))) == view


def test_the_first_screen_has_an_empty_link():
    assert View.of({}).query == {}


@given(values=views)
@settings(max_examples=40, deadline=None)
def test_the_yaml_is_the_deployment(values):
    view = View.of(values)
    assert Deployment.of(**yaml.safe_load(view.deployment_yaml())) == view.deployment()


@given(values=views)
@settings(max_examples=40, deadline=None)
def test_the_command_deploys_the_same(values):
    view = View.of(values)
    words = shlex.split(view.run_command)
    command = typer.main.get_command(app).commands[words[1]]
    options = command.make_context("run", words[2:]).params
    stated = {name: options[name] for name in (*OPTIONS, *TECHNIQUES) if options[name] not in (None, [])}
    assert read_deployment(stated).model_dump() == view.deployment().model_dump()


def test_the_command_says_what_is_stated_and_nothing_else():
    words = shlex.split(View.of({"dtype": "fp8", "tpot": 0, "options": "watermark=0.01"}).run_command)
    stated = dict(itertools.pairwise(words))
    assert stated["--dtype"] == "fp8"
    assert stated["--option"] == "watermark=0.01"
    assert stated["--goodput"] == "ttft:2000"
    assert not {"--max-num-seqs", "--tensor-parallel-size", "--intervals"} & set(words)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_prompts": "0"}, "num_prompts: '0'"),
        ({"request_rate": "nan"}, "request_rate: 'nan'"),
        ({"gpux": "h100"}, "nothing here is called 'gpux'"),
    ],
)
def test_wrong_values_are_named(values, said):
    with pytest.raises(ConfigurationError, match=said):
        View.of(values)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secrets.yaml", "trace:0123456789abcdef:../../x", "x.json"]
)
def test_a_link_cannot_name_a_file_of_the_server(name):
    with pytest.raises(ConfigurationError):
        View.of({"model": name}).deployment()


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "secret.csv", "trace:0123456789abcdef:../../x", "file:secret.csv"]
)
def test_a_link_cannot_name_a_trace_that_was_not_offered(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,44\n"
    )
    with pytest.raises(ConfigurationError):
        work.trace_of(View.of({"source": name}))


def test_an_upload_is_found_again_by_its_key_and_errors_do_not_show_the_folder():
    key = library.store("model", "a b.json", json.dumps({"model_type": "nonsense"}).encode())
    assert library.title_of(key) == "a_b.json"
    with pytest.raises(Exception, match="nonsense") as error:
        View.of({"model": key}).deployment().resolve()
    assert "/" not in library.error_text(error.value).split(":")[0]


def test_an_upload_may_not_be_larger_than_its_kind():
    with pytest.raises(ConfigurationError, match="at most 1 MB"):
        library.store("gpu", "big.yaml", b"x" * 2_000_000)


def test_a_store_keeps_the_latest_and_makes_each_once():
    made = []
    store = work.Store(2)
    for key in (1, 2, 1, 3, 1, 2):
        store.get(key, lambda key=key: made.append(key) or key)
    assert made == [1, 2, 3, 2]
