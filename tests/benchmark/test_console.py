import re
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from sparsedet.benchmark.console import Console, _duration
from sparsedet.benchmark.upstream.note import Note
from sparsedet.detection.trainer import StepReport


def console(is_terminal):
    stream = StringIO()
    rich = RichConsole(file=stream, force_terminal=is_terminal, width=80, color_system=None, soft_wrap=True)
    return Console(rich=rich), stream


def step(index, total=400):
    return StepReport(
        index,
        total,
        loss=1.234,
        terms={"cls_loss": 0.8, "box_loss": 0.434},
        lr=0.001,
        gradient_norm=None,
        batch_size=16,
        last_step=300,
        images_per_second=80.0,
        data_wait_share=0.03,
        peak_memory_bytes=3 * 2**29,
    )


def test_plain_lines_where_there_is_no_terminal():
    printer, stream = console(is_terminal=False)
    with printer.training("lamp sparsity-0.9", log_every=20) as show:
        for index in range(400):
            show(step(index), 0.9)
    lines = stream.getvalue().splitlines()
    # (300 - 200) and (400 - 200) steps of 16 images at 80 a second
    assert lines[0] == (
        "  lamp sparsity-0.9 step 200/400 loss 1.234 = cls 0.8 + box 0.434 lr 0.001 sparsity 90.0% 80 images/s, "
        "3% waiting for data, 1.5 GiB; left: level 20 s, run 40 s"
    )
    assert len(lines) == 2
    assert "\x1b" not in stream.getvalue()


def test_live_progress_fits_a_terminal_of_80_columns():
    printer, stream = console(is_terminal=True)
    with printer.training("lamp sparsity-0.9", log_every=20) as show:
        show(step(199), 0.9)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"lamp sparsity-0.9 \S+ +200/400 left: level 20 s, run 40 s\n", text)
    assert (
        "  loss 1.234 = cls 0.8 + box 0.434 lr 0.001 sparsity 90.0% 80 images/s, 3% \nwaiting for data, 1.5 GiB" in text
    )
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3660, "1 h 01 min"),
        (90000, "1 d 01 h"),
    ],
)
def test_durations(seconds, text):
    assert _duration(seconds) == text


@pytest.mark.parametrize(("is_terminal", "quiet"), [(False, False), (True, False), (False, True)])
def test_a_log_has_all_lines_also_of_a_terminal(is_terminal, quiet, tmp_path):
    printer, _ = console(is_terminal)
    printer.quiet = quiet
    printer.say("before")
    with printer.logging(tmp_path / "log.txt"):
        printer.say("[bold] first")
        printer.warn("careful")
        with printer.training("lamp", log_every=1) as show:
            for index in range(10):
                show(step(index), 0.9)
    printer.say("behind")
    lines = [line[27:] for line in (tmp_path / "log.txt").read_text().splitlines()[1:]]
    assert lines[:2] == ["[bold] first", "warning: careful"]
    assert re.match("  lamp step 10/400 loss", lines[2])
    assert len(lines) == 3


def test_quiet_prints_warnings_only():
    stream = StringIO()
    printer = Console(quiet=True, rich=RichConsole(file=stream))
    printer.say("x")
    printer.records_header()
    printer.notes("a", (Note("k", "mapped", "t"),))
    with printer.training("a", 1) as show:
        show(step(0), 0.0)
    printer.warn("careful")
    assert stream.getvalue() == "warning: careful\n"


def test_notes_name_what_has_no_effect_and_count_the_rest():
    printer, stream = console(is_terminal=False)
    printer.notes("up", (Note("net", "mapped", "detector"), Note("leaf_module", "no effect", "nothing is traced")))
    printer.notes("native", ())
    expected = "up: 1 keys mapped, see sparsedet config translate\nup: leaf_module: no effect: nothing is traced\n"
    assert stream.getvalue() == expected


@pytest.mark.parametrize(("total", "expected"), [(3, [1, 2, 3]), (20, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20])])
def test_counting_says_ten_lines_with_the_rate(total, expected, monkeypatch):
    clock = iter([100.0, *(100.0 + number / 4 for number in expected)])
    monkeypatch.setattr("sparsedet.benchmark.console.time.perf_counter", lambda: next(clock))
    printer, stream = console(is_terminal=False)
    with printer.counting("predict", total) as count:
        for done in range(1, total + 1):
            count(done)
    assert stream.getvalue() == "".join(f"  predict {done}/{total} images, 4.0 images/s\n" for done in expected)


def test_counting_on_a_terminal_leaves_one_line():
    printer, stream = console(is_terminal=True)
    with printer.counting("predict", 3) as count:
        count(3)
    assert re.search(r"predict .*3/3 \d+\.\d images/s", stream.getvalue())
    assert re.search(r"  predict 3 images, \d+\.\d images/s\n$", stream.getvalue())


def test_counting_quietly():
    printer, stream = console(is_terminal=True)
    printer.quiet = True
    with printer.counting("predict", 3) as count:
        count(3)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("text", ["[bold]x[/]", "a [1, 2]"])
def test_brackets_are_printed_as_they_are(text):
    printer, stream = console(is_terminal=False)
    printer.say(text)
    assert stream.getvalue() == f"{text}\n"


def test_what_a_terminal_would_act_on_is_escaped():
    printer, stream = console(is_terminal=False)
    printer.say("a\x1b[2J[red]\nb")
    printer.warn("\x07")
    assert stream.getvalue() == "a\\x1b[2J[red]\nb\nwarning: \\x07\n"
