"""Work in other processes: shared, bounded, stoppable, with errors that keep their words."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import processes, work
from app.view import View
from simulator import simulate
from simulator.errors import InputError

LARGE = View.of({"num_prompts": 100_000, "request_rate": 6, "seed": 1})


def start_run(view: View, long: bool = False) -> processes.Job:
    stated = view.deployment().model_dump_json(exclude_unset=True)
    return processes.start(work._run, work.trace_of(view), stated, view.goodput, 1, long=long)


def test_ten_readers_get_what_each_asked_for_and_two_share_a_run():
    views = [View.of({"num_prompts": 150, "seed": seed // 2}) for seed in range(10)]
    with ThreadPoolExecutor(10) as readers:
        results = list(readers.map(work.result_of, views))
    for i, (view, result) in enumerate(zip(views, results, strict=True)):
        alone = simulate(work.trace_of(view), view.deployment(), goodput=view.goodput)
        assert result.summary.values == alone.summary.values
        assert result.records is results[i - i % 2].records


def test_a_job_says_how_far_it_is_and_ends_when_told():
    job = start_run(LARGE)
    while not job.fraction:
        assert not job.wait(0.01)
    assert job.fraction < 1
    job.end()
    with pytest.raises(processes.StoppedError):
        job.result()


def test_long_runs_make_nobody_wait_who_asks_little():
    long = [start_run(LARGE, long=True) for _ in range(3)]
    start_run(View.of({"num_prompts": 100})).result()
    assert not any(job.wait(0) for job in long)
    for job in long:
        job.end()
        with pytest.raises(processes.StoppedError):
            job.result()


def test_the_last_reader_to_leave_ends_the_work():
    answers: work.Answers = work.Answers(0)
    jobs, left = [], threading.Event()

    def start() -> processes.Job:
        jobs.append(start_run(LARGE))
        return jobs[-1]

    def leave(fraction: float) -> None:
        if left.is_set():
            raise KeyboardInterrupt

    def read() -> None:
        with pytest.raises(KeyboardInterrupt):
            answers.get("run", start, leave)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    while not jobs or not jobs[0].fraction:
        time.sleep(0.01)
    left.set()
    for reader in readers:
        reader.join()
    assert len(jobs) == 1
    with pytest.raises(processes.StoppedError):
        jobs[0].result()


def test_an_error_keeps_its_words_on_its_way(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,many,44\n")
    job = processes.start(work._read, str(path), View.of({}), "none", long=False)
    with pytest.raises(InputError, match=r"t\.csv:2: .*'many'") as error:
        job.result()
    assert error.value.line == 2


def test_answers_take_no_more_room_than_they_may():
    answers: work.Answers = work.Answers(6_000_000)
    views = [View.of({"num_prompts": 1000, "seed": seed}) for seed in range(4)]
    for view in views:
        answers.get(view, lambda view=view: start_run(view))
    sizes = [size for _, size in answers._kept.values()]
    assert 1 < len(sizes) < 4
    assert sum(sizes) == answers.num_bytes <= 6_000_000
