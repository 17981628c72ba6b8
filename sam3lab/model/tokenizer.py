"""The CLIP byte-pair tokenizer: a text prompt becomes the 32 token ids that SAM 3's text encoder reads.

The vocabulary is that of Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
It comes from the checkpoint's own files where it has them, otherwise from the package instant-clip-tokenizer, which
carries it. Neither source needs torch or transformers.
"""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab.errors import UserError
from sam3lab.model.config import CONTEXT, read_config

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
_CLIPS = "instant-clip-tokenizer"

# transformers' CLIPTokenizer: contractions, runs of letters, single digits, runs of anything else but white space.
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class Tokenizer:
    """Encodes prompts as `transformers`' Sam3Processor does, but refuses what that would cut or garble.

    Made by `load_tokenizer`. `source` says where the vocabulary came from.
    """

    def __init__(self, source: str, pieces: Callable[[str], list[int]], bos: int, eos: int, pad: int, size: int):
        """`pieces` gives a prompt's token ids without BOS and EOS; all ids are below `size`."""
        self.source, self.size = source, size
        self._pieces = pieces
        self._bos, self._eos, self._pad = bos, eos, pad

    def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64 [P, 32] and mask bool [P, 32] (True for BOS, tokens and EOS; False for padding).

        Raises UserError for a prompt that is empty, has more than 32 tokens, holds one of CLIP's special tokens, or
        is not valid Unicode.
        """
        if isinstance(prompts, str):
            raise TypeError("encode() takes a sequence of prompts; put the one prompt in a list")
        ids = np.full((len(prompts), CONTEXT), self._pad, dtype=np.int64)
        mask = np.zeros((len(prompts), CONTEXT), dtype=bool)
        for row, prompt in enumerate(prompts):
            tokens = self._tokens(prompt)
            if len(tokens) > CONTEXT:
                raise UserError(
                    f"the prompt {prompt!r} has {len(tokens)} tokens and the text encoder takes at most {CONTEXT}, "
                    "start and end included; shorten it, or make several prompts of it"
                )
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask

    def count(self, prompt: str) -> int:
        """How many tokens the prompt has, BOS and EOS included; may exceed 32. Raises UserError as `encode`."""
        return len(self._tokens(prompt))

    def _tokens(self, prompt: str) -> list[int]:
        if not prompt.strip():
            raise UserError(f"the prompt {prompt!r} is empty; name what is to be found, as in 'cat'")
        # transformers would turn these into the special tokens themselves, in the middle of the text.
        if any(token in prompt.lower() for token in (BOS, EOS)):
            raise UserError(f"the prompt {prompt!r} holds {BOS} or {EOS}, which mark its ends; remove them")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"the prompt {prompt!r} is not valid Unicode; type it again as plain text") from error
        return [self._bos, *self._pieces(prompt), self._eos]


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory: its tokenizer.json; else vocab.json with merges.txt; else CLIP's own.

    The padding token is the one in tokenizer_config.json or special_tokens_map.json, else EOS, as in CLIP. Raises
    UserError naming the file that is damaged or missing its counterpart, and where the vocabulary is larger than that of
    the checkpoint's model.
    """
    checkpoint = Path(checkpoint)
    tokenizer = _load(checkpoint)
    if (checkpoint / "config.json").is_file() and tokenizer.size > (most := read_config(checkpoint).vocabulary):
        what = f"{tokenizer.source} in {checkpoint} has {tokenizer.size} tokens"
        if tokenizer.source == _CLIPS:
            what = f"{checkpoint} has no tokenizer.json, and CLIP's own vocabulary has {tokenizer.size} tokens"
        raise UserError(f"{what}, where the model has {most}: download tokenizer.json again")
    return tokenizer


