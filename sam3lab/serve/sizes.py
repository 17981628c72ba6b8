"""The sizes of the calls that an engine makes of its backend."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """images, pairs: the most of one call. padded: whether calls are filled up to a few sizes, all warmed before use.

    A backend that compiles or captures for each shape does so in the shape's first call, for which no request should
    wait. Padded, a call has one of `steps` as its size, and the detector, whose calls have three of them, as few
    combinations as make sense: one image, or the most, with as many prompts as pairs.
    """

    images: int
    pairs: int
    padded: bool

    def image(self, count: int) -> int:
        """How many images a call of the image stage has for `count` of them."""
        return _step(count, self.images) if self.padded else count

    def text(self, count: int) -> int:
        """How many prompts a call of the text stage has for `count` of them."""
        return _step(count, self.pairs) if self.padded else count

    def detect(self, images: int, texts: int, pairs: int) -> tuple[int, int, int]:
        """How many images, prompts and pairs a call of the detector has for these."""
        if not self.padded:
            return images, texts, pairs
        most = 1 if images == 1 else min(self.images, self.pairs)
        size = _step(max(texts, pairs, most), self.pairs)
        return most, size, size

    def warm(self) -> list[tuple[int, int]]:
        """Images and pairs of the calls that together have every shape that can be asked for, smallest first.

        Unpadded, no shape costs much more the first time: the smallest, and one of several.
        """
        most = min(self.images, self.pairs)
        if not self.padded:
            return sorted({(1, 1), (min(2, most), min(2, self.pairs))})
        one = {(1, pairs) for pairs in steps(self.pairs)}
        several = {(most, pairs) for pairs in steps(self.pairs) if pairs >= most}
        return sorted(one | several | {(images, images) for images in steps(most)})


def steps(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    found = [1]
    while 2 * found[-1] < most:
        found.append(2 * found[-1])
    return sorted({*found, most})


def _step(count: int, most: int) -> int:
    return next(step for step in steps(most) if step >= count)
