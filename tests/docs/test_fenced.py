"""How the blocks of a page are found."""

from __future__ import annotations

import pytest
from fenced import blocks, commands

PAGE = """
# Page

<!-- not run: needs a phone -->

```sh
fedhead run mine.toml \\
    --out runs/a   # why
echo fedhead run
```

Text.

- a list

  ~~~python
  if True:
      pass
  ```
  ~~~

<!-- file: mine.toml -->
```toml
name = "mine"
```
<!-- needs: photos -->
Text between says that the comment is of something else.
```text
$ fedhead info
fedhead is printed
```
"""


def test_blocks_have_language_text_line_and_what_the_comment_before_them_says() -> None:
    shell, python, toml, text = blocks(PAGE)
    assert (shell.language, shell.line, shell.notes) == ("sh", 6, {"not run": "needs a phone"})
    assert python.text == "if True:\n    pass\n```\n"
    assert toml.notes == {"file": "mine.toml"}
    assert text.notes == {}
    assert [block.is_run for block in (shell, python, toml, text)] == [False, True, False, False]


def test_commands_are_lines_that_call_fedhead() -> None:
    shell, _, _, text = blocks(PAGE)
    assert commands(shell) == ["fedhead run mine.toml      --out runs/a   # why"]
    assert commands(text) == ["fedhead info"]


def test_a_block_that_is_never_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: the block is never closed"):
        list(blocks("\n````sh\n```\n"))


def test_commands_behind_others_and_in_brackets_are_found() -> None:
    (block,) = blocks("```sh\ncd x && fedhead info\n(cd x && sudo fedhead cache)\n```\n")
    assert commands(block) == ["fedhead info", "sudo fedhead cache"]


def test_an_excuse_needs_a_reason() -> None:
    (block,) = blocks("<!-- not run: -->\n```sh\nfedhead info\n```\n")
    assert block.is_run
