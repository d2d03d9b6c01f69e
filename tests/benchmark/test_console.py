import re
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.upstream.note import Note
from sparsedet.detection.trainer import StepReport


def console(is_terminal):
    stream = StringIO()
    rich = RichConsole(file=stream, force_terminal=is_terminal, width=80, color_system=None, soft_wrap=True)
    return Console(rich=rich), stream


def step(index, total=400):
    return StepReport(
        index, total, loss=1.234, terms={}, lr=0.001, gradient_norm=None, batch_size=16, images_per_second=80.0
    )


def test_plain_lines_where_there_is_no_terminal():
    printer, stream = console(is_terminal=False)
    with printer.training("lamp sparsity-0.9", log_every=20) as show:
        for index in range(400):
            show(step(index), 0.9)
    lines = stream.getvalue().splitlines()
    # (400 - 200) steps of 16 images at 80 a second
    assert lines[0] == "  lamp sparsity-0.9 step 200/400 loss 1.234 lr 0.001 sparsity 90.0% 80 images/s, 40 s left"
    assert len(lines) == 2
    assert "\x1b" not in stream.getvalue()


def test_live_progress_fits_a_terminal_of_80_columns():
    printer, stream = console(is_terminal=True)
    with printer.training("lamp sparsity-0.9", log_every=20) as show:
        show(step(199), 0.9)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"lamp sparsity-0.9 \S+ +200/400 loss 1.23 sparsity 90% 80 images/s .*left", text)


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
