"""Base classes of the objects that plugins build, and types of the objects that plugins receive.

A plugin inherits from the base classes (``Dataset``, ``Logger``, ``Trainer``, ...). The engine passes records and
Protocols (``TrainContext``, ``RunInfo``, ...) to a plugin. The conformance kit (``flops_fit_core.testing``) checks
behaviour that a type checker cannot. torch appears in annotations only.

Ownership: only the driver (the process that called ``run``) uses the store and the loggers and deletes
checkpoints. Only a trainer writes checkpoints. A worker only calls a :class:`JobTask`.
"""

from flops_fit_core.plugins.protocols.data import (
    Batch,
    BatchCount,
    CompletedDataset,
    Dataset,
    LossSurface,
    ModelEvaluation,
    MultiEvalDataset,
    SampleSize,
    Task,
    eval_batches,
    num_samples,
)
from flops_fit_core.plugins.protocols.executors import Executor, ExecutorContext, JobEnded, JobRunner, JobTask
from flops_fit_core.plugins.protocols.fitting import Fitter
from flops_fit_core.plugins.protocols.laws import LossLaw, Parameter, log_sum_exp
from flops_fit_core.plugins.protocols.loggers import Logger
from flops_fit_core.plugins.protocols.models import (
    CounterInput,
    FlopCount,
    ParameterGroup,
    TransformerShape,
    own_parameter_groups,
)
from flops_fit_core.plugins.protocols.readers import LoggedRun, RunReader
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
    "LoggedRun",
    "Logger",
    "LossLaw",
    "LossSurface",
    "ModelEvaluation",
    "MultiEvalDataset",
    "Parameter",
    "ParameterGroup",
    "RecipeInput",
    "ResultStore",
    "RunInfo",
    "RunReader",
    "SampleSize",
    "Schedule",
    "Task",
    "TrainContext",
    "Trainer",
    "TransformerShape",
    "WidthScaling",
    "eval_batches",
    "log_sum_exp",
    "num_samples",
    "own_parameter_groups",
]
