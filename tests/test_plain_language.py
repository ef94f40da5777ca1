"""The guard against words and names that are always wrong here (tests/plain_language.py)."""

import pytest
from plain_language import check_file, project_files


def test_the_project_has_none_of_the_phrases_and_names():
    findings = [str(finding) for path in project_files() for finding in check_file(path)]
    assert not findings, "\n" + "\n".join(findings)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("found = 1\n", "'found': write the name of the thing"),
        ("for one in runs:\n    pass\n", "'one'"),
        ("def load(about):\n    pass\n", "'about'"),
        ("class Run:\n    def __init__(self):\n        self.one = 1\n", "'one'"),
        ('"""The plan says it."""\n', "'plan says'"),
        ("# The worker is told to stop.\n", "'is told'"),
        ('message = f"{n}: one worker a GPU"\n', "'one worker a GPU'"),
        ('"""Each run has a folder of its own."""\n', "'of its own'"),
    ],
)
def test_a_finding_names_file_line_and_rewrite(tmp_path, text, finding):
    path = tmp_path / "module.py"
    path.write_text(f"x = 0\n\n{text}")
    (result,) = check_file(path)
    assert str(result).startswith(f"{result.path}:{result.line}: ")
    assert finding in str(result)
    assert result.line > 2
    assert result.rewrite


def test_markdown_is_checked_outside_of_code(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("The plan says it.\n\n```text\nThe plan says it.\n```\n`of its own`\n")
    (result,) = check_file(path)
    assert (result.line, result.text) == (1, "plan says")


def test_a_line_can_opt_out(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("found = 1  # plain: allow, the name of a column\n")
    assert check_file(path) == []


@pytest.mark.parametrize("text", ["oneself = profound = 1\n", "# one GPU per worker\n", "# about 10 runs\n"])
def test_other_text_is_not_a_finding(tmp_path, text):
    path = tmp_path / "module.py"
    path.write_text(text)
    assert check_file(path) == []
