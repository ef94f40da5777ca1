"""Base classes of the objects that plugins build, and types of the objects that plugins get.

A plugin inherits from the base classes (``Dataset``, ``Logger``, ``Trainer``, ...). The engine hands records and
Protocols (``TrainContext``, ``RunInfo``, ...) to a plugin. The conformance kit (``flops_fit_core.testing``)
checks what a type checker cannot. torch is named in annotations only.

Who owns what: only the driver (the process that called ``run``) touches the store, the loggers and the
deletion of checkpoints; only a trainer writes checkpoints; a worker calls a :class:`JobTask` and nothing else.
"""

from flops_fit_core.plugins.protocols.data import (
    Batch,
    BatchCount,
    CompletedDataset,
    Dataset,
    LossSurface,
    MultiEvalDataset,
    SampleSize,
    Task,
    eval_batches,
    num_samples,
)
from flops_fit_core.plugins.protocols.executors import Executor, ExecutorContext, JobEnded, JobRunner, JobTask
from flops_fit_core.plugins.protocols.fitting import Fitter
from flops_fit_core.plugins.protocols.loggers import Logger
from flops_fit_core.plugins.protocols.models import (
    CounterInput,
    FlopCount,
    ParameterGroup,
    TransformerShape,
    own_parameter_groups,
)
from flops_fit_core.plugins.protocols.runs import (
    BuiltRun,
    Device,
    DistributedContext,
    RecipeInput,
    RunInfo,
    Schedule,
    TrainContext,
    Trainer,
    WidthScaling,
)
from flops_fit_core.plugins.protocols.stores import ResultStore

__all__ = [
    "Batch",
    "BatchCount",
    "BuiltRun",
    "CompletedDataset",
    "CounterInput",
    "Dataset",
    "Device",
    "DistributedContext",
    "Executor",
    "ExecutorContext",
    "Fitter",
    "FlopCount",
    "JobEnded",
    "JobRunner",
    "JobTask",
    "Logger",
    "LossSurface",
    "MultiEvalDataset",
    "ParameterGroup",
    "RecipeInput",
    "ResultStore",
    "RunInfo",
    "SampleSize",
    "Schedule",
    "Task",
    "TrainContext",
    "Trainer",
    "TransformerShape",
    "WidthScaling",
    "eval_batches",
    "num_samples",
    "own_parameter_groups",
]
