"""The command line as a whole: whoever changes a name, a type, a bound, a default or a help text shows it in a diff."""

import help_texts


def test_help_is_as_the_file_says() -> None:
    found, file = help_texts.written().splitlines(), help_texts.FILE.read_text(encoding="utf-8").splitlines()
    assert found == file, "if you mean it: python tests/tools/write_help.py"
