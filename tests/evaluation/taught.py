"""A real model of a few thousand parameters that was taught its answers: every path of an evaluation has a known end.

Four tasks in evalplus's form: one that it solves at once, one that it solves after it saw what its program gave, one
whose program passes the base tests alone, and one on which it never stops.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rcjax.blocks import END_OF_MESSAGE
from rcjax.evaluation.benchmarks import load_benchmark
from rcjax.evaluation.prompting import Attempt, Prompt, Prompter
from rcjax.evaluation.samples import CodeSample
from rcjax.evaluation.scoring import score_samples

MAX_NEW_TOKENS = 48
LOOP = "    y = x\n"

# name -> (what it does, canonical body, base inputs, further inputs, the model's body)
TASKS = {
    "double": ("twice x", "return 2 * x", [[1], [4]], [[-3]], "return x + x"),
    "triple": ("three times x", "return 3 * x", [[1], [4]], [[-3]], "return 2 * x"),
    "size": ("the absolute value of x", "return abs(x)", [[1], [4]], [[-3]], "return x"),
    "square": ("the square of x", "return x * x", [[1], [4]], [[-3]], None),
}
MENDED = "return 3 * x"
RIGHT, MENDS, BASE_ALONE, ENDLESS = (f"HumanEval/{number}" for number in range(4))


def write_benchmark(path: Path) -> Path:
    """The tasks as a file of HumanEval+."""
    rows = []
    for number, (name, (what, body, base, plus, _)) in enumerate(TASKS.items()):
        prompt = f'def {name}(x: int) -> int:\n    """Returns {what}.\n    """\n'
        rows.append(
            {
                "task_id": f"HumanEval/{number}",
                "prompt": prompt,
                "entry_point": name,
                "canonical_solution": f"    {body}\n",
                "base_input": base,
                "plus_input": plus,
                "atol": 0,
                "test": f"def check(candidate):\n    assert candidate(1) == {eval(body[7:], {'x': 1})}\n",
                "contract": "",
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_model(directory: Path, data: Path, chat_template: str | None = None, seed: int = 0, steps: int = 400) -> Path:
    """Teaches a Llama of two layers, by prompts of the product's own, and writes it in the Hugging Face form.

    Args:
      chat_template: of a tokenizer without block tokens; None gives one with them.
      steps: 0 leaves the model as it was drawn.
    """
    import torch
    import transformers

    tokenizer = _tokenizer(data, chat_template)
    prompter = Prompter(tokenizer)
    lessons = [(prompt.ids, answer) for prompt, answer in _lessons(prompter, data)]
    end = tokenizer.get_vocab()[END_OF_MESSAGE] if prompter.format == "blocks" else tokenizer.eos_token_id
    rows = []
    for ids, answer in lessons:
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        rows.append((list(ids), said if answer.endswith(LOOP) else [*said, end]))
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    longest = max(len(prompt) + len(said) for prompt, said in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for row, (prompt, said) in enumerate(rows):
        ids[row, : len(prompt) + len(said)] = torch.tensor(prompt + said)
        labels[row, len(prompt) : len(prompt) + len(said)] = torch.tensor(said)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    assert not steps or loss.item() < 0.02, f"the model did not learn: {loss.item()}"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _lessons(prompter: Prompter, data: Path) -> list[tuple[Prompt, str]]:
    """Prompts with the answers to them; the feedback is that of a real run."""
    benchmark = load_benchmark("humaneval", data)
    lessons = []
    for task, (name, (*_, body)) in zip(benchmark.tasks.values(), TASKS.items(), strict=True):
        prompt = prompter.prompt(task)
        head = f"def {name}(x):\n"
        answer = f"{head}    {body}\n```\n" if body else head + LOOP * MAX_NEW_TOKENS
        lessons.append((prompt, answer))
        if task.id in (MENDS, BASE_ALONE):
            sample = CodeSample(task.id, prompt.program(answer))
            verdict = score_samples(benchmark, [sample]).verdicts[task.id][0]
            if task.id == MENDS:
                assert verdict.base == "fail"
                again = prompter.prompt(task, [Attempt(prompt.code(answer), verdict.failure)])
                fenced = f"{head}    {MENDED}\n```\n"
                lessons.append((again, f"```python\n{fenced}" if again.whole else fenced))
    return lessons


def _tokenizer(data: Path, chat_template: str | None):
    from rcjax.hf.tokenizer import train_tokenizer

    texts = [data.read_text(), *(f"def {name}(x):\n    {body}\n```\n" for name, (*_, body) in TASKS.items()), LOOP * 9]
    tokenizer = train_tokenizer(texts, 600)
    if chat_template is None:
        return tokenizer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    # The same without the block tokens: their spellings become those of other special ones.
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    text = json.dumps(state).replace("<|", "<:")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=chat_template or None,
        clean_up_tokenization_spaces=False,
    )


def rows_of(path: Path) -> Sequence[dict]:
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
