"""The tokenizer of sam3-nano: CLIP's byte-level byte-pair encoding with a vocabulary of 1024.

512 byte symbols (each byte in the middle and at the end of a word), the merges, and the two special tokens. The merges
are trained on words, not on running text: those of the scenes' grammar count most, so that each becomes one token.
"""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from sam3lab import prompts
from sam3lab.model.config import CONTEXT
from sam3lab.model.tokenizer import BOS, EOS
from sam3lab.scenes.grammar import WORDS

SIZE = 1024
END = "</w>"
# Everyday nouns (the classes of COCO, Lin et al. 2014) that fill the vocabulary once the prompts' words are in it.
NOUNS = """
airplane apple backpack banana baseball bat bear bed bench bicycle bird boat book bottle bowl broccoli bus
cake car carrot cat cell chair clock couch cow cup dining dog donut dryer elephant fork fire frisbee giraffe glass
glove hair handbag horse hot hydrant keyboard kite knife laptop light meter microwave motorcycle mouse orange oven
parking person phone pizza plant potted refrigerator remote sandwich scissors sheep sign sink skateboard ski snowboard
spoon sports stop suitcase surfboard table teddy tennis tie toaster toilet toothbrush traffic train truck umbrella vase
wine zebra"""


def byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level encodings (Radford et al. 2019, GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def merges(counts: dict[str, int], number: int) -> list[tuple[str, str]]:
    """The first `number` merges that byte-pair encoding (Sennrich et al. 2016) learns; ties in alphabetical order."""
    symbols = byte_symbols()
    parts = {word: [symbols[byte] for byte in word.encode()] for word in counts}
    for pieces in parts.values():
        pieces[-1] += END
    learnt = []
    while len(learnt) < number:
        pairs = Counter()
        for word, pieces in parts.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learnt.append(best)
        for pieces in parts.values():
            _merge(pieces, best)
    return learnt


def _merge(pieces: list[str], pair: tuple[str, str]) -> None:
    place = 0
    while place < len(pieces) - 1:
        if (pieces[place], pieces[place + 1]) == pair:
            pieces[place : place + 2] = ["".join(pair)]
        place += 1


def build() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary, token to id, and the merges; the same on every machine as long as data/prompts.csv is."""
    counts = Counter(NOUNS.split())
    for prompt in prompts.load():
        for word in re.findall(r"[^\W\d_]+", prompt.text.lower()):
            counts[word] += 10
    for word in WORDS:
        counts[word] += 1000
    symbols = list(byte_symbols().values())
    tokens = symbols + [symbol + END for symbol in symbols]
    learnt = merges(counts, SIZE - len(tokens) - 2)
    tokens += ["".join(pair) for pair in learnt] + [BOS, EOS]
    return {token: number for number, token in enumerate(tokens)}, learnt


def write(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which transformers and `load_tokenizer` read."""
    from transformers import CLIPTokenizer

    words, learnt = build()
    CLIPTokenizer(vocab=words, merges=learnt, model_max_length=CONTEXT).save_pretrained(directory)


def word_ids() -> dict[str, int]:
    """The id of each word of the grammar, and of the two special tokens: all that prompts of scenes are made of."""
    words, _ = build()
    return {word: words[word + END] for word in WORDS} | {BOS: words[BOS], EOS: words[EOS]}
