"""How many tokens examples take, by what the tokenizer's merges may not cross.

python benchmarks/tokenizer_lengths.py runs/tiny/data [VOCABULARY]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from rcjax.blocks import encode
from rcjax.data import records
from rcjax.hf.tokenizer import PRETOKENIZERS, codec, train_tokenizer


def main() -> None:
    """Prints one line a pre-tokenizer and split."""
    directory, vocab_size = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1536
    splits = records.training_conversations(directory, {records.INSTRUCTION: 1, records.REFLECTION: 1})
    print(f"{'merges inside':<14} {'split':<12} {'mean':>7} {'median':>7} {'95 %':>7}   tokens, BOS and EOS included")
    for pretokenizer in PRETOKENIZERS:
        text_codec = codec(train_tokenizer(records.texts(splits), vocab_size, pretokenizer))
        for split, conversations in splits.items():
            lengths = [len(example) for example in encode(conversations, text_codec)]
            figures = (np.mean(lengths), np.median(lengths), np.percentile(lengths, 95))
            print(f"{pretokenizer:<14} {split:<12} " + " ".join(f"{figure:7.1f}" for figure in figures))


if __name__ == "__main__":
    main()
