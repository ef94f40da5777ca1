"""What the things that plugins build must be able to do.

These are Protocols: nothing has to inherit from them. The conformance kit (``flops_fit_core.testing``)
checks what a type checker cannot. torch is named in annotations only.

Who owns what: only the driver (the process that called ``run``) touches the store, the loggers and the
deletion of checkpoints; only a trainer writes checkpoints; a worker calls :func:`flops_fit_core.work` and
nothing else.
"""

from flops_fit_core.plugins.protocols.data import (
    Batch,
    BatchCount,
    CompletedDataset,
    CountingTask,
    Dataset,
    LossSurface,
    SampledDataset,
    SampleSize,
    SeveralHeldOutSets,
    Task,
)
from flops_fit_core.plugins.protocols.driving import Executor, ExecutorContext, JobEnded, Logger, ResultStore
from flops_fit_core.plugins.protocols.fitting import Fitter
from flops_fit_core.plugins.protocols.models import (
    FlopCount,
    MeasuredModel,
    ParameterGroup,
    TransformerShape,
    own_parameter_groups,
)
from flops_fit_core.plugins.protocols.runs import (
    Device,
    DistributedContext,
    RecipeInput,
    RunParts,
    RunView,
    Schedule,
    TrainContext,
    Trainer,
)

__all__ = [
    "Batch",
    "BatchCount",
    "CompletedDataset",
    "CountingTask",
    "Dataset",
    "Device",
    "DistributedContext",
    "Executor",
    "ExecutorContext",
    "Fitter",
    "FlopCount",
    "JobEnded",
    "Logger",
    "LossSurface",
    "MeasuredModel",
    "ParameterGroup",
    "RecipeInput",
    "ResultStore",
    "RunParts",
    "RunView",
    "SampleSize",
    "SampledDataset",
    "Schedule",
    "SeveralHeldOutSets",
    "Task",
    "TrainContext",
    "Trainer",
    "TransformerShape",
    "own_parameter_groups",
]
