"""Run the float64 oracle as a runner."""

from netvlad_deploy.oracle.equations import (
    ReferenceParameters,
    aggregate,
    assignment_logits,
    local_descriptors,
    project,
    residual_sum,
    soft_assignment,
)
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, PROBES, RESIDUAL_SUM, SOFT_ASSIGNMENT
from netvlad_deploy.support.arrays import Arrays


class OracleRunner(Runner):
    """Compute the descriptor and both probes in float64 from unfolded parameters; the mask is optional."""

    def __init__(self, parameters: ReferenceParameters) -> None:
        super().__init__(
            "oracle", parameters.spec, inputs=(FEATURES,), optional_inputs=(MASK,), outputs=(DESCRIPTOR, *PROBES)
        )
        self.parameters = parameters

    def _run(self, feeds: Arrays) -> Arrays:
        features, mask = feeds[FEATURES], feeds.get(MASK)
        logits = assignment_logits(self.parameters, features)
        assignment = soft_assignment(logits, self.parameters.spec.num_clusters, mask)
        residuals = residual_sum(assignment, local_descriptors(self.parameters, features), self.parameters.centroids)
        return {
            DESCRIPTOR: project(self.parameters, aggregate(self.parameters, residuals)),
            SOFT_ASSIGNMENT: assignment,
            RESIDUAL_SUM: residuals,
        }
