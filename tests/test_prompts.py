"""data/prompts.csv says what it should, and a wrong file is refused with its line."""

from collections import Counter
from pathlib import Path

import pytest

from sam3lab import prompts
from sam3lab.errors import UserError
from sam3lab.model.tokenizer import load_tokenizer

HEADER = "kind,text,objects,tokens\n"


def test_token_counts_are_true_and_fit():
    tokenizer = load_tokenizer(Path("absent"))
    for prompt in prompts.load():
        assert prompt.tokens == tokenizer.count(prompt.text), prompt
        assert prompt.tokens <= 32
        tokenizer.encode(prompt.objects)


def test_enough_distinct_prompts_of_each_kind_and_the_articles_own():
    loaded = prompts.load()
    kinds = Counter(prompt.kind for prompt in loaded)
    assert set(kinds) == set(prompts.KINDS)
    assert min(kinds.values()) >= 15
    texts = {prompt.text for prompt in loaded}
    assert len(texts) == len(loaded) >= 45
    assert texts >= {"dog", "red car", "cat", "black cat on sofa", "cat, dog, table", "person", "blue shirt", "car"}


def test_objects_are_the_text_or_its_parts():
    for prompt in prompts.load():
        parts = tuple(prompt.text.split(", ")) if prompt.kind == "objects" else (prompt.text,)
        assert prompt.objects == parts
        assert (len(prompt.objects) > 1) == (prompt.kind == "objects")


def test_by_kind():
    assert [prompt for kind in prompts.KINDS for prompt in prompts.by_kind(kind)] == prompts.load()
    with pytest.raises(UserError, match=r"'words'.*word, description, objects"):
        prompts.by_kind("words")


def test_a_users_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('tokens,note,kind,text,objects\n5,x,objects,"owl, fox",owl; fox\n', encoding="utf-8-sig")
    assert prompts.load(path) == [prompts.Prompt("objects", "owl, fox", ("owl", "fox"), 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lacks the columns"),
        ("kind,text\nword,cat\n", "lacks the columns objects, tokens"),
        (HEADER, "no prompts"),
        (HEADER + "word,cat,cat,3\nnoun,dog,dog,3\n", r"line 3: the kind 'noun'"),
        (HEADER + "word,cat,cat\n", "line 2: tokens is ''"),
        (HEADER + "word,cat,cat,three\n", "line 2: tokens is 'three'"),
        (HEADER + "objects,a,a;;b,3\n", "line 2: text and objects"),
        (HEADER + "word,,cat,3\n", "line 2: text and objects"),
    ],
)
def test_wrong_files_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        prompts.load(path)


def test_missing_or_binary_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent\.csv"):
        prompts.load(tmp_path / "absent.csv")
    (tmp_path / "photo.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"photo\.csv"):
        prompts.load(tmp_path / "photo.csv")
