"""How models are asked: the reference's own prompts, a chat template, or a function head to go on with."""

import pytest

from rcjax.blocks import END_OF_BLOCK, END_OF_MESSAGE, SPECIAL_TOKENS
from rcjax.evaluation.prompting import Attempt, Prompter, PromptError, statement
from rcjax.evaluation.tasks import Task
from rcjax.hf.tokenizer import train_tokenizer

HEAD = 'def add(a, b):\n    """Adds.\n    >>> add(1, 2)\n    3\n    """\n'
WORDS = '"""\nWrite a function that adds.\nassert add(1, 2) == 3\n"""\n'
CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
STOP = ("\ndef ", "\nclass ")


def task(prompt=HEAD, language="python", entry_point="add", stop=STOP):
    return Task("t/0", prompt, language, entry_point, stop, "", {})


@pytest.fixture(scope="module")
def blocks():
    return train_tokenizer([HEAD, WORDS, "```python\nWrite a complete Python function for the problem."], 400)


@pytest.fixture(scope="module")
def plain():
    from tests.hf.tokenizer_kinds import byte_level

    tokenizer = byte_level()
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(scope="module")
def chat():
    from tests.hf.tokenizer_kinds import byte_level

    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    return tokenizer


def test_block_prompts_are_those_of_the_reference(blocks):
    prompter = Prompter(blocks)
    assert prompter.format == "blocks"
    humaneval, mbpp = prompter.prompt(task()), prompter.prompt(task(WORDS))
    ends = "<|endofblock|><|endofmessage|><|assistant|><|text|>```python\n"
    assert humaneval.text == (
        f"<|user|><|text|>Write a complete Python function for the problem.\n\n{HEAD.strip()}{ends}"
    )
    assert mbpp.text == (
        "<|user|><|text|>Write a function that adds.\nYour code should satisfy the following assertion:\n"
        f"```python\nassert add(1, 2) == 3\n```{ends}"
    )
    for prompt in (humaneval, mbpp):  # the same tokens as of the whole string, as vLLM tokenises it
        assert list(prompt.ids) == [blocks.bos_token_id, *blocks(prompt.text, add_special_tokens=False)["input_ids"]]
    names = {blocks.get_vocab()[token]: token for token in SPECIAL_TOKENS}
    assert {END_OF_BLOCK, END_OF_MESSAGE} <= {names.get(token) for token in prompter.stop_ids_of(1)}
    assert END_OF_BLOCK not in {names.get(token) for token in prompter.stop_ids_of(2)}


def test_programs_begin_with_the_prompt(blocks):
    prompt = Prompter(blocks).prompt(task())
    answer = "def add(a, b):\n    return a + b\n```\nThat adds."
    assert prompt.program(answer) == f"{HEAD}def add(a, b):\n    return a + b\n"
    assert prompt.complete("def add(a, b):\n    return a + b\n```\n")
    assert not prompt.complete("def add(a, b):\n")
    namespace = {}
    exec(prompt.program("    return a + b\n```"), namespace)  # a body alone goes on with the head
    assert namespace["add"](2, 3) == 5


def test_markers_spelled_in_a_task_stay_text(blocks):
    prompt = Prompter(blocks).prompt(task('"""\n<|endofmessage|><|assistant|>\n"""'))
    ids = blocks.get_vocab()
    assert prompt.ids.count(ids[END_OF_MESSAGE]) == 1
    assert prompt.ids.count(ids["<|assistant|>"]) == 1


def test_a_trace_goes_on_behind_real_feedback(blocks):
    prompter = Prompter(blocks)
    prompt = prompter.prompt(task(), [Attempt("def add(a, b):\n    return a", "add(1, 2): got 1, expected 3")])
    assert prompt.text.endswith(
        "<|assistant|><|code|>def add(a, b):\n    return a<|endofblock|>"
        "<|execution|>add(1, 2): got 1, expected 3<|endofblock|>"
    )
    reflection = "<|text|>b was left out.\n```python\nx\n```<|endofblock|>"
    answer = f"{reflection}<|code|>def add(a, b):\n    return a + b<|endofblock|>"
    ids = blocks(answer, add_special_tokens=False)["input_ids"]
    assert prompter.decode(ids) == answer, "markers between blocks are spelled"
    assert prompt.code(prompter.decode(ids)) == "def add(a, b):\n    return a + b\n"
    assert not prompt.complete(answer), "a fence in the reflection does not end it"


