"""Run the float64 oracle as a runner."""

from netvlad_deploy.oracle import equations
from netvlad_deploy.oracle.equations import ReferenceParameters
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
        parameters, features, mask = self.parameters, feeds[FEATURES], feeds.get(MASK)
        logits = equations.assignment_logits(parameters, features)
        assignment = equations.soft_assignment(logits, parameters.spec.num_clusters, mask)
        local = equations.local_descriptors(parameters, features)
        residuals = equations.residual_sum(assignment, local, parameters.centroids)
        return {
            DESCRIPTOR: equations.project(parameters, equations.aggregate(parameters, residuals)),
            SOFT_ASSIGNMENT: assignment,
            RESIDUAL_SUM: residuals,
        }
