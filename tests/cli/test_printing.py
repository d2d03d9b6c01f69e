from sparsedet.cli.printing import print_table


def test_names_are_no_markup_and_nothing_that_a_terminal_acts_on(capsys):
    print_table([{"class": "[/b] [red]x[/red] \x1b[2J", "objects": 3}])
    out = capsys.readouterr().out
    assert "[/b] [red]x[/red] \\x1b[2J" in out
    assert "\x1b" not in out
