"""The configurations of the models, as messages of Triton's own protobuf and as the text that it reads."""

from typing import TYPE_CHECKING

from sam3lab import install
from sam3lab.errors import UserError
from sam3lab.serve.triton.settings import Settings
from sam3lab.serve.triton.signature import OPEN, STAGES, Signature, Tensor

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

ENSEMBLE = "sam3"
FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py"}


def model_name(stage: str) -> str:
    """The name of a stage's model; a repository may hold others' models too."""
    return f"{ENSEMBLE}_{stage}"


def stage(stage: str, signature: Signature, settings: Settings) -> "ModelConfig":
    """The configuration of a stage's model.

    Requests are batched as they come: a batch starts at once when it has one of the preferred sizes, else after the queue
    delay. Raises UserError where Triton's protobuf is not installed.
    """
    pb = protobuf()
    config = pb.ModelConfig(
        name=model_name(stage),
        backend=settings.backend,
        default_model_filename=FILES[settings.backend],
        max_batch_size=settings.max_batch,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
        input=[_input(pb, tensor, settings) for tensor in signature.inputs],
        output=[_output(pb, tensor) for tensor in signature.outputs],
        instance_group=[
            pb.ModelInstanceGroup(
                kind=pb.ModelInstanceGroup.KIND_GPU if settings.device == "cuda" else pb.ModelInstanceGroup.KIND_CPU,
                count=settings.instances,
            )
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            preferred_batch_size=preferred(settings.max_batch),
            max_queue_delay_microseconds=round(settings.queue_delay * 1e6),
            default_queue_policy=pb.ModelQueuePolicy(
                timeout_action=pb.ModelQueuePolicy.REJECT,
                default_timeout_microseconds=round(settings.queue_timeout * 1e6),
                allow_timeout_override=True,
                max_queue_size=settings.queue,
            ),
        ),
        model_warmup=[
            pb.ModelWarmup(
                name=f"{size} image{'s' * (size > 1)}",
                batch_size=size,
                count=1,
                inputs={tensor.name: _zeros(pb, tensor) for tensor in signature.inputs},
            )
            for size in dict.fromkeys((1, settings.max_batch))
        ],
    )
    _add_runtime(pb, config, stage, settings)
    return config


def ensemble(signatures: dict[str, Signature], settings: Settings) -> "ModelConfig":
    """The configuration of the model that hands a request from stage to stage: pixels and prompts in, detections out.

    The image and text stages run side by side. A tensor has the same name wherever it is. Raises UserError as `stage`.
    """
    pb = protobuf()
    made = {tensor.name for signature in signatures.values() for tensor in signature.outputs}
    wanted = {tensor.name: tensor for signature in signatures.values() for tensor in signature.inputs}
    return pb.ModelConfig(
        name=ENSEMBLE,
        platform="ensemble",
        max_batch_size=settings.max_batch,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
        input=[
            pb.ModelInput(name=name, data_type=pb.DataType.Value(tensor.type), dims=tensor.dims)
            for name, tensor in wanted.items()
            if name not in made
        ],
        output=[_output(pb, tensor) for tensor in signatures["detect"].outputs],
        ensemble_scheduling=pb.ModelEnsembling(
            step=[
                pb.ModelEnsembling.Step(
                    model_name=model_name(each),
                    model_version=-1,  # the newest
                    input_map={tensor.name: tensor.name for tensor in signatures[each].inputs},
                    output_map={tensor.name: tensor.name for tensor in signatures[each].outputs},
                )
                for each in STAGES
            ]
        ),
    )


def preferred(max_batch: int) -> list[int]:
    """Sizes at which a batch does not wait for more: the greatest, and half of it."""
    return sorted({size for size in (max_batch // 2, max_batch) if size > 1})


def text(config: "ModelConfig") -> str:
    """A configuration as config.pbtxt has it."""
    from google.protobuf import text_format

    return text_format.MessageToString(config, use_short_repeated_primitives=True)


def _input(pb, tensor: Tensor, settings: Settings):
    return pb.ModelInput(
        name=tensor.name,
        data_type=pb.DataType.Value(tensor.type),
        dims=tensor.dims,
        # The models of the Python back end join requests themselves, whatever their numbers of prompts.
        allow_ragged_batch=settings.backend == "python" and OPEN in tensor.dims,
    )


def _output(pb, tensor: Tensor):
    return pb.ModelOutput(name=tensor.name, data_type=pb.DataType.Value(tensor.type), dims=tensor.dims)


def _zeros(pb, tensor: Tensor):
    """Of one prompt, where their number is open."""
    dims = [1 if size == OPEN else size for size in tensor.dims]
    return pb.ModelWarmup.Input(data_type=pb.DataType.Value(tensor.type), dims=dims, zero_data=True)


def _add_runtime(pb, config: "ModelConfig", stage: str, settings: Settings) -> None:
    """What one back end alone wants to be told."""
    parameters = {}
    if settings.backend == "onnxruntime" and settings.device == "cpu":
        parameters = {"intra_op_thread_count": settings.threads}
    elif settings.backend == "onnxruntime":
        cuda = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
        cuda.parameters["use_tf32"] = str(int(settings.precision == "tf32"))  # the provider's default is to use it
    elif settings.backend == "python":
        names = ("runtime", "precision", "device", "resolution", "threads", "max_prompts")
        parameters = {"stage": stage} | {name: getattr(settings, name) for name in names}
    for name, value in parameters.items():
        config.parameters[name].string_value = str(value)


def protobuf():
    """Triton's protobuf as a module. Raises UserError where it is not installed."""
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise UserError(
            f"Triton's protobuf cannot be imported ({error}): {install.remedy('triton')}, which brings tritonclient"
        ) from error
    return model_config_pb2
