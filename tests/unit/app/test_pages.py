"""Every page draws without an exception, and its controls change what it says. The browser tests have the rest."""

from __future__ import annotations

import re

import pytest
from streamlit.testing.v1 import AppTest

pytestmark = pytest.mark.filterwarnings("ignore")


SCRIPT = """
if __name__ == "__main__":  # the processes that simulate import this, too
    from app import state
    from app.views import {page}
    state.restore()
    {page}.page()
"""


def visit(page: str, **link: str) -> AppTest:
    """The page called *page* as a reader with this link sees it."""
    test = AppTest.from_string(SCRIPT.format(page=page), default_timeout=120)
    for name, value in {"num_prompts": "120", **link}.items():
        test.query_params[name] = value
    return test.run()


def html(test: AppTest) -> str:
    """Tiles and command lines, words of which stand in spans of their own."""
    return re.sub("</?span>", "", "\n".join(element.proto.body for element in test.get("html")))


def texts(test: AppTest) -> str:
    return "\n".join(element.value for element in [*test.markdown, *test.caption])


@pytest.mark.parametrize("page", ["whatif", "inside", "size", "systems", "hardware", "validation"])
def test_every_page_is_drawn(page):
    test = visit(page)
    assert not test.exception
    assert not test.error


def test_speculation_makes_tokens_come_faster():
    plain, drafted = visit("whatif"), visit("whatif", speculation="draft", acceptance="0.9")
    tpot = [float(re.search(r"TPOT, median<.*?>([\d.]+) ms<", html(test))[1]) for test in (plain, drafted)]
    assert tpot[1] < tpot[0]
    assert "--speculation" in html(drafted)


def test_what_is_folded_away_keeps_its_value():
    test = visit("whatif", max_num_seqs="64", seed="3")
    assert not [field for field in test.number_input if field.label == "Seed"]
    assert "--max-num-seqs 64" in html(test)
    assert "--seed 3" in html(test)


def test_a_switch_that_cannot_be_is_refused_in_words():
    test = visit("whatif", system="hf-static", kv_offloading_size="8")
    assert "has no host tier for KV" in test.error[0].value


def test_a_preempted_request_says_so_and_its_blocks_are_shown():
    crowded = {"gpu": "l40s-48gb", "request_rate": "30", "output_mean": "900", "num_prompts": "250"}
    test = visit("inside", **crowded)
    test.selectbox(key="inside.by").set_value("times preempted").run()
    assert "It was **preempted" in texts(test)
    assert "blocks of 16 tokens are held" in texts(test)
    held = test.dataframe[0].value
    assert (held["blocks"] > 0).all()


def test_sizing_names_the_price_list_and_what_is_fixed():
    test = visit("size", max_num_seqs="64")
    assert "--deployment fixed.yaml" in html(test)
    assert "--deployment" not in html(visit("size"))
