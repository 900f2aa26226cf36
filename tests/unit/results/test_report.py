"""The report is one file that needs no network and says what it must."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from simulator.results import Summary, summarize
from simulator.results.report import report_html
from simulator.results.tiles import scaled_time


def page(summary: Summary, **options: Any) -> str:
    return report_html(summary, title="llama on <h100>", config={"gpu": {"name": "h100"}}, **options)


class Document(HTMLParser):
    """Text, tags and attributes outside the plotting library."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.ids, self.library = "", [], [], False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.library = tag == "script" and ("id", "plotly") in attrs

    def handle_data(self, data: str) -> None:
        self.text += "" if self.library else data

    def handle_endtag(self, tag: str) -> None:
        self.library = False


def test_nothing_is_loaded_from_elsewhere(summary: Summary) -> None:
    document = Document(page(summary, time_breakdown={"gemm": 2.0, "host": 1.0}))
    for tag, attributes in document.tags:
        assert not {"src", "href"} & attributes.keys(), (tag, attributes)
    assert not re.search(r"https?:|//cdn|@import", document.text)
    assert sum(tag == "script" and a.get("id") == "plotly" for tag, a in document.tags) == 1


def test_it_says_what_a_reader_must_know(summary: Summary) -> None:
    text = Document(
        page(
            summary,
            provenance=["GEMM law: held-out error 6 %"],
            defaults=["block_size 16"],
            warnings=["batch beyond the fitted range"],
            time_breakdown={"attention_decode": 3.0, "host": 1.0},
        )
    ).text
    wanted = (
        "llama on <h100>",
        "GEMM law",
        "block_size 16",
        "batch beyond",
        "attention decode",
        "gpu.name",
        "h100",
    )
    for words in (*wanted, "Serving Benchmark Result", "3 requests over 2.5 s"):
        assert words in text


def test_no_breakdown_no_section(summary: Summary) -> None:
    assert "Where the time goes" not in Document(page(summary)).text


def test_a_run_without_finished_requests_can_be_shown(filled: Any) -> None:
    builder, itl, series = filled([(0.0, 0.1, 10, [0.2])])
    itl.clear()
    builder.status[0], builder.output_length[0] = 1, 0
    builder.first_token_time[0] = builder.finish_time[0] = float("nan")
    unfinished = summarize(builder.build(), itl, series, end_time=1.0)
    assert "0 finished" in Document(page(unfinished)).text


def test_replicas_and_intervals_are_shown(filled: Any) -> None:
    requests = [(0.1 * i, 0.1 * i, 10, [0.1 * i + 0.5, 0.1 * i + 0.9]) for i in range(20)]
    builder, itl, series = filled(requests)
    second = filled(requests)[2]
    second.replica = 1
    run = summarize(builder.build(), itl, [series, second])
    longer = summarize(builder.build(), itl, [series, second], end_time=4.0)
    html = page(run.with_intervals([run, longer], level=0.9))
    assert "replica 0" in html and "replica 1" in html
    assert "90%: " in Document(html).text


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [(9.547, ("9.55", "ms")), (52.83, ("52.8", "ms")), (999.4, ("999", "ms")), (7073.0, ("7.07", "s")),
     (235_007.0, ("3.92", "min"))],
)  # fmt: skip
def test_times_in_the_unit_that_suits_them(milliseconds: float, shown: tuple[str, str]) -> None:
    assert scaled_time(milliseconds) == shown