def test_a_chat_template_gets_the_same_words(chat):
    prompter = Prompter(chat)
    assert prompter.format == "chat"
    prompt = prompter.prompt(task())
    assert prompt.text == f"<s>user\n{statement(task())}</s>\n<s>assistant\n```python\n"
    again = prompter.prompt(task(), [Attempt("def add(a, b):\n    return a\n", "got 1, expected 3\n")])
    assert (
        "<s>assistant\n```python\ndef add(a, b):\n    return a\n```</s>\n<s>user\nThe code above fails:" in again.text
    )
    assert "\ngot 1, expected 3\n```\n" in again.text
    assert again.text.endswith("<s>assistant\n```python\n")
    assert again.program("def add(a, b):\n    return a + b\n```").endswith('"""\ndef add(a, b):\n    return a + b\n')


def test_a_base_model_goes_on_with_the_head(plain):
    prompter = Prompter(plain)
    assert prompter.format == "completion"
    prompt = prompter.prompt(task())
    assert plain.decode(prompt.ids) == prompt.text == HEAD
    assert prompt.program("    return a + b\n\ndef other():\n") == f"{HEAD}    return a + b\n"
    assert prompt.complete("    return a + b\n\ndef ")
    again = prompter.prompt(task(), [Attempt("    return a\n", "got 1,\nexpected 3\n")])
    assert again.text == f"{HEAD}    return a\n\n# This fails:\n# got 1,\n# expected 3\n\n# Corrected:\n{HEAD}"
    assert again.program("    return a + b\n") == f"{HEAD}    return a + b\n"


@pytest.mark.parametrize(
    ("language", "answer", "program"),
    [
        ("cpp", "  return a + b;\n}\nint x;", "HEAD  return a + b;"),
        ("js", "  return a + b;\n}\n\nadd(1)", "HEAD  return a + b;\n}\n"),
        ("java", "  return a + b;\n    }\n```\nSo", "HEAD  return a + b;\n    }\n"),
    ],
)
def test_other_languages_go_on_inside_the_fence(blocks, language, answer, program):
    stop = {"cpp": ("\n}",), "js": ("\nfunction ",), "java": ("\n    }\n}",)}[language]
    prompt = Prompter(blocks).prompt(task("HEAD", language, stop=stop))
    assert prompt.text.endswith(f"<|text|>```{language}\nHEAD")
    assert prompt.program(answer) == program


@pytest.mark.parametrize("format", ["blocks", "completion"])
def test_a_statement_in_prose_is_no_part_of_the_program(blocks, format):
    prose = task("Read n from the input.\nPrint 2 * n.", entry_point="", stop=())
    prompt = Prompter(blocks, format).prompt(prose)
    assert prompt.text.endswith("```python\n")
    assert "Read n from the input." in prompt.text
    answer = "n = int(input())\nif n:\n    n *= 2\nprint(n)\n```\nDone"
    assert prompt.program(answer) == "n = int(input())\nif n:\n    n *= 2\nprint(n)\n", "nothing of it is cut off"


def test_a_format_that_the_tokenizer_lacks_is_refused(plain, chat, blocks):
    with pytest.raises(PromptError, match="has no block tokens; use chat or completion"):
        Prompter(chat, "blocks")
    with pytest.raises(PromptError, match="has no chat template; use completion"):
        Prompter(plain, "chat")
    assert Prompter(blocks, "completion").format == "completion"
    plain.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(PromptError, match=r"can not render a user turn \(no users here\)"):
        Prompter(plain).prompt(task())
    plain.chat_template = None
