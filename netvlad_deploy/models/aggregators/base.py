"""The base class of aggregators other than NetVLAD."""

from abc import abstractmethod

from torch import Tensor, nn

from netvlad_deploy.spec.layer import AggregatorSpec


class Aggregator(nn.Module):
    """Turn local descriptors (B,N,D), and the other inputs that its spec names, into descriptors (B,P).

    Its state has the names that its formula in `oracle/aggregators.py` reads.

    Args:
        spec: its sizes and inputs.
        feature_norm: norm of a usual local descriptor; golden features have it.
    """

    def __init__(self, spec: AggregatorSpec, *, feature_norm: float = 1.0) -> None:
        super().__init__()
        self.spec = spec
        self.feature_norm = feature_norm

    @abstractmethod
    def forward(self, features: Tensor, *others: Tensor) -> Tensor:
        """Return the descriptors (B,P) of local descriptors (B,N,D) and the other inputs, in the order of the spec."""
