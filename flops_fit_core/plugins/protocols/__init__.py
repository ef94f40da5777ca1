"""What the things that plugins build must be able to do.

Executors subclass :class:`Executor`; the others are Protocols, from which nothing has to inherit. The conformance
kit (``flops_fit_core.testing``) checks what a type checker cannot. torch is named in annotations only.

Who owns what: only the driver (the process that called ``run``) touches the store, the loggers and the
deletion of checkpoints; only a trainer writes checkpoints; a worker calls a :class:`JobTask` and nothing else.
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
from flops_fit_core.plugins.protocols.executors import Executor, ExecutorContext, JobEnded, JobRunner, JobTask
from flops_fit_core.plugins.protocols.fitting import Fitter
from flops_fit_core.plugins.protocols.loggers import Logger
from flops_fit_core.plugins.protocols.models import (
    FlopCount,
    MeasuredModel,
    ParameterGroup,
    TransformerShape,
    own_parameter_groups,
)
from flops_fit_core.plugins.protocols.runs import (
    Device,
    RecipeInput,
    RunParts,
    RunView,
    Schedule,
    Together,
    TrainContext,
    Trainer,
    WidthScaling,
)
from flops_fit_core.plugins.protocols.stores import ResultStore

__all__ = [
    "Batch",
    "BatchCount",
    "CompletedDataset",
    "CountingTask",
    "Dataset",
    "Device",
    "Executor",
    "ExecutorContext",
    "Fitter",
    "FlopCount",
    "JobEnded",
    "JobRunner",
    "JobTask",
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
    "Together",
    "TrainContext",
    "Trainer",
    "TransformerShape",
    "WidthScaling",
    "own_parameter_groups",
]