def _load(checkpoint: Path) -> Tokenizer:
    single, vocab, merges = (checkpoint / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if single.exists():
        return _from_model(_read(single, _from_tokenizer_json), single, checkpoint)
    if vocab.exists() and merges.exists():
        words = _read(vocab, _vocabulary)
        return _from_model(_read(merges, lambda path: _from_merges(words, path)), vocab, checkpoint)
    if vocab.exists() or merges.exists():
        there, absent = (vocab, merges) if vocab.exists() else (merges, vocab)
        raise UserError(
            f"{there} is there but {absent.name} is not, and one is no use without the other; download {absent.name}, "
            f"or remove {there.name} so that CLIP's own vocabulary is used"
        )
    return _bundled()


def _bundled() -> Tokenizer:
    from instant_clip_tokenizer import Tokenizer as Clip

    clip = Clip()

    def pieces(prompt: str) -> list[int]:
        # The package only splits and merges. transformers lower-cases character by character, hence the join: the
        # whole string's lower() would write a Greek word's last sigma differently.
        return clip.encode("".join(character.lower() for character in unicodedata.normalize("NFC", prompt)))

    bos, eos = clip.start_of_text(), clip.end_of_text()
    return Tokenizer(_CLIPS, pieces, bos, eos, pad=eos, size=eos + 1)


def _from_model(model, file: Path, checkpoint: Path) -> Tokenizer:
    """A Tokenizer around a `tokenizers.Tokenizer` read from `file`."""

    def special(name: str, default: str) -> int:
        token = _special_token(checkpoint, name) or default
        identity = model.token_to_id(token)
        if identity is None:
            raise UserError(f"{file} has no token {token!r} ({name}); it is damaged, or not a CLIP vocabulary")
        return identity

    def pieces(prompt: str) -> list[int]:
        return model.encode(prompt, add_special_tokens=False).ids

    eos = special("eos_token", EOS)
    size = max(model.get_vocab().values()) + 1
    return Tokenizer(file.name, pieces, special("bos_token", BOS), eos, special("pad_token", EOS), size)


def _from_tokenizer_json(path: Path):
    from tokenizers import Tokenizer as Model

    model = Model.from_file(str(path))
    # The file may carry the settings of whoever saved it; a prompt is never cut here.
    model.no_truncation()
    model.no_padding()
    return model


def _vocabulary(path: Path) -> dict[str, int]:
    words = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(words, dict) or not all(isinstance(identity, int) for identity in words.values()):
        raise ValueError("not a table of tokens and their ids")
    return words


def _from_merges(words: dict[str, int], path: Path):
    """The pipeline of transformers' CLIPTokenizer around a vocabulary and the merges of a merges.txt."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Model

    version, *lines = path.read_text(encoding="utf-8").split("\n")
    if not version.startswith("#version"):
        raise ValueError("its first line is no #version")
    merges = [tuple(line.split(" ")) for line in lines if line]
    # A file cut short at a line's end would load and then split rare words wrongly.
    known = {BOS, EOS, *("".join(merge) for merge in merges)}
    orphan = next((word for word in words if len(word.removesuffix("</w>")) > 1 and word not in known), None)
    if orphan:
        raise ValueError(f"no merge makes the token {orphan!r} of the vocabulary")
    model = Model(models.BPE(vocab=words, merges=merges, end_of_word_suffix="</w>", unk_token=EOS))
    model.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return model


def _special_token(checkpoint: Path, name: str) -> str | None:
    """What the checkpoint's settings call a special token ("pad_token" …), or None where they do not say."""

    def read(path: Path) -> str | None:
        token = json.loads(path.read_text(encoding="utf-8")).get(name)
        return token["content"] if isinstance(token, dict) else token

    paths = [checkpoint / "tokenizer_config.json", checkpoint / "special_tokens_map.json"]
    tokens = (_read(path, read) for path in paths if path.exists())
    return next((token for token in tokens if token is not None), None)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except Exception as error:  # the tokenizers library raises bare Exception for whatever is wrong with a file
        raise UserError(f"cannot read {path}: {error}; download it again") from error
