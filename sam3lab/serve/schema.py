"""What POST /v1/segment takes and answers, as OpenAPI describes it."""

from typing import Annotated

from fastapi import FastAPI, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from sam3lab.model.config import CONTEXT
from sam3lab.serve.decode import MAX_BYTES, MAX_CHARACTERS, MAX_PIXELS, MAX_PROMPTS
from sam3lab.serve.problems import Problem

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
FORM_LIMITS = {"max_files": 1, "max_fields": MAX_PROMPTS + 8, "max_part_size": 8_192}


class SegmentForm(BaseModel):
    """An image, what to find in it, and how sure to be."""

    model_config = ConfigDict(extra="forbid")

    image: UploadFile = Field(
        description=f"a JPEG, PNG or WebP file of at most {MAX_BYTES // 10**6} MB and {MAX_PIXELS // 10**6} million "
        "pixels; it is turned as its EXIF says, transparency is laid on white, and of an animation the first frame counts"
    )
    prompt: list[str] = Field(
        min_length=1,
        max_length=MAX_PROMPTS,
        description=f"a thing to find, in at most {MAX_CHARACTERS} characters and {CONTEXT} tokens of CLIP's, start and end "
        "included; repeat the field for several",
    )
    threshold: Probability = Field(0.5, description="detection threshold: the score that an instance must exceed")
    mask_threshold: Probability = Field(0.5, description="the probability that a pixel of a mask must exceed")
    engine: str = Field("", max_length=100, description="the engine that must answer; empty: the service chooses")


class Mask(BaseModel):
    """COCO's compressed run lengths, which pycocotools decodes."""

    size: tuple[int, int] = Field(description="height, width")
    counts: str


class Instance(BaseModel):
    """One thing that was found."""

    prompt: str
    score: float = Field(description="0 to 1")
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels of the upright image")
    segmentation: Mask
    area: int = Field(description="pixels of the mask")


class Cached(BaseModel):
    """What had been computed for earlier requests."""

    prompts: int = Field(description="of how many prompts the text features")
    image: bool = Field(description="whether the image features")


class Segmentation(BaseModel):
    """What was found, for each prompt in turn and highest score first."""

    prompts: list[str] = Field(description="as the model got them: white space trimmed, each once")
    instances: list[Instance]
    omitted: int = Field(description="instances over the threshold that are left out because there are too many")
    width: int = Field(description="of the upright image, as boxes and masks count")
    height: int
    engine: str = Field(description="the engine that answered")
    reason: str = Field(description="why it was not the first one; else empty")
    batch: int = Field(description="requests that were computed together")
    cached: Cached
    milliseconds: dict[str, float] = Field(
        description="wall time by step, in order; from image to download the batch's"
    )


PROBLEM = {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
_RETRY_AFTER = {"description": "seconds after which to try again", "schema": {"type": "integer", "minimum": 1}}
_SENTENCES = {
    400: "the body is no form",
    401: "an API key is needed",
    408: "the body came too slowly",
    413: "the image has too many bytes",
    415: "the body is no multipart form, or compressed",
    422: "the image, a prompt or a number is not what is asked for",
    429: "the queue is full; the header Retry-After says for how long",
    503: "no engine can answer now, or none could in time; the header Retry-After says when to try again, if that may help",
}
# as FastAPI wants them
REFUSALS = {
    status: {"description": sentence, "content": PROBLEM}
    | ({"headers": {"Retry-After": _RETRY_AFTER}} if status in (429, 503) else {})
    for status, sentence in _SENTENCES.items()
}


def describe_problems(app: FastAPI) -> None:
    """Let `app`'s description have the schema that PROBLEM refers to. (FastAPI's own way would call it JSON.)"""
    describe = app.openapi

    def openapi() -> dict:
        description = describe()
        description["components"]["schemas"][Problem.__name__] = Problem.model_json_schema()
        return description

    app.openapi = openapi
