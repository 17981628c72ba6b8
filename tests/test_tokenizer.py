"""The tokenizer against transformers' CLIPTokenizer, from every source of the vocabulary."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import instant_clip_tokenizer
import numpy as np
import pytest

from sam3lab import prompts
from sam3lab.errors import UserError
from sam3lab.model.tokenizer import load_tokenizer
from sam3lab.paths import DATA

AWKWARD = [
    "Red CAR",
    "  black\tcat \n on\r\n sofa ",
    "cat,dog;table!?",
    "the dog's ball, don't they've we'll I'm",
    "'S 'LL",
    "route 66 at 10:30",
    "№ ½ ² Ⅷ",
    "café cafe\u0301 Ångström naïve",
    "ΟΔΟΣ İstanbul Straße ﬁn",
    "😀 a👩‍🚀b 🐈‍⬛",
    "日本語 한국어 привет",
    "“quoted” — dash…",
    "a_b <end> </w> <|x|>",
    "zero\u200bwidth no\u00a0break",
    "xylographically",
]


@pytest.fixture(scope="session")
def clip():
    """transformers' CLIPTokenizer with the vocabulary that instant-clip-tokenizer's compiled module holds as text."""
    from transformers import CLIPTokenizer

    (library,) = (
        path
        for path in Path(instant_clip_tokenizer.__file__).parent.iterdir()
        if path.suffix in (".so", ".pyd", ".dylib")
    )
    data = library.read_bytes()
    start = data.index(b"#version: 0.2\n")
    lines = data[start : start + 4_000_000].split(b"\n")[1:48895]
    merges = [tuple(line.decode("utf-8").split(" ")) for line in lines]
    # GPT-2's alphabet: printable bytes stand for themselves and come first, the others are moved past 255.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + extra) for extra in range(256 - len(printable))]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


@pytest.fixture(scope="session")
def saved(clip, tmp_path_factory):
    """A directory with tokenizer.json as transformers saves it, and one with vocab.json and merges.txt."""
    single, pair = tmp_path_factory.mktemp("single"), tmp_path_factory.mktemp("pair")
    clip.save_pretrained(single)
    model = json.loads((single / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (pair / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (pair / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    return {"tokenizer.json": single, "vocab.json": pair, "instant-clip-tokenizer": pair.parent / "none"}


@pytest.fixture(scope="session", params=["tokenizer.json", "vocab.json", "instant-clip-tokenizer"])
def tokenizer(request, saved):
    tokenizer = load_tokenizer(saved[request.param])
    assert tokenizer.source == request.param
    return tokenizer


def test_published_ids_padding_and_mask():
    ids, mask = load_tokenizer(Path("absent")).encode(["a photo of a cat", "cat"])
    assert (ids.dtype, ids.shape, mask.dtype, mask.shape) == (np.int64, (2, 32), np.bool_, (2, 32))
    assert ids[0].tolist() == [49406, 320, 1125, 539, 320, 2368] + [49407] * 26
    assert mask.sum(axis=1).tolist() == [7, 3]
    assert mask[0].tolist() == [True] * 7 + [False] * 25


def test_every_source_gives_what_transformers_gives(clip, tokenizer):
    texts = [prompt.text for prompt in prompts.load()] + AWKWARD
    expected = clip(texts, padding="max_length", max_length=32, return_tensors="np")
    ids, mask = tokenizer.encode(texts)
    for row, text in enumerate(texts):
        assert ids[row].tolist() == expected["input_ids"][row].tolist(), text
        assert mask[row].tolist() == expected["attention_mask"][row].astype(bool).tolist(), text


def test_a_long_prompt_is_counted_and_refused_not_cut(tokenizer):
    fits, long = "cat " * 30, "cat " * 31
    assert tokenizer.encode([fits])[1].all()
    assert tokenizer.count(long) == 33
    with pytest.raises(UserError, match=r"'cat cat.*33 tokens.*32"):
        tokenizer.encode(["dog", long])


@pytest.mark.parametrize("prompt", ["", "  \t\n", "cat <|endoftext|> dog", "<|STARTOFTEXT|>", "caf\udce9"])
def test_prompts_that_mean_nothing_are_refused(tokenizer, prompt):
    with pytest.raises(UserError, match="prompt"):
        tokenizer.encode([prompt])


def test_one_string_is_not_taken_for_a_list_of_letters():
    with pytest.raises(TypeError, match="list"):
        load_tokenizer(Path("absent")).encode("cat")


def test_settings_saved_in_tokenizer_json_cut_nothing(saved, tmp_path):
    content = json.loads((saved["tokenizer.json"] / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path).count("black cat on sofa") == 6


@pytest.mark.parametrize("settings", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("pad", ["!", {"content": "!", "lstrip": False}])
def test_padding_token_of_the_checkpoint(saved, tmp_path, settings, pad):
    (tmp_path / "tokenizer.json").symlink_to(saved["tokenizer.json"] / "tokenizer.json")
    (tmp_path / settings).write_text(json.dumps({"pad_token": pad}), encoding="utf-8")
    ids, mask = load_tokenizer(tmp_path).encode(["cat"])
    assert ids[0].tolist() == [49406, 2368, 49407] + [0] * 29
    assert mask.sum() == 3


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "version https://git-lfs.github.com/spec/v1\n", '{"model": {"type": "BPE"}}']
)
def test_damaged_tokenizer_json_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_vocabulary_without_clips_special_tokens_is_refused(tmp_path):
    content = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json.*endoftext"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_larger_than_the_models_is_refused(saved, tmp_path):
    shutil.copy(DATA / "checkpoints" / "sam3-nano" / "config.json", tmp_path)
    with pytest.raises(
        UserError, match=r"has no tokenizer\.json, and CLIP's own .* 49408 tokens, where the model has 1024"
    ):
        load_tokenizer(tmp_path)
    shutil.copy(saved["tokenizer.json"] / "tokenizer.json", tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json in .* has 49408 tokens, where the model has 1024: download"):
        load_tokenizer(tmp_path)
    shutil.copy(DATA / "checkpoints" / "sam3-nano" / "tokenizer.json", tmp_path)
    assert load_tokenizer(tmp_path).size <= 1024


def test_damaged_or_lone_files_of_the_pair_are_named(saved, tmp_path):
    vocabulary, merges = ((saved["vocab.json"] / name).read_bytes() for name in ("vocab.json", "merges.txt"))
    (tmp_path / "vocab.json").write_bytes(vocabulary)
    with pytest.raises(UserError, match=r"merges\.txt is not"):
        load_tokenizer(tmp_path)
    half = merges[: merges.index(b"\n", len(merges) // 2) + 1]
    for damaged in (b"", half, merges.split(b"\n", 1)[1], merges + b"jeky\n", b"\xff\xfe"):
        (tmp_path / "merges.txt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"merges\.txt"):
            load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_bytes(merges)
    (tmp_path / "vocab.json").write_bytes(vocabulary[:-20])
    with pytest.raises(UserError, match=r"vocab\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("source", ["tokenizer.json", "instant-clip-tokenizer"])
def test_needs_neither_torch_nor_transformers(saved, source):
    code = (
        "import sys; from pathlib import Path; from sam3lab.model.tokenizer import load_tokenizer;"
        f"load_tokenizer(Path({str(saved[source])!r})).encode(['cat']);"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
