from .audit.tracing import Trace as Trace
from .audit.tracing import trace_flops as trace_flops
