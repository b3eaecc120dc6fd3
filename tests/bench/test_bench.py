# SPDX-License-Identifier: Apache-2.0
"""`vfsd bench`: every operation against our daemon, wrong answers, and the figures it prints."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.frontend.backend import Answer, Backend, reply
from tests.frontend.test_command import complaint
from tests.waiting import HANG
from vfsd.bench import real_work
from vfsd.bench.arena import MEMORY, Arena, Contender, Sample, measure
from vfsd.bench.compare import Comparison, RowResult
from vfsd.bench.load import ROOT, LoadResult, LoadSession, LoadShape, Plan, Step, bucket_ns
from vfsd.bench.load_ops import NULL_OPCODE, OPS, Share, pages_of, set_plans
from vfsd.bench.report import chart, markdown, table
from vfsd.bench.rows import ROWS
from vfsd.frontend.vmm import connect
from vfsd.transport.errors import OperatorError
from vfsd.transport.native import lib

PROGRAM = str(Path(sys.executable).parent / "virtiofsd")
VFSD = str(Path(sys.executable).parent / "vfsd")
BENCH_PEERS = str(Path(__file__).resolve().parents[2] / "scripts" / "bench-peers")
ARGV = (PROGRAM, "--socket-path={socket}", "--shared-dir={dir}")
OURS = Contender("vfsd", ARGV, is_ours=True)


@pytest.fixture
def arena(tmp_path: Path, requires: Callable[[str], str]) -> Arena:
    requires("root")
    return Arena(OURS, tmp_path, seconds=0.1, idle_seconds=0.1)


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_operation_is_answered_rightly(arena: Arena, name: str) -> None:
    op = OPS[name]
    shape = LoadShape(depth=2, pages=pages_of([op]))
    with arena.backend(op.options) as backend:
        with arena.session(backend, shape) as session, Share(session) as share:
            set_plans(share, [op])
            sample = measure(session, backend.tree, arena.seconds, None)
        assert not list((backend.socket.parent / "dir").iterdir())
    assert sample.rate > 10
    assert 0 < sample.p50_us <= sample.p99_us < 1e6
    assert sample.cpu_us is not None
    assert 0 < sample.cpu_us < 1e5
    assert 0 < sample.calls <= 4
    assert 0 <= sample.kicks <= 4


def test_a_mix_over_two_queues_with_a_polling_driver(arena: Arena) -> None:
    ops = [OPS["getattr"], OPS["read-4k"], OPS["create"]]
    shape = LoadShape(depth=6, queues=2, poll=True)
    with (
        arena.backend() as backend,
        arena.session(backend, shape) as session,
        Share(session) as share,
    ):
        set_plans(share, ops)
        outcome = session.run(0.1)
    assert outcome.units == outcome.cycles > 100
    assert outcome.requests > outcome.cycles  # a cycle that begins with CREATE has more requests
    assert outcome.forgets > 0


@pytest.mark.parametrize("name", ["one-cpu", "two-queues", "beside-fsync", "idle", "start"])
def test_rows_that_are_no_plain_load(arena: Arena, name: str) -> None:
    sample = ROWS[name].run(arena)
    assert sample.value is not None
    assert 0 <= sample.value < 1e5


def test_memory_is_plausible(arena: Arena) -> None:
    sample = ROWS["memory"].run(arena)
    assert sample.value is not None
    assert 1 < sample.value < 500


# --- wrong answers are not counted ---------------------------------------------------------------


@contextmanager
def answering(path: Path, answer: Answer) -> Iterator[LoadSession]:
    """A session with a back-end that answers the null operation by calling `answer`."""
    with (
        Backend(path, {NULL_OPCODE: answer}, {}) as backend,
        connect(backend.path) as vmm,
    ):
        vmm.negotiate()
        with LoadSession(vmm, LoadShape()) as session:
            session.set_plan(0, 0, Plan([Step(NULL_OPCODE, ROOT, bytes(16), error=-38)]))
            yield session


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda _b, d, r: reply(d, r), "an unexpected error (error 0, 16 bytes)"),
        (lambda _b, d, r: reply(d, r, b"12345678", error=-38), "an unexpected length"),
        (lambda _b, d, r: reply(d, r, error=-38, unique=1 << 40), "a reply to another request"),
        (lambda _b, d, r: reply(d, r, error=-38, len=99), "not that of its used element"),
    ],
)
def test_a_wrong_answer_ends_it(tmp_path: Path, answer: Answer, words: str) -> None:
    with answering(tmp_path / "s", answer) as session, pytest.raises(OperatorError) as caught:
        session.run(5)
    assert "answers 4000 wrongly" in str(caught.value)
    assert words in str(caught.value)


def test_right_answers_of_another_back_end(tmp_path: Path) -> None:
    def right(_backend: Backend, device: object, request: object) -> int:
        return reply(device, request, error=-38)  # type: ignore[arg-type]

    with answering(tmp_path / "s", right) as session:
        outcome = session.run(0.1)
    assert outcome.cycles == outcome.calls > 10


# --- figures -------------------------------------------------------------------------------------


def test_percentiles_come_from_the_histogram() -> None:
    outcome = LoadResult()
    outcome.histogram[16] = 98  # 98 replies took 16 ns
    outcome.histogram[6 * 16] = 2  # 2 replies took 512 ns or a little more
    assert outcome.percentile_us(0.5) == pytest.approx(0.016, rel=0.05)
    assert outcome.percentile_us(0.99) == pytest.approx(0.528, rel=0.05)
    assert LoadResult().percentile_us(0.5) == 0
    middles = [bucket_ns(bucket) for bucket in range(int(lib.LOAD_BUCKETS))]
    assert middles == sorted(middles)


def made_up() -> Comparison:
    getattr_row = RowResult(ROWS["getattr"], bare=[0.1])
    getattr_row.samples = {
        "vfsd": [Sample(1000, 1, 2, 1.0), Sample(1000, 1, 2, 2.0), Sample(1000, 1, 2, 1.0)],
        "a": [Sample(1000, 1, 2, 2.0), Sample(1000, 1, 2, 2.5), None],
        "b <&>": [Sample(1000, 1, 2, 4.0), Sample(1000, 1, 2, 4.0), Sample(1000, 1, 2, 4.0)],
    }
    single = RowResult(ROWS["getattr-1"])
    single.samples = {"vfsd": [Sample(900)], "a": [Sample(100)], "b <&>": [Sample(200)]}
    start = RowResult(ROWS["start"], errors={"a": "it is broken"})
    start.samples = {"vfsd": [Sample(value=300)], "a": [None], "b <&>": [Sample(value=10)]}
    return Comparison("vfsd", ("vfsd", "a", "b <&>"), (getattr_row, single, start))


def test_ratios_are_to_the_best_peer_of_the_same_round() -> None:
    comparison = made_up()
    getattr_row, single, start = comparison.rows
    assert comparison.ratio(getattr_row) == 0.5  # the median of 0.5, 0.8 and 0.25
    assert comparison.is_met(getattr_row) is True
    assert comparison.ratio(single) == 4.5
    assert comparison.is_met(single) is True
    assert comparison.is_met(start) is False  # 300 ms, however slow the peers are


def test_a_floor_is_the_bare_calls_and_requests_that_do_nothing() -> None:
    null = RowResult(ROWS["null"], bare=[0.1])
    null.samples = {"vfsd": [Sample(cpu_us=0.4), Sample(cpu_us=0.5), Sample(cpu_us=0.6)]}
    mkdir = RowResult(ROWS["mkdir"], bare=[5.0, 9.0, 6.0])
    comparison = Comparison("vfsd", ("vfsd",), (mkdir, null))
    assert comparison.floor(mkdir) == 7.0  # MKDIR and RMDIR: two requests
    assert comparison.floor(null) == 0.1
    assert "| floor | ratio |" in markdown(comparison)
    assert Comparison("vfsd", ("vfsd",), (mkdir,)).floor(mkdir) is None


def test_times_in_a_mount_count_above_those_in_a_bare_directory() -> None:
    untar = RowResult(real_work.TASKS[0].row)
    times = {"vfsd": 2.0, "a": 3.0, "b": 4.0, real_work.BARE: 1.0}
    untar.samples = {name: [Sample(value=time)] for name, time in times.items()}
    comparison = Comparison("vfsd", tuple(times), (untar,), real_work.BARE)
    assert comparison.ratio(untar) == 0.5
    assert comparison.is_met(untar) is True
    untar.samples["vfsd"] = [Sample(value=2.5)]
    assert comparison.is_met(untar) is False


def test_the_table_has_every_back_end() -> None:
    text = table(made_up())
    assert "GETATTR: 0.50x the best peer, target <= 0.6x, met" in text
    assert "exec to listening: 30.00x the best peer, target <= 200, MISSED" in text
    assert "it is broken" in text
    assert "bare system calls" in text


def test_the_markdown_has_a_row_for_each_and_what_was_missed() -> None:
    lines = markdown(made_up()).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(made_up().rows)
    for line, result in zip(lines[2:], made_up().rows, strict=True):
        assert line.startswith(f"| {result.row.title}")
        assert ("missed" in line) == (made_up().is_met(result) is False)


def test_the_chart_is_well_formed() -> None:
    root = ElementTree.fromstring(chart(made_up()))  # noqa: S314 - our own
    assert root.tag.endswith("svg")
    texts = [element.text for element in root.iter() if element.text and element.text.strip()]
    assert "b <&>" in texts
    assert "GETATTR (CPU)" in texts


def test_real_work_in_a_mount(
    tmp_path: Path, requires: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("root")
    requires("/dev/fuse")
    tasks = [task for task in real_work.TASKS if task.name in ("untar", "find", "rm")]
    failing = real_work.Task("fail", "fails", "echo why >&2; exit 3")
    monkeypatch.setattr(real_work, "TASKS", (*tasks, failing))
    monkeypatch.setattr(real_work, "FOLDERS", 10)
    work = real_work.Work([OURS], 1, 0.1, tmp_path)
    comparison = real_work.compare_real_work(work, lambda _line: None)
    *done, failed = comparison.rows
    for result in done:
        for name in ("vfsd", real_work.BARE):
            sample = result.typical(name)
            assert sample is not None
            assert 0 < (sample.value or 0) < 60
        assert comparison.ratio(result) is None  # a bare directory is not a peer
    assert failed.errors == {"vfsd": "fails: why", real_work.BARE: "fails: why"}


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "bench takes one SOCKET"),
        (["a", "b"], "bench takes one SOCKET"),
        (["a", "--compare"], "bench --compare takes no SOCKET"),
        (["a", "--op", "getattr,frob"], "--op: there is no 'frob'"),
        (["a", "--depth", "0"], "--depth: give a number from 1 to 256"),
        (["a", "--queues", "65"], "--queues"),
        (["a", "--seconds", "0"], "--seconds"),
        (["a", "--real-work"], "need --compare"),
        (["a", "--count"], "need --compare"),
        (["--compare", "--count", "--real-work"], "--count excludes"),
        (["--compare", "--count", "--chart", "x.svg"], "--count excludes"),
        (["--compare", "--rounds", "0"], "--rounds"),
        (["--compare", "--rows", "getattr,x"], "--rows: there is no 'x'"),
        (["--compare", "--chart", "x.png"], "ends with .svg"),
        (["--compare", "--dir", "/nowhere"], "'/nowhere' is not a directory"),
        (["--compare", "--peer", "x"], "is not NAME=COMMAND"),
        (["--compare", "--peer", "x=y {socket}"], "is not NAME=COMMAND"),
        (["--compare", "--peer", "vfsd=y {socket} {dir}"], "two peers have the name 'vfsd'"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], words: str) -> None:
    assert words in complaint("bench", *arguments, status=2)


def test_sockets_that_cannot_be(tmp_path: Path) -> None:
    assert "does not exist" in complaint("bench", str(tmp_path / "missing"))


def test_a_load_on_a_socket(arena: Arena, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with arena.backend() as backend:
        done = run(
            "bench", str(backend.socket), "--op", "getattr,read-4k", "--depth", "4",
            "--seconds", "0.1", "--json", str(report),
        )  # fmt: skip
    header, figures = done.splitlines()
    assert header.split()[:2] == ["ops/s", "p50"]
    assert float(figures.split()[0]) > 100
    sample = json.loads(report.read_text())
    assert sample["rate"] > 100
    assert sample["cpu_us"] > 0  # bench found the daemon's processes through the socket


def test_a_comparison_with_ourselves(tmp_path: Path, requires: Callable[[str], str]) -> None:
    requires("root")
    report, drawing = tmp_path / "report.json", tmp_path / "chart.svg"
    written = tmp_path / "table.md"
    text = run(
        "bench", "--compare", "--peer", f"twin={shlex.join(ARGV)}", "--rows", "null,mkdir,start",
        "--rounds", "1", "--seconds", "0.1", "--dir", str(tmp_path), "--ours-args=--poll-us=0",
        "--json", str(report), "--chart", str(drawing), "--markdown", str(written),
    )  # fmt: skip
    assert "MKDIR + RMDIR" in text
    content = json.loads(report.read_text())
    assert content["contenders"] == ["vfsd", "twin"]
    null, mkdir, start = content["rows"]
    assert null["metric"] == "cpu_us"
    assert 0.05 < null["ratio"] < 20
    assert null["floor_us"] == null["bare_us"] > 0
    assert set(mkdir["samples"]) == {"vfsd", "twin"}
    assert mkdir["errors"] == {}
    assert start["samples"]["twin"][0]["value"] > 1
    ElementTree.fromstring(drawing.read_text())  # noqa: S314 - our own
    assert not list(MEMORY.glob("vfsd-bench-*"))


def test_a_peer_that_does_not_start(tmp_path: Path, requires: Callable[[str], str]) -> None:
    requires("root")
    text = run(
        "bench", "--compare", "--peer", "none=/bin/false {socket} {dir}", "--rows", "null",
        "--rounds", "1", "--seconds", "0.1", "--dir", str(tmp_path),
    )  # fmt: skip
    assert "ended with 1 before it listened" in text


def test_without_a_peer_ours_is_measured_alone(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run("bench", "--compare", "--rows", "start", "--rounds", "1", "--json", str(report),
        "--ours-args=--sandbox=none")  # fmt: skip
    content = json.loads(report.read_text())
    assert content["contenders"] == ["vfsd"]
    assert content["rows"][0]["samples"]["vfsd"][0]["value"] > 1


@pytest.mark.peer
def test_the_script_names_the_peers(tmp_path: Path, requires: Callable[[str], str]) -> None:
    requires("root")
    report = tmp_path / "report.json"
    run("--rows", "start", "--rounds", "1", "--json", str(report), program=BENCH_PEERS)
    content = json.loads(report.read_text())
    ours, c, rust, no_handles = content["contenders"]
    assert ours == "vfsd"
    assert c.startswith("C 7.2.")
    assert rust.startswith("Rust 1.")
    assert no_handles == f"{rust} no handles"
    assert content["rows"][0]["errors"] == {}


def run(*arguments: str, program: str = VFSD) -> str:
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
